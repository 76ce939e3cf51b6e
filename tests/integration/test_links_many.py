"""Several requests under way on one link of any kind: order, windows, answers of several messages, failures."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest

from labrig_drivers.errors import LinkDesyncedError, LinkError, LinkLostError, LinkTimeoutError, ProtocolError
from labrig_drivers.links import LineFraming, Link, LinkState, MemoryLink, SerialLink, TcpLink, VisaLink

LINE = LineFraming()
KINDS = ["tcp", "serial", "visa", "memory"]


def answer(line: bytes) -> bytes:
    """`SAY x` is answered by x, `COUNT n` by n lines of which the last is `end`, all else by nothing."""
    verb, _, rest = line.partition(b" ")
    if verb == b"SAY":
        return rest + b"\n"
    if verb == b"COUNT":
        return b"".join(b"%d\n" % number for number in range(int(rest) - 1)) + b"end\n"
    return b""


class Peer:
    """An instrument that answers line by line, on a socket or on a pseudo-terminal."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def take(self, line: bytes) -> bytes:
        self.heard.append(line.rstrip(b"\n"))
        return answer(self.heard[-1])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                if line == b"LEAVE\n":
                    return
                writer.write(self.take(line))
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def terminal(peer: Peer) -> AsyncIterator[str]:
    """The path of a pseudo-terminal that the peer answers on."""
    loop = asyncio.get_running_loop()
    master, slave = os.openpty()
    tty.setraw(slave)
    buffer = bytearray()

    def on_readable() -> None:
        buffer.extend(os.read(master, 4096))
        while (line := LINE.take(buffer)) is not None:
            os.write(master, peer.take(line))

    loop.add_reader(master, on_readable)
    try:
        yield os.ttyname(slave)
    finally:
        loop.remove_reader(master)
        os.close(master)
        os.close(slave)


@asynccontextmanager
async def link_to(kind: str, peer: Peer) -> AsyncIterator[Link]:
    if kind == "memory":
        link: Link = MemoryLink(peer.take)
        yield link
    elif kind == "serial":
        async with terminal(peer) as device:
            link = SerialLink(device)
            yield link
            await link.close()
    else:
        server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = TcpLink("127.0.0.1", port) if kind == "tcp" else VisaLink(f"TCPIP::127.0.0.1::{port}::SOCKET")
        yield link
        await link.close()
        server.close()
        await server.wait_closed()
    await link.close()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture(params=KINDS)
async def link(request: pytest.FixtureRequest, peer: Peer) -> AsyncIterator[Link]:
    async with link_to(request.param, peer) as made:
        await made.open()
        yield made


async def collect(came: list[bytes], exchange: AsyncGenerator[bytes]) -> None:
    """Appends messages as they come, so that those before a failure are kept."""
    async for message in exchange:
        came += [message]


def says(count: int) -> list[bytes]:
    return [b"SAY %d\n" % number for number in range(count)]


@pytest.mark.parametrize("window", [1, 4, 100])
async def test_answers_come_in_order_and_the_link_goes_on(link: Link, window: int) -> None:
    came = [message async for message in link.exchange_many(says(50), LINE, window=window)]
    assert came == [b"%d" % number for number in range(50)]
    assert link.state is LinkState.READY
    assert await link.exchange(b"SAY on\n", LINE) == b"on"
    assert [message async for message in link.exchange_many([], LINE, window=window)] == []


async def test_requests_are_made_when_their_turn_comes(link: Link) -> None:
    came: list[bytes] = []
    ahead: list[int] = []

    def made() -> Iterator[bytes]:
        for request in says(12):
            ahead.append(len(came))
            yield request

    await collect(came, link.exchange_many(made(), LINE, window=3))
    # The first three before any answer; each of the others at most three ahead of what was answered.
    assert ahead[:3] == [0, 0, 0]
    assert all(index - answered <= 3 for index, answered in enumerate(ahead))
    assert ahead[-1] >= 8


async def test_an_answer_may_have_several_messages(link: Link) -> None:
    requests = [b"COUNT 3\n", b"COUNT 1\n", b"COUNT 2\n"]
    exchange = link.exchange_many(requests, LINE, window=2, is_last=lambda message: message == b"end")
    assert [message async for message in exchange] == [b"0", b"1", b"end", b"end", b"0", b"end"]
    assert await link.exchange(b"SAY on\n", LINE) == b"on"


async def test_one_answer_too_few_is_a_timeout_and_nothing_stale_comes_after_it(link: Link) -> None:
    came: list[bytes] = []
    with pytest.raises(LinkTimeoutError):
        await collect(came, link.exchange_many([*says(3), b"HUSH\n"], LINE, window=4, timeout_s=0.1))
    # VISA hands the messages of a window over together, or none of them.
    assert came == ([] if isinstance(link, VisaLink) else [b"0", b"1", b"2"])
    with pytest.raises(LinkDesyncedError):
        await link.exchange(b"SAY new\n", LINE)
    await link.reopen()
    assert await link.exchange(b"SAY new\n", LINE) == b"new"


async def test_one_message_too_many_is_found_at_the_end(link: Link) -> None:
    with pytest.raises((ProtocolError, LinkError)):
        _ = [message async for message in link.exchange_many([*says(3), b"COUNT 2\n"], LINE, window=4)]
    with pytest.raises(LinkDesyncedError):
        await link.exchange(b"SAY new\n", LINE)
    await link.reopen()
    assert await link.exchange(b"SAY new\n", LINE) == b"new"


async def test_left_early_the_link_is_desynchronised(link: Link) -> None:
    async with aclosing(link.exchange_many(says(20), LINE, window=5)) as messages:
        assert await anext(messages) == b"0"
    assert link.state is LinkState.DESYNCHRONISED
    await link.reopen()
    assert await link.exchange(b"SAY new\n", LINE) == b"new"


async def test_a_request_that_cannot_be_made_desynchronises_like_any_failure(link: Link) -> None:
    def made() -> Iterator[bytes]:
        yield b"SAY 1\n"
        raise ValueError("no more voltage")

    with pytest.raises(ValueError, match="no more voltage"):
        _ = [message async for message in link.exchange_many(made(), LINE, window=4)]
    assert link.state is LinkState.DESYNCHRONISED


async def test_others_wait_until_all_have_come(link: Link) -> None:
    async with aclosing(link.exchange_many(says(6), LINE, window=2)) as messages:
        assert await anext(messages) == b"0"
        other = asyncio.create_task(link.exchange(b"SAY other\n", LINE))
        assert [message async for message in messages] == [b"%d" % number for number in range(1, 6)]
        assert await other == b"other"


async def test_a_peer_that_leaves_is_a_lost_link(peer: Peer) -> None:
    async with link_to("tcp", peer) as link:
        await link.open()
        with pytest.raises(LinkLostError):
            _ = [message async for message in link.exchange_many([*says(3), b"LEAVE\n", *says(3)], LINE, window=10)]
        assert link.state is LinkState.BROKEN


async def test_cancelled_at_any_moment_the_next_answer_is_right(link: Link) -> None:
    for turns in range(12):
        asking = asyncio.create_task(_all(link))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        if link.state is not LinkState.READY:
            await link.reopen()
        assert await link.exchange(b"SAY new\n", LINE) == b"new"


async def _all(link: Link) -> None:
    async for _ in link.exchange_many(says(40), LINE, window=8):
        await asyncio.sleep(0)
