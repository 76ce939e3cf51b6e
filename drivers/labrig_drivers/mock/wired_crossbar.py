"""A bare crossbar, source-meters and a switch matrix, wired together: what each terminal sees, solved by Kirchhoff.

Closed relays join rows and columns of the matrix into nodes. A source-meter that is on holds its node at its level up
to its limit; one that is off lets it float; the ground row is at 0 V; what nothing holds floats. Whenever an output
or a relay changes, the cells are told what voltage they see now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from labrig_drivers.bench_settings import BenchGeometry
from labrig_drivers.mock.bare_crossbar import BareCrossbar, FloatArray, laplacian, solve_nodes
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.switch_matrix import SwitchEvent

# Cables and contacts between two outputs that somebody joined, or between an output and ground.
_SHORT_OHM = 0.1


@dataclass
class _Source:
    """One source-meter at a row of the matrix, as its log tells."""

    row: int
    output_on: bool = False
    level_v: float = 0.0
    limit_a: float = 0.0


@dataclass(frozen=True)
class _Network:
    """The circuit as the relays make it now.

    Attributes:
        node_of: Node of each end of the matrix, rows as (True, row) and columns as (False, column).
        laplacian_s: Node equations in S, `[nodes, nodes]`.
        lines: Node of each line of the crossbar, word lines first, then bit lines.
    """

    node_of: Mapping[tuple[bool, int], int]
    laplacian_s: FloatArray
    lines: list[int]


class WiredCrossbar:
    """The circuit of a bench.

    Args:
        crossbar: The cells.
        geometry: Which line hangs at which column of the matrix, and which row is ground.
        terminals: Row of the matrix that each source-meter hangs at, by its serial number.
    """

    def __init__(self, crossbar: BareCrossbar, geometry: BenchGeometry, terminals: Mapping[str, int]) -> None:
        self._crossbar = crossbar
        self._geometry = geometry
        self._sources = {serial: _Source(row) for serial, row in terminals.items()}
        self._closed: set[tuple[int, int]] = set()

    def load(self, serial: str) -> TerminalLoad:
        """What the source-meter with this serial number sees at its terminals."""
        return TerminalLoad(self, serial)

    def output_changed(self, event: OutputEvent) -> None:
        """Takes over a change of one source-meter, from its log."""
        source = self._sources[event.instrument]
        source.output_on, source.level_v, source.limit_a = event.output_on, event.voltage_v, event.current_limit_a
        self._stress()

    def relay_moved(self, event: SwitchEvent) -> None:
        """Takes over a relay that moved, from the matrix's log."""
        (self._closed.add if event.closed else self._closed.discard)((event.row, event.column))
        self._stress()

    def terminal_current_a(self, serial: str, voltage_v: float) -> float:
        """Current in A that flows out of one source-meter while it holds `voltage_v` and the others do as they do."""
        network = self._network()
        node = self._node(network, serial)
        held_v = self._held_by_others(network, serial)
        if node in held_v:
            return (voltage_v - held_v[node]) / _SHORT_OHM
        held_v[node] = voltage_v
        _, current_a = self._solve(network, held_v, serial)
        return float(current_a[node])

    def line_voltages_v(self) -> FloatArray:
        """Voltage of each line in V, word lines first, then bit lines."""
        network = self._network()
        voltage_v, _ = self._solve(network, self._held_by_others(network, None), None)
        return voltage_v[network.lines]

    def _stress(self) -> None:
        network = self._network()
        voltage_v, _ = self._solve(network, self._held_by_others(network, None), None)
        lines_v, rows = voltage_v[network.lines], self._crossbar.rows
        cell_v = lines_v[:rows, None] - lines_v[None, rows:]
        # A cell whose gate is closed sees nothing: its transistor takes all of it.
        gate_v = self._gates(network)
        conducting = self._crossbar.conducting_s(gate_v) > 0.0
        self._crossbar.stress(np.where(conducting, cell_v, 0.0))

    def _network(self) -> _Network:
        ends = [(True, row) for row in {row for row, _ in self._closed} | {self._geometry.ground_row}]
        ends += [(True, source.row) for source in self._sources.values()]
        columns = (*self._geometry.word_columns, *self._geometry.bit_columns, *self._geometry.gate_columns)
        ends += [(False, column) for column in {*columns, *(column for _, column in self._closed)}]
        node_of = _joined(ends, (((True, row), (False, column)) for row, column in self._closed))
        lines = [node_of[False, column] for column in (*self._geometry.word_columns, *self._geometry.bit_columns)]
        network = _Network(node_of, np.zeros((0, 0)), lines)
        line_s = laplacian(self._crossbar.conducting_s(self._gates(network)))
        members = np.zeros((len(lines), max(node_of.values()) + 1))
        members[np.arange(len(lines)), lines] = 1.0
        return _Network(node_of, members.T @ line_s @ members, lines)

    def _gates(self, network: _Network) -> FloatArray:
        """Voltage of each word line's gates in V; a gate that floats is taken for 0 V."""
        held_v = self._held_by_others(network, None)
        columns = self._geometry.gate_columns
        if not columns:
            return np.zeros(self._crossbar.rows)
        return np.array([held_v.get(network.node_of[False, column], 0.0) for column in columns])

    def _node(self, network: _Network, serial: str) -> int:
        return network.node_of[True, self._sources[serial].row]

    def _held_by_others(self, network: _Network, serial: str | None) -> dict[int, float]:
        """Nodes at a voltage: ground, and every output that is on except that of `serial`."""
        held_v = {
            self._node(network, name): source.level_v
            for name, source in self._sources.items()
            if source.output_on and name != serial
        }
        return held_v | {network.node_of[True, self._geometry.ground_row]: 0.0}

    def _solve(self, network: _Network, held_v: dict[int, float], exempt: str | None) -> tuple[FloatArray, FloatArray]:
        """Node voltages and the currents that feed the nodes, with every limit but that of `exempt` kept."""
        held_v = dict(held_v)
        injected_a = np.zeros(len(network.laplacian_s))
        ground = network.node_of[True, self._geometry.ground_row]
        while True:
            nodes = list(held_v)
            voltage_v, current_a = solve_nodes(
                network.laplacian_s, nodes, np.array([held_v[node] for node in nodes]), injected_a
            )
            over = [
                (self._node(network, name), source.limit_a)
                for name, source in self._sources.items()
                if source.output_on and name != exempt
            ]
            over = [
                (node, limit_a)
                for node, limit_a in over
                if node in held_v and node != ground and abs(current_a[node]) > limit_a * (1 + 1e-9)
            ]
            if not over:
                return voltage_v, current_a
            # From a voltage to a current source, the worst one first: the others may come back below their limits.
            node, limit_a = max(over, key=lambda one: abs(current_a[one[0]]) - one[1])
            injected_a[node] = np.copysign(limit_a, current_a[node])
            del held_v[node]


@dataclass(frozen=True)
class TerminalLoad:
    """The load at one source-meter's terminals; keeps `Load`.

    Attributes:
        wired: The circuit.
        serial: Serial number of the source-meter.
    """

    wired: WiredCrossbar
    serial: str

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:  # noqa: ARG002
        """Current in A at `voltage_v`; the circuit has no memory."""
        return self.wired.terminal_current_a(self.serial, voltage_v)

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        """The source-meter's log says more: `WiredCrossbar.output_changed` listens to that."""


def _joined(
    ends: Iterable[tuple[bool, int]], joints: Iterable[tuple[tuple[bool, int], tuple[bool, int]]]
) -> dict[tuple[bool, int], int]:
    """A number for each end, the same for ends that are joined."""
    node_of = {end: number for number, end in enumerate(dict.fromkeys(ends))}
    for one, other in joints:
        old, new = node_of[one], node_of[other]
        node_of = {end: new if node == old else node for end, node in node_of.items()}
    numbers = {node: number for number, node in enumerate(sorted(set(node_of.values())))}
    return {end: numbers[node] for end, node in node_of.items()}


def hot_switches(events: Iterable[OutputEvent | SwitchEvent]) -> list[SwitchEvent]:
    """The relays that moved while an output was on at a level other than 0 V; events in the order they happened."""
    levels_v: dict[str, float] = {}
    hot = []
    for event in events:
        if isinstance(event, OutputEvent):
            levels_v[event.instrument] = event.voltage_v if event.output_on else 0.0
        elif any(level_v != 0.0 for level_v in levels_v.values()):
            hot.append(event)
    return hot
