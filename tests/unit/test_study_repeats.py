"""A study's parts: one for each seed and kind; an interrupted study goes on, and a rig's chip is measured anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from labrig.studies.cache import Numbers
from labrig.studies.parts import Configuration
from labrig.studies.repeats import repeat, rig_of, seed_of
from labrig.studies.running import Found, StudySettings
from labrig_drivers.errors import ConfigError

KINDS = ({"kind": "a"}, {"kind": "b"})


class Counting:
    """Computes ten times the seed, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def __call__(self, part: Configuration) -> Numbers:
        self.asked.append((seed_of(part), str(part["kind"])))
        return {"tenfold": 10.0 * seed_of(part)}


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


def test_every_seed_has_every_kind(tmp_path: Path) -> None:
    compute = Counting()
    found = repeat("tens", StudySettings(seeds=2, seed=3, cache=tmp_path), compute, quiet, KINDS)
    assert compute.asked == [(3, "a"), (3, "b"), (4, "a"), (4, "b")]
    assert found.of(kind="b") == [{"tenfold": 30.0}, {"tenfold": 40.0}]
    assert found.taken == 0
    assert found.noted(Found((), (), (), (), {})).conditions == {}


def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = StudySettings(seeds=2, cache=tmp_path)

    def interrupting(what: str, done: int, total: int) -> None:
        del what, total
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repeat("tens", settings, Counting(), interrupting, KINDS)
    again, told = Counting(), list[tuple[int, int]]()
    found = repeat("tens", settings, again, lambda _, done, total: told.append((done, total)), KINDS)
    assert told[-1] == (4, 4)
    assert again.asked == [(1, "b")]
    assert [one["tenfold"] for one in found.numbers] == [0.0, 0.0, 10.0, 10.0]
    conditions = found.noted(Found((), (), (), (), {"data": "none"})).conditions
    assert conditions == {"data": "none", "parts": "4, of which 3 from an earlier run"}


def test_what_differs_in_size_or_study_is_not_taken_over(tmp_path: Path) -> None:
    repeat("tens", StudySettings(seeds=1, cache=tmp_path), Counting(), quiet, KINDS)
    for study, quick in (("tens", True), ("others", False)):
        compute = Counting()
        repeat(study, StudySettings(seeds=1, quick=quick, cache=tmp_path), compute, quiet, KINDS)
        assert len(compute.asked) == 2


def test_the_chip_of_a_rig_is_measured_anew_once_a_study_is_done(tmp_path: Path) -> None:
    rig = tmp_path / "rig.toml"
    rig.write_text("[board]\n")
    settings = StudySettings(seeds=1, rig=rig, cache=tmp_path / "parts", processes=2)
    first, second = Counting(), Counting()
    repeat("tens", settings, first, quiet, KINDS)
    found = repeat("tens", settings, second, quiet, KINDS)
    # In this process, whatever `processes` says: there is only one chip.
    assert len(first.asked) == len(second.asked) == 2
    assert rig_of(found.parts[0]) == rig
    assert list((tmp_path / "parts").iterdir()) == []
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        repeat("tens", StudySettings(rig=tmp_path / "none.toml"), Counting(), quiet, KINDS)
