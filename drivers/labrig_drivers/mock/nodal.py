"""Exact column currents of a crossbar with wire resistance, by block elimination of Kirchhoff's equations.

Circuit: `m` word lines driven at the left, `n` bit lines grounded at the bottom, one wire segment between
neighbouring cells and one before the first cell of a word line and after the last cell of a bit line. With linear
cells the answer is a fixed matrix: `current[j] = sum_i voltage[i] * transfer[i, j]`.

The node equations are those of badcrossbar (Joksas and Mehonic, SoftwareX 2020); each row's word-line nodes are
eliminated first, then the rows from the top to the grounded end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def transfer_matrix(conductance_s: FloatArray, word_line_ohm: float, bit_line_ohm: float) -> FloatArray:
    """Computes the exact transfer from line voltages to column currents.

    Args:
        conductance_s: Cell conductances in S, `[rows, columns]`.
        word_line_ohm: Resistance in ohm of one word-line segment.
        bit_line_ohm: Resistance in ohm of one bit-line segment.

    Returns:
        Transfer in S, `[rows, columns]`; equal to `conductance_s` when both resistances are zero.
    """
    driven, coupling = _eliminate_word_lines(conductance_s, word_line_ohm)
    if bit_line_ohm == 0.0:
        return driven
    return _eliminate_bit_lines(conductance_s, driven, coupling, 1.0 / bit_line_ohm)


def _eliminate_word_lines(conductance_s: FloatArray, word_line_ohm: float) -> tuple[FloatArray, FloatArray]:
    """Per row: current into each bit-line node per volt of the driver, and the node's coupling to its row.

    Returns:
        `driven[rows, columns]` in S, and `coupling[rows, columns, columns]` in S, the part of the bit-line node
        matrix that comes from the word line (zero when word lines have no resistance).
    """
    rows, columns = conductance_s.shape
    if word_line_ohm == 0.0:
        return conductance_s.copy(), np.zeros((rows, columns, columns))
    wire_s = 1.0 / word_line_ohm
    nodes = np.zeros((rows, columns, columns))
    diagonal = np.arange(columns)
    nodes[:, diagonal, diagonal] = 2.0 * wire_s + conductance_s
    nodes[:, columns - 1, columns - 1] -= wire_s
    nodes[:, diagonal[:-1], diagonal[1:]] = -wire_s
    nodes[:, diagonal[1:], diagonal[:-1]] = -wire_s
    inverse = np.linalg.inv(nodes)
    driven = wire_s * conductance_s * inverse[:, :, 0]
    coupling = conductance_s[:, :, None] * inverse * conductance_s[:, None, :]
    return driven, coupling


def _eliminate_bit_lines(
    conductance_s: FloatArray, driven: FloatArray, coupling: FloatArray, wire_s: float
) -> FloatArray:
    rows, columns = conductance_s.shape
    diagonal = np.arange(columns)
    inverses = np.empty((rows, columns, columns))
    for row in range(rows):
        nodes = -coupling[row]
        # The topmost node of a bit line has one neighbour, every other one has two (the last one: ground).
        nodes[diagonal, diagonal] += conductance_s[row] + (wire_s if row == 0 else 2.0 * wire_s)
        if row > 0:
            nodes = nodes - wire_s**2 * inverses[row - 1]
        inverses[row] = np.linalg.inv(nodes)
    transfer = np.empty((rows, columns))
    path = inverses[rows - 1]
    transfer[rows - 1] = wire_s * (path @ driven[rows - 1])
    for row in range(rows - 2, -1, -1):
        path = wire_s * (path @ inverses[row])
        transfer[row] = wire_s * (path @ driven[row])
    return transfer
