"""A link with several users: opened by the first, closed by the last, and one place for what they have in common."""

from __future__ import annotations

import asyncio

import pytest

from labrig_drivers.errors import LinkDesyncedError, LinkLostError, LinkTimeoutError, StateError
from labrig_drivers.links import Link, LinkState, MemoryLink, TcpLink
from labrig_drivers.links.framing import LineFraming
from labrig_drivers.links.shared import SharedLink


def answering() -> SharedLink:
    return SharedLink(MemoryLink(lambda request: b"" if request == b"silence\n" else request.upper()))


class Notes:
    """Something that users share."""

    def __init__(self, link: Link) -> None:
        self.link = link


async def test_the_last_user_closes() -> None:
    link = answering()
    assert (link.address, link.state.value) == ("memory:handler", "closed")
    await asyncio.gather(link.open(), link.open())
    await link.close()
    assert await link.exchange(b"a\n", LineFraming()) == b"A"
    await link.close()
    assert link.state.value == "closed"
    await link.close()
    with pytest.raises(StateError):
        await link.exchange(b"a\n", LineFraming())
    await link.open()
    assert link.state.value == "ready"
    await link.close()


async def test_a_link_that_cannot_be_opened_has_no_users() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    link = SharedLink(TcpLink("127.0.0.1", port))
    for _ in range(2):
        with pytest.raises(LinkLostError):
            await link.open()
    assert link.state is LinkState.CLOSED


async def test_a_fault_is_everybodys_until_somebody_reopens() -> None:
    link = answering()
    await link.open()
    await link.open()
    with pytest.raises(LinkTimeoutError):
        await link.exchange(b"silence\n", LineFraming())
    with pytest.raises(LinkDesyncedError):
        await link.exchange(b"a\n", LineFraming())
    await link.reopen()
    assert [one async for one in link.exchange_many([b"a\n", b"b\n"], LineFraming())] == [b"A", b"B"]
    await link.close()
    await link.close()


def test_users_have_one_thing_of_a_kind_in_common() -> None:
    link = answering()
    notes = link.common(Notes, Notes)
    assert link.common(Notes, Notes) is notes
    assert notes.link is link
    assert answering().common(Notes, Notes) is not notes
