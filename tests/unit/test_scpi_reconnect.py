"""Idempotent queries may be asked again after a fault, with growing pauses; nothing else ever is."""

from __future__ import annotations

import pytest

from labrig_drivers.errors import IdentityError, LinkTimeoutError, ProtocolError
from labrig_drivers.links import MemoryLink
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.scpi import ScpiChannel

QUICK = Reconnect(attempts=3, first_pause_s=0.001, longest_pause_s=0.002)


class Peer:
    """Answers from a table; is silent as often as told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.silent = 0
        self.identity = "ACME,1,2,3"

    def handle(self, request: bytes) -> bytes:
        answers = b""
        for line in request.decode().splitlines():
            self.said.append(line)
            if line in {"VALUE?", "SET 1"} and self.silent:
                self.silent -= 1
                return b""
            answer = {"*IDN?": self.identity, "*OPC?": "1", "VALUE?": "42", ":SYST:ERR?": '0,"No error"'}.get(line)
            answers += b"" if answer is None else answer.encode() + b"\n"
        return answers


async def channel(peer: Peer, reconnect: Reconnect | None) -> ScpiChannel:
    made = ScpiChannel(MemoryLink(peer.handle), "acme", reconnect=reconnect)
    await made.open()
    await made.identify()
    peer.said.clear()
    return made


async def test_an_idempotent_query_is_asked_again() -> None:
    peer = Peer()
    scpi = await channel(peer, QUICK)
    peer.silent = 2
    assert await scpi.query("VALUE?", idempotent=True) == "42"
    assert peer.said == ["VALUE?", "*IDN?", "*OPC?", "VALUE?", "*IDN?", "*OPC?", "VALUE?"]


async def test_patience_ends_with_the_last_failure() -> None:
    peer = Peer()
    scpi = await channel(peer, QUICK)
    peer.silent = 10
    with pytest.raises(LinkTimeoutError):
        await scpi.query("VALUE?", idempotent=True)
    assert peer.said.count("VALUE?") == 4


@pytest.mark.parametrize("reconnect", [None, QUICK])
async def test_nothing_else_is_asked_twice(reconnect: Reconnect | None) -> None:
    peer = Peer()
    scpi = await channel(peer, reconnect)
    peer.silent = 1
    with pytest.raises(LinkTimeoutError):
        await scpi.query("VALUE?")
    peer.silent = 1
    with pytest.raises(LinkTimeoutError):
        await scpi.write("SET 1")
    assert (peer.said.count("VALUE?"), peer.said.count("SET 1")) == (1, 1)


async def test_another_instrument_is_not_asked() -> None:
    peer = Peer()
    scpi = await channel(peer, QUICK)
    peer.silent, peer.identity = 1, "ACME,1,other,3"
    with pytest.raises(IdentityError):
        await scpi.query("VALUE?", idempotent=True)
    assert peer.said.count("VALUE?") == 1


def test_pauses_grow_to_a_longest_one() -> None:
    assert list(Reconnect(5, 0.1, 2.0, 0.5).pauses_s()) == [0.1, 0.2, 0.4, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"attempts = 0 is not positive; growth = 0\.5 .* first_pause_s = -1 s is not"):
        Reconnect(attempts=0, first_pause_s=-1.0, growth=0.5)


async def test_a_block_is_taken_whole() -> None:
    link = MemoryLink(lambda request: b"#15ab\ncd\n" if request == b"DATA?\n" else b"no block\n")
    scpi = ScpiChannel(link, "acme")
    await scpi.open()
    assert await scpi.query_block("DATA?") == b"ab\ncd"
    with pytest.raises(ProtocolError, match="block"):
        await scpi.query_block("OTHER?")
