"""`labrig plan` on the mock rig: what it prints, what it writes, and that a sweep runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from labrig.cli import app
from labrig.config import shipped_rig
from labrig.recording import Recording
from labrig_calibration.stimulus import StimulusKind
from labrig_drivers.errors import ConfigError
from labrig_surrogates.io import save_chip
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

RIG = """
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = 1
rows = 16
columns = 16
adc_full_scale_a = 4e-5
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.25
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rig.toml").write_text(RIG)
    return tmp_path


def test_a_design_is_found_written_and_swept(folder: Path) -> None:
    result = run("plan", "rig.toml", "--precision", "4%", "-o", "plan.toml")
    assert result.exit_code == 0, result.output
    assert "reached: every * is known to 4 % or better" in result.output
    again = run("plan", "rig.toml", "--design", "plan.toml", "--json")
    assert again.exit_code == 0, again.output
    document = json.loads(again.stdout)
    swept = run("sweep", "rig.toml", "--plan", "plan.toml", "-o", "run.h5")
    assert swept.exit_code == 0, swept.output
    with Recording.open("run.h5") as recording:
        assert recording.header.plan["counts"] == document["plan"]["counts"]
        dataset = recording.dataset(0)
    assert dataset.writes == document["plan"]["writes"]
    assert 2 * len(dataset) == document["mvms"]
    assert np.abs(dataset.voltage_v).max() <= 0.25 + 1e-6
    zeros = (dataset.voltage_v == 0).all(axis=1).sum()
    assert zeros >= document["plan"]["counts"]["zero"] * dataset.writes
    other = run("sweep", "rig.toml", "--plan", "plan.toml", "--set", "batch=7", "--resume", "run.h5")
    assert other.exit_code != 0
    assert "batch" in str(other.exception)


def test_json_is_all_there_is(folder: Path) -> None:
    result = run("plan", "rig.toml", "--budget", "4000", "--max-writes", "4", "--array", "0", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["mvms"] <= 4000
    assert document["arrays"] == [0]
    assert document["reached"] is None
    assert {"gain", "drift", "amplifier_noise", "word_line_ohm", "crosstalk"} < set(document["predicted"])
    assert document["predicted"]["gain"]["relative"] > 0
    assert set(document["plan"]["counts"]) >= {kind.name.lower() for kind in (StimulusKind.ZERO, StimulusKind.RANDOM)}


def test_what_cannot_be_reached_is_said_with_the_best(folder: Path) -> None:
    few = ("--max-writes", "4", "--budget", "20000")
    result = run("plan", "rig.toml", "--precision", "0.1%", "--for", "gain", *few)
    assert result.exit_code == 1
    assert "NOT reached: gain to 0.1 %; this design gives " in result.output
    assert "every programming has its own error" in result.output


def test_one_pattern_is_said_to_be_too_few(folder: Path) -> None:
    result = run("plan", "rig.toml", "--writes", "1")
    assert "gain and conductance cannot be told apart: one pattern only" in result.output
    assert "labrig calibrate will refuse it: at least two different programmed patterns" in result.output


def test_everything_that_is_wrong_is_named_at_once(folder: Path) -> None:
    (folder / "rig.toml").write_text(RIG.replace("max_power_w", "max_power_mw"))
    wrong = ("--precision", "200%", "--budget", "0", "--for", "colour", "--assume", "x=1", "--assume", "drift=much")
    files = ("--chip", "gone.safetensors", "--design", "gone.toml", "-o", "plan.txt")
    result = run("plan", "rig.toml", *wrong, *files)
    assert result.exit_code != 0
    assert isinstance(result.exception, ConfigError)
    message = str(result.exception)
    for part in (
        "--precision 200%",
        "budget is 0",
        "no error of colour",
        "no 'x' to assume; there are: gain",
        "--assume drift=much",
        "gone.safetensors: no such file",
        "gone.toml: cannot be read",
        "--output plan.txt",
        "--design judges",
        "max_power_mw",
    ):
        assert part in message, part


def earlier_chip() -> ChipParameters:
    """A fitted array whose numbers are easy to know again."""

    def of_columns(value: float, unit: str) -> Estimate:
        return Estimate(np.full(16, value), np.full(16, 0.01 * value), unit)

    slope = 1.0 + 0.2 * np.random.default_rng(0).standard_normal((16, 16))
    array = ArrayParameters(
        array=1,
        gain=of_columns(1.1, "1"),
        offset=of_columns(1e-6, "A"),
        compression=of_columns(2e4, "1/A"),
        drift=of_columns(0.05, "1"),
        amplifier_noise=of_columns(4e-14, "A^2"),
        shot_noise=of_columns(2e-9, "A"),
        conductance_noise=of_columns(3e-4, "1"),
        programming=Estimate(np.array([0.01, 0.05, -0.02]), np.full(3, 1e-3), "1"),
        cell_slope=slope,
        cell_intercept_s=np.zeros((16, 16)),
        stuck=np.zeros((16, 16), dtype=np.bool_),
        write_conductance_s=np.full((2, 16, 16), 2e-5),
        drift_reference_s=1.0,
        converters=ConverterRange(0.3, 1e-3, np.full(16, 8e-8), -512, 511, 4e-6, 5e-5),
    )
    return ChipParameters("SIM-0007", {1: array}, {})


def test_an_earlier_fit_is_taken_for_the_chip(folder: Path) -> None:
    save_chip(folder / "chip.safetensors", earlier_chip())
    result = run("plan", "rig.toml", "--chip", "chip.safetensors", "--assume", "wire_ohm=2.5", "--json")
    assert result.exit_code == 0, result.output
    assumed = json.loads(result.stdout)["assumed"]
    assert assumed["source"] == "array 1 of chip SIM-0007 in chip.safetensors, another chip than SIM-0001"
    expected = {
        "gain": 1.1,
        "compression_per_a": 2e4,
        "drift": 0.05,
        "amplifier_noise_a2": 4e-14,
        "shot_noise_a": 2e-9,
        "conductance_noise": 3e-4,
        "programming_p1": 0.05,
        "wire_ohm": 2.5,
    }
    assert {name: assumed[name] for name in expected} == pytest.approx(expected)
    assert assumed["mismatch"] == pytest.approx(0.2, rel=0.15)


def test_help_shows_how() -> None:
    result = run("plan", "--help")
    assert result.exit_code == 0
    assert "labrig plan rig_configs/mock.toml --precision 1% -o plan.toml" in " ".join(result.output.split())
    assert shipped_rig("mock").is_file()
