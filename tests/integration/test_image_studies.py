"""Image studies from the images to their tables, with a tiny network on enlarged digits."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from labrig.studies.ablation import FACTORS
from labrig.studies.cache import Cache
from labrig.studies.registry import run_study
from labrig.studies.running import StudySettings
from labrig.studies.schedules import SCHEDULES
from labrig.studies.vision.factors import Factor, differences, findings, plot, table
from labrig.studies.vision.grid import QUICK, Grid, Scores, Size, shuffled, sized
from labrig.studies.vision.methods import METHODS
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.parts import ENLARGED_DIGITS, Place, job_of
from labrig.studies.vision.summary import CellScores
from labrig_drivers.errors import ConfigError

TINY = Size("airbench-tiny", digital_epochs=2, epochs=1, chips=2, folds=1, batch=50, images=300)
QAT, OURS = METHODS["QAT"], METHODS["ours"]


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


def test_a_grid_trains_once_judges_once_and_says_what_is_missing(tmp_path: Path) -> None:
    place = Place(ENLARGED_DIGITS, None, tmp_path / "networks", images=300)
    grid = Grid(TINY, [(QAT, 0.2)], [Noise(0.0), Noise(0.3)], (0,))
    cache = Cache(tmp_path / "parts", by_code=False)
    assert grid.scores(place, cache, 1, quiet, train=False).missing == (("QAT", Noise(0.0)), ("QAT", Noise(0.3)))
    told: list[tuple[str, int, int]] = []
    first = grid.scores(place, cache, 1, lambda *report: told.append(report), train=True)
    assert told == [("digital networks", 1, 1), ("methods", 1, 1), ("chips", 1, 2), ("chips", 2, 2)]
    assert len({*first.as_trained["QAT", Noise(0.0)].values[0]}) == 1
    assert not first.missing
    told.clear()
    again = grid.scores(place, cache, 1, lambda *report: told.append(report), train=True)
    assert (again, cache.taken) == (first, 2)
    control = shuffled(grid, Noise(0.0)).scores(place, cache, 1, quiet, train=False)
    assert control.as_trained["QAT", Noise(0.0)].mean < first.as_trained["QAT", Noise(0.0)].mean
    assert grid.divergences(Place(ENLARGED_DIGITS, None, tmp_path / "none"), cache, 1, quiet, Noise(0.3, 0.3)) == {}
    # The network decides, not where it lies or what is trained beside it.
    networks = [*(tmp_path / "networks").iterdir()]
    assert sorted(one.suffix for one in networks) == [".safetensors"] * 2


def test_jobs_survive_json() -> None:
    for job in (TINY.digital("digits", 3), TINY.job("digits", 3, OURS, 0.2)):
        assert job_of(json.loads(json.dumps(asdict(job)))) == job


def scores_of(values: dict[str, tuple[float, float, float]]) -> Scores:
    cells = {(name, Noise(0.1)): CellScores(tuple((one,) for one in ones)) for name, ones in values.items()}
    return Scores(cells, cells)


def test_a_change_that_two_studies_make_is_trained_once() -> None:
    names: dict[str, set[str]] = {}
    for one in (*FACTORS, *SCHEDULES):
        names.setdefault(repr(replace(one.method, name="")), set()).add(one.method.name)
    assert len(names) == len(FACTORS) + len(SCHEDULES) - 1
    assert max(map(len, names.values())) == 1


def test_factors_are_paired_by_seed() -> None:
    better, same = Factor.of(OURS, "better", average=0.5), Factor.of(OURS, "same", average=0.6)
    scores = scores_of(
        {OURS.name: (80.0, 85.0, 90.0), better.method.name: (81.0, 86.1, 90.9), same.method.name: (81.0, 84.0, 90.0)}
    )
    factors, noises = [better, same, Factor.of(OURS, "not run", average=0.7)], [Noise(0.1)]
    found = differences(OURS, factors, noises, scores)
    assert found["better", Noise(0.1)].value == pytest.approx(1.0)
    assert {one.claim.split()[0]: one.verdict for one in findings(factors, noises, found)} == {
        "better": "holds",
        "same": "undecided",
    }
    rows = table(OURS, factors, noises, scores, found).rows
    assert [row[0] for row in rows] == ["ours: accuracy in %", "better", "same", "not run"]
    assert rows[3][1] == "not run"
    assert [curve.name for curve in plot(factors, noises, found).curves] == ["better", "same"]


def test_what_a_study_needs_is_said_before_anything_is_done(tmp_path: Path) -> None:
    for name in ("robustness", "ablation", "schedules", "anchor", "definitions"):
        with pytest.raises(ConfigError, match=f"{name} needs --data FOLDER"):
            run_study(name, StudySettings(networks=tmp_path), quiet)
        with pytest.raises(ConfigError, match="give no --rig"):
            run_study(name, StudySettings(networks=tmp_path, rig=Path("rig.toml")), quiet)
        with pytest.raises(ConfigError, match=r"--data absent: there is no such folder"):
            run_study(name, StudySettings(networks=tmp_path, data=Path("absent")), quiet)
        with pytest.raises(ConfigError, match=f"--evaluate: {re.escape(str(tmp_path))} holds no network of this study"):
            run_study(name, StudySettings(networks=tmp_path, quick=True, evaluate=True), quiet)
    assert not [*tmp_path.iterdir()]


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "robustness.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "robustness.md", "exec"), {})
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "mine at 0 % wmax/program",
        "mine at 10 % wmax/program + 10 % ostd/read",
    ]


def test_the_size_is_the_usual_one_but_for_what_is_named() -> None:
    usual = Size("airbench", digital_epochs=12, epochs=10, chips=7)
    assert sized(usual, StudySettings()) == usual
    assert sized(usual, StudySettings(network="resnet18")) == replace(usual, network="resnet18")
    assert sized(usual, StudySettings(epochs=(3, 2))) == replace(usual, digital_epochs=3, epochs=2)
    assert sized(usual, StudySettings(quick=True)) == QUICK
