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
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_calibration.predictions import PREDICTED, Predicted, analyse
from labrig_calibration.stimulus import design_mvm_calibration
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings, SimulatedArray
from labrig_drivers.mock.nodal import transfer_matrix

pytest.importorskip("torch")

from labrig_calibration.fit import fit
from labrig_calibration.ladder import Ladder, RungName

FloatArray = NDArray[np.float64]
Scores = dict[str, list[FloatArray]]

MVM_S = 1e-3
WIRES_OHM = 2.0
LINES = ("word_line_ohm", "bit_line_ohm")


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
        "mismatch": settings.mismatch_sigma,
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
    add(predicted["mismatch"], found["mismatch"].value, chip.mismatch, found["mismatch"].error)
    if settings.wire_ohm:
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
    # Predictions that are half as large would not pass.
    wrong = {name: [2.0 * part for part in parts] for name, parts in scores.items() if len(np.concatenate(parts)) > 30}
    for name, parts in wrong.items():
        with pytest.raises(AssertionError):
            demand_scatter_of_one({name: parts}, allowed=0.1)


def test_wire_resistances_scatter_as_predicted() -> None:
    """A least-squares fit of its own, by the exact circuit, of the conductances of 120 arrays."""
    size, writes, arrays = 16, 4, 120
    limits = Converters(-0.3, 0.3, 8, 10, np.full(size, 4e-5), 4e-6, 5e-5)
    chip = AssumedChip.from_data_sheet(limits).with_values({"wire_ohm": WIRES_OHM})
    first = design_mvm_calibration(size, size, limits, writes=writes, seed=0)
    predicted = analyse(first, limits, chip, mvm_s=MVM_S).predicted
    expected = np.array([predicted[name].error for name in LINES])
    error_s, spread = predicted["conductance"].error, chip.mismatch
    programming_s = chip.programming[0] * limits.conductance_max_s
    found = []
    for seed in range(arrays):
        rng = np.random.default_rng(seed)
        span = (limits.conductance_min_s, limits.conductance_max_s)
        target_s = rng.uniform(*span, (writes // 2, size, size))
        target_s = np.concatenate([target_s, sum(span) - target_s])
        slope = 1.0 + spread * rng.standard_normal((size, size))
        cells_s = np.maximum(slope * target_s + programming_s * rng.standard_normal(target_s.shape), 0.0)
        gain = 1.0 + 0.08 * rng.standard_normal(size)
        seen_s = gain * transfers_s(cells_s, WIRES_OHM, WIRES_OHM) + error_s * rng.standard_normal(target_s.shape)
        found.append(wire_step_ohm(seen_s, target_s, programming_s, error_s, spread) / expected)
    scores = np.array(found)
    assert (np.abs(scores.mean(axis=0)) < 4.0 / math.sqrt(arrays)).all()
    assert (np.abs(scores.std(axis=0, ddof=1) - 1.0) < 4.0 / math.sqrt(2.0 * arrays)).all()


def transfers_s(cells_s: FloatArray, word_ohm: float, bit_ohm: float) -> FloatArray:
    return np.stack([transfer_matrix(one, word_ohm, bit_ohm) for one in cells_s])


def wire_step_ohm(
    seen_s: FloatArray, target_s: FloatArray, programming_s: float, error_s: float, spread: float
) -> FloatArray:
    """How far from the truth least squares put both resistances, with all gains and all cells' slopes free."""
    step_ohm = 0.05
    base_s = transfers_s(target_s, WIRES_OHM, WIRES_OHM)
    changes = [
        transfers_s(target_s, WIRES_OHM + word, WIRES_OHM + bit)
        - transfers_s(target_s, WIRES_OHM - word, WIRES_OHM - bit)
        for word, bit in ((step_ohm, 0.0), (0.0, step_ohm))
    ]
    sigma_s = np.hypot(programming_s * base_s / target_s, error_s)
    gain = (seen_s * base_s / sigma_s**2).sum(axis=(0, 1)) / (base_s**2 / sigma_s**2).sum(axis=(0, 1))
    residual = (seen_s / gain - base_s) / sigma_s
    x = np.stack([base_s, *(change / (2.0 * step_ohm) for change in changes)]) / sigma_s
    # A cell's slope is eliminated with its spread as a prior, then each column's gain.
    along = np.einsum("apic,pic->aic", x, x[0])
    pull = np.einsum("pic,pic->ic", x[0], residual)
    left = 1.0 / ((x[0] ** 2).sum(axis=0) + 1.0 / spread**2)
    normal = np.einsum("apic,bpic->cab", x, x) - np.einsum("aic,bic,ic->cab", along, along, left)
    right = np.einsum("apic,pic->ca", x, residual) - np.einsum("aic,ic,ic->ca", along, pull, left)
    schur = normal[:, 1:, 1:] - normal[:, 1:, :1] * normal[:, :1, 1:] / normal[:, :1, :1]
    rest = right[:, 1:] - normal[:, 1:, 0] * right[:, :1] / normal[:, :1, 0]
    return np.asarray(np.linalg.solve(schur.sum(axis=0), rest.sum(axis=0)))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wire_ohm", [0.0, WIRES_OHM], ids=["no wires", "wires"])
def test_many_chips_scatter_as_predicted(wire_ohm: float) -> None:
    scores: Scores = defaultdict(list)
    for seed in range(20):
        scored(settings_of(100 + seed, (24, 32), wire_ohm, alike=True), 4, scores)
    named = {name for name in scores if not name.startswith("reported ")}
    lines = {*LINES, "crosstalk"}
    seen = {"crosstalk"} if wire_ohm else {"gain", "drift", "conductance"}
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
