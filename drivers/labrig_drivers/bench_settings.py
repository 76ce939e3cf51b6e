"""What a bench crossbar is wired like, and how it reads and programs: checked before anything moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from labrig_drivers.errors import SafetyError
from labrig_drivers.switch_matrix import SwitchMatrixInfo

# Integration times count in power line cycles; 50 Hz is the slower mains.
_SLOWEST_LINE_HZ: Final = 50.0
_ADC_BITS: Final = 16


@dataclass(frozen=True)
class BenchGeometry:
    """Which line of the crossbar and which instrument hangs at which row or column of the switch matrix.

    Instruments are wired to the rows of the matrix, lines of the crossbar to its columns; LO of every source-meter
    and the ground row are joined outside. Rows and columns count from 1.

    Attributes:
        word_columns: Matrix column of each word line.
        bit_columns: Matrix column of each bit line.
        source_row: Matrix row of the source-meter that drives word lines.
        meter_rows: Matrix row of each source-meter that measures bit lines.
        ground_row: Matrix row that is joined to LO.
        gate_row: Matrix row of the source-meter that drives select gates; None for a passive crossbar.
        gate_columns: Matrix column of the gates of each word line's cells; empty for a passive crossbar.
    """

    word_columns: tuple[int, ...]
    bit_columns: tuple[int, ...]
    source_row: int
    meter_rows: tuple[int, ...]
    ground_row: int
    gate_row: int | None = None
    gate_columns: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Word lines."""
        return len(self.word_columns)

    @property
    def columns(self) -> int:
        """Bit lines."""
        return len(self.bit_columns)

    @property
    def bit_groups(self) -> list[tuple[int, ...]]:
        """The bit lines that are measured at the same time, counted from 0: as many as there are meters."""
        step = len(self.meter_rows)
        return [tuple(range(start, min(start + step, self.columns))) for start in range(0, self.columns, step)]

    def faults(self) -> list[str]:
        """Everything that is wrong by itself."""
        faults = []
        if not self.word_columns or not self.bit_columns:
            faults.append("at least one word line and one bit line are needed")
        if not self.meter_rows:
            faults.append("at least one bit meter is needed")
        lines = [*self.word_columns, *self.bit_columns, *self.gate_columns]
        if len(set(lines)) != len(lines):
            faults.append(f"two lines share matrix column {_shared(lines)}")
        ends = self.matrix_rows
        if len(set(ends)) != len(ends):
            faults.append(f"two instruments share matrix row {_shared(ends)}")
        if (self.gate_row is None) != (not self.gate_columns):
            faults.append("gate_row and gate_columns come together or not at all")
        if self.gate_columns and len(self.gate_columns) != len(self.word_columns):
            faults.append(f"{len(self.gate_columns)} gate columns for {len(self.word_columns)} word lines")
        return faults

    @property
    def matrix_rows(self) -> list[int]:
        """Every row that something hangs at."""
        gate = [] if self.gate_row is None else [self.gate_row]
        return [self.source_row, *self.meter_rows, self.ground_row, *gate]

    def misfits(self, matrix: SwitchMatrixInfo) -> list[str]:
        """Everything that this matrix does not have."""
        lines = (*self.word_columns, *self.bit_columns, *self.gate_columns)
        rows = [row for row in self.matrix_rows if not 1 <= row <= matrix.rows]
        columns = [column for column in lines if not 1 <= column <= matrix.columns]
        return [f"the matrix has no row {row}" for row in rows] + [
            f"the matrix has no column {column}" for column in columns
        ]


@dataclass(frozen=True)
class ReadSettings:
    """How lines are read.

    Attributes:
        max_v: Highest word line voltage in V of an MVM, either sign.
        cell_v: Voltage in V at which single cells are read, by `read_conductance` and between pulses.
        limit_a: Compliance limit in A of every source-meter while reading.
        full_scale_a: Current in A at the upper end of the codes, the same for every bit line.
        adc_bits: Bits of the codes, at most 16.
        nplc: Integration time in power line cycles.
        settle_s: Wait in s between a level and its reading.
        subtract_zero: Whether each connection is read at 0 V as well and that current subtracted.
    """

    max_v: float = 0.2
    cell_v: float = 0.1
    limit_a: float = 1e-3
    full_scale_a: float = 100e-6
    adc_bits: int = 16
    nplc: float = 1.0
    settle_s: float = 0.0
    subtract_zero: bool = True

    @property
    def reading_s(self) -> float:
        """Time in s of one reading."""
        return self.nplc / _SLOWEST_LINE_HZ

    def faults(self) -> list[str]:
        """Everything that is wrong by itself."""
        named = {"max_v": self.max_v, "cell_v": self.cell_v, "limit_a": self.limit_a, "full_scale_a": self.full_scale_a}
        faults = [f"read.{name} = {value:g} is not positive" for name, value in named.items() if not _positive(value)]
        if self.cell_v > self.max_v:
            faults.append(f"read.cell_v = {self.cell_v:g} V is above read.max_v = {self.max_v:g} V")
        if not 2 <= self.adc_bits <= _ADC_BITS:
            faults.append(f"read.adc_bits = {self.adc_bits} is not in 2 to {_ADC_BITS}")
        if not _positive(self.nplc):
            faults.append(f"read.nplc = {self.nplc:g} is not positive")
        if not self.settle_s >= 0.0:
            faults.append(f"read.settle_s = {self.settle_s:g} s is negative")
        return faults


@dataclass(frozen=True)
class PulseSettings:
    """How cells are programmed. Voltages are magnitudes across the selected cell.

    Attributes:
        set_start_v: First pulse in V of those that raise the conductance (word line positive).
        reset_start_v: First pulse in V of those that lower it (bit line positive).
        step_v: What each further pulse of the same direction has more, in V.
        max_v: The envelope: no pulse is higher, in V.
        limit_a: Compliance limit in A of every source-meter while programming.
        width_s: Time in s at the top; the ramps of the source-meters come on top of it.
        tolerance_s: A cell is done when it reads this close to its target, in S.
        max_pulses: Pulses spent on one cell before it is left as it is.
    """

    set_start_v: float = 0.7
    reset_start_v: float = 0.7
    step_v: float = 0.05
    max_v: float = 1.5
    limit_a: float = 1e-3
    width_s: float = 1e-3
    tolerance_s: float = 2e-6
    max_pulses: int = 60

    def faults(self) -> list[str]:
        """Everything that is wrong by itself."""
        named = {
            "set_start_v": self.set_start_v,
            "reset_start_v": self.reset_start_v,
            "step_v": self.step_v,
            "max_v": self.max_v,
            "limit_a": self.limit_a,
            "tolerance_s": self.tolerance_s,
        }
        faults = [f"pulse.{name} = {value:g} is not positive" for name, value in named.items() if not _positive(value)]
        faults += [
            f"pulse.{name} = {named[name]:g} V is above the envelope pulse.max_v = {self.max_v:g} V"
            for name in ("set_start_v", "reset_start_v")
            if named[name] > self.max_v
        ]
        if self.max_pulses < 1:
            faults.append(f"pulse.max_pulses = {self.max_pulses} is less than 1")
        if not self.width_s >= 0.0:
            faults.append(f"pulse.width_s = {self.width_s:g} s is negative")
        return faults

    def amplitude_v(self, *, raises: bool, count: int) -> float:
        """Height in V of the pulse after `count` others of the same direction."""
        start_v = self.set_start_v if raises else self.reset_start_v
        return min(start_v + count * self.step_v, self.max_v)


@dataclass(frozen=True)
class CellRange:
    """What the cells are for.

    Attributes:
        chip_id: Serial number of the chip.
        conductance_min_s: Lowest target in S.
        conductance_max_s: Highest target in S.
        writes_before: How many times the chip was programmed before this object was made; 0 refuses to read it
            until it is programmed.
        gate_v: Voltage in V of the gates of the selected word line; not used on a passive crossbar.
    """

    chip_id: str
    conductance_min_s: float = 1e-6
    conductance_max_s: float = 100e-6
    writes_before: int = 0
    gate_v: float = 2.0

    def faults(self) -> list[str]:
        """Everything that is wrong by itself."""
        faults = [] if self.chip_id else ["chip_id is empty"]
        if not (0.0 <= self.conductance_min_s < self.conductance_max_s < math.inf):
            faults.append(
                f"conductance_min_s = {self.conductance_min_s:g} and conductance_max_s = {self.conductance_max_s:g} "
                "are not a range"
            )
        if self.writes_before < 0:
            faults.append(f"writes_before = {self.writes_before} is negative")
        if not _positive(self.gate_v):
            faults.append(f"gate_v = {self.gate_v:g} V is not positive")
        return faults


@dataclass(frozen=True)
class BenchSettings:
    """Everything that a bench crossbar is told.

    Attributes:
        geometry: The wiring.
        cells: The chip.
        read: How lines are read.
        pulse: How cells are programmed.
    """

    geometry: BenchGeometry
    cells: CellRange
    read: ReadSettings = ReadSettings()
    pulse: PulseSettings = PulseSettings()

    def check(self, name: str) -> None:
        """Refuses settings that contradict themselves or their envelope, every fault in one error.

        Raises:
            SafetyError: There are faults.
        """
        geometry, cells, read, pulse = self.geometry, self.cells, self.read, self.pulse
        faults = [*geometry.faults(), *cells.faults(), *read.faults(), *pulse.faults()]
        line_a = geometry.columns * cells.conductance_max_s * read.max_v
        if line_a > read.limit_a:
            faults.append(
                f"a word line of {geometry.columns} cells draws up to {line_a:g} A at read.max_v, "
                f"more than read.limit_a = {read.limit_a:g} A"
            )
        if read.full_scale_a > read.limit_a:
            faults.append(f"read.full_scale_a = {read.full_scale_a:g} A is above read.limit_a = {read.limit_a:g} A")
        _raise(faults, name)

    def check_matrix(self, matrix: SwitchMatrixInfo, name: str) -> None:
        """Refuses a matrix that is too small or not rated for what it would carry.

        Raises:
            SafetyError: There are faults; the message names each.
        """
        faults = self.geometry.misfits(matrix)
        highest_v = max(self.read.max_v, self.pulse.max_v, self.cells.gate_v if self.geometry.gate_columns else 0.0)
        highest_a = max(self.read.limit_a, self.pulse.limit_a)
        if highest_v > matrix.voltage_v:
            faults.append(f"{highest_v:g} V is more than the matrix is rated for ({matrix.voltage_v:g} V)")
        if highest_a > matrix.current_a:
            faults.append(f"{highest_a:g} A is more than the matrix is rated for ({matrix.current_a:g} A)")
        _raise(faults, name)

    def mvm_duration_s(self, batch: int, switch_s: float) -> float:
        """Time in s of one batch of MVMs without the links and ramps.

        Args:
            batch: Input vectors.
            switch_s: Settling time in s of the matrix after a change.
        """
        # The readings at 0 V, of every vector, and of the word source at the highest level.
        readings = int(self.read.subtract_zero) + batch + 1
        return self._connections * self._connection_s(switch_s, readings)

    def program_duration_s(self, switch_s: float) -> float:
        """Longest time in s of one programming without the links and ramps: every cell gets `max_pulses` pulses."""
        pulse, zero = self.pulse, int(self.read.subtract_zero)
        cell_s = self._connection_s(switch_s, zero + 1 + pulse.max_pulses) + pulse.max_pulses * pulse.width_s
        cells = self.geometry.rows * self.geometry.columns
        return cells * cell_s + self._connections * self._connection_s(switch_s, zero + 1)

    @property
    def _connections(self) -> int:
        return self.geometry.rows * len(self.geometry.bit_groups)

    def _connection_s(self, switch_s: float, readings: int) -> float:
        # Each connection opens some relays, waits, closes others and waits.
        return 2.0 * switch_s + readings * (self.read.settle_s + self.read.reading_s)


def _shared(places: list[int]) -> str:
    """The rows or columns of a matrix that are named more than once."""
    return ", ".join(str(one) for one in sorted({place for place in places if places.count(place) > 1}))


def _positive(value: float) -> bool:
    return 0.0 < value < math.inf


def _raise(faults: list[str], name: str) -> None:
    if faults:
        raise SafetyError([f"{name}: {fault}" for fault in faults])
