"""`labrig study` from the command line, with the smallest study there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from labrig.cli import app
from labrig.commands.study import study
from labrig.studies.registry import STUDIES, run_study
from labrig.studies.running import StudySettings
from labrig.studies.vision.noise import NoiseKind
from labrig_drivers.errors import ConfigError


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


def test_a_study_leaves_a_page_and_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study("equilibrium", output=tmp_path / "out", seeds=1, seed=0, rig=None, quick=True, as_json=False)
    printed = capsys.readouterr().out
    assert "control ok" in printed
    assert "undecided" in printed  # one seed decides nothing
    stored = json.loads((tmp_path / "out" / "equilibrium.json").read_text())
    assert stored["trusted"] is True
    assert stored["conditions"]["size"].startswith("quick")
    page = (tmp_path / "out" / "equilibrium.html").read_text()
    assert "96 %" in page


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_study_runs_small(tmp_path: Path, name: str) -> None:
    study(name, output=tmp_path, seeds=1, seed=0, rig=None, quick=True, as_json=False)
    stored = json.loads((tmp_path / f"{name}.json").read_text())
    assert stored["findings"]
    assert stored["controls"]
    assert all(one["verdict"] in {"holds", "does not hold", "undecided"} for one in stored["findings"])


@pytest.mark.nightly
def test_another_noise_and_precision_are_those_of_the_conditions(tmp_path: Path) -> None:
    study("robustness", output=tmp_path, seeds=1, quick=True, noise="wmult/read+ofs@64", precision="8")
    stored = json.loads((tmp_path / "robustness.json").read_text())
    assert "wmult/read: N |w| on each weight w, fresh at every batch; ofs/read: " in stored["conditions"]["noise"]
    assert "arrays of 64 rows" in stored["conditions"]["noise"]
    assert "weights 8 bits, nearest, affine, inputs of every layer 8 bits" in stored["conditions"]["precision"]
    # Bars are those of the headline's noise and precision.
    assert not any("programme" in one["claim"] for one in stored["findings"])


def test_what_is_no_study_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there are .*equilibrium"):
        run_study("levitation", StudySettings(), quiet)
    with pytest.raises(ConfigError, match="0 seeds"):
        run_study("equilibrium", StudySettings(seeds=0), quiet)
    with pytest.raises(ConfigError, match=r"equilibrium takes no --network, --epochs: that is for ablation, anchor"):
        run_study("equilibrium", StudySettings(network="resnet18", epochs=(1, 1)), quiet)
    with pytest.raises(ConfigError, match=r"0 seeds[^§]*leave it out[^§]*at least one epoch"):
        run_study("robustness", StudySettings(seeds=0, quick=True, epochs=(0, 3)), quiet)
    with pytest.raises(ConfigError, match=r"anchor takes no --noise[^§]*anchor takes no --precision"):
        run_study("anchor", StudySettings(noise=NoiseKind("abs"), precision="8"), quiet)
    with pytest.raises(ConfigError, match=r"--epochs 12: expected two whole numbers such as 12\+10"):
        study("robustness", epochs="12")
    command = typer.main.get_command(app).commands["study"]  # type: ignore[attr-defined]
    assert all(name in command.params[0].help for name in STUDIES)
