"""Training that is killed at a random moment goes on from its checkpoint, bit for bit; and a run is its recording."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from labrig.cli import main
from labrig.recording import Recording
from labrig.testing.known_chip import KnownChip
from labrig.training.checkpoint import latest_checkpoint
from labrig.training.run_folder import load_metrics
from labrig_surrogates.io import save_chip
from labrig_surrogates.parameters import ChipParameters

RIG = """
[rig]
name = "mock"

[board]
driver = "mock-board"

[board.settings]
seed = 1
rows = 8
columns = 8

[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.5
"""

TRAINING = """
[run]
folder = "{folder}"
seed = 2
checkpoint_every = 5

[chip]
rig = "rig.toml"
calibration = "chip.safetensors"

[data]
name = "own.py:corners"

[training]
method = "{method}"
model = "own.py:small"
digital_steps = 40
surrogate_steps = 20
steps = {steps}
surrogate_steps_per_cycle = 2
batch = 24

[policy]
name = "adaptive"
passes = 40

[recalibration]
on = true
canaries_every = 3
"""

OWN = """
import torch
from labrig.training.datasets import ImageSet


def corners():
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(144) % 3
    x = (0.2 + 0.6 * torch.eye(3)[y] + 0.1 * torch.randn((144, 3), generator=generator)).clamp(0, 1)
    return ImageSet("corners", x[:96], y[:96], x[96:], y[96:], 3)


def small(shape, classes):
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 4), torch.nn.ReLU(), torch.nn.Linear(4, classes))
"""


def mock_chip() -> ChipParameters:
    """A rough idea of chip SIM-0001, good enough to lend a gradient."""
    like = KnownChip(columns=8, noise=0.02, conductance_max_s=50e-6, voltage_max_v=0.3).calibration()
    lowest = {"conductance_min_s": 4e-6}
    arrays = {
        index: type(one)(**{**vars(one), "converters": type(one.converters)(**{**vars(one.converters), **lowest})})
        for index, one in like.arrays.items()
    }
    return ChipParameters("SIM-0001", arrays, {})


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    (tmp_path / "rig.toml").write_text(RIG)
    (tmp_path / "own.py").write_text(OWN)
    save_chip(tmp_path / "chip.safetensors", mock_chip())
    return tmp_path


def training_file(bench: Path, folder: str, *, method: str = "in-loop", steps: int = 60) -> Path:
    path = bench / f"{folder}.toml"
    path.write_text(TRAINING.format(folder=folder, method=method, steps=steps))
    return path


Labrig = Callable[..., str]


@pytest.fixture
def labrig(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Labrig:
    """Runs `labrig ...` in this process; its exit code must be zero."""

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["labrig", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert int(caught.value.code or 0) == code, captured.err
        return captured.out + captured.err

    return run


def killed_at(bench: Path, arguments: list[object], reached: Callable[[], bool]) -> bool:
    """Runs labrig in a process of its own and kills it once something is reached; False where it ended before."""
    command = [sys.executable, "-m", "labrig", *map(str, arguments)]
    with (bench / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline_s = time.monotonic() + 100.0
            while process.poll() is None and not reached():
                assert time.monotonic() < deadline_s
                time.sleep(0.002)
            if process.poll() is not None:
                return False
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    return True


def steps_of(folder: Path, method: str) -> list[int]:
    return [int(str(line["step"])) for line in load_metrics(folder) if line["phase"] == method]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "network.safetensors") for folder in (one, other))
    return all(np.array_equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("method", "most_kills"),
    [
        ("in-loop", 1),
        ("in-loop-overlapped", 1),
        pytest.param("in-loop", 4, marks=pytest.mark.nightly),
        pytest.param("in-loop-overlapped", 4, marks=pytest.mark.nightly),
        pytest.param("asyt", 3, marks=pytest.mark.nightly),
        pytest.param("dat", 3, marks=pytest.mark.nightly),
        pytest.param("spsa", 3, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_run_goes_on_as_if_never_stopped_and_its_recordings_give_it_again(
    bench: Path, labrig: Labrig, method: str, most_kills: int
) -> None:
    labrig("train", training_file(bench, "whole", method=method))
    file, folder = training_file(bench, "killed", method=method), bench / "killed"
    moments = random.Random(5)
    kills = 0
    arguments: list[object] = ["train", file]
    for kill in range(most_kills):
        # Anywhere between two checkpoints, each time a little further on.
        wanted = moments.randrange(12 * kill, 12 * kill + 40 // most_kills)

        def reached(wanted: int = wanted) -> bool:
            metrics = folder / "metrics.jsonl"
            checkpoint = latest_checkpoint(folder / "checkpoints")
            done = 0 if checkpoint is None else int(checkpoint.stem.removeprefix("step-"))
            return metrics.exists() and (done >= wanted)

        kills += killed_at(bench, arguments, reached)
        arguments = ["train", "--resume", folder]
        if (folder / "run.json").exists():
            break
    assert kills >= 1
    if not (folder / "run.json").exists():
        labrig("evaluate", folder, code=2)
        labrig("train", "--resume", folder)
    assert steps_of(folder, method) == list(range(1, 61))
    assert same_weights(bench / "whole", folder)
    summary, whole = (json.loads((bench / name / "run.json").read_text()) for name in ("killed", "whole"))
    for name in ("passes", "mvms", "writes", "cell_writes", "surrogate_steps", "canary_mvms", "recalibrations"):
        assert summary["ledger"][name] == whole["ledger"][name]
    labrig("train", "--resume", folder, code=2)
    segments = json.loads((folder / "recordings.json").read_text())["recordings"]
    assert len(segments) >= 2
    for name, run in (("whole", bench / "whole"), ("killed", folder)):
        out = labrig("train", "--replay", run / "training.h5")
        assert "60 steps from the recording; every weight is the same to the last bit" in out, name
        assert same_weights(run, run / "replay-1")


def test_a_recording_of_another_run_or_of_other_weights_is_refused(bench: Path, labrig: Labrig) -> None:
    """A stale replay: the recording of other weights is not taken for that of these."""
    for name, seed in (("one", 2), ("two", 3)):
        file = training_file(bench, name, steps=12)
        text = file.read_text().replace('name = "adaptive"\npasses = 40', 'name = "fixed"')
        file.write_text(text.replace("seed = 2", f"seed = {seed}"))
        labrig("train", file)
    own = (bench / "two" / "training.h5").read_bytes()
    (bench / "two" / "training.h5").write_bytes((bench / "one" / "training.h5").read_bytes())
    out = labrig("train", "--replay", bench / "two", code=2)
    assert "was made with another training file or calibration" in out
    (bench / "two" / "training.h5").write_bytes(own)
    (bench / "two" / "start.safetensors").write_bytes((bench / "one" / "start.safetensors").read_bytes())
    out = labrig("train", "--replay", bench / "two", code=2)
    assert "the rerun has left the recording at array 0: write 0 had another target" in out
    with Recording.open(bench / "two" / "training.h5") as recording:
        assert recording.status == "finished"


def test_the_cost_of_a_pass_is_said_first_and_wear_is_refused(bench: Path, labrig: Labrig) -> None:
    file = training_file(bench, "worn", steps=12)
    file.write_text(file.read_text().replace("[data]", "endurance_writes = 11\n\n[data]").replace("passes = 40", ""))
    out = labrig("train", file, code=2)
    assert "2 tiles on 2 of 2 arrays of 8 x 8 cells" in out
    assert "a pass of 24 images: 2 writes with changed weights (0 without), 48 MVMs" in out
    assert "12 passes with 1 write of the busiest array each are 12 writes; it endures 11" in out
    assert not (bench / "worn" / "training.h5").exists()


def test_evaluation_judges_zero_shot_and_calibrated_chips_and_many_of_them(bench: Path, labrig: Labrig) -> None:
    labrig("train", training_file(bench, "run", steps=40))
    wear = load_file(bench / "run" / "wear.safetensors")
    summary = json.loads((bench / "run" / "run.json").read_text())
    assert max(int(one.max()) for one in wear.values()) == summary["most_writes_of_a_cell"] > 1
    assert sum(int(one.sum()) for one in wear.values()) == summary["ledger"]["cell_writes"]
    out = labrig("evaluate", bench / "run", "--writes", "3")
    assert "on chip SIM-0001, 3 programmings" in out
    assert "with its columns calibrated on the chip:" in out
    found = json.loads((bench / "run" / "evaluation.json").read_text())
    assert len(found["values"][0]) == len(found["calibrated"]["values"][0]) == 3
    assert found["percentile_5"] <= found["mean"]
    confusion = np.array(found["confusion"])
    assert confusion.sum() == 3 * 48
    assert np.trace(confusion) / confusion.sum() == pytest.approx(found["mean"])
    page = (bench / "run" / "report.html").read_text()
    figures = ("Accuracy of each training batch", "Gap between chip", "Gradient of the surrogate", "Programmings")
    for heading in ("What limited it", *figures, "Confusion matrix", "writes of the cell written most"):
        assert heading in page
    assert "points of accuracy against the digital network" in page
    out = labrig("evaluate", bench / "run", "--chips", "6", "--writes", "1")
    assert "on 6 chips drawn from the calibration of SIM-0001" in out
    assert len(json.loads((bench / "run" / "evaluation.json").read_text())["values"]) == 6
