"""Fitting columns: labrig's batched Gauss-Newton against SciPy called for each column.

Two problems. Transfer curves: four parameters and the law of the noise from 2,000 samples a column, where `curve_fit`
is called three times, the second and third weighted by the noise found. And the columns of an array: offset, curve
and the conductance of every cell of every write, where `curve_fit` gets the analytic Jacobian, the best that it
can be given. Before anything is timed the results are compared: a fast fit that stops short is no fit. The whole of
`labrig_calibration.fit`, with its ladder and diagnostics, is timed beside them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig_calibration.columns import ColumnState, climb, moments
from labrig_calibration.curves import CurveFit, fit_curves
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_calibration.fit import fit
from labrig_calibration.linear_rungs import robust_start
from labrig_calibration.measurements import Measurements, dac_levels
from labrig_calibration.noise_law import NoiseTerms
from labrig_calibration.stimulus import MvmDesign, StimulusCounts, design_mvm_calibration
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

FloatArray = NDArray[np.float64]

LARGEST_DIFFERENCE = 0.1
"""How far the chi-squares of the two results may lie apart; one is a step of one standard error."""


FREE = (0, 1)
"""Offset and compression are fitted; on drift and skew, which this chip has not, labrig sets priors."""
SAMPLES = 2000
TRUE_NOISE = (0.02, 0.05)
WORST_ERROR = 1.05
"""Error over the Cramer-Rao bound that a fit of curves may have."""


@dataclass(frozen=True)
class Problem:
    """One array's measurements, as both fits take them."""

    dataset: MvmDataset
    data: Measurements
    start: ColumnState

    @classmethod
    def of(cls, dataset: MvmDataset) -> Problem:
        """Finds the common start; one noise for every output, so wide that none counts as a reading gone wrong."""
        data = Measurements.of(dataset)
        start = robust_start(data)
        lsb_a = torch.as_tensor(dataset.converters.adc_lsb_a)
        shared = start.shared.clone()
        shared[1] = 0.5 / torch.as_tensor(np.abs(dataset.current_a).max(axis=0))
        noise = NoiseTerms.constant((12.0 * lsb_a) ** 2, torch.zeros_like(lsb_a))
        return cls(dataset, data, ColumnState(shared, start.conductance_s, noise))


@dataclass(frozen=True)
class Curves:
    """Transfer curves of many columns with known truth: `[columns, samples]`, and `[4, columns]`."""

    x: FloatArray
    y: FloatArray
    truth: FloatArray

    @classmethod
    def drawn(cls, columns: int) -> Curves:
        """Height, rate, centre and offset around those of a compressing amplifier, noise that grows with the output."""
        rng = np.random.default_rng(0)
        truth = np.stack(
            [
                rng.uniform(0.8, 1.2, columns),
                rng.uniform(1.0, 2.5, columns),
                rng.normal(0, 0.1, columns),
                rng.normal(0, 0.05, columns),
            ]
        )
        x = rng.uniform(-2, 2, (columns, SAMPLES))
        height = truth[0][:, None] * np.tanh(truth[1][:, None] * (x - truth[2][:, None]))
        sigma = np.sqrt(TRUE_NOISE[0] ** 2 + TRUE_NOISE[1] ** 2 * height**2)
        return cls(x, height + truth[3][:, None] + sigma * rng.standard_normal(x.shape), truth)

    def loop(self) -> FloatArray:
        """`curve_fit` for every column, three passes, `[4, columns]`."""
        return np.stack([_weighted_curve_fit(x, y) for x, y in zip(self.x, self.y, strict=True)], axis=1)

    def batched(self) -> CurveFit:
        """All columns together."""
        return fit_curves(torch.as_tensor(self.x), torch.as_tensor(self.y))

    def error_over_bound(self, found: FloatArray) -> float:
        """Root mean square of the errors over the Cramer-Rao bound, over all parameters and columns."""
        height, rate, centre = (one[:, None] for one in self.truth[:3])
        curve = np.tanh(rate * (self.x - centre))
        slope = height * (1.0 - curve**2)
        jacobian = np.stack([curve, slope * (self.x - centre), -rate * slope, np.ones_like(self.x)], axis=1)
        weight = 1.0 / (TRUE_NOISE[0] ** 2 + TRUE_NOISE[1] ** 2 * (height * curve) ** 2)
        information = np.einsum("can,cn,cbn->cab", jacobian, weight, jacobian)
        bound = np.sqrt(np.linalg.inv(information).diagonal(axis1=1, axis2=2)).T
        return float(np.sqrt((((found - self.truth) / bound) ** 2).mean()))


def _curve(x: FloatArray, height: float, rate: float, centre: float, offset: float) -> FloatArray:
    return np.asarray(height * np.tanh(rate * (x - centre)) + offset)


def _weighted_curve_fit(x: FloatArray, y: FloatArray) -> FloatArray:
    found, sigma = np.array([1.0, 1.0, 0.0, 0.0]), np.ones_like(x)
    for _ in range(3):
        found, _ = curve_fit(_curve, x, y, p0=found, sigma=sigma)
        curve = _curve(x, *found)
        features = np.stack([np.ones_like(x), (curve - found[3]) ** 2], axis=1)
        weight = 1.0 / sigma**2
        law = np.linalg.lstsq(features * weight[:, None], (y - curve) ** 2 * weight, rcond=None)[0]
        sigma = np.sqrt(np.maximum(features @ law, 1e-6))
    return np.asarray(found)


def demand_good_curves(curves: Curves) -> None:
    """Compares both fits of curves with the Cramer-Rao bound and with each other.

    Raises:
        RuntimeError: Ours is worse than SciPy's, or further from the bound than `WORST_ERROR`.
    """
    theirs = curves.error_over_bound(curves.loop())
    ours = curves.error_over_bound(curves.batched().value.numpy())
    if not ours < min(1.01 * theirs, WORST_ERROR):
        raise RuntimeError(f"error over the Cramer-Rao bound is {ours:.3f}, that of curve_fit {theirs:.3f}")


class ColumnModel:
    """The model of one column for `curve_fit`, in units in which every parameter is near one.

    Parameters: offset and compression scaled by the ADC's full scale, then the conductances
    of every write scaled by the largest conductance.
    """

    def __init__(self, problem: Problem, column: int) -> None:
        dataset = problem.dataset
        self.full_scale_a = float(dataset.converters.adc_full_scale_a[column])
        self.max_s = dataset.converters.conductance_max_s
        keep = ~dataset.saturated[:, column]
        self.current = dataset.current_a[keep, column] / self.full_scale_a
        # One block of columns for each write: the design matrix of `u`, the current before the curve.
        voltage = dac_levels(dataset)[keep] * self.max_s / self.full_scale_a
        blocks = [voltage * (dataset.pattern[keep] == write)[:, None] for write in range(dataset.writes)]
        self.design = np.concatenate(blocks, axis=1)
        shared = problem.start.shared[:, column].numpy()
        cells = problem.start.conductance_s[:, :, column].numpy().ravel() / self.max_s
        offset, compression = shared[0] / self.full_scale_a, shared[1] * self.full_scale_a
        self.start = np.concatenate([[offset, compression], cells])

    def outputs(self, _x: FloatArray, *parameters: float) -> FloatArray:
        """Outputs over the full scale, `[N]`."""
        offset, kappa, *cells = parameters
        u = self.design @ np.asarray(cells)
        return np.asarray(offset + np.tanh(kappa * u) / kappa)

    def jacobian(self, _x: FloatArray, *parameters: float) -> FloatArray:
        """Derivatives of `outputs`, `[N, parameters]`."""
        _, kappa, *cells = parameters
        u = self.design @ np.asarray(cells)
        tanh = np.tanh(kappa * u)
        slope = 1.0 - tanh**2
        jacobian = np.empty((self.current.size, 2 + self.design.shape[1]))
        jacobian[:, 0] = 1.0
        jacobian[:, 1] = u * slope / kappa - tanh / kappa**2
        jacobian[:, 2:] = slope[:, None] * self.design
        return jacobian

    def fit(self) -> FloatArray:
        """Fits the column; returns offset in A, compression in 1/A, and conductances in S."""
        nothing = np.empty(self.current.size)
        found, _ = curve_fit(self.outputs, nothing, self.current, p0=self.start, jac=self.jacobian, method="lm")
        shared = [found[0] * self.full_scale_a, found[1] / self.full_scale_a]
        return np.concatenate([shared, found[2:] * self.max_s])


def curve_fit_loop(problem: Problem) -> FloatArray:
    """Every column by itself, `[columns, parameters]`."""
    columns = range(problem.dataset.columns)
    return np.stack([ColumnModel(problem, column).fit() for column in columns])


def batched(problem: Problem) -> ColumnState:
    """All columns together."""
    return climb(problem.data, problem.start, FREE)[0]


def demand_equal_results(problem: Problem, loop: FloatArray, ours: ColumnState) -> None:
    """Compares the chi-squares that both have reached, column by column.

    Raises:
        RuntimeError: They differ by more than `LARGEST_DIFFERENCE` somewhere.
    """
    theirs = torch.as_tensor(loop.T)
    shared = torch.cat([theirs[:2], torch.zeros_like(theirs[:2])])
    cells = theirs[2:].reshape(ours.conductance_s.shape)
    theirs_square = _weighted_squares(problem, ColumnState(shared, cells, ours.noise))
    ours_square = _weighted_squares(problem, ours)
    freedom = torch.as_tensor((~problem.dataset.saturated).sum(axis=0) - loop.shape[1])
    # The weights only have the right proportions; a chi-square has one for each degree of freedom.
    difference = (ours_square - theirs_square) / (ours_square / freedom)
    worst = float(difference.max())
    if not worst < LARGEST_DIFFERENCE:
        raise RuntimeError(f"chi-squares differ by up to {worst:.2g}: the two fits do not solve the same problem")


def _weighted_squares(problem: Problem, state: ColumnState) -> torch.Tensor:
    total = torch.zeros(state.shared.shape[1], dtype=torch.float64)
    for block in problem.data.blocks():
        mean, _, _, variance = moments(block, state)
        kept = 1.0 if block.outputs.rail is None else (block.outputs.rail == 0).double()
        total += (kept * (block.outputs.current_a - mean) ** 2 / variance).sum(dim=0)
    return total


async def measured(design: MvmDesign, board: MockBoard) -> MvmDataset:
    """Carries a design out on array 0 of an open board."""
    voltage, current, saturated, time, pattern, programmed = [], [], [], [], [], []
    for write, part in enumerate(design.writes):
        report = await board.program(0, part.target_conductance_s)
        programmed.append(report.time_s)
        for block in part.blocks:
            answer = await board.mvm(0, block.voltage_v)
            voltage.append(block.voltage_v)
            current.append(answer.current_a)
            saturated.append(answer.saturated)
            time.append(answer.time_s)
            pattern.append(np.full(block.voltage_v.shape[0], write, dtype=np.int64))
    return MvmDataset(
        voltage_v=np.concatenate(voltage),
        current_a=np.concatenate(current),
        pattern=np.concatenate(pattern),
        target_conductance_s=np.stack([part.target_conductance_s for part in design.writes]),
        time_s=np.concatenate(time),
        programmed_at_s=np.asarray(programmed),
        saturated=np.concatenate(saturated),
        converters=converters_of(board.info),
        chip_id=board.info.chip_id,
    )


def converters_of(info: BoardInfo) -> Converters:
    """The converters of a board as a data set names them."""
    return Converters(
        voltage_min_v=info.voltage_min_v,
        voltage_max_v=info.voltage_max_v,
        dac_bits=info.dac_bits,
        adc_bits=info.adc_bits,
        adc_full_scale_a=np.asarray(info.adc_full_scale_a),
        conductance_min_s=info.conductance_min_s,
        conductance_max_s=info.conductance_max_s,
    )


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Measures a simulated array and sets the three fits up."""
    size = 16 if quick else 32
    columns = 16 if quick else 64
    # The full scale follows the number of rows, so that outputs fill the converter as on the full-size chip.
    settings = ChipSettings(
        rows=size, columns=columns, arrays=1, drift_exponent=0.0, adc_full_scale_a=160e-6 * size / 64
    )
    async with MockBoard(settings) as board:
        counts = StimulusCounts(sparse=128, random=192, activation=256)
        design = design_mvm_calibration(size, columns, converters_of(board.info), writes=2, counts=counts)
        dataset = await measured(design, board)
    # `curve_fit` knows nothing of clipped outputs.
    dataset = dataset.select(np.logical_not(dataset.saturated.any(axis=1)))
    problem = Problem.of(dataset)
    demand_equal_results(problem, curve_fit_loop(problem), batched(problem))
    curves = Curves.drawn(16 if quick else 128)
    demand_good_curves(curves)
    many, loop = "curves: curve_fit for each column, three passes", "cells: curve_fit for each column, exact Jacobian"
    yield Suite(
        f"Fits: {len(curves.x)} curves of {SAMPLES} samples; {columns} columns of an array, {len(dataset)} MVMs, "
        f"{2 + dataset.writes * size} parameters a column",
        "column",
        [
            Case(many, sync(curves.loop), len(curves.x)),
            Case("curves: fit_curves, with errors", sync(curves.batched), len(curves.x), many),
            Case(loop, sync(lambda: curve_fit_loop(problem)), columns),
            Case("cells: all columns at once, with errors", sync(lambda: batched(problem)), columns, loop),
            Case(
                "labrig_calibration.fit: whole ladder, diagnostics",
                sync(lambda: fit(dataset, rng=np.random.default_rng(0))),
                columns,
                loop,
            ),
        ],
    )


if __name__ == "__main__":
    main(Script("benchmarks.calibration", prepare, ("numpy", "scipy", "torch")))
