"""The demo as a user runs it: a command in a process of its own, a bench in another, and files at the end."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labrig import Recording
from labrig_surrogates.io import load_chip

QUICK = ["--network-seeds", "1", "--writes", "2"]


def start_demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "labrig", "demo", "--folder", str(folder), *QUICK, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def bench_events(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "bench.log").read_text().splitlines()]


def benches_of(folder: Path) -> list[int]:
    """Processes that still log into this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "bench_process" in command and str(folder) in command:
                found.append(int(process.name))
    return found


def supply_is_off(folder: Path) -> bool:
    """What the bench saw last of its supply; a supply that was never switched on is off."""
    states = [event["output_on"] for event in bench_events(folder) if "output_on" in event]
    return not states or states[-1] is False


@pytest.mark.timeout(300)
def test_the_demo_leaves_what_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / "labrig-demo"
    process = start_demo(folder)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    for step in ("1 of 6", "2 of 6", "3 of 6", "4 of 6", "5 of 6", "6 of 6", "LR-SIM1", "MODEL 2400", "next: "):
        assert step in output
    expected = {"calibration.h5", "chip.safetensors", "report.html", "training.h5", "summary.json"}
    assert expected <= {path.name for path in folder.iterdir()}

    summary = json.loads((folder / "summary.json").read_text())
    accuracy = summary["accuracy"]
    assert set(accuracy) == {"digital", "deployed", "surrogate", "in_loop"}
    for name, one in accuracy.items():
        assert 0.0 < one["error"] < 0.2
        assert len(one["values"][0]) == (1 if name == "digital" else 2)
    assert accuracy["in_loop"]["mean"] > accuracy["digital"]["mean"] - 0.03
    assert accuracy["in_loop"]["mean"] > accuracy["deployed"]["mean"] + 0.03
    assert summary["passes"] == 40 + 3 * 2
    assert summary["writes"] == 8 + 2 * 40 + 2 * 3 * 2
    assert summary["joules"] > 0.0

    with Recording.open(folder / "calibration.h5") as calibration:
        assert calibration.status == "finished"
        assert sum(calibration.committed(array) for array in calibration.arrays) >= 20_000
        assert calibration.supply_energy_j() > 0.0
        identities = calibration.header.identities
    assert "2400" in identities["supply"].model
    with Recording.open(folder / "training.h5") as training:
        assert sum(training.committed(array) for array in training.arrays) == 2 * (40 * 128 + 3 * 2 * 450)
        assert training.info.chip_id == "SIM-0001"
    chip = load_chip(folder / "chip.safetensors")
    assert sorted(chip.arrays) == [0, 1]
    report = (folder / "report.html").read_text()
    for heading in ("Transfer curve", "Noise variance", "Residuals", "Jensen-Shannon", "standard error"):
        assert heading in report

    programmed = sum(1 for event in bench_events(folder) if event["what"] == "program")
    assert programmed == summary["writes"]
    assert supply_is_off(folder)
    assert benches_of(folder) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", ["at once", "sweep", "fit", pytest.param("on the chip", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_everything_safe(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "labrig-demo"
    process = start_demo(folder, "--network-seeds", "1")
    try:
        wait_for(folder, moment, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # an impatient user
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    # Python itself ends by SIGINT, after all clean-up, where the first one hit a string that was being executed in an
    # import; a shell shows 130 for both.
    assert process.returncode in {130, -signal.SIGINT}, errors
    assert "Traceback" not in errors
    if folder.exists() and (folder / "bench.log").exists():
        assert supply_is_off(folder)
    assert benches_of(folder) == []
    for path in folder.glob("*.h5"):
        with Recording.open(path) as recording:
            assert recording.status in {"finished", "aborted"}
            recording.verify()
    if moment == "sweep":
        with Recording.open(folder / "calibration.h5") as recording:
            assert recording.status == "aborted"
            assert sum(recording.committed(array) for array in recording.arrays) > 0


def wait_for(folder: Path, moment: str, process: subprocess.Popen[str]) -> None:
    """Waits until the demo is where the signal is meant to hit it."""
    deadline_s = time.monotonic() + 200.0
    while time.monotonic() < deadline_s and process.poll() is None:
        events = (folder / "bench.log").read_text() if (folder / "bench.log").exists() else ""
        reached = {
            "at once": True,
            "sweep": events.count('"program"') >= 2,
            "fit": "disconnect" in events and '"program"' in events and not process_feeds(events),
            "on the chip": (folder / "training.h5").exists() and events.count('"program"') >= 12,
        }
        if reached[moment]:
            if moment == "at once":
                time.sleep(0.7)  # somewhere in the imports
            return
        time.sleep(0.05)
    pytest.fail(f"the demo never came to {moment!r}")


def process_feeds(events: str) -> bool:
    """Whether the supply is on by the last word of the log."""
    states = [line for line in events.splitlines() if "output_on" in line and line.endswith("}")]
    return bool(states) and '"output_on": true' in states[-1]


def test_a_folder_in_use_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    process = start_demo(tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        errors.strip() == f"labrig: error: {tmp_path}: holds files already; remove it or choose another with --folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
