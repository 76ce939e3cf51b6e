"""calibrate, report, train and evaluate, as commands, on the in-process chip and its recording."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from labrig import Recording, shipped_rig
from labrig.cli import main

TRAINING = """
[run]
folder = "{folder}"
seed = 3

[chip]
rig = "mock.toml"
calibration = "chip.safetensors"

[training]
method = "{method}"
hidden = 10
digital_steps = 300
surrogate_steps = 150
in_loop_cycles = 3
surrogate_steps_per_cycle = 2

[evaluation]
writes = 2
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `labrig ...` in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["labrig", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a rig file, a recording and a calibration of chip SIM-0001."""
    folder = tmp_path_factory.mktemp("measured")
    # Just as large as the network needs.
    rig = shipped_rig("mock").read_text().replace("seed = 1\n", "seed = 1\ncolumns = 20\n")
    (folder / "mock.toml").write_text(rig)
    for arguments in (
        ["sweep", folder / "mock.toml", "--plan", "mvm", "-o", folder / "run.h5", "--writes", "2"],
        ["calibrate", folder / "run.h5", "-o", folder / "chip.safetensors", "--report", folder / "report.html"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["labrig", *map(str, arguments)])
            with pytest.raises(SystemExit) as caught:
                main()
        assert not caught.value.code
    return folder


@pytest.fixture
def bench(measured: Path, tmp_path: Path) -> Path:
    """A copy of `measured` for one test."""
    return Path(shutil.copytree(measured, tmp_path / "bench"))


def training_file(bench: Path, method: str, folder: str = "run") -> Path:
    path = bench / f"{method}-{folder}.toml"
    path.write_text(TRAINING.format(method=method, folder=folder))
    return path


def other_chip(bench: Path) -> Path:
    path = bench / "other.toml"
    path.write_text((bench / "mock.toml").read_text().replace("seed = 1", "seed = 2").replace("SIM-0001", "SIM-0002"))
    return path


def test_a_report_is_written_again_from_its_files(cli: Cli, bench: Path) -> None:
    (bench / "report.html").unlink()
    code, out, err = cli("report", bench / "run.h5", "--chip", bench / "chip.safetensors", "-o", bench / "again.html")
    assert (code, err) == (0, "")
    assert "again.html" in out
    assert "noise floor" in (bench / "again.html").read_text()


def test_in_loop_training_on_the_mock_is_recorded_evaluated_and_equal_when_repeated(cli: Cli, bench: Path) -> None:
    weights = []
    for folder in ("first", "second"):
        code, out, err = cli("train", training_file(bench, "in-loop", folder))
        assert code == 0, err
        assert f"next: labrig evaluate {bench / folder}" in out
        weights.append(load_file(bench / folder / "network.safetensors"))
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
    summary = json.loads((bench / "first" / "run.json").read_text())
    assert summary["ledger"]["passes"] == 3
    assert summary["ledger"]["writes"] == 6
    assert summary["chip_id"] == "SIM-0001"
    with Recording.open(bench / "first" / "training.h5") as recording:
        assert recording.status == "finished"
        assert [recording.committed(array) for array in recording.arrays] == [3 * 128, 3 * 128]
        assert [recording.writes(array) for array in recording.arrays] == [3, 3]
    steps = [json.loads(line) for line in (bench / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [sum(1 for step in steps if step["phase"] == phase) for phase in ("digital", "surrogate", "in-loop")] == [
        300,
        150,
        9,
    ]
    code, out, err = cli("evaluate", bench / "first")
    assert code == 0, err
    assert "on chip SIM-0001, 2 programmings" in out
    evaluation = json.loads((bench / "first" / "evaluation.json").read_text())
    assert len(evaluation["values"][0]) == 2
    assert evaluation["mean"] > 0.85


def test_training_on_a_recording_needs_no_rig(cli: Cli, bench: Path) -> None:
    file = training_file(bench, "surrogate")
    (bench / "chip.safetensors").unlink()
    (bench / "mock.toml").rename(bench / "elsewhere.toml")
    code, _, err = cli("train", file, "--recording", bench / "run.h5")
    assert code == 0, err
    code, _, err = cli("evaluate", bench / "run")
    assert code == 2
    assert "name the rig to judge it on: --rig" in err
    code, out, err = cli("evaluate", bench / "run", "--rig", bench / "elsewhere.toml", "--writes", "1")
    assert code == 0, err
    assert "1 programmings" in out


def test_a_digital_run_needs_no_chip_at_all(cli: Cli, bench: Path) -> None:
    code, _, err = cli("train", training_file(bench, "digital"))
    assert code == 0, err
    code, out, _ = cli("evaluate", bench / "run")
    assert code == 0
    assert "in float, no chip" in out


def test_the_calibration_of_another_chip_is_refused_before_anything_is_made(cli: Cli, bench: Path) -> None:
    file = training_file(bench, "in-loop")
    code, _, err = cli("train", file, "--rig", other_chip(bench))
    assert code == 2
    assert "expected chip 'SIM-0001' of the calibration, but the instrument there says chip 'SIM-0002'" in err
    assert not (bench / "run").exists()


def test_a_recording_of_another_chip_is_refused(cli: Cli, bench: Path) -> None:
    code, _, err = cli("sweep", other_chip(bench), "--plan", "mvm", "-o", bench / "other.h5", "--writes", "2")
    assert code == 0, err
    file = training_file(bench, "in-loop")
    file.write_text(file.read_text().replace("[chip]", '[chip]\nrecording = "other.h5"'))
    code, _, err = cli("train", file)
    assert code == 2
    assert "other.h5: was recorded on chip SIM-0002, but " in err
    assert "chip.safetensors is a calibration of chip SIM-0001; name files of one chip" in err
    assert not (bench / "run").exists()
    code, _, err = cli(
        "train", training_file(bench, "in-loop"), "--recording", bench / "other.h5", "--rig", bench / "mock.toml"
    )
    assert code == 2
    assert "expected chip 'SIM-0002'" in err
    code, _, err = cli("calibrate", bench / "run.h5", bench / "other.h5", "-o", bench / "both.safetensors")
    assert code == 2
    assert "different chips" in err
    code, _, err = cli("report", bench / "other.h5", "--chip", bench / "chip.safetensors")
    assert code == 2
    assert "was not fitted to these data" in err
    assert not (bench / "both.safetensors").exists()


def test_all_faults_of_a_training_file_come_at_once(cli: Cli, bench: Path) -> None:
    file = training_file(bench, "in-loop")
    file.write_text(file.read_text().replace("hidden = 10", "hiden = 10").replace("seed = 3", "seed = -3"))
    code, _, err = cli("train", file)
    assert code == 2
    assert f"{file}:4: run.seed:" in err
    assert "training.hiden: unknown key; did you mean hidden?" in err
    file = training_file(bench, "surrogate")
    file.write_text(file.read_text().replace('calibration = "chip.safetensors"', ""))
    (bench / "run").mkdir()
    code, _, err = cli("train", file)
    assert code == 2
    assert "needs chip.calibration or chip.recording" in err
    assert "exists already" in err
    file = training_file(bench, "in-loop")
    code, _, err = cli("train", file, "--rig", bench / "gone.toml", "--recording", bench / "gone.h5")
    assert code == 2
    assert f"chip.rig (or --rig): {bench / 'gone.toml'}: there is no such file; " in err
    assert f"chip.recording (or --recording): {bench / 'gone.h5'}: there is no such file" in err
    (bench / "run").rmdir()
    small = (bench / "mock.toml").read_text().replace("[board.settings]\n", "[board.settings]\nrows = 8\n")
    (bench / "small.toml").write_text(small)
    layers = (
        training_file(bench, "in-loop").read_text().replace("[training]", '[training]\nlayers = { hid = "digital" }')
    )
    for text, rig, fault in (
        (layers, "mock.toml", "training.layers: there is no analog layer hid; there are hidden, output"),
        (training_file(bench, "in-loop").read_text(), "small.toml", "the model cannot be placed on the board"),
    ):
        file.write_text(text)
        code, _, err = cli("train", file, "--rig", bench / rig)
        assert code == 2
        assert fault in err
        # Before the first step.
        assert not (bench / "run").exists()
    code, _, err = cli("train", file, "--resume", bench / "run", "--sweep", "run.seed=1")
    assert (code, err) == (
        2,
        "labrig: error: give one of TRAIN.toml, --resume RUN and --replay RUN/training.h5; given were TRAIN.toml, "
        "--resume\n",
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_corrupt_recording_gives_one_clear_error(cli: Cli, bench: Path, damage: str) -> None:
    path = bench / "run.h5"
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    else:
        path.write_text("this is no recording")
    code, out, err = cli("calibrate", path, "-o", bench / "new.safetensors")
    assert code == 2
    assert out == ""
    assert err.count("labrig: error:") == 1
    assert str(path) in err
    assert not (bench / "new.safetensors").exists()


def test_an_unwritable_output_is_refused(cli: Cli, bench: Path) -> None:
    code, _, err = cli("calibrate", bench / "run.h5", "-o", bench / "absent" / "chip.safetensors")
    assert code == 2
    assert "there is no folder" in err
    code, _, err = cli("evaluate", bench)
    assert code == 2
    assert "not a finished run of `labrig train`" in err
    for run in ("--resume", "--replay"):
        code, _, err = cli("train", run, bench / "absent")
        assert code == 2
        assert "there is no such" in err
    code, _, err = cli("train", "--replay", bench / "run.h5")
    assert code == 2
    assert "run.h5: is not in the folder of a finished run of `labrig train`" in err
