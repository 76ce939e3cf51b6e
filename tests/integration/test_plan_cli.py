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
from labrig_drivers.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", str(shipped_rig("mock")), *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def example_of_the_page(part: str) -> str:
    page = (ROOT / "docs" / "how-to" / "your-own-plan.md").read_text()
    (text,) = [one for one in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if part in one]
    return str(text)


def test_the_plan_of_the_how_to_page_is_measured_and_resumed(folder: Path) -> None:
    (folder / "corners.py").write_text(example_of_the_page("class Corners"))
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


def test_what_a_plan_of_ones_own_trips_over_is_told_with_its_place(folder: Path) -> None:
    (folder / "wrong.py").write_text(
        "from dataclasses import dataclass\n"
        "from labrig.plans import ProgramPoint, StreamCapacity\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Wrong:\n"
        "    early: bool = True\n"
        '    name = "wrong"\n\n'
        "    def capacity(self, info):\n"
        "        return {0: StreamCapacity(1, 1, 1 // (1 - self.early))}\n\n"
        "    async def points(self, info):\n"
        "        yield [][7]\n"
    )
    for early, told in (
        ("true", r"what it needs cannot be had: ZeroDivisionError: .*wrong\.py:11\)$"),
        ("false", r"its next point cannot be had: IndexError: .*wrong\.py:14\)$"),
    ):
        result = sweep("--plan", "wrong.py:Wrong", "--set", f"early={early}", "-o", f"{early}.h5")
        assert isinstance(result.exception, ConfigError)
        assert re.search(told, str(result.exception)), result.exception
    assert not (folder / "true.h5").exists()


def test_the_adaptive_plan_of_the_page_finds_the_middle_of_the_range(folder: Path) -> None:
    (folder / "half_scale.py").write_text(example_of_the_page("class HalfScale"))
    result = sweep("--plan", "half_scale.py:HalfScale", "--set", "column=3", "-o", "half.h5")
    assert result.exit_code == 0, result.output
    with Recording.open("half.h5") as recording:
        assert recording.header.plan == {"name": "half-scale", "column": 3, "steps": 8}
        full_scale_a = recording.info.adc_full_scale_a[3]
        current_a = recording.dataset(0).current_a[:, 3]
    assert len(current_a) == 8
    assert current_a[-1] == pytest.approx(0.5 * full_scale_a, rel=0.05)


AXIS = """
[axes.temperature]
driver = "mock-axis"
[axes.temperature.settings]
quantity = "temperature"
unit = "K"
low = 280.0
high = 360.0
tolerance = 0.1
"""


def test_a_plan_runs_over_the_axes_of_the_rig(folder: Path) -> None:
    (folder / "rig.toml").write_text(shipped_rig("mock").read_text() + AXIS)
    options = ["--over", "temperature=290:310:3", "--visits", "2", "--random-order", "--settle", "5"]
    plan = ["--plan", "canary", "--set", "repeats=1", "--set", "arrays=[0]"]
    result = CliRunner().invoke(app, ["sweep", "rig.toml", *plan, *options, "-o", "warm.h5"])
    assert result.exit_code == 0, result.output
    assert "temperature at 3" in result.stderr
    with Recording.open("warm.h5") as recording:
        set_k = recording.column("entry/settings", "temperature_set").tolist()
        assert recording.header.plan["settle_s"] == 5.0
        assert recording.committed(0) == 6 * 16
    assert sorted(set_k) == [290.0, 290.0, 300.0, 300.0, 310.0, 310.0]
    assert set_k != [290.0, 300.0, 310.0] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--over", "temperature"], "expected NAME=VALUE,VALUE,... or NAME=FIRST:LAST:COUNT"),
        (["--over", "temperature=1,2", "--over", "temperature=3"], "temperature was given twice"),
        (["--over", "temperature=1:2"], "a range is FIRST:LAST:COUNT"),
        (["--over", "temperature=warm"], "--over temperature=warm: 'warm' is not a number"),
        (["--over", "temperature=1,inf"], "'inf' is not finite"),
        (["--over", "temperature=1:2:x"], "the COUNT of a range is 'x', must be a whole number above 0"),
        (["--set", "arrays=[]"], "the plan names no array; leave arrays out to take all 2 of the board"),
        (["--set", "batch=x"], 'batch is "x", must be a whole number'),
        (["--visits", "2", "--one-write"], "--visits: goes with --over, which is missing; --one-write"),
        (["--over", "temperature=300"], "axis 'temperature' is not there"),
        (["--over", "temperature=300", "--one-write", "--writes", "2"], "writes an array 2 times"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_axes_that_cannot_be_moved_are_refused_before_anything_is_made(options: list[str], said: str) -> None:
    result = sweep("--plan", "mvm", *options)
    assert result.exit_code != 0
    assert said in str(result.exception) + result.output
    assert not list(Path().iterdir())


def test_a_built_in_plan_takes_options_by_name(folder: Path) -> None:
    result = sweep("--plan", "noise", "--set", "reads=50", "--set", "arrays=[1]", "--seed", "5", "-o", "noise.h5")
    assert result.exit_code == 0, result.output
    assert re.search(r"plan noise: 200 MVMs, 1 write, [\d.]+ m?s or more", result.stderr)
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
