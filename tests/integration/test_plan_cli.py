"""Plans with options, and one of the user's own, on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from labrig.cli import app
from labrig.config import shipped_rig
from labrig.recording import Recording

ROOT = Path(__file__).resolve().parents[2]


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", str(shipped_rig("mock")), *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plan_of_the_how_to_page_is_measured_and_resumed(folder: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "your-own-plan.md").read_text()
    (text,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (folder / "corners.py").write_text(text)
    own = ("--plan", "corners.py:Corners")
    result = sweep(*own, "--set", "repeats=6", "-o", "corners.h5")
    assert result.exit_code == 0, result.output
    with Recording.open("corners.h5") as recording:
        plan, info = recording.header.plan, recording.info
        mvms = recording.dataset(0)
    assert (plan["name"], plan["repeats"]) == ("corners", 6)
    assert mvms.voltage_v.shape == (24, info.rows)
    assert np.unique(mvms.target_conductance_s).tolist() == pytest.approx(
        [info.conductance_min_s, info.conductance_max_s], rel=1e-6
    )
    other = sweep(*own, "--set", "repeats=7", "--resume", "corners.h5")
    assert other.exit_code != 0
    assert "repeats" in str(other.exception)


def test_a_built_in_plan_takes_options_by_name(folder: Path) -> None:
    result = sweep("--plan", "noise", "--set", "reads=50", "--set", "arrays=[1]", "--seed", "5", "-o", "noise.h5")
    assert result.exit_code == 0, result.output
    assert re.search(r"plan noise: 200 MVMs, 1 writes, [\d.e-]+ s or more", result.stderr)
    with Recording.open(folder / "noise.h5") as recording:
        assert recording.arrays == (1,)
        assert recording.committed(1) == 200
        assert (recording.header.plan["seed"], recording.header.plan["reads"]) == (5, 50)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "reads"], "--set reads: expected OPTION=VALUE"),
        (["--set", "seed=3"], "--set seed=3: use --seed"),
        (["--set", "max_voltage_v=9"], "the limit stands in the rig file"),
        (["--set", "batch=3", "--set", "batch=4"], "batch was given twice"),
        (["--writes", "3"], "has no option writes; its options are: vectors, reads"),
        (["--set", "reads=many"], "plan 'noise'"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_options_are_refused_before_anything_is_made(options: list[str], said: str) -> None:
    result = sweep("--plan", "noise", *options)
    assert result.exit_code != 0
    assert said in str(result.exception) + result.output
    assert not list(Path().iterdir())
