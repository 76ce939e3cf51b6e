"""TCP, serial and VISA links against real sockets and pseudo-terminals."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from labrig_drivers.errors import ConfigError, LinkLostError, LinkTimeoutError, ProtocolError, StateError
from labrig_drivers.links import (
    BlockFraming,
    LineFraming,
    Link,
    LinkState,
    MemoryLink,
    SerialLink,
    TcpLink,
    VisaLink,
    link_from_url,
)

LINE = LineFraming()
BLOCK = bytes(range(256)) * 40


def answer(line: bytes) -> bytes:
    """What the test instrument answers."""
    if line == b"BLOCK?":
        return b"#510240" + BLOCK + b"\n"
    if line.startswith(b"SAY "):
        return line.removeprefix(b"SAY ") + b"\n"
    if line.startswith(b"TWICE "):
        return (line.removeprefix(b"TWICE ") + b"\n") * 2
    return b""


async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers line by line until the client leaves."""
    try:
        while line := await reader.readline():
            # In pieces, so that no link may hope for a message at once.
            reply = answer(line.rstrip(b"\n"))
            writer.write(reply[:3])
            await asyncio.sleep(0)
            writer.write(reply[3:])
            await writer.drain()
    except ConnectionError:
        return
    finally:
        writer.close()


@asynccontextmanager
async def tcp_peer() -> AsyncIterator[int]:
    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class PtyPeer:
    """The instrument's end of a pseudo-terminal."""

    def __init__(self) -> None:
        self.master, self.terminal = os.openpty()
        tty.setraw(self.terminal)
        os.set_blocking(self.master, False)
        self.device = os.ttyname(self.terminal)
        self._buffer = bytearray()
        asyncio.get_running_loop().add_reader(self.master, self._on_readable)

    def _on_readable(self) -> None:
        self._buffer += os.read(self.master, 65536)
        while (line := LINE.take(self._buffer)) is not None:
            self._reply = answer(line)
            self._send()

    def _send(self) -> None:
        # A pseudo-terminal takes some kilobytes at a time.
        with suppress(BlockingIOError):
            self._reply = self._reply[os.write(self.master, self._reply) :]
        if self._reply:
            asyncio.get_running_loop().call_later(0.001, self._send)

    def hang_up(self) -> None:
        if self.master >= 0:
            asyncio.get_running_loop().remove_reader(self.master)
            os.close(self.terminal)
            os.close(self.master)
            self.master = -1


@pytest.fixture(params=["tcp", "serial", "visa", "memory"])
async def link(request: pytest.FixtureRequest) -> AsyncIterator[Link]:
    if request.param == "memory":
        made: Link = MemoryLink(lambda request: answer(request.rstrip(b"\n")))
        yield made
        await made.close()
        return
    if request.param == "serial":
        peer = PtyPeer()
        made = SerialLink(peer.device)
        yield made
        await made.close()
        peer.hang_up()
        return
    async with tcp_peer() as port:
        made = TcpLink("127.0.0.1", port) if request.param == "tcp" else VisaLink(f"TCPIP::127.0.0.1::{port}::SOCKET")
        yield made
        await made.close()


def state_of(link: Link) -> LinkState:
    """The state now, whatever a type checker concluded from an earlier look."""
    return link.state


async def test_life_cycle(link: Link) -> None:
    assert state_of(link) is LinkState.CLOSED
    with pytest.raises(StateError, match="open it first"):
        await link.exchange(b"SAY a\n", LINE)
    await link.open()
    assert state_of(link) is LinkState.READY
    with pytest.raises(StateError, match="close it before"):
        await link.open()
    assert await link.exchange(b"SAY a\n", LINE) == b"a"
    assert await link.exchange(b"HUSH\n", None) == b""
    assert await link.exchange(b"SAY b\r\n", LINE) == b"b"
    await link.close()
    await link.close()
    assert link.state is LinkState.CLOSED
    await link.open()
    assert await link.exchange(b"SAY c\n", LINE) == b"c"


async def test_blocks_with_line_ends_inside(link: Link) -> None:
    await link.open()
    assert await link.exchange(b"BLOCK?\n", BlockFraming()) == BLOCK
    assert await link.exchange(b"SAY after\n", LINE) == b"after"


async def test_many_tasks_each_get_their_own_answer(link: Link) -> None:
    await link.open()
    asked = [f"SAY {index}\n".encode() for index in range(40)]
    answers = await asyncio.gather(*(link.exchange(request, LINE) for request in asked))
    assert answers == [str(index).encode() for index in range(40)]


async def exchange_twice(link: Link, request: bytes) -> None:
    for _ in range(2):
        await link.exchange(request, LINE)
        await asyncio.sleep(0.02)


async def test_two_messages_are_no_answer(link: Link) -> None:
    await link.open()
    # The second line is there with the first, or found before the next request is sent.
    with pytest.raises(ProtocolError):
        await exchange_twice(link, b"TWICE a\n")
    assert link.state is LinkState.DESYNCHRONISED
    await link.reopen()
    assert await link.exchange(b"SAY new\n", LINE) == b"new"


async def test_what_cannot_be_framed_desynchronises(link: Link) -> None:
    await link.open()
    with pytest.raises(ProtocolError):
        await link.exchange(b"SAY not a block\n", BlockFraming())
    assert link.state is LinkState.DESYNCHRONISED


async def test_no_answer_is_a_timeout(link: Link) -> None:
    await link.open()
    with pytest.raises(LinkTimeoutError, match="HUSH"):
        await link.exchange(b"HUSH\n", LINE, timeout_s=0.1)
    assert link.state is LinkState.DESYNCHRONISED


async def test_reopening_opens_what_was_closed(link: Link) -> None:
    await link.reopen()
    assert await link.exchange(b"SAY a\n", LINE) == b"a"


async def test_tcp_options_are_set() -> None:
    async with tcp_peer() as port:
        link = TcpLink("127.0.0.1", port)
        await link.open()
        ours = [s for s in _sockets_to(port) if s.getpeername()[1] == port]
        options = [
            (s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            for s in ours
        ]
        for duplicate in ours:
            duplicate.close()
        await link.close()
    assert options == [(1, 1)]


def _sockets_to(port: int) -> list[socket.socket]:
    """Duplicates of this process's sockets that are connected to `port`."""
    found = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            candidate = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue
        try:
            connected = candidate.family == socket.AF_INET and candidate.getpeername()[1] == port
        except OSError:
            connected = False
        if connected:
            found.append(candidate)
        else:
            candidate.close()
    return found


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("kind", ["tcp", "visa"])
async def test_a_refused_connection_says_where(kind: str, dead_port: int) -> None:
    resource = f"TCPIP::127.0.0.1::{dead_port}::SOCKET"
    link: Link = TcpLink("127.0.0.1", dead_port) if kind == "tcp" else VisaLink(resource)
    with pytest.raises(LinkLostError, match=rf"{dead_port}.* \(Connection refused\)"):
        await link.open(timeout_s=2.0)
    assert state_of(link) is LinkState.CLOSED
    with pytest.raises(LinkLostError):
        await link.reopen(timeout_s=2.0)
    assert state_of(link) is LinkState.BROKEN
    await link.close()


@pytest.mark.parametrize("resource", ["NONSENSE", "TCPIP::127.0.0.1::SOCKET", "GPIB0::24::INSTR"])
async def test_visa_resources_that_cannot_be_opened(resource: str) -> None:
    link = VisaLink(resource)
    with pytest.raises(LinkLostError, match=resource):
        await link.open(timeout_s=1.0)
    assert link.state is LinkState.CLOSED


async def test_a_serial_port_is_opened_by_one_only() -> None:
    peer = PtyPeer()
    first, second = SerialLink(peer.device), SerialLink(peer.device)
    await first.open()
    with pytest.raises(LinkLostError, match="cannot open the port"):
        await second.open()
    assert second.state is LinkState.CLOSED
    assert await first.exchange(b"SAY mine\n", LINE) == b"mine"
    await first.close()
    await second.open()
    await second.close()
    peer.hang_up()


async def test_a_serial_port_that_does_not_exist() -> None:
    with pytest.raises(LinkLostError, match="/dev/no-such-port"):
        await SerialLink("/dev/no-such-port").open()


async def test_a_long_serial_request_waits_for_room() -> None:
    peer = PtyPeer()
    link = SerialLink(peer.device)
    await link.open()
    text = b"x" * 20000
    assert await link.exchange(b"SAY " + text + b"\n", LINE) == text
    await link.close()
    peer.hang_up()


async def test_visa_reaches_a_serial_port_too() -> None:
    peer = PtyPeer()
    link = VisaLink(f"ASRL{peer.device}::INSTR")
    await link.open()
    assert await link.exchange(b"SAY a\n", LINE) == b"a"
    os.write(peer.master, b"unasked\n")
    await asyncio.sleep(0.02)
    with pytest.raises(ProtocolError, match="unasked"):
        await link.exchange(b"SAY b\n", LINE)
    await link.close()
    peer.hang_up()


def test_urls_name_links() -> None:
    assert link_from_url("tcp://192.168.0.5:5025").address == "tcp://192.168.0.5:5025"
    assert link_from_url("serial:///dev/ttyUSB0").address == "serial:///dev/ttyUSB0?baudrate=115200"
    assert link_from_url("serial:///dev/ttyUSB0?baudrate=9600").address == "serial:///dev/ttyUSB0?baudrate=9600"
    visa = link_from_url("visa://TCPIP::127.0.0.1::5025::SOCKET")
    assert visa.address == "visa://TCPIP::127.0.0.1::5025::SOCKET"
    assert isinstance(visa, VisaLink)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:5025",
        "http://127.0.0.1:80",
        "tcp://127.0.0.1",
        "tcp://:5025",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:abc",
        "tcp://127.0.0.1:5025/x",
        "serial://",
        "serial:///",
        "serial://ttyUSB0",
        "serial:///dev/ttyUSB0?baudrate=fast",
        "serial:///dev/ttyUSB0?baudrate=0",
        "serial:///dev/ttyUSB0?parity=even",
        "visa://",
    ],
)
def test_bad_urls_say_which_forms_exist(url: str) -> None:
    with pytest.raises(ConfigError, match=r"tcp://HOST:PORT.*serial://.*visa://"):
        link_from_url(url)


def test_importing_links_loads_neither_pyvisa_nor_pyserial() -> None:
    code = (
        "import sys, labrig_drivers.links as links; from labrig_drivers.links import TcpLink, LineFraming; "
        "links.link_from_url('tcp://h:1'); "
        "print(sorted(name for name in ('pyvisa', 'serial') if name in sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    assert shown.stdout.strip() == "[]"


def test_unknown_names_are_attribute_errors() -> None:
    import labrig_drivers.links

    with pytest.raises(AttributeError, match="no_such"):
        _ = labrig_drivers.links.no_such
