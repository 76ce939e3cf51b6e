"""The verbs check, sweep, show, doctor and config schema, as a user runs them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import command_line
import pytest

from labrig.config import shipped_rig
from labrig.recording import Recording


def labrig(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labrig", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_check_sweep_show_on_the_command_line(tmp_path: Path) -> None:
    mock = shipped_rig("mock")
    checked = labrig(tmp_path, "check", mock)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "SIM-0001" in checked.stdout
    assert list(tmp_path.iterdir()) == []
    swept = labrig(tmp_path, "sweep", mock, "--plan", "mvm", "--writes", "1", "--seed", "3", "-o", "run.h5")
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout == "run.h5\n"
    assert "finished: 5184 MVMs, 2 writes" in swept.stderr
    shown = command_line.labrig(tmp_path, "show", "run.h5")
    assert shown.returncode == 0, shown.stderr
    assert "5184" not in shown.stdout
    assert shown.stdout.count("2592 MVMs, 1 write") == 2
    again = command_line.labrig(tmp_path, "sweep", str(mock), "--plan", "mvm", "--writes", "1", "-o", "run.h5")
    assert again.returncode == 2
    assert again.stderr.startswith("labrig: error: run.h5: exists already")


def test_a_run_that_records_nothing_leaves_no_file_in_the_way(tmp_path: Path) -> None:
    command = ("sweep", str(shipped_rig("mock")), "--plan", "iv", "-o", "iv.h5")
    for _ in range(2):
        failed = command_line.labrig(tmp_path, *command)
        assert failed.returncode == 2
        assert "nothing was recorded: iv.h5 is not kept" in failed.stderr
        assert "array 0 was never programmed" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_on_the_command_line_are_one_message_and_code_2(tmp_path: Path) -> None:
    bench = shipped_rig("simulated_bench").read_text()
    (tmp_path / "rig.toml").write_text(bench.replace("level_voltage_v", "level_voltage_mv"))
    wrong = labrig(tmp_path, "check", "rig.toml")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("labrig: error: rig.toml:")
    assert "Traceback" not in wrong.stderr
    unknown = labrig(tmp_path, "sweep", shipped_rig("mock"), "--plan", "moon")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("labrig: error: there is no plan named 'moon'; there are: canary, energy, iv, ")
    assert [path.name for path in tmp_path.iterdir()] == ["rig.toml"]


def test_doctor_and_schema_on_the_command_line(tmp_path: Path) -> None:
    doctor = labrig(tmp_path, "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert doctor.stdout.count("loads") == len(entry_points(group="labrig.drivers")) >= 16
    assert "extra train: installed" in doctor.stdout
    schema = labrig(tmp_path, "config", "schema", "-o", "schema.json")
    assert schema.returncode == 0, schema.stderr
    assert (tmp_path / "schema.json").read_text() == shipped_rig("mock").with_name("labrig.schema.json").read_text()


@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "aborted")]
)
def test_signal_ends_a_sweep_with_a_readable_file(
    tmp_path: Path, number: signal.Signals, code: int, status: str
) -> None:
    command = [sys.executable, "-m", "labrig", "sweep", str(shipped_rig("mock")), "--plan", "mvm", "-o", "run.h5"]
    child = subprocess.Popen([*command, "--writes", "50"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    with child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("MVMs:"):
                break
        child.send_signal(number)
        rest = child.stderr.read()
    assert child.returncode == code, rest
    assert "labrig: stopped; outputs are off and the file is closed; the same command with --resume run.h5 goes" in rest
    assert "Traceback" not in rest
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()
        assert recording.status == status
        assert recording.committed(0) > 0


def test_a_sweep_is_paused_and_goes_on_at_ctrl_z(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "labrig", "sweep", str(shipped_rig("mock")), "--plan", "mvm", "-o", "run.h5"]
    seen = []
    with (
        killed_at_last([*command, "--writes", "3"], tmp_path) as child,
        Recording.open(started(child, tmp_path / "run.h5")) as recording,
    ):
        assert child.stderr is not None
        child.send_signal(signal.SIGTSTP)
        for line in child.stderr:
            seen.append(line)
            if "paused: by Ctrl-Z" in line:
                break
        recording.refresh()
        standing = recording.committed(0)
        time.sleep(0.3)
        assert not recording.refresh()
        assert recording.status == "running"
        child.send_signal(signal.SIGTSTP)
        seen.append(child.stderr.read())
        assert child.wait() == 0, "".join(seen)
        recording.refresh()
        assert recording.status == "finished"
        assert 0 < standing < recording.committed(0)


@contextmanager
def killed_at_last(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def started(child: subprocess.Popen[str], path: Path) -> Path:
    """The recording of a sweep, once some of it was measured."""
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("MVMs:"):
            break
    return path
