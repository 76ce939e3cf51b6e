"""Wires against badcrossbar (Joksas and Mehonic, MIT), which solves the node equations with a sparse solver.

Optional: skipped where it is not installed. It asks for pycairo, which has to be compiled and serves its drawings only:
`pip install --no-deps badcrossbar pathvalidate` is enough.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from labrig_surrogates.wires import crossbar_currents

FloatArray = NDArray[np.float64]
Solver = Callable[[FloatArray, FloatArray, float, float], FloatArray]


@pytest.fixture(scope="module")
def badcrossbar() -> Iterator[Solver]:
    """Its solver: voltages `[batch, rows]`, conductances, resistances of the two wires -> currents."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with warnings.catch_warnings(record=True):
        # It announces that drawings are missing, and sets a filter and a log handler of its own.
        package: Any = pytest.importorskip(
            "badcrossbar", reason="optional: pip install --no-deps badcrossbar pathvalidate"
        )
    root.setLevel(logging.WARNING)

    def solve(voltage_v: FloatArray, conductance_s: FloatArray, word_ohm: float, bit_ohm: float) -> FloatArray:
        solution = package.compute(
            voltage_v.T, 1.0 / conductance_s, r_i_word_line=word_ohm, r_i_bit_line=bit_ohm, node_voltages=False,
            all_currents=False,
        )  # fmt: skip
        return np.asarray(solution.currents.output)

    yield solve
    root.setLevel(level)
    root.handlers = handlers


@pytest.mark.parametrize(
    ("rows", "columns", "word_ohm", "bit_ohm"),
    [
        (8, 8, 1.0, 1.0),
        (16, 16, 0.0, 3.0),
        (32, 32, 3.0, 0.0),
        (64, 64, 1.0, 2.0),
        (128, 128, 1.0, 1.0),
        (20, 50, 9.0, 1.0),
    ],
)
def test_currents_agree_to_eight_digits(
    badcrossbar: Solver, rows: int, columns: int, word_ohm: float, bit_ohm: float
) -> None:
    rng = np.random.default_rng(rows)
    conductance_s, voltage_v = 10.0 ** rng.uniform(-5.0, -4.0, (rows, columns)), rng.uniform(0.0, 0.3, (3, rows))
    theirs = badcrossbar(voltage_v, conductance_s, word_ohm, bit_ohm)
    ours = crossbar_currents(torch.as_tensor(conductance_s), torch.as_tensor(voltage_v), word_ohm, bit_ohm)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-8)
