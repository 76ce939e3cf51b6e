"""Several users of one connection: each keeps the contract of a link for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from labrig_drivers.errors import LinkDesyncedError, LinkLostError, LinkTimeoutError, StateError
from labrig_drivers.links import LineFraming, LinkState, TcpLink
from labrig_drivers.links.link_user import LinkUser
from labrig_drivers.links.shared import SharedLink

LINE = LineFraming()


class Peer:
    """Echoes lines, except `silence`, and counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.heard: list[str] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def users(self, port: int) -> tuple[LinkUser, LinkUser]:
        shared = SharedLink(TcpLink("127.0.0.1", port))
        return LinkUser(shared), LinkUser(shared)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        while line := await reader.readline():
            self.heard.append(line.decode().strip())
            if line != b"silence\n":
                writer.write(line)
        writer.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    await peer.stop()
    # The streams' own tasks end one turn of the loop later.
    await asyncio.sleep(0.01)


async def ask(user: LinkUser, text: str) -> str:
    return (await user.exchange(text.encode() + b"\n", LINE, timeout_s=0.1)).decode()


async def test_the_first_connects_and_the_last_disconnects(peer: Peer) -> None:
    first, second = peer.users(await peer.start())
    assert (first.state, second.state) == (LinkState.CLOSED, LinkState.CLOSED)
    await first.open()
    with pytest.raises(StateError, match="open it first"):
        await ask(second, "a")
    await second.open()
    assert (await ask(first, "a"), await ask(second, "b")) == ("a", "b")
    await first.close()
    await first.close()
    assert (first.state, second.state) == (LinkState.CLOSED, LinkState.READY)
    assert await ask(second, "c") == "c"
    with pytest.raises(StateError, match="open it first"):
        await ask(first, "d")
    await second.close()
    await first.open()
    assert (await ask(first, "e"), peer.connections) == ("e", 2)
    with pytest.raises(StateError, match="close it before"):
        await first.open()
    await first.close()


async def test_exchanges_take_turns(peer: Peer) -> None:
    first, second = peer.users(await peer.start())
    await asyncio.gather(first.open(), second.open())
    answers = await asyncio.gather(*(ask(user, f"{index}") for index in range(100) for user in (first, second)))
    assert answers == [f"{index // 2}" for index in range(200)]
    assert peer.connections == 1
    await asyncio.gather(first.close(), second.close())
    assert first.state is LinkState.CLOSED


async def test_after_a_fault_each_has_to_come_back_but_only_one_connects(peer: Peer) -> None:
    first, second = peer.users(await peer.start())
    await first.open()
    await second.open()
    with pytest.raises(LinkTimeoutError):
        await ask(first, "silence")
    assert (first.state, second.state) == (LinkState.DESYNCHRONISED, LinkState.DESYNCHRONISED)
    with pytest.raises(LinkDesyncedError):
        await ask(second, "a")
    await second.reopen()
    assert (first.state, second.state) == (LinkState.DESYNCHRONISED, LinkState.READY)
    with pytest.raises(LinkDesyncedError, match="another user"):
        await ask(first, "a")
    assert await ask(second, "b") == "b"
    await first.reopen()
    assert (await ask(first, "c"), await ask(second, "d"), peer.connections) == ("c", "d", 2)
    # Asked for once more, it is a new connection: the first time may not have been enough.
    await first.reopen()
    assert (await ask(first, "e"), peer.connections, second.state) == ("e", 3, LinkState.DESYNCHRONISED)
    await first.close()
    await second.close()


async def test_who_waited_while_another_failed_does_not_ask(peer: Peer) -> None:
    first, second = peer.users(await peer.start())
    await first.open()
    await second.open()
    failing, waiting = await asyncio.gather(ask(first, "silence"), ask(second, "a"), return_exceptions=True)
    assert isinstance(failing, LinkTimeoutError)
    assert isinstance(waiting, LinkDesyncedError)
    assert peer.heard == ["silence"]
    await first.close()
    await second.close()


async def test_a_lost_peer_is_lost_for_everyone_until_he_reopens(peer: Peer) -> None:
    port = await peer.start()
    first, second = peer.users(port)
    await first.open()
    await second.open()
    await peer.stop()
    with pytest.raises(LinkLostError):
        await ask(first, "a")
    assert (first.state, second.state) == (LinkState.BROKEN, LinkState.BROKEN)
    with pytest.raises(LinkLostError):
        await second.reopen(timeout_s=0.2)
    await peer.start(port)
    await first.reopen()
    assert (first.state, second.state) == (LinkState.READY, LinkState.BROKEN)
    with pytest.raises(LinkLostError, match="another user"):
        await ask(second, "a")
    await second.reopen()
    assert (await ask(second, "b"), peer.connections) == ("b", 2)
    await first.close()
    await second.close()


async def test_who_joins_a_connection_in_doubt_makes_it_anew(peer: Peer) -> None:
    first, second = peer.users(await peer.start())
    await first.open()
    with pytest.raises(LinkTimeoutError):
        await ask(first, "silence")
    await second.open()
    assert (first.state, second.state) == (LinkState.DESYNCHRONISED, LinkState.READY)
    assert (await ask(second, "a"), peer.connections) == ("a", 2)
    await second.close()
    await first.close()


async def test_many_requests_are_one_turn(peer: Peer) -> None:
    first, second = peer.users(await peer.start())
    await first.open()
    await second.open()
    answers = []
    async with aclosing(first.exchange_many([b"1\n", b"2\n", b"3\n"], LINE, window=2)) as messages:
        other = asyncio.create_task(ask(second, "4"))
        async for message in messages:
            answers.append(message)
            await asyncio.sleep(0)
    assert answers == [b"1", b"2", b"3"]
    assert await other == "4"
    assert peer.heard == ["1", "2", "3", "4"]
    await first.close()
    with pytest.raises(StateError):
        await anext(first.exchange_many([b"5\n"], LINE))
    await second.close()
