"""The simulated chip's wire solution against Kirchhoff's equations written out and solved as one dense system."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_drivers.mock.nodal import FloatArray, transfer_matrix


def dense_transfer(conductance_s: FloatArray, word_ohm: float, bit_ohm: float) -> FloatArray:
    """All 2 * rows * columns node equations at once, one resistor after another."""
    rows, columns = conductance_s.shape
    count = rows * columns
    nodes, drive = np.zeros((2 * count, 2 * count)), np.zeros((2 * count, rows))

    def resistor(a: int, b: int, siemens: float) -> None:
        nodes[a, a] += siemens
        nodes[b, b] += siemens
        nodes[a, b] -= siemens
        nodes[b, a] -= siemens

    for i in range(rows):
        for j in range(columns):
            word, bit = i * columns + j, count + i * columns + j
            resistor(word, bit, conductance_s[i, j])
            if j == 0:
                nodes[word, word] += 1.0 / word_ohm
                drive[word, i] += 1.0 / word_ohm
            else:
                resistor(word, word - 1, 1.0 / word_ohm)
            if i == rows - 1:
                nodes[bit, bit] += 1.0 / bit_ohm
            else:
                resistor(bit, bit + columns, 1.0 / bit_ohm)
    voltage = np.linalg.solve(nodes, drive)
    return np.asarray(voltage[2 * count - columns :].T / bit_ohm)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**31), ohm=st.floats(0.1, 300.0))
@settings(max_examples=40, deadline=None)
def test_block_elimination_solves_kirchhoff(rows: int, columns: int, seed: int, ohm: float) -> None:
    conductance_s = np.random.default_rng(seed).uniform(1e-6, 1e-3, (rows, columns))
    exact = dense_transfer(conductance_s, ohm, 1.7 * ohm)
    np.testing.assert_allclose(transfer_matrix(conductance_s, ohm, 1.7 * ohm), exact, rtol=1e-9)


def test_without_wire_resistance_the_transfer_is_the_conductance() -> None:
    conductance_s = np.random.default_rng(0).uniform(1e-6, 1e-4, (5, 7))
    np.testing.assert_array_equal(transfer_matrix(conductance_s, 0.0, 0.0), conductance_s)


@pytest.mark.parametrize(("word_ohm", "bit_ohm"), [(0.0, 20.0), (20.0, 0.0)])
def test_one_ideal_side_is_the_limit_of_a_small_resistance(word_ohm: float, bit_ohm: float) -> None:
    conductance_s = np.random.default_rng(1).uniform(1e-6, 1e-4, (5, 6))
    limit = dense_transfer(conductance_s, word_ohm or 1e-6, bit_ohm or 1e-6)
    np.testing.assert_allclose(transfer_matrix(conductance_s, word_ohm, bit_ohm), limit, rtol=1e-6)


def test_the_cell_far_from_driver_and_ground_loses_most() -> None:
    uniform = np.full((16, 16), 1e-4)
    ratio = transfer_matrix(uniform, 5.0, 5.0) / uniform
    assert ratio.argmin() == 15  # first row (farthest from ground), last column (farthest from the driver)
    assert ratio.argmax() == 15 * 16  # last row, first column
