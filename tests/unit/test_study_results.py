"""Findings of studies: verdicts follow intervals, intervals those of Student, and the page shows them all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labrig.studies.files import write_study
from labrig.studies.intervals import of_difference, of_mean
from labrig.studies.result import Control, Curve, Interval, Plot, StudyResult, Table, at_least, at_most


def interval(low: float, high: float) -> Interval:
    return Interval(0.5 * (low + high), low, high, "%", "5 seeds")


@pytest.mark.parametrize(
    ("low", "high", "more", "less"),
    [
        (96.0, 97.0, "holds", "does not hold"),
        (94.0, 94.9, "does not hold", "holds"),
        (94.0, 96.0, "undecided", "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, more: str, less: str) -> None:
    assert at_least("accuracy >= 95 %", interval(low, high), 95.0).verdict == more
    assert at_most("accuracy <= 95 %", interval(low, high), 95.0).verdict == less


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    found = [of_mean(rng.normal(3.0, 2.0, 5).tolist(), "%", "seeds", level=0.9) for _ in range(4000)]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert abs(covered - 0.9) < 4 * math.sqrt(0.09 / 4000)


def test_pairs_take_out_what_they_share() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0.0, 10.0, 6)
    first, second = shared + 1.0 + rng.normal(0.0, 0.1, 6), shared + rng.normal(0.0, 0.1, 6)
    paired = of_difference(first.tolist(), second.tolist(), "%", "seeds")
    assert 0.7 < paired.low < 1.0 < paired.high < 1.3
    assert "6 pairs of seeds" in str(paired)
    alone = of_mean([4.0], "%", "seed")
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="shorter"):
        of_difference([1.0, 2.0], [1.0], "%", "seeds")


def result() -> StudyResult:
    return StudyResult(
        name="example",
        question="Does it <work>?",
        findings=(at_least("accuracy >= 95 %", interval(96.0, 97.0), 95.0),),
        controls=(Control("labels shuffled", "chance", interval(9.0, 11.0), passed=True),),
        tables=(Table("Accuracy", ("noise", "%"), (("0", 97.0), ("10 %", 95.5))),),
        plots=(Plot("Accuracy", "noise (%)", "accuracy (%)", (Curve("mean", (0.0, 10.0), (97.0, 95.5), (0.1, 0.2)),)),),
        conditions={"data": "digits", "seeds": "5"},
        seconds=1.5,
    )


def test_a_failed_control_takes_the_trust_away() -> None:
    found = result()
    assert found.trusted
    failed = replace(found, controls=(replace(found.controls[0], passed=False),))
    assert not failed.trusted
    assert json.loads(json.dumps(failed.as_dict()))["trusted"] is False


def test_the_page_shows_everything_and_escapes_it(tmp_path: Path) -> None:
    pages = write_study(tmp_path / "out", result())
    page = pages.html.read_text()
    for text in (
        "Does it &lt;work&gt;?",
        "holds",
        "labels shuffled",
        "as it should",
        "95.5",
        "digits",
        "plotly.min.js",
    ):
        assert text in page
    assert "<work>" not in page
    assert page.index("Holds: accuracy") < page.index("labels shuffled") < page.index("95.5</td>")
    assert "http" not in page  # opens without a network: plotly lies beside it
    assert (tmp_path / "out" / "plotly.min.js").is_file()
    stored = json.loads(pages.json.read_text())
    assert stored["findings"][0]["figure"]["low"] == 96.0
    failed = replace(result(), controls=(replace(result().controls[0], passed=False),))
    assert "A control failed" in write_study(tmp_path / "out", failed).html.read_text()


def test_an_infinite_interval_is_written_as_what_it_is(tmp_path: Path) -> None:
    lonely = replace(result(), findings=(at_least("accuracy >= 95 %", of_mean([96.0], "%", "seed"), 95.0),))
    stored = json.loads(write_study(tmp_path, lonely).json.read_text(), parse_constant=pytest.fail)
    assert stored["findings"][0]["figure"]["low"] is None
    assert stored["findings"][0]["verdict"] == "undecided"
