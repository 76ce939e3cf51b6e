"""A bare passive crossbar: cells between word lines and bit lines, solved by Kirchhoff's equations.

Cells are ohmic below their switching thresholds and change by pulses above them, with a gate in series where it has
select transistors. Lines that nothing drives float, and currents sneak through the cells between them. Lines and
relays have no resistance.

The switching law is a simple one on purpose: one excursion of a cell's voltage beyond a threshold is one pulse,
however long; it moves the conductance by a random share of the overdrive and of the room that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Insulation of a line against ground; it gives a line that floats alone a potential, and is beyond any meter.
_INSULATION_S = 1e-14


@dataclass(frozen=True)
class CellSettings:
    """How the cells switch.

    Attributes:
        conductance_min_s: Lowest conductance in S.
        conductance_max_s: Highest conductance in S.
        set_threshold_v: Voltage in V from word to bit line above which a cell's conductance rises.
        reset_threshold_v: Voltage in V, given positive, from bit to word line above which it falls.
        gain_per_v: Share of the room that is left which one volt of overdrive moves, on average.
        spread: Relative standard deviation of that share, from pulse to pulse.
        gate_threshold_v: Voltage in V of a select gate above which its cells conduct; None for a passive crossbar.
    """

    conductance_min_s: float = 1e-6
    conductance_max_s: float = 100e-6
    set_threshold_v: float = 0.8
    reset_threshold_v: float = 0.9
    gain_per_v: float = 0.5
    spread: float = 0.3
    gate_threshold_v: float | None = None


class BareCrossbar:
    """The cells and their state.

    Args:
        conductance_s: Conductances at the start, `[rows, columns]` in S.
        cells: How the cells switch.
        rng: Source of the switching's randomness.
    """

    def __init__(self, conductance_s: FloatArray, cells: CellSettings, rng: np.random.Generator) -> None:
        self._conductance_s = np.array(conductance_s, dtype=np.float64)
        self._cells = cells
        self._rng = rng
        # Largest voltage in either direction of the excursion that each cell is in.
        self._peak_v = np.zeros_like(self._conductance_s)
        self.pulses = 0

    @property
    def rows(self) -> int:
        """Word lines."""
        return int(self._conductance_s.shape[0])

    @property
    def columns(self) -> int:
        """Bit lines."""
        return int(self._conductance_s.shape[1])

    @property
    def conductance_s(self) -> FloatArray:
        """The true conductances, `[rows, columns]` in S: the hidden truth, for tests to judge by."""
        return self._conductance_s.copy()

    def conducting_s(self, gate_v: FloatArray) -> FloatArray:
        """Conductances between the lines in S while the word lines' gates are at `gate_v[rows]`."""
        if self._cells.gate_threshold_v is None:
            return self._conductance_s
        return np.where((gate_v > self._cells.gate_threshold_v)[:, None], self._conductance_s, 0.0)

    def stress(self, cell_v: FloatArray) -> None:
        """Tells the cells what voltage `[rows, columns]` in V is across them from now on, word line positive."""
        cells = self._cells
        over = (cell_v > cells.set_threshold_v) | (cell_v < -cells.reset_threshold_v)
        ended = (self._peak_v != 0.0) & (~over | (np.sign(cell_v) != np.sign(self._peak_v)))
        for row, column in np.argwhere(ended):
            self._switch(int(row), int(column))
        self._peak_v[ended] = 0.0
        self._peak_v = np.where(over & (np.abs(cell_v) > np.abs(self._peak_v)), cell_v, self._peak_v)

    def _switch(self, row: int, column: int) -> None:
        cells, peak_v = self._cells, self._peak_v[row, column]
        present_s = self._conductance_s[row, column]
        if peak_v > 0.0:
            overdrive_v, room_s = peak_v - cells.set_threshold_v, cells.conductance_max_s - present_s
        else:
            overdrive_v, room_s = -peak_v - cells.reset_threshold_v, cells.conductance_min_s - present_s
        share = cells.gain_per_v * overdrive_v * max(0.0, self._rng.normal(1.0, cells.spread))
        self._conductance_s[row, column] = present_s + min(share, 1.0) * room_s
        self.pulses += 1


def solve_nodes(
    laplacian_s: FloatArray, fixed: Sequence[int], fixed_v: FloatArray, injected_a: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Solves a resistive network of which some nodes are held and some are fed a current.

    Args:
        laplacian_s: Node equations `[nodes, nodes]` in S: current out of node k = sum_l laplacian[k, l] * voltage[l].
        fixed: Nodes that are held at a voltage.
        fixed_v: Their voltages in V.
        injected_a: Current in A fed into each node, `[nodes]`; that of held nodes is not looked at.

    Returns:
        The voltages of all nodes in V, and the current in A that each node must be fed, `[nodes]`.
    """
    nodes = laplacian_s + np.diag(np.full(len(laplacian_s), _INSULATION_S))
    voltage_v = np.zeros(len(nodes))
    held = np.zeros(len(nodes), dtype=bool)
    held[list(fixed)] = True
    voltage_v[list(fixed)] = fixed_v
    if not held.all():
        free = ~held
        known_a = injected_a[free] - nodes[np.ix_(free, held)] @ voltage_v[held]
        voltage_v[free] = np.linalg.solve(nodes[np.ix_(free, free)], known_a)
    return voltage_v, nodes @ voltage_v


def laplacian(conductance_s: FloatArray) -> FloatArray:
    """Node equations of a crossbar whose lines are the nodes: word lines first, then bit lines."""
    rows, columns = conductance_s.shape
    nodes = np.zeros((rows + columns, rows + columns))
    nodes[:rows, rows:] = -conductance_s
    nodes[rows:, :rows] = -conductance_s.T
    return nodes - np.diag(nodes.sum(axis=1))
