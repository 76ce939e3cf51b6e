"""What went wrong elsewhere must not go wrong here: shared instruments, stopped peers, deaf peers, lost listeners."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import pytest

from labrig.testing.echo import EchoBoard, EchoInstrument, echo_answer
from labrig.testing.fault_plan import Fault, FaultPlan, PlannedFault
from labrig.testing.fault_proxy import FaultProxy
from labrig_drivers.errors import LinkDesyncedError, LinkError, LinkLostError, LinkTimeoutError, ProtocolError
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.keithley2600 import Keithley2600
from labrig_drivers.links import LineFraming, Link, LinkState, MemoryLink, SerialLink, TcpLink, VisaLink
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.scpi import ScpiChannel
from labrig_drivers.wire_board import WireBoard

LINE = LineFraming()
KINDS = ["tcp", "serial", "visa", "memory"]
TASKS, QUERIES_PER_TASK = 4, 500

# A text instrument in a process of its own, which can be stopped as a whole; it ends with its standard input.
ECHO_PROCESS = """
import asyncio, sys
from labrig.testing.echo import EchoInstrument

async def serve():
    async with EchoInstrument() as instrument:
        print(instrument.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(serve())
"""


def answer_from_memory(request: bytes) -> bytes:
    said = echo_answer(request.decode().strip())
    return b"" if said is None else said.encode() + b"\n"


@asynccontextmanager
async def echo_link(kind: str) -> AsyncIterator[Link]:
    """A closed link of this kind to an echo instrument."""
    if kind == "memory":
        yield MemoryLink(answer_from_memory)
        return
    async with EchoInstrument() as instrument:
        if kind == "serial":
            async with FaultProxy(instrument.port, serial=True) as line:
                yield SerialLink(line.device)
            return
        made: Link = TcpLink("127.0.0.1", instrument.port)
        yield made if kind == "tcp" else VisaLink(f"TCPIP::127.0.0.1::{instrument.port}::SOCKET")


@pytest.mark.parametrize("kind", KINDS)
async def test_two_thousand_queries_of_four_tasks_each_get_their_own_answer(kind: str) -> None:
    """With pyvisa-py alone, two threads on one session got 5,094 foreign answers in 6,000, without an exception."""
    async with echo_link(kind) as link:
        channel = ScpiChannel(link, "shared", timeout_s=10.0)
        await channel.open()
        await channel.identify()

        async def ask(task: int) -> int:
            right = 0
            for index in range(QUERIES_PER_TASK):
                right += await channel.query(f"SAY {task}-{index}") == f"{task}-{index}"
            return right

        right = await asyncio.gather(*(ask(task) for task in range(TASKS)))
        await channel.close()
    assert right == [QUERIES_PER_TASK] * TASKS


@pytest.mark.parametrize("kind", ["tcp", "serial", "visa"])
async def test_after_a_timeout_the_next_query_gets_its_own_answer(kind: str) -> None:
    """With pyvisa-py alone, the query after a timeout was given the late answer of the one before."""
    async with EchoInstrument() as instrument, FaultProxy(instrument.port, serial=kind == "serial") as proxy:
        match kind:
            case "tcp":
                link: Link = TcpLink("127.0.0.1", proxy.port)
            case "serial":
                link = SerialLink(proxy.device)
            case _:
                link = VisaLink(f"TCPIP::127.0.0.1::{proxy.port}::SOCKET")
        channel = ScpiChannel(link, "late", timeout_s=0.2)
        await channel.open()
        await channel.identify()
        for attempt in range(3):
            proxy.plan = FaultPlan.of(PlannedFault(Fault.DELAY, message=0, duration_s=0.25))
            with pytest.raises(LinkTimeoutError):
                await channel.query(f"SAY old {attempt}")
            # On a serial line the first recovery may still meet the late answer; then it says so.
            for _ in range(3):
                with suppress(LinkError, ProtocolError):
                    assert await channel.query(f"SAY new {attempt}") == f"new {attempt}"
                    break
            assert await channel.query("SAY newer") == "newer"
        await channel.close()
    assert proxy.kinds == {Fault.DELAY: 3}


async def test_a_late_answer_from_memory_is_never_returned() -> None:
    answers = [b"", b"old\nnew\n", b"newer\n"]
    link = MemoryLink(lambda _: answers.pop(0))
    await link.open()
    with pytest.raises(LinkTimeoutError):
        await link.exchange(b"SAY old\n", LINE)
    with pytest.raises(LinkDesyncedError):
        await link.exchange(b"SAY new\n", LINE)
    await link.reopen()
    with pytest.raises(ProtocolError, match="more than one"):
        await link.exchange(b"SAY new\n", LINE)
    await link.reopen()
    assert await link.exchange(b"SAY newer\n", LINE) == b"newer"
    await link.close()


async def test_a_peer_that_is_stopped_and_returns() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ECHO_PROCESS), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        channel = ScpiChannel(TcpLink("127.0.0.1", int(await process.stdout.readline())), "stopped", timeout_s=0.1)
        await channel.open()
        await channel.identify()
        process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            # The kernel still accepts connections for it; its silence is what tells.
            with pytest.raises(LinkTimeoutError):
                await channel.query("SAY unheard")
        process.send_signal(signal.SIGCONT)
        while True:
            with suppress(LinkTimeoutError):
                # Awake again, it first says to closed connections what was asked before.
                assert await channel.query("SAY heard") == "heard"
                break
        await channel.close()
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.stdin.close()
        await process.wait()


async def test_a_listener_that_never_accepts_or_never_speaks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = TcpLink("127.0.0.1", listener.getsockname()[1])
        for _ in range(2):
            with pytest.raises(LinkTimeoutError):
                await Keithley2400(link, timeout_s=0.05).open()
            assert link.state is LinkState.CLOSED


async def test_a_listener_that_goes_away_and_returns() -> None:
    async with EchoInstrument() as instrument, FaultProxy(instrument.port) as proxy:
        channel = ScpiChannel(TcpLink("127.0.0.1", proxy.port), "away", timeout_s=1.0)
        await channel.open()
        await channel.identify()
        for round_trip in range(3):
            assert await channel.query(f"SAY {round_trip}") == str(round_trip)
            await proxy.refuse()
            with pytest.raises(LinkLostError):
                await channel.query("SAY nobody")
            for _ in range(2):
                with pytest.raises(LinkLostError):
                    await channel.recover()
            await proxy.heal()
            await channel.recover()
        assert await channel.query("SAY back") == "back"
        await channel.close()


@contextmanager
def connected_sockets(port: int) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Copies of this process's sockets that are connected to `port`, and of those that were accepted there."""
    with ExitStack() as stack:
        hosts, accepted = [], []
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only, and they come and go
            with suppress(OSError):
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                copy = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
                if copy.family is socket.AF_INET and copy.getpeername()[1] == port:
                    hosts.append(copy)
                elif copy.family is socket.AF_INET and copy.getsockname()[1] == port:
                    accepted.append(copy)
        yield hosts, accepted


async def test_both_ends_of_a_connection_send_at_once_and_notice_a_dead_machine() -> None:
    """Without TCP_NODELAY every second small message waits for an acknowledgement, 44 ms in place of 0.5 ms."""
    async with BoardServer(EchoBoard()) as server:
        port = await server.start_tcp()
        async with WireBoard(TcpLink("127.0.0.1", port)) as board:
            await board.ping()
            with connected_sockets(port) as ((host,), (accepted,)):
                for end in (host, accepted):
                    assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_an_identity_that_somebody_before_asked_for_is_not_believed() -> None:
    """A serial line kept it; the own identity then answered the next query."""
    async with EchoInstrument() as instrument, FaultProxy(instrument.port, serial=True) as proxy:
        late_s = (0.25, 0.05, 0.03)
        proxy.plan = FaultPlan.of(
            *(PlannedFault(Fault.DELAY, message=index, duration_s=one) for index, one in enumerate(late_s))
        )
        before, after = (ScpiChannel(SerialLink(proxy.device), name, timeout_s=0.2) for name in ("before", "after"))
        await before.open()
        with pytest.raises(LinkTimeoutError):
            await before.identify()
        await before.close()
        for _ in range(10):
            await after.open()
            try:
                await after.identify()
                assert await after.query("SAY 1") == "1"
            except (LinkError, ProtocolError):
                continue
            else:
                break
            finally:
                await after.close()
        else:
            pytest.fail("the line did not come back into step")


async def test_a_script_that_is_cut_on_its_way_leaves_no_output_on() -> None:
    """The 2600 went on collecting it: every later line, `*IDN?` among them, became part of the script."""
    simulated = SimulatedKeithley2600(ResistorLoad(1000.0))
    async with InstrumentServer(simulated, time_scale=0.01) as server, FaultProxy(server.port) as proxy:
        link = TcpLink("127.0.0.1", proxy.port)
        meter = Keithley2600(link, timeout_s=0.2, ramp_v_per_s=1e5, ramp_step_v=2.5)
        await meter.open()
        await meter.configure(source="voltage", nplc=0.01)
        await meter.set_limit(current_a=0.01)
        await meter.set_level(voltage_v=0.0)
        await meter.output_on()
        # Four questions go before the script.
        proxy.plan = FaultPlan.of(PlannedFault(Fault.CUT, "requests", message=4, offset=200))
        with pytest.raises(LinkError):
            await meter.sweep(voltage_v=[0.1, 0.2, 0.3])
        assert b"loadandrunscript" in proxy.injected[0].message
        await proxy.heal()
        await meter.close()
        async with Keithley2600(TcpLink("127.0.0.1", proxy.port), timeout_s=0.2) as another:
            assert not await another.output_is_on()
            assert await another.errors() == []


async def test_a_connection_that_was_made_anew_sends_at_once_too() -> None:
    async with EchoInstrument() as instrument:
        link = TcpLink("127.0.0.1", instrument.port)
        await link.open()
        await link.reopen()
        with connected_sockets(instrument.port) as ((host,), _):
            assert host.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert host.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await link.close()


async def test_two_hundred_reconnects_leave_nothing_behind() -> None:
    async with EchoInstrument() as instrument:
        link = TcpLink("127.0.0.1", instrument.port)
        await link.open()

        async def reconnect(times: int) -> None:
            for index in range(times):
                await link.reopen()
                assert await link.exchange(b"SAY %d\n" % index, LINE) == b"%d" % index
            # The instrument's ends are closed by tasks of their own.
            await asyncio.sleep(0.05)
            gc.collect()

        await reconnect(20)
        open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number
        tracemalloc.start()
        try:
            await reconnect(20)
            before, _ = tracemalloc.get_traced_memory()
            await reconnect(200)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # A connection that stayed would be a file and some kilobytes each.
        assert len(os.listdir("/proc/self/fd")) <= open_files  # noqa: PTH208
        assert after - before < 20 * 1024
        await link.close()
