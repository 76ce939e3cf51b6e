"""A program that is killed leaves no output on: its watchdog process ramps down, switches off and reads back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from labrig.instruments import InstrumentSpec
from labrig.rig_lock import RigLock
from labrig.simulated import simulated_bench
from labrig.watchdog.client import Watchdog
from labrig_drivers.errors import StateError
from labrig_drivers.mock.event_log import read_events
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.ports import PtyPort
from labrig_drivers.mock.servers import InstrumentServer, SimulatedKeithley2400

RAMP_V_PER_S = 10.0
# The driver's largest step, or one of the guard's: an output that moves by a ramp still moves in steps.
STEP_V = 0.1
OFF_WITHIN_S = 10.0
PATIENCE_S = 30.0

RIG = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[source_meters.supply]
driver = "keithley2400"
link = "{link}"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1
nplc = 0.01
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.25
"""

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from labrig.config import load_rig
from labrig.instruments import build_instruments
from labrig.rig import Rig, instrument_specs
from labrig.rig_lock import RigLock
from labrig.watchdog.client import Watchdog

async def main(rig_file, folder, how, patience_s):
    config = load_rig(rig_file)
    built = build_instruments(instrument_specs(config))
    lock = RigLock({"supply": config.source_meters["supply"].link}, folder=Path(folder))
    watchdog = Watchdog(lock, Path(folder), float(patience_s))
    meters = {"supply": built["source_meters.supply"]}
    async with Rig(config, built["board"], meters, lock=lock, watchdog=watchdog) as rig:
        print("open", flush=True)
        async with rig.powered():
            print("on", watchdog.pid, flush=True)
            if how == "ends":
                return
            if how == "raises":
                raise RuntimeError("a bug")
            if how == "exits":
                os._exit(3)
            if how == "forks" and os.fork() == 0:
                sys.stdin.read()
                os._exit(0)
            while True:
                for level_v in (0.4, 1.2, -0.6, 0.8):
                    await rig.supply.set_level(voltage_v=level_v)

asyncio.run(main(*sys.argv[1:]))
"""


class Bench:
    """A simulated source-meter, and a program in a process of its own that drives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[OutputEvent] = []
        self.server = InstrumentServer(SimulatedKeithley2400(ResistorLoad(1000.0), log=self.events.append))
        self.said = b""

    @property
    def locks(self) -> Path:
        return self.folder / "locks"

    @asynccontextmanager
    async def program(self, link: str, how: str = "holds", patience_s: float = 20.0) -> AsyncIterator[Program]:
        rig_file = self.folder / "rig.toml"
        rig_file.write_text(RIG.format(link=link))
        arguments = ["-c", PROGRAM, str(rig_file), str(self.locks), how, str(patience_s)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        program = Program(process)
        try:
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await program.reports()
            await process.wait()

    def is_on(self) -> bool:
        return bool(self.events) and self.events[-1].output_on

    def require_safe(self, since_s: float) -> None:
        """The output is off, was switched off soon, and moved by the ramp on all its ways."""
        assert not self.is_on()
        ons = [event for event in self.events if event.output_on and event.time_s > since_s]
        assert all(event.time_s - since_s < OFF_WITHIN_S for event in ons)
        require_ramp([(event.time_s, event.voltage_v if event.output_on else 0.0) for event in self.events])
        assert watchdogs_of(self.locks) == []
        lock = RigLock({"supply": f"tcp://127.0.0.1:{self.server.port}"}, folder=self.locks)
        lock.acquire()
        lock.release()


class Program:
    """The program, and what is heard of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdout, self._stderr = process.stdout, process.stderr
        self._reports = ""
        self.killed_s = 0.0

    async def hears(self, word: str) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            line = (await self._stdout.readline()).decode().split()
        assert line[:1] == [word], line or await self.reports()
        return line[1:]

    def kill(self) -> None:
        self.process.kill()
        self.killed_s = time.monotonic()

    async def reports(self) -> str:
        """Everything on standard error, to its end: the watchdog process writes there too, so it has ended then."""
        async with asyncio.timeout(PATIENCE_S):
            self._reports += (await self._stderr.read()).decode()
        return self._reports


def require_ramp(path: list[tuple[float, float]]) -> None:
    """Nowhere on this path of times in s and levels in V is it faster than the ramp, one step aside."""
    for index, (early_s, early_v) in enumerate(path):
        for late_s, late_v in path[index + 1 :]:
            assert abs(late_v - early_v) <= RAMP_V_PER_S * (late_s - early_s) + STEP_V + 1e-6


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if reached():
                return
            await asyncio.sleep(0.005)


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def watchdogs_of(folder: Path) -> list[int]:
    """Watchdog processes that write into this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                if "labrig.watchdog" in command and str(folder) in command:
                    found.append(int(process.name))
    return found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    async with bench.server:
        yield bench


@asynccontextmanager
async def link_to(bench: Bench, kind: str) -> AsyncIterator[str]:
    """The address of the source-meter over TCP, VISA, or a pseudo-terminal."""
    port = bench.server.port
    if kind != "serial":
        yield f"tcp://127.0.0.1:{port}" if kind == "tcp" else f"visa://TCPIP::127.0.0.1::{port}::SOCKET"
        return
    line = PtyPort()
    bridge = asyncio.create_task(_bridge(line, port))
    try:
        yield line.address
    finally:
        bridge.cancel()
        await asyncio.gather(bridge, return_exceptions=True)
        line.close()


async def _bridge(line: PtyPort, port: int) -> None:
    while True:
        data = await line.receive()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = asyncio.create_task(_answers(reader, line))
        try:
            while data:
                writer.write(data)
                data = await line.receive()
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            writer.close()


async def _answers(reader: asyncio.StreamReader, line: PtyPort) -> None:
    while data := await reader.read(4096):
        await line.send(data)


@pytest.mark.parametrize("kind", ["tcp", "visa", "serial"])
async def test_a_killed_program_leaves_its_output_off(bench: Bench, kind: str) -> None:
    delay_s = random.Random(f"{kind} 1").uniform(0.0, 0.4)
    async with link_to(bench, kind) as link, bench.program(link) as program:
        await program.hears("open")
        await program.hears("on")
        await asyncio.sleep(delay_s)
        assert bench.is_on()
        program.kill()
        report = await program.reports()
        assert f"process {program.process.pid} ended without switching off" in report
        assert f"supply (keithley2400, {link}): safe" in report
        bench.require_safe(program.killed_s)
        (log,) = bench.locks.glob("watchdog-*.log")
        assert f"supply (keithley2400, {link}): safe" in log.read_text()


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment_of_switching_on(bench: Bench, seed: int) -> None:
    await kill_at_random(bench, random.Random(seed), "tcp", 0.35)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["tcp", "visa", "serial"])
async def test_killed_at_any_moment_very_often(bench: Bench, kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        await kill_at_random(bench, rng, kind, 1.0)


async def kill_at_random(bench: Bench, rng: random.Random, kind: str, longest_s: float) -> None:
    async with link_to(bench, kind) as link, bench.program(link) as program:
        await program.hears("open")
        await asyncio.sleep(rng.uniform(0.0, longest_s))
        program.kill()
        await program.reports()
        bench.require_safe(program.killed_s)


class OneClient:
    """A proxy in front of an instrument that serves one connection, and notices late that it has ended."""

    def __init__(self, port: int, *, refuses: bool, notices_after_s: float) -> None:
        self._port = port
        self._refuses = refuses
        self._notices_after_s = notices_after_s
        self._busy = asyncio.Lock()
        self.turned_away = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._busy.locked():
                self.turned_away += 1
                if self._refuses:
                    return
            async with self._busy:
                await self._pump(reader, writer)
                await asyncio.sleep(self._notices_after_s)
        finally:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.suppress(OSError):
            while request := await reader.readline():
                inner_writer.write(request)
                if request.rstrip().endswith(b"?"):
                    writer.write(await inner_reader.readline())
        inner_writer.close()


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "queues"])
async def test_an_instrument_that_is_still_busy_is_tried_until_it_is_free(bench: Bench, *, refuses: bool) -> None:
    proxy = OneClient(bench.server.port, refuses=refuses, notices_after_s=0.4)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    async with server:
        async with bench.program(f"tcp://127.0.0.1:{port}") as program:
            await program.hears("open")
            await program.hears("on")
            program.kill()
            # Nobody gets in between: the locks went over to the watchdog process without a gap.
            with pytest.raises(StateError, match="in use"):
                RigLock({"supply": f"tcp://127.0.0.1:{port}"}, folder=bench.locks).acquire()
            report = await program.reports()
            assert "safe" in report
            assert ("not yet" in report) is refuses
            assert proxy.turned_away >= 1
            bench.require_safe(program.killed_s)
        await asyncio.sleep(0.5)  # the proxy's last connection


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("raises", 1)])
async def test_a_program_that_cleans_up_itself_needs_no_watchdog(bench: Bench, how: str, code: int) -> None:
    async with bench.program(f"tcp://127.0.0.1:{bench.server.port}", how) as program:
        await program.hears("open")
        await program.hears("on")
        assert await program.process.wait() == code
        assert "labrig watchdog" not in await program.reports()
        bench.require_safe(time.monotonic())
        assert list(bench.locks.glob("*.log")) == []


@pytest.mark.parametrize("how", ["exits", "forks"])
async def test_other_sudden_ends_count_as_well(bench: Bench, how: str) -> None:
    async with bench.program(f"tcp://127.0.0.1:{bench.server.port}", how) as program:
        await program.hears("open")
        await program.hears("on")
        if how == "forks":
            # A child that was forked holds every pipe and every lock of its parent open.
            await asyncio.sleep(0.1)
            program.kill()
            await until(lambda: not bench.is_on())
            assert program.process.stdin is not None
            program.process.stdin.close()
        else:
            program.killed_s = time.monotonic()
        report = await program.reports()
        assert "safe" in report
        bench.require_safe(program.killed_s)


async def test_a_program_that_only_stands_still_is_left_alone(bench: Bench) -> None:
    async with bench.program(f"tcp://127.0.0.1:{bench.server.port}") as program:
        await program.hears("open")
        (pid,) = await program.hears("on")
        program.process.send_signal(signal.SIGSTOP)
        ticks = cpu_ticks(int(pid))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(int(pid), number)
        await asyncio.sleep(0.3)
        seen = len(bench.events)
        await asyncio.sleep(0.4)
        assert bench.is_on()
        assert len(bench.events) == seen
        assert cpu_ticks(int(pid)) - ticks <= 1
        program.kill()
        assert "safe" in await program.reports()
        bench.require_safe(program.killed_s)


def cpu_ticks(pid: int) -> int:
    """Processor time that a process has used, in ticks of the system's clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_what_cannot_be_reached_is_a_call_for_a_person(bench: Bench) -> None:
    port = bench.server.port
    async with bench.program(f"tcp://127.0.0.1:{port}", patience_s=0.5) as program:
        await program.hears("open")
        await program.hears("on")
        program.process.send_signal(signal.SIGSTOP)
        await bench.server.stop()
        program.kill()
        report = await program.reports()
    assert "supply (keithley2400" in report
    assert "could not be made safe in 0.5 s" in report
    assert "press OUTPUT OFF" in report
    assert watchdogs_of(bench.locks) == []


SUPPLY = InstrumentSpec("source_meters.supply", "keithley2400", "tcp://127.0.0.1:1", ramp_v_per_s=10.0)


async def test_a_watchdog_that_was_killed_is_replaced_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = RigLock({"supply": "tcp://127.0.0.1:1"}, folder=tmp_path)
    lock.acquire()
    watchdog = Watchdog(lock, tmp_path)
    try:
        await watchdog.arm(SUPPLY)
        for again in (watchdog.revive, partial(watchdog.arm, SUPPLY)):
            first = watchdog.pid
            assert first is not None
            await watchdog.revive()
            assert watchdog.pid == first
            os.kill(first, signal.SIGKILL)
            await until(partial(is_zombie, first))
            caplog.clear()
            await again()
            assert watchdog.pid not in {None, first}
            assert f"the watchdog process {first} was gone" in caplog.text
    finally:
        await watchdog.stop()
        lock.release()
    await watchdog.stop()
    assert watchdog.pid is None
    assert watchdogs_of(tmp_path) == []


async def test_what_the_watchdog_cannot_switch_off_is_not_switched_on(tmp_path: Path) -> None:
    watchdog = Watchdog(folder=tmp_path)
    unknown = InstrumentSpec("source_meters.supply", "no-such-driver", "tcp://127.0.0.1:1")
    try:
        with pytest.raises(StateError, match=r"so it is not switched on: .*no driver named 'no-such-driver'"):
            await watchdog.arm(unknown)
    finally:
        await watchdog.stop()


def test_the_process_loads_little() -> None:
    program = "import sys, labrig.watchdog.process; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"h5py", "torch", "rich", "typer", "pydantic", "numpy", "scipy"} & set(done.stdout.split())


@pytest.mark.parametrize("wire", ["tcp", "serial"])
def test_a_killed_sweep_on_the_whole_bench_ends_safe(tmp_path: Path, wire: str) -> None:
    with simulated_bench(tmp_path) as bench:
        if wire == "serial":
            text = bench.rig_file.read_text()
            tcp = next(line for line in text.splitlines() if line.startswith('link = "tcp:'))
            bench.rig_file.write_text(text.replace(tcp, f'link = "{bench.serial_device}"'))
        command = [sys.executable, "-m", "labrig", "sweep", str(bench.rig_file), "--plan", "mvm", "--writes", "50"]
        with subprocess.Popen([*command, "-o", "run.h5"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as sweep:
            assert sweep.stderr is not None
            for line in sweep.stderr:
                if line.startswith("MVMs:"):
                    break
            sweep.kill()
            report = sweep.stderr.read()
        assert report.count("safe") == 3  # what it sets out to do, the supply, the board
        events = read_events(bench.log)
    outputs = [event for event in events if event["what"] == "output"]
    assert outputs[-1]["output_on"] is False
    path = [(float(str(one["time_s"])), float(str(one["voltage_v"])) * bool(one["output_on"])) for one in outputs]
    require_ramp(path)
    assert [event["what"] for event in events if event["instrument"] == "board"][-2:] == ["grounded", "disconnect"]
