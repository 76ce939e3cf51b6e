"""Predicted standard errors against the scatter of real fits over simulated chips that share no code with them."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans.mvm import MvmCalibrationPlan, board_converters
from labrig.testing.in_memory import measure_dataset
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.predictions import PREDICTED, Predicted, analyse
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings, SimulatedArray

pytest.importorskip("torch")

from labrig_calibration.fit import fit
from labrig_calibration.ladder import Ladder, RungName

FloatArray = NDArray[np.float64]
Scores = dict[str, list[FloatArray]]

MVM_S = 1e-3
WIRES_OHM = 0.5


def settings_of(seed: int, size: tuple[int, int], wire_ohm: float, *, alike: bool) -> ChipSettings:
    rows, columns = size
    return ChipSettings(
        seed=seed,
        arrays=1,
        rows=rows,
        columns=columns,
        adc_full_scale_a=2.5e-6 * rows,
        compression_a=2.2e-6 * rows,
        amplifier_noise_a=4e-9 * rows,
        shot_noise_a=3e-10,
        wire_ohm=wire_ohm,
        stuck_fraction=0.0,
        drift_exponent_sigma=0.0,
        gain_sigma=0.0 if alike else 0.08,
        compression_sigma=0.0 if alike else 0.15,
        mvm_latency_s=MVM_S,
    )


def assumed(settings: ChipSettings, info: BoardInfo) -> AssumedChip:
    """The typical column of these chips."""
    polynomial = settings.programming_scale / 25.0 * np.array([0.26348, 1.9650, -1.1731])
    numbers = {
        "compression_per_a": 1.0 / settings.compression_a,
        "amplifier_noise_a2": settings.amplifier_noise_a**2,
        "shot_noise_a": settings.shot_noise_a,
        "conductance_noise": settings.conductance_noise**2,
        "drift": settings.drift_exponent,
        "device_spread": settings.mismatch_sigma,
        "wire_ohm": settings.wire_ohm,
        **{f"programming_p{power}": float(value) for power, value in enumerate(polynomial)},
    }
    return AssumedChip.from_data_sheet(board_converters(info)).with_values(numbers)


def scored(settings: ChipSettings, writes: int, scores: Scores) -> None:
    """Adds (fitted - true) / predicted error of every parameter, and reported over predicted errors."""
    plan = MvmCalibrationPlan(seed=settings.seed, writes=writes)

    async def measure() -> tuple[MvmDataset, SimulatedArray, BoardInfo]:
        async with MockBoard(settings) as board:
            return (await measure_dataset(board, plan))[0], board.hidden_array(0), board.info

    dataset, truth, info = asyncio.run(measure())
    chip = assumed(settings, info)
    predicted = analyse(plan.design(info, 0), board_converters(info), chip, mvm_s=MVM_S).predicted
    wires: tuple[RungName, ...] = ("wires",) if settings.wire_ohm else ()
    ladder = Ladder(rungs=("global", "cells", "columns", "curve", *wires, "stuck", "drift"), select=False)
    array = fit(dataset, ladder=ladder, rng=np.random.default_rng(0)).array_parameters
    found = array.estimates()

    def add(one: Predicted, value: FloatArray, true: FloatArray | float, reported: FloatArray | None = None) -> None:
        scores[one.name].append(np.ravel((value - true) / one.error))
        if reported is not None:
            scores[f"reported {one.name}"].append(np.ravel(reported / one.error))

    truths: dict[str, FloatArray | float] = {
        "offset": truth.offset_a,
        "compression": 1.0 / truth.compression_a,
        "amplifier_noise": chip.amplifier_noise_a2,
        "shot_noise": chip.shot_noise_a,
        "conductance_noise": chip.conductance_noise,
    }
    if not settings.wire_ohm:
        # With wires what drifts is the cells and not the transfer.
        truths["drift"] = chip.drift
        programmed_s = [
            truth.program(target_s, write, 0.0).conductance_s
            for write, target_s in enumerate(dataset.target_conductance_s)
        ]
        add(predicted["conductance"], array.write_conductance_s * array.gain.value, truth.gain * np.stack(programmed_s))
        gain = truth.gain * truth.mismatch.mean(axis=0)
        add(predicted["gain"], array.gain.value, gain, array.gain.error)
    for name, true in truths.items():
        add(predicted[name], found[name].value, true, found[name].error)
    for power in range(3):
        one = predicted[f"programming_p{power}"]
        add(one, array.programming.value[power], chip.programming[power], array.programming.error[power])
    add(
        predicted["programming"],
        array.programming.value @ [1.0, 0.5, 0.25],
        float(chip.programming_sigma(np.array(0.5))),
    )
    add(predicted["device_spread"], found["mismatch"].value, chip.device_spread, found["mismatch"].error)
    if settings.wire_ohm:
        for line, name in enumerate(("word_line_ohm", "bit_line_ohm")):
            resistance = found["wire_ohm"]
            add(predicted[name], resistance.value[line], settings.wire_ohm, resistance.error[line])
        add(predicted["crosstalk"], found["crosstalk"].value, 0.0, found["crosstalk"].error)


def demand_scatter_of_one(scores: Scores, *, allowed: float) -> None:
    """Root mean squares of all scores within four standard errors of one, and what cannot be helped."""
    for name, parts in scores.items():
        values = np.concatenate(parts)
        scatter = float(np.sqrt(np.mean(values**2)))
        if name.startswith("reported "):
            assert float(np.median(values)) == pytest.approx(1.0, abs=allowed), name
        else:
            assert abs(scatter - 1.0) < allowed + 4.0 / math.sqrt(2.0 * len(values)), (name, scatter, len(values))


def test_two_chips_scatter_as_predicted() -> None:
    scores: Scores = defaultdict(list)
    for seed in range(2):
        scored(settings_of(seed, (8, 32), 0.0, alike=True), 3, scores)
    assert {"gain", "offset", "compression", "drift", "conductance", "programming"} < set(scores)
    demand_scatter_of_one(scores, allowed=0.1)
    # Predictions that are half too small would not pass.
    wrong = {name: [1.5 * part for part in parts] for name, parts in scores.items() if len(np.concatenate(parts)) > 30}
    for name, parts in wrong.items():
        with pytest.raises(AssertionError):
            demand_scatter_of_one({name: parts}, allowed=0.1)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wire_ohm", [0.0, WIRES_OHM], ids=["no wires", "wires"])
def test_many_chips_scatter_as_predicted(wire_ohm: float) -> None:
    scores: Scores = defaultdict(list)
    for seed in range(20):
        scored(settings_of(100 + seed, (24, 32), wire_ohm, alike=True), 4, scores)
    named = {name for name in scores if not name.startswith("reported ")}
    lines = {"word_line_ohm", "bit_line_ohm", "crosstalk"}
    seen = lines if wire_ohm else {"gain", "drift", "conductance"}
    assert named >= seen | (set(PREDICTED) - lines - {"gain", "drift", "conductance", "noise", "gain_with_lines"})
    demand_scatter_of_one(scores, allowed=0.1)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_chips_that_differ_from_what_was_assumed_scatter_nearly_as_predicted() -> None:
    """Gains that differ by 8 % and compressions by 15 %, predicted by their means."""
    scores: Scores = defaultdict(list)
    for seed in range(10):
        scored(settings_of(200 + seed, (16, 32), 0.0, alike=False), 4, scores)
    demand_scatter_of_one(scores, allowed=0.2)
