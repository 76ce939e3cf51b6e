"""Commands on a real bench: who may use it, what check says of it, and how a signal leaves it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labrig.recording import Recording
from labrig.simulated import RunningBench, simulated_bench
from labrig_drivers.mock.event_log import read_events

SWEEP = ("sweep", "--plan", "mvm", "--writes", "20", "-o", "run.h5")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[RunningBench]:
    with simulated_bench(tmp_path) as running:
        yield running


def start(bench: RunningBench, *arguments: str) -> subprocess.Popen[str]:
    verb, *options = arguments
    command = [sys.executable, "-m", "labrig", verb, str(bench.rig_file), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=bench.rig_file.parent, stdout=pipe, stderr=pipe, text=True)


def run(bench: RunningBench, *arguments: str) -> tuple[int, str, str]:
    with start(bench, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def children_of(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def watchdogs_of(pid: int) -> list[int]:
    found = []
    for child in children_of(pid):
        with contextlib.suppress(FileNotFoundError):  # it ended between the listing and the look
            found += [child] if b"labrig.watchdog" in Path(f"/proc/{child}/cmdline").read_bytes() else []
    return found


def wait_until_measuring(sweep: subprocess.Popen[str]) -> None:
    assert sweep.stderr is not None
    for line in sweep.stderr:
        if line.startswith("MVMs:"):
            return
    pytest.fail("the sweep ended before it measured")


def outputs(bench: RunningBench) -> list[bool]:
    return [bool(event["output_on"]) for event in read_events(bench.log) if event["what"] == "output"]


@pytest.mark.parametrize(
    ("signals", "code", "statuses"),
    [
        ((signal.SIGINT,), 130, {"stopped"}),
        # The first may have brought the run to its end before the second comes.
        ((signal.SIGINT, signal.SIGINT, signal.SIGINT), 130, {"stopped", "aborted"}),
        ((signal.SIGTERM,), 143, {"aborted"}),
    ],
    ids=["Ctrl-C", "Ctrl-C again and again", "SIGTERM"],
)
def test_a_signal_leaves_outputs_off_and_no_process(
    bench: RunningBench, signals: tuple[signal.Signals, ...], code: int, statuses: set[str]
) -> None:
    with start(bench, *SWEEP) as sweep:
        wait_until_measuring(sweep)
        (watchdog,) = watchdogs_of(sweep.pid)
        for number in signals:
            sweep.send_signal(number)
            time.sleep(0.03)
        _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == code, errors
    assert "labrig: stopped; outputs are off and the file is closed; the same command with --resume " in errors
    assert "Traceback" not in errors
    assert "watchdog" not in errors
    states = outputs(bench)
    assert True in states
    assert states[-1] is False
    assert not Path(f"/proc/{watchdog}").exists()
    with Recording.open(bench.rig_file.with_name("run.h5")) as recording:
        assert recording.status in statuses


def test_signals_while_the_watchdog_starts_leave_the_supply_off(bench: RunningBench) -> None:
    with start(bench, *SWEEP) as sweep:
        while not watchdogs_of(sweep.pid):
            assert sweep.poll() is None
            time.sleep(0.001)
        sweep.send_signal(signal.SIGINT)
        time.sleep(0.01)
        sweep.send_signal(signal.SIGINT)
        _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, errors
    assert "Traceback" not in errors
    assert outputs(bench)[-1:] in ([], [False])


def test_check_tells_what_protects_each_instrument_and_leaves_outputs_alone(bench: RunningBench) -> None:
    code, text, errors = run(bench, "check")
    assert (code, errors) == (0, "")
    lines = " ".join(text.split())
    assert "board: itself, after " in lines
    assert "supply: nothing; the watchdog process covers a killed program, not a dead host" in lines
    assert "watchdog process: available, ready in " in lines
    assert outputs(bench) == []


def test_a_rig_in_use_is_refused_with_its_holder_also_through_another_rig_file(bench: RunningBench) -> None:
    other = bench.rig_file.with_name("other.toml")
    text = bench.rig_file.read_text()
    visa = next(line for line in text.splitlines() if "visa://" in line)
    port = visa.split("::")[2]
    # Another file, another name, another spelling, and only the source-meter in common.
    text = text.replace(visa, f'link = "tcp://LOCALHOST:{port}"').replace(
        "[source_meters.supply]", "[source_meters.psu]"
    )
    tcp = next(line for line in text.splitlines() if line.startswith('link = "tcp://127'))
    other.write_text(text.replace(tcp, f'link = "{bench.serial_device}"'))
    with start(bench, *SWEEP) as sweep:
        wait_until_measuring(sweep)
        shared = RunningBench(other, bench.serial_device, bench.log, bench.pid)
        code, _, errors = run(shared, "check")
        sweep.send_signal(signal.SIGINT)
        sweep.communicate(timeout=60)
    assert code == 2
    assert "1 of 2 addresses are in use, nothing was opened" in errors
    assert f"psu (tcp://127.0.0.1:{port}): held by " in errors
    assert f"process {sweep.pid} (" in errors
    assert "sweep" in errors
    assert run(shared, "check")[0] == 0
