"""The parts of the break-even study: chips of a chosen mismatch, kept parts, trainings, and what is concluded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from labrig.studies.break_even import compute, run
from labrig.studies.break_even_findings import METHODS, Chip, Grid, found
from labrig.studies.cache import Cache
from labrig.studies.loop_methods import LoopSize, Tuned
from labrig.studies.parts import Configuration, computed
from labrig.studies.running import StudySettings
from labrig.studies.structured_chip import (
    CONDUCTANCE_MAX_S,
    STRUCTURES,
    VOLTAGE_MAX_V,
    Structure,
    StructuredBoard,
    StructuredChip,
    another,
    strength_of,
)
from labrig_drivers.errors import ConfigError, StorageError
from labrig_surrogates.array_surrogate import ArraySurrogate

TINY = LoopSize(6, 40, 10, 4, 2, 4, 32)


def outputs(chip: StructuredChip, *, surrogate: bool, gains: bool = False) -> np.ndarray:
    """Differences of columns for weights and inputs that are not those of the reference."""
    rng = np.random.default_rng(99)
    weight = np.clip(rng.standard_normal((chip.rows, chip.columns // 2)) / 2.5, -1.0, 1.0)
    cells_s = np.zeros((chip.rows, chip.columns))
    cells_s[:, 0::2], cells_s[:, 1::2] = np.maximum(weight, 0.0), np.maximum(-weight, 0.0)
    cells_s *= CONDUCTANCE_MAX_S
    voltage_v = VOLTAGE_MAX_V * rng.random((200, chip.rows)) * (rng.random((200, chip.rows)) < 0.5)
    if surrogate:
        model = ArraySurrogate(chip.calibration(gains=gains).arrays[0]).double()
        current_a = model.moments(torch.as_tensor(cells_s), torch.as_tensor(voltage_v))[0].numpy()
    else:
        board = StructuredBoard(chip)
        board.program(0, cells_s)
        current_a = board.mvm(0, voltage_v).current_a
    return np.asarray(current_a[:, 0::2] - current_a[:, 1::2])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_chip_is_as_wrong_as_it_should_be(structure: Structure) -> None:
    quiet = StructuredChip(3, structure, 0.2, programming=0.0, noise=0.0)
    real, model = outputs(quiet, surrogate=False), outputs(quiet, surrogate=True)
    # Other weights and inputs than those that the strength was found with; array 0 of two.
    assert np.sqrt(np.mean((real - model) ** 2) / np.mean(model**2)) == pytest.approx(0.2, rel=0.15)
    right = replace(quiet, mismatch=0.0)
    real = outputs(right, surrogate=False)
    assert np.sqrt(np.mean((real - model) ** 2) / np.mean(model**2)) < 0.02  # the ADC rounds
    assert strength_of(right) == 0.0


def test_known_gains_leave_nothing_hidden_but_those_of_another_chip_do() -> None:
    chip = StructuredChip(3, "columns", 0.3, programming=0.0, noise=0.0)
    real = outputs(chip, surrogate=False)
    errors = [
        np.sqrt(np.mean((real - outputs(one, surrogate=True, gains=True)) ** 2) / np.mean(real**2))
        for one in (chip, another(chip))
    ]
    assert errors[0] < 0.02 < 0.2 < errors[1]


def test_a_chip_ages_by_its_drift_and_repeats_itself() -> None:
    chip = StructuredChip(3, "cells", 0.1, drift=0.2)
    left = chip.aged(0, 1.0)
    assert np.log(left).mean() == pytest.approx(-0.2, abs=0.02)
    assert np.log(left).std() == pytest.approx(0.2, rel=0.1)
    assert (chip.aged(0, 0.0) == 1.0).all()
    answers = []
    for age in (0.0, 0.0, 1.0):
        board = StructuredBoard(chip)
        board.program(1, np.full((64, 32), 0.5 * CONDUCTANCE_MAX_S))
        board.age = age
        answers.append(board.mvm(1, np.full((4, 64), 0.5 * VOLTAGE_MAX_V)).current_a)
    assert (answers[0] == answers[1]).all()
    assert answers[2].mean() / answers[0].mean() == pytest.approx(float(left.mean()), rel=0.03)


def squares(part: Configuration) -> Mapping[str, float]:
    number = part["number"]
    assert isinstance(number, int)
    if number == 13:
        raise KeyboardInterrupt
    return {"square": float(number**2)}


def test_an_interrupted_study_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    parts = [{"number": number} for number in (2, 3, 13, 4)]
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        computed(squares, parts, Cache(tmp_path), 1, seen.append)
    assert seen == [1, 2]
    again = Cache(tmp_path)
    numbers = computed(squares, [*parts[:2], parts[3]], again, 1, seen.append)
    assert [one["square"] for one in numbers] == [4.0, 9.0, 16.0]
    assert again.taken == 2
    # Another configuration, or a damaged file, is another matter.
    assert Cache(tmp_path).kept({"number": 2, "more": True}) is None
    for file in tmp_path.glob("*.json"):
        file.write_text("{")
    assert Cache(tmp_path).kept({"number": 2}) is None
    assert Cache(None).keep({"number": 2}, {"square": 4.0}) == {"square": 4.0}
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Cache(tmp_path / "file").keep({"number": 2}, {"square": 4.0})


@pytest.mark.nightly
def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    parts = [{"number": number} for number in range(6)]
    cache = Cache(tmp_path)
    cache.keep(parts[1], {"square": 1.0})
    assert computed(squares, parts, cache, 2, lambda _: None) == computed(
        squares, parts, Cache(None), 1, lambda _: None
    )
    assert cache.taken == 1


def test_every_method_is_judged_on_the_same_chip_with_its_passes_counted() -> None:
    part = {
        "part": "methods",
        "seed": 0,
        "chip": ("columns", 0.3, 0.2),
        "size": asdict(TINY),
        "tuned": asdict(Tuned()),
        "images": (128, 40),
    }
    numbers = compute(part)
    assert {name: numbers[f"{name}/images"] for name in METHODS} == {
        "offline": 0.0,
        "calibrated": 2 * 32,  # once for each layer
        "PAT": 4 * 64,
        "PAT, few passes": 2 * 64,
        "DAT": 4 * 64,
        "DAT, few passes": 2 * 64,
        "adaptive": 2 * 64,
    }
    assert all(0.0 <= numbers[f"{name}/accuracy"] <= 100.0 for name in METHODS)


def conclusion(gain: float, *, wrong: float = 60.0, shuffled: float = 10.0) -> Mapping[str, str]:
    """Verdicts where PAT is above calibrated columns by so much at 30 % and adaptive is as good as PAT."""
    grid = Grid(("columns", "cells"), (0.0, 0.3), (0.0, 0.2), LoopSize(), Tuned())
    chips: list[Chip] = [("columns", 0.0, 0.0), *grid.chips]
    results = {}
    for seed in range(3):
        for chip in chips:
            level = dict.fromkeys(METHODS, 90.0 + 0.1 * seed)
            level["offline"] = 90.0 if chip[1] == 0.0 else 70.0
            for name in ("PAT", "adaptive"):
                level[name] += gain if chip[1] > 0.0 else 0.0
            level["PAT, few passes"] -= 5.0 + 0.1 * seed
            results[seed, chip] = {
                **{f"{name}/accuracy": value for name, value in level.items()},
                **{f"{name}/images": 64.0 for name in METHODS},
            }
    controls = [{"right": 90.0, "wrong": wrong + seed, "shuffled": shuffled + seed} for seed in range(3)]
    outcome = found(grid, results, controls, (0, 1, 2))
    told: dict[str, str] = {one.claim: one.verdict for one in outcome.findings}
    told |= {one.name: str(one.passed) for one in outcome.controls}
    (table,) = (one for one in outcome.tables if one.title.startswith("Break-even"))
    return {**told, **{f"{row[0]}, {row[1]}": str(row[3]) for row in table.rows}}


def test_what_is_concluded_follows_the_accuracies() -> None:
    pays = conclusion(2.0)
    assert [pays[claim] for claim in pays if "PAT is above offline training with" in claim] == ["holds"] * 4
    assert [pays[claim] for claim in pays if claim.startswith("At equal device passes")] == ["holds"]
    assert pays["gains of the columns, 0 %"] == "from 30 % on"
    does_not = conclusion(-2.0)
    assert [does_not[claim] for claim in does_not if "PAT is above offline training with" in claim] == [
        "does not hold"
    ] * 4
    assert does_not["factors of the cells, 20 %"] == "nowhere"
    failed = conclusion(2.0, wrong=95.0, shuffled=50.0)
    assert [value for name, value in failed.items() if name.startswith(("offline training on", "PAT from"))] == [
        "False"
    ] * 2


def test_a_rig_is_refused() -> None:
    with pytest.raises(ConfigError, match="no --rig"):
        run(StudySettings(rig=Path("rig.toml")), lambda what, done, total: None)


@pytest.mark.nightly
def test_the_quick_study_runs_to_its_end(tmp_path: Path) -> None:
    settings = StudySettings(seeds=2, quick=True, cache=tmp_path)
    result = run(settings, lambda what, done, total: None)
    assert len(result.controls) == 2
    assert len(result.findings) == 7
    again = run(settings, lambda what, done, total: None)
    assert again.findings == result.findings
    assert "of which 8 from an earlier run" in again.conditions["parts"]
