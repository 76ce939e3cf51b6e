"""First order of what wires and neighbours do to the transfer of an array, for predictions. Numpy only.

Circuit: word lines driven at the first column, bit lines grounded after the last row, one segment of wire between
neighbouring cells and one before the first or after the last. Two cells of one line share the segments from its driven
or grounded end to the nearer of them; each ampere through a shared segment lowers the other cell's voltage.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def wire_loads_s(conductance_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Relative loss of each cell's transfer per ohm of segment: `transfer = g * (1 - word_ohm * w - bit_ohm * b)`.

    Args:
        conductance_s: Conductances in S, `[rows, columns]`.

    Returns:
        Loads w and b of the word and of the bit lines in S, `[rows, columns]`; exact to first order.
    """
    rows, columns = conductance_s.shape
    place = np.arange(columns)
    word: FloatArray = conductance_s @ (np.minimum(place[:, None], place[None, :]) + 1.0)
    place = np.arange(rows)
    bit: FloatArray = (rows - np.maximum(place[:, None], place[None, :])) @ conductance_s
    return word, bit


def neighbours_s(conductance_s: FloatArray) -> FloatArray:
    """What one unit of crosstalk adds to each cell's transfer in S: the cells of its row in both columns beside it."""
    added = np.zeros_like(conductance_s)
    added[:, 1:] += conductance_s[:, :-1]
    added[:, :-1] += conductance_s[:, 1:]
    return added


def transfer_s(conductance_s: FloatArray, wire_ohm: float) -> FloatArray:
    """What the cells of an array pass on, wires included, in S, `[rows, columns]`.

    To first order in the resistance; beyond it the current that makes the drop drops itself.
    """
    word, bit = wire_loads_s(conductance_s)
    return np.asarray(conductance_s / (1.0 + wire_ohm * (word + bit)))
