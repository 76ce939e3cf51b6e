"""The simulated bench as a process, and `labrig simulate`: reachable, wired together, and gone when told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from labrig.testing.driver_contract import check_crossbar_board, check_source_meter
from labrig_drivers.errors import LinkError, LinkTimeoutError, StateError, StorageError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import link_from_url
from labrig_drivers.mock.bench import BenchAddresses, BenchSettings, SimulatedBench
from labrig_drivers.mock.bench_process import start_bench_process
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.event_log import read_events
from labrig_drivers.wire_board import WireBoard

SMALL = ChipSettings(seed=6, arrays=1, rows=8, columns=8)
PATIENCE_S = 20.0


def _meter(addresses: BenchAddresses) -> Keithley2400:
    return Keithley2400(link_from_url(addresses.meter_tcp), ramp_v_per_s=1000.0, ramp_step_v=0.5)


async def _feed(meter: Keithley2400, voltage_v: float = 1.2, nplc: float = 0.01) -> None:
    await meter.configure(source="voltage", nplc=nplc)
    await meter.set_limit(current_a=0.1)
    await meter.set_level(voltage_v=voltage_v)
    await meter.output_on()


def _output_events(log: Path) -> list[dict[str, object]]:
    return [event for event in read_events(log) if event["what"] == "output"]


def _wait_for_end(pid: int) -> None:
    """Waits until a process that is not our child is gone (or a zombie that its new parent will reap)."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still there")


async def test_the_board_works_only_while_its_meter_feeds_it(tmp_path: Path) -> None:
    log = tmp_path / "bench.jsonl"
    async with SimulatedBench(BenchSettings(chip=SMALL, log=log)) as bench:
        addresses = bench.addresses
        target_s = np.full((8, 8), 20e-6)
        async with WireBoard(link_from_url(addresses.board)) as board, _meter(addresses) as meter:
            with pytest.raises(StateError, match="supply"):
                await board.program(0, target_s)
            await _feed(meter, voltage_v=0.8)
            with pytest.raises(StateError, match="supply"):
                await board.program(0, target_s)
            await meter.set_level(voltage_v=1.2)
            await board.program(0, target_s)
            await board.mvm(0, np.zeros((4, 8)))
            reading = await meter.measure()
            assert reading.voltage_v == pytest.approx(1.2)
            assert 0.0 < reading.current_a < 0.1
            await meter.output_off()
            with pytest.raises(StateError, match="supply"):
                await board.mvm(0, np.zeros((4, 8)))
    events = read_events(log)
    whats = [event["what"] for event in events]
    assert whats.count("program") == 1
    assert whats.count("fault") == 3
    assert _output_events(log)[-1]["output_on"] is False
    times_s = [float(str(event["time_s"])) for event in events]
    assert times_s == sorted(times_s)


async def test_what_the_chip_does_is_what_the_meter_measures() -> None:
    async with (
        SimulatedBench(BenchSettings(chip=SMALL)) as bench,
        WireBoard(link_from_url(bench.addresses.board)) as board,
        _meter(bench.addresses) as meter,
    ):
        await _feed(meter, nplc=1.0)
        idle_a = (await meter.measure()).current_a
        await board.program(0, np.full((8, 8), 20e-6))
        measuring = asyncio.ensure_future(meter.measure())
        while not measuring.done():
            await board.mvm(0, np.zeros((500, 8)))
        assert (await measuring).current_a > 1.2 * idle_a


async def test_the_bench_keeps_the_contracts_of_its_drivers() -> None:
    async with SimulatedBench(BenchSettings(chip=SMALL)) as bench:
        addresses = bench.addresses
        await check_source_meter(lambda: _meter(addresses), voltage_v=1.2, limit_a=0.1)
        async with _meter(addresses) as meter:
            await _feed(meter)
            await check_crossbar_board(lambda: WireBoard(link_from_url(addresses.board_serial)))


async def test_a_bench_that_does_not_run_has_no_addresses(tmp_path: Path) -> None:
    bench = SimulatedBench(BenchSettings(log=tmp_path / "missing" / "bench.jsonl"))
    with pytest.raises(StateError, match="does not run"):
        _ = bench.addresses
    with pytest.raises(StorageError, match="missing"):
        await bench.start()


async def test_a_bench_without_its_meter_port_frees_the_board_port() -> None:
    async with SimulatedBench(BenchSettings(chip=SMALL)) as bench:
        taken = int(bench.addresses.meter_tcp.rpartition(":")[2])
        free = _free_port()
        with pytest.raises(LinkError, match=f":{taken}: .*in use"):
            await SimulatedBench(BenchSettings(chip=SMALL, board_port=free, meter_port=taken)).start()
        async with SimulatedBench(BenchSettings(chip=SMALL, board_port=free)) as other:
            assert other.addresses.board == f"tcp://127.0.0.1:{free}"


async def test_the_bench_process_serves_and_ends_cleanly(tmp_path: Path) -> None:
    log = tmp_path / "bench.jsonl"
    with start_bench_process(seed=9, log=log) as process:
        for address in (process.addresses.board, process.addresses.board_serial):
            expected = ExpectedIdentity("LR-SIM1", "SIM-0009")
            async with WireBoard(link_from_url(address), expected=expected) as board:
                await board.ping()
        async with _meter(process.addresses) as meter:
            assert "2400" in meter.identity.model
        # Its own session: a Ctrl-C of this terminal does not reach it.
        assert os.getsid(process.pid) == process.pid
        assert process.stop() == 0
        assert process.stop() == 0
    assert [event["what"] for event in read_events(log)].count("disconnect") == 2


async def test_a_stopped_bench_process_is_a_timeout_and_serves_again_when_it_goes_on() -> None:
    with start_bench_process() as process:
        async with WireBoard(link_from_url(process.addresses.board), timeout_s=0.2) as board:
            os.kill(process.pid, signal.SIGSTOP)
            try:
                with pytest.raises(LinkTimeoutError):
                    await board.ping()
            finally:
                os.kill(process.pid, signal.SIGCONT)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    # The bench may need a moment to notice that its old connection has ended.
                    with contextlib.suppress(LinkError, StateError):
                        await board.ping()
                        break


def test_a_bench_process_that_cannot_listen_says_why_and_is_gone() -> None:
    with start_bench_process() as process:
        port = int(process.addresses.board.rpartition(":")[2])
        with pytest.raises(LinkError, match=f"did not start: .*:{port}.*in use"):
            start_bench_process(board_port=port)


def test_a_bench_process_that_is_not_ready_in_time_is_ended() -> None:
    with pytest.raises(LinkError, match="no address within"):
        start_bench_process(timeout_s=0.0)


def test_a_killed_parent_does_not_leave_its_bench_behind() -> None:
    parent_code = (
        "import time\n"
        "from labrig_drivers.mock.bench_process import start_bench_process\n"
        "print(start_bench_process().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        bench_pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    _wait_for_end(bench_pid)


def test_a_killed_host_leaves_grounded_lines(tmp_path: Path) -> None:
    log = tmp_path / "bench.jsonl"
    host_code = (
        "import asyncio, sys\n"
        "from labrig_drivers.links import link_from_url\n"
        "from labrig_drivers.wire_board import WireBoard\n"
        "async def main():\n"
        "    async with WireBoard(link_from_url(sys.argv[1])):\n"
        "        print('open', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with start_bench_process(log=log) as process:
        for address in (process.addresses.board, process.addresses.board_serial):
            host = subprocess.Popen([sys.executable, "-c", host_code, address], stdout=subprocess.PIPE)
            assert host.stdout is not None
            with host.stdout:
                assert host.stdout.readline() == b"open\n"
                host.kill()
                host.wait()
        _wait_for_event(log, "disconnect", 2)
    assert [event["what"] for event in read_events(log)] == ["connect", "grounded", "disconnect"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_simulate_prints_its_addresses_and_stops_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "bench.jsonl"
    command = [sys.executable, "-c", "from labrig.cli import main; main()", "simulate", "--seed", "7"]
    command += ["--board-port", "0", "--meter-port", "0", "--log", str(log)]
    simulate = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert simulate.stdout is not None
    lines: list[str] = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(simulate.stdout.readline())
        assert lines[-1], "it ended before it was ready"
    text = "".join(lines)
    assert "SIM-0007" in text
    assert "tcp://127.0.0.1:" in text
    assert "serial:///dev/" in text
    assert "visa://TCPIP::127.0.0.1::" in text
    simulate.send_signal(number)
    rest, errors = simulate.communicate(timeout=PATIENCE_S)
    assert simulate.returncode == 0
    assert rest == "stopped\n"
    assert errors == ""


def test_simulate_on_a_port_in_use_is_one_clear_error() -> None:
    with start_bench_process() as process:
        port = process.addresses.board.rpartition(":")[2]
        command = [sys.executable, "-c", "from labrig.cli import main; main()", "simulate", "--board-port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "in use" in done.stderr


def test_a_log_with_a_broken_line_is_refused_and_a_cut_last_line_is_not(tmp_path: Path) -> None:
    log = tmp_path / "bench.jsonl"
    log.write_text('{"time_s": 1.0, "what": "connect"}\n{"time_s": 2.0, "wh')
    assert read_events(log) == [{"time_s": 1.0, "what": "connect"}]
    log.write_text("{\n" + json.dumps({"time_s": 1.0}) + "\n")
    with pytest.raises(StorageError, match="cannot read"):
        read_events(log)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for_event(log: Path, what: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while [event["what"] for event in read_events(log)].count(what) < count:
        assert time.monotonic() < deadline, f"the log never came to {count} times {what}"
        time.sleep(0.01)
