"""Wires of a crossbar: the exact solution against badcrossbar and a sparse solver, the first order against a product.

All solve one circuit: conductances log-uniform from 10 to 100 microsiemens, one ohm a segment. Before anything is timed
their currents are compared; then the first-order form's error is printed for several sizes and resistances. badcrossbar
is optional (`pip install --no-deps badcrossbar pathvalidate`); without it the sparse solver is the reference.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from torch import Tensor

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig_surrogates.wire_first_order import FirstOrderWires, first_order_transfer
from labrig_surrogates.wires import transfer_matrix

FloatArray = NDArray[np.float64]

OHM = 1.0
VECTORS = 64
"""Vectors of one request to the exact solvers."""
BATCH = 512
"""Vectors of one training step."""
LARGEST_DIFFERENCE = 1e-8
LARGEST_TIMED = 128
"""Rows of the largest array that the peers are timed at."""


@dataclass(frozen=True)
class Problem:
    """One array and its voltages."""

    conductance_s: Tensor
    voltage_v: Tensor

    @classmethod
    def of(cls, size: int, seed: int = 0) -> Problem:
        """A square array."""
        generator = torch.Generator().manual_seed(seed)
        conductance_s = 10.0 ** (torch.rand((size, size), generator=generator, dtype=torch.float64) - 5.0)
        return cls(conductance_s, torch.rand((VECTORS, size), generator=generator, dtype=torch.float64))


def badcrossbar(problem: Problem) -> Callable[[], FloatArray] | None:
    """Currents by badcrossbar, output currents only; None where it is not installed."""
    if importlib.util.find_spec("badcrossbar") is None:
        return None
    with warnings.catch_warnings(record=True):
        package: Any = importlib.import_module("badcrossbar")
    # It writes several lines for each solution.
    logging.getLogger().setLevel(logging.WARNING)
    voltage_v, ohm = problem.voltage_v.numpy().T, 1.0 / problem.conductance_s.numpy()

    def solve() -> FloatArray:
        solution = package.compute(voltage_v, ohm, OHM, node_voltages=False, all_currents=False)
        return np.asarray(solution.currents.output)

    return solve


def sparse(problem: Problem) -> Callable[[], FloatArray]:
    """Currents by SciPy: node matrix assembled at once, SuperLU in its symmetric mode, one solve for all vectors."""
    conductance_s, voltage_v = problem.conductance_s.numpy(), problem.voltage_v.numpy()
    rows, columns = conductance_s.shape
    count = rows * columns
    number = np.arange(count).reshape(rows, columns)
    lines = [(number[:, :-1], number[:, 1:]), (count + number[:-1], count + number[1:])]
    pairs = [(a.ravel(), b.ravel()) for a, b in [*lines, (number, count + number)]]
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    ends = np.concatenate([number[:, 0], count + number[-1]])

    def solve() -> FloatArray:
        wires = np.full(first.size - count, 1.0 / OHM)
        siemens = np.concatenate([wires, conductance_s.ravel()])
        at_ends = np.full(ends.size, 1.0 / OHM)
        data = np.concatenate([siemens, siemens, -siemens, -siemens, at_ends])
        i, j = (
            np.concatenate([first, second, first, second, ends]),
            np.concatenate([first, second, second, first, ends]),
        )
        nodes = coo_array((data, (i, j)), shape=(2 * count, 2 * count)).tocsc()
        drive = np.zeros((2 * count, voltage_v.shape[0]))
        drive[number[:, 0]] = voltage_v.T / OHM
        factor = splu(nodes, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        return np.asarray(factor.solve(drive)[count + number[-1]].T / OHM)

    return solve


def demand_equal_results(ours: Tensor, theirs: FloatArray, name: str) -> None:
    """Compares currents.

    Raises:
        RuntimeError: They differ by more than `LARGEST_DIFFERENCE`, relatively.
    """
    worst = float(np.abs(ours.numpy() / theirs - 1.0).max())
    if not worst < LARGEST_DIFFERENCE:
        raise RuntimeError(f"currents differ from those of {name} by up to {worst:.2g}: not the same circuit")
    print(f"  {ours.shape[1]} x {ours.shape[1]}, {name}: currents differ by at most {worst:.1e}")


def print_first_order_error(sizes: tuple[int, ...]) -> None:
    """Error of the first-order form, largest over vectors and columns, over the largest current."""
    print("first-order form: lost current, error with ideal wires, error of the form, all in % of the largest current")
    for size in sizes:
        problem = Problem.of(size)
        ideal = problem.voltage_v @ problem.conductance_s
        for ohm in (0.03, 0.1, 0.3, 1.0, 3.0):
            exact = problem.voltage_v @ transfer_matrix(problem.conductance_s, ohm, ohm)
            form = problem.voltage_v @ first_order_transfer(problem.conductance_s, ohm, ohm)
            scale = float(exact.max()) / 100.0
            lost = 100.0 * float(1.0 - exact.sum() / ideal.sum())
            without, error = (float((currents - exact).abs().max()) / scale for currents in (ideal, form))
            print(f"  {size:3d} x {size:3d}, {ohm:4.2f} ohm: {lost:5.2f}  {without:6.2f}  {error:7.4f}")


def exact_cases(size: int) -> list[Case]:
    """The exact solution at one size; beyond `LARGEST_TIMED` peers are only compared, since they take seconds."""
    problem = Problem.of(size)
    transfer = transfer_matrix(problem.conductance_s, OHM, OHM)
    peers = {"badcrossbar": badcrossbar(problem), "SciPy splu": sparse(problem)}
    cases, reference = [], None
    for name, solve in peers.items():
        if solve is not None:
            demand_equal_results(problem.voltage_v @ transfer, solve(), name)
        if solve is not None and size <= LARGEST_TIMED:
            cases.append(Case(f"{size}: {name}, {VECTORS} vectors", sync(solve), reference=reference))
            reference = reference or cases[0].name
    conductance_s = problem.conductance_s.clone().requires_grad_()
    ohms = [torch.tensor(OHM, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight = torch.rand_like(problem.conductance_s)

    def gradient() -> object:
        return torch.autograd.grad((transfer_matrix(conductance_s, *ohms) * weight).sum(), [conductance_s, *ohms])

    scratch = f"{size}: transfer_matrix from scratch"
    single = problem.conductance_s.float()
    return [
        *cases,
        Case(scratch, sync(lambda: transfer_matrix(problem.conductance_s, OHM, OHM)), reference=reference),
        Case(f"{size}: the same in float32", sync(lambda: transfer_matrix(single, OHM, OHM)), reference=reference),
        Case(
            f"{size}: {VECTORS} vectors, transfer known",
            sync(lambda: problem.voltage_v @ transfer),
            reference=reference,
        ),
        Case(f"{size}: transfer_matrix and all gradients", sync(gradient), reference=scratch),
    ]


def first_order_cases(size: int) -> list[Case]:
    """The first-order form beside a product of the same size, float32, forward and as a training step."""
    conductance_s = Problem.of(size).conductance_s.float().requires_grad_()
    voltage_v = torch.rand(BATCH, size, requires_grad=True)
    weight = torch.rand(BATCH, size)
    wires = FirstOrderWires(size, size, word_line_ohm=OHM, bit_line_ohm=OHM)

    @torch.no_grad()
    def plain() -> Tensor:
        return voltage_v @ conductance_s

    @torch.no_grad()
    def wired() -> Tensor:
        return torch.matmul(voltage_v, wires(conductance_s))

    def step(product: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(product(), [voltage_v, conductance_s], weight)

    forward, training = f"{size}: product, {BATCH} vectors", f"{size}: product forward and backward"
    return [
        Case(forward, sync(plain)),
        Case(f"{size}: first-order transfer and product", sync(wired), reference=forward),
        Case(training, sync(step(lambda: voltage_v @ conductance_s))),
        Case(
            f"{size}: first-order form forward and backward",
            sync(step(lambda: voltage_v @ wires(conductance_s))),
            reference=training,
        ),
    ]


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Compares all results and sets the cases up."""
    sizes = (32,) if quick else (32, 64, 128, 256)
    print_first_order_error(sizes)
    if importlib.util.find_spec("badcrossbar") is None:
        print("badcrossbar is absent, and so the sparse solver is the reference (see the docstring of this module)")
    print("currents of the exact solutions")
    cases = [case for size in sizes for make in (exact_cases, first_order_cases) for case in make(size)]
    yield Suite("Wires of square arrays; a ratio of 2 is half the time", "call", cases)


if __name__ == "__main__":
    main(Script("benchmarks.wires", prepare, ("badcrossbar", "numpy", "scipy", "torch"), repeat_s=120.0))
