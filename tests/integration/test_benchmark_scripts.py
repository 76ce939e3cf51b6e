"""Every benchmark runs from its command line and writes its numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "acquisition",
        "calibration",
        "cifar",
        "compaction",
        "links",
        "live",
        "mvm_path",
        "recording",
        "remote",
        "surrogates",
        "telemetry",
        "training",
        "wires",
    ],
)
def test_quick_run(name: str, tmp_path: Path) -> None:
    output = tmp_path / "numbers.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    numbers = json.loads(output.read_text())
    assert numbers["quick"] is True
    assert len(numbers["cases"]) >= 2
    for case in numbers["cases"]:
        assert case["name"] in run.stdout
        assert (case["ratio"] is None) == (case["reference"] is None)
        assert case["rate"]["median"] > 0.0


@pytest.mark.slow
def test_quick_run_of_memory(tmp_path: Path) -> None:
    output = tmp_path / "numbers.json"
    command = [sys.executable, "-m", "benchmarks.memory", "--quick", "--json", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert (run.returncode, run.stderr) == (0, "")
    sweeps = json.loads(output.read_text())["sweeps"]
    assert [one["records"] for one in sweeps] == [10_240, 102_400]
    # Ten times as many records, and less than a tenth of them in memory.
    assert sweeps[1]["measured_mb"] - sweeps[0]["measured_mb"] < 0.1 * (sweeps[1]["file_mb"] - sweeps[0]["file_mb"])
