"""Fitting the columns of an array: labrig's batched Gauss-Newton against a `curve_fit` call for each column.

Both minimise the same weighted squares of the same model from the same start, `curve_fit` with the analytic
Jacobian, which is the best that it can be given. Before anything is timed their results are compared: a fast
fit that stops short is no fit. The whole of `labrig_calibration.fit`, with its noise law and diagnostics, is
timed beside them.
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
from labrig_calibration.columns import ColumnData, ColumnFit, fit_columns, predict, start_values
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_calibration.fit import dac_levels, fit
from labrig_calibration.stimulus import MvmDesign, StimulusCounts, design_mvm_calibration
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

FloatArray = NDArray[np.float64]

DRIFT_REFERENCE_S = 1.0
LARGEST_DIFFERENCE = 0.1
"""How far the chi-squares of the two results may lie apart; one is a step of one standard error."""


@dataclass(frozen=True)
class Problem:
    """One array's measurements, as both fits take them."""

    dataset: MvmDataset
    data: ColumnData
    shared: torch.Tensor
    conductance_s: torch.Tensor

    @classmethod
    def of(cls, dataset: MvmDataset) -> Problem:
        """Applies the DAC's steps, weights saturated outputs with zero, and finds the common start."""
        weight = (~dataset.saturated).astype(np.float64) / dataset.converters.adc_lsb_a**2
        data = ColumnData(
            voltage_v=torch.as_tensor(dac_levels(dataset)),
            current_a=torch.as_tensor(dataset.current_a),
            log_age=torch.log1p(torch.as_tensor(dataset.age_s) / DRIFT_REFERENCE_S),
            weight=torch.as_tensor(weight),
            writes=[torch.as_tensor(np.flatnonzero(dataset.pattern == write)) for write in range(dataset.writes)],
        )
        return cls(dataset, data, *start_values(data))


class ColumnModel:
    """The model of one column for `curve_fit`, in units in which every parameter is near one.

    Parameters: offset and compression scaled by the ADC's full scale, drift exponent, then the conductances
    of every write scaled by the largest conductance.
    """

    def __init__(self, problem: Problem, column: int) -> None:
        dataset = problem.dataset
        self.full_scale_a = float(dataset.converters.adc_full_scale_a[column])
        self.max_s = dataset.converters.conductance_max_s
        keep = ~dataset.saturated[:, column]
        self.age = problem.data.log_age.numpy()[keep]
        self.current = dataset.current_a[keep, column] / self.full_scale_a
        # One block of columns for each write: the design matrix of `u`, the current before the curve.
        voltage = problem.data.voltage_v.numpy()[keep] * self.max_s / self.full_scale_a
        blocks = [voltage * (dataset.pattern[keep] == write)[:, None] for write in range(dataset.writes)]
        self.design = np.concatenate(blocks, axis=1)
        shared = problem.shared[:, column].numpy()
        cells = problem.conductance_s[:, :, column].numpy().ravel() / self.max_s
        offset, compression = shared[0] / self.full_scale_a, shared[1] * self.full_scale_a
        self.start = np.concatenate([[offset, compression, shared[2]], cells])

    def outputs(self, _x: FloatArray, *parameters: float) -> FloatArray:
        """Outputs over the full scale, `[N]`."""
        offset, kappa, drift, *cells = parameters
        u = np.exp(-drift * self.age) * (self.design @ np.asarray(cells))
        return np.asarray(offset + np.tanh(kappa * u) / kappa)

    def jacobian(self, _x: FloatArray, *parameters: float) -> FloatArray:
        """Derivatives of `outputs`, `[N, parameters]`."""
        _, kappa, drift, *cells = parameters
        decay = np.exp(-drift * self.age)
        u = decay * (self.design @ np.asarray(cells))
        tanh = np.tanh(kappa * u)
        slope = 1.0 - tanh**2
        jacobian = np.empty((self.age.size, 3 + self.design.shape[1]))
        jacobian[:, 0] = 1.0
        jacobian[:, 1] = u * slope / kappa - tanh / kappa**2
        jacobian[:, 2] = -slope * u * self.age
        jacobian[:, 3:] = (slope * decay)[:, None] * self.design
        return jacobian

    def fit(self) -> FloatArray:
        """Fits the column; returns offset in A, compression in 1/A, drift, and conductances in S."""
        nothing = np.empty(self.age.size)
        found, _ = curve_fit(self.outputs, nothing, self.current, p0=self.start, jac=self.jacobian, method="lm")
        return np.concatenate(
            [[found[0] * self.full_scale_a, found[1] / self.full_scale_a, found[2]], found[3:] * self.max_s]
        )


def curve_fit_loop(problem: Problem) -> FloatArray:
    """Every column by itself, `[columns, parameters]`."""
    columns = range(problem.dataset.columns)
    return np.stack([ColumnModel(problem, column).fit() for column in columns])


def batched(problem: Problem) -> ColumnFit:
    """All columns together."""
    return fit_columns(problem.data, problem.shared, problem.conductance_s)


def demand_equal_results(problem: Problem, loop: FloatArray, ours: ColumnFit) -> None:
    """Compares the chi-squares that both have reached, column by column.

    Raises:
        RuntimeError: They differ by more than `LARGEST_DIFFERENCE` somewhere.
    """
    theirs = torch.as_tensor(loop.T)
    theirs_square = _weighted_squares(problem, theirs[:3], theirs[3:].reshape(ours.conductance_s.shape))
    ours_square = _weighted_squares(problem, ours.shared, ours.conductance_s)
    freedom = (problem.data.weight > 0).sum(dim=0) - loop.shape[1]
    # The weights only have the right proportions; a chi-square has one for each degree of freedom.
    difference = (ours_square - theirs_square) / (ours_square / freedom)
    worst = float(difference.abs().max())
    if not worst < LARGEST_DIFFERENCE:
        raise RuntimeError(f"chi-squares differ by up to {worst:.2g}: the two fits do not solve the same problem")


def _weighted_squares(problem: Problem, shared: torch.Tensor, conductance_s: torch.Tensor) -> torch.Tensor:
    outputs, _ = predict(problem.data, shared, conductance_s)
    return (problem.data.weight * (problem.data.current_a - outputs) ** 2).sum(dim=0)


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
    settings = ChipSettings(rows=size, columns=columns, arrays=1, adc_full_scale_a=160e-6 * size / 64)
    async with MockBoard(settings) as board:
        counts = StimulusCounts(sparse=128, random=192, activation=256)
        design = design_mvm_calibration(size, columns, converters_of(board.info), writes=2, counts=counts)
        dataset = await measured(design, board)
    problem = Problem.of(dataset)
    demand_equal_results(problem, curve_fit_loop(problem), batched(problem))
    loop = "curve_fit for each column, analytic Jacobian"
    yield Suite(
        f"Fit of {columns} columns: {len(dataset)} MVMs, {3 + dataset.writes * size} parameters a column",
        "column",
        [
            Case(loop, sync(lambda: curve_fit_loop(problem)), columns),
            Case("fit_columns, all columns at once", sync(lambda: batched(problem)), columns, loop),
            Case(
                "labrig_calibration.fit: 3 passes, noise law, diagnostics",
                sync(lambda: fit(dataset, rng=np.random.default_rng(0))),
                columns,
                loop,
            ),
        ],
    )


if __name__ == "__main__":
    main(Script("benchmarks.calibration", prepare, ("numpy", "scipy", "torch")))
