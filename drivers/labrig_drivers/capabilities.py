"""What a crossbar board may offer beyond programming and MVMs: names, and the protocol behind each name.

A board that names a capability in `BoardInfo.capabilities` has the verb, and it works; a board that does not name it
refuses the verb with `CapabilityError`, or has no such verb at all. `labrig.testing` checks both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult
from labrig_drivers.errors import CapabilityError, SafetyError
from labrig_drivers.source_meter import Reading
from labrig_drivers.wording import counted

READ_CONDUCTANCE: Final = "read-conductance"
"""`CrossbarBoard.read_conductance` reads the cells."""
TRANSPOSED_MVM: Final = "transposed-mvm"
"""The bit lines can be driven and the word lines read: `TransposedMvm`."""
FLOATING_LINES: Final = "floating-lines"
"""Word lines can be left open during an MVM, not only at 0 V: `FloatingLines`."""
TEMPERATURE: Final = "temperature"
"""The board measures the temperature of its chip: `TemperatureSensor`."""
STREAMING: Final = "streaming"
"""Answers to a long batch arrive while it is still being measured: `WireBoard.mvm_stream`."""
CELL_SWEEP: Final = "cell-sweep"
"""Source-meters reach single cells and measure their I-V curves: `CellSweep`."""

CAPABILITIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        READ_CONDUCTANCE: "reading single cells",
        TRANSPOSED_MVM: "MVMs from the bit lines to the word lines",
        FLOATING_LINES: "word lines left open during an MVM",
        TEMPERATURE: "the temperature of the chip",
        STREAMING: "answers that arrive during a batch",
        CELL_SWEEP: "I-V curves of single cells",
    }
)
"""What each known name means; a board may name others."""


@runtime_checkable
class TransposedMvm(Protocol):
    """A board whose bit lines can be driven while its word lines are read."""

    @property
    def transposed_full_scale_a(self) -> tuple[float, ...]:
        """Current in A at the upper end of the ADC of each word line; `StateError` before `open()`."""
        ...

    async def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Applies `voltage_v[batch, columns]` to the bit lines of one array and reads its word lines.

        An ideal one is `current_a[b, i] = sum_j voltage_v[b, j] * conductance_s[i, j]`. Codes and currents of the
        result are `[batch, rows]`; voltages, bits and errors are those of `CrossbarBoard.mvm`.

        Args:
            array: Which array, from 0.
            voltage_v: Voltages of the bit lines in V, `[batch, columns]`.

        Raises:
            CapabilityError: The board does not declare `transposed-mvm`, no such array, or wrong shape.
            SafetyError: A voltage lies outside the board's range, or is not finite.
            StateError: The array was never programmed, or its supply is off.
        """
        ...


@runtime_checkable
class FloatingLines(Protocol):
    """A board that can leave word lines open during an MVM."""

    async def mvm_floating(self, array: int, voltage_v: FloatArray, driven: NDArray[np.bool_]) -> MvmResult:
        """Like `CrossbarBoard.mvm`, but drives only the word lines where `driven[rows]` is true.

        The others are open; their voltages in `voltage_v[batch, rows]` must be 0.

        Args:
            array: Which array, from 0.
            voltage_v: Voltages of the word lines in V, `[batch, rows]`.
            driven: The word lines that are driven, `[rows]`.

        Raises:
            CapabilityError: The board does not declare `floating-lines`, no such array, or wrong shape.
            SafetyError: A voltage lies outside the board's range, or is not finite.
            StateError: The array was never programmed, or its supply is off.
        """
        ...


@runtime_checkable
class TemperatureSensor(Protocol):
    """A board that measures the temperature of its chip."""

    async def temperature_k(self) -> float:
        """Temperature of the chip in K now.

        Raises:
            CapabilityError: The board does not declare `temperature`.
            StateError: The board is not open.
        """
        ...


@runtime_checkable
class CellSweep(Protocol):
    """A board whose single cells are within reach of source-meters."""

    @property
    def cell_reading_s(self) -> float:
        """Least time in s of one reading of `sweep_cell`, without the links: settling and integration."""
        ...

    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        """Measures the I-V curve of one cell: one reading at each level, in the given order.

        The word line is driven and the bit line held at 0 V; every other line is grounded. A level is therefore on
        all cells of that word line, and has to lie within the board's read range like one of an MVM.

        In the readings `voltage_v` is across the cell, word line minus bit line, and `current_a` flows through it from
        the word line to the bit line: both have the same sign in a passive cell. `in_compliance` marks a reading at
        which a limit, not the level, determined the current; its voltage is not the level then. Times are those of
        the board's clock, as in `MvmResult`.

        Args:
            array: Which array.
            row: Word line, from 0.
            column: Bit line, from 0.
            voltage_v: Levels in V, at least one.
            limit_a: Compliance limit in A for the current out of the bit line, a magnitude; None takes the board's
                own, which is also the highest that can be given.

        Raises:
            CapabilityError: The board does not declare `cell-sweep`, no such cell, or no level.
            SafetyError: A level or the limit lies outside what the board allows, or is not finite; every reason.
            StateError: The array was never programmed (where the board has to know that), or its supply is off.
        """
        ...


def require_capability(info: BoardInfo, name: str) -> None:
    """Refuses what a board does not declare.

    Args:
        info: What the board says of itself.
        name: The capability, such as `TRANSPOSED_MVM`.

    Raises:
        CapabilityError: The board does not declare it; the message lists what it has.
    """
    if name in info.capabilities:
        return
    meaning = f" ({CAPABILITIES[name]})" if name in CAPABILITIES else ""
    declared = ", ".join(sorted(info.capabilities)) or "none"
    raise CapabilityError(
        f"board with chip {info.chip_id}: does not declare {name!r}{meaning}; declared capabilities: {declared}. "
        "Use another board, or leave this step out"
    )


def check_transposed_request(info: BoardInfo, array: int, voltage_v: FloatArray) -> None:
    """Refuses a transposed MVM that the board cannot carry out; nothing has been sent then.

    Raises:
        CapabilityError: Not declared, no such array, or wrong shape.
        SafetyError: A voltage is not finite or outside the board's range.
    """
    require_capability(info, TRANSPOSED_MVM)
    if not 0 <= array < info.arrays:
        raise CapabilityError(
            f"mvm_transposed refused, nothing was sent: array {array} does not exist "
            f"(the board has arrays 0 to {info.arrays - 1})"
        )
    if voltage_v.ndim != 2 or voltage_v.shape[1] != info.columns or not len(voltage_v):
        raise CapabilityError(
            f"mvm_transposed refused, nothing was sent: shape {list(voltage_v.shape)} does not fit, "
            f"expected [batch >= 1, {info.columns}]"
        )
    if reasons := _range_reasons(info, voltage_v, "bit line voltage"):
        raise SafetyError(reasons)


def check_cell(info: BoardInfo, array: int, row: int, column: int, verb: str) -> None:
    """Refuses a cell that the board does not have.

    Args:
        info: What the board says of itself.
        array: Which array.
        row: Word line, from 0.
        column: Bit line, from 0.
        verb: What was asked for, for the message.

    Raises:
        CapabilityError: There is no such cell; nothing has been sent.
    """
    if not (0 <= array < info.arrays and 0 <= row < info.rows and 0 <= column < info.columns):
        raise CapabilityError(
            f"{verb} refused, nothing was sent: array {array}, row {row}, column {column} does not exist "
            f"(the board has arrays 0 to {info.arrays - 1}, rows 0 to {info.rows - 1} and columns 0 to "
            f"{info.columns - 1})"
        )


def check_cell_sweep_request(
    info: BoardInfo,
    array: int,
    row: int,
    column: int,
    voltage_v: Sequence[float],
    limit_a: float | None,
    highest_limit_a: float | None = None,
) -> None:
    """Refuses a sweep of a cell that the board cannot carry out; nothing has been sent then.

    Args:
        info: What the board says of itself.
        array: Which array.
        row: Word line, from 0.
        column: Bit line, from 0.
        voltage_v: Levels in V.
        limit_a: Compliance limit in A that was asked for; None for the board's own.
        highest_limit_a: The board's own, in A, where it is known.

    Raises:
        CapabilityError: Not declared, no such cell, or no level.
        SafetyError: A level or the limit is not finite or outside the board's range; every reason at once.
    """
    require_capability(info, CELL_SWEEP)
    check_cell(info, array, row, column, "sweep_cell")
    levels_v = np.asarray(voltage_v, dtype=np.float64)
    if levels_v.ndim != 1 or not len(levels_v):
        raise CapabilityError(
            "sweep_cell refused, nothing was sent: it takes a list of at least one level, "
            f"not shape {list(levels_v.shape)}"
        )
    reasons = _range_reasons(info, levels_v, "level")
    if limit_a is not None and not 0.0 < limit_a < math.inf:
        reasons.append(f"a limit of {limit_a:g} A is not a positive current")
    elif limit_a is not None and highest_limit_a is not None and limit_a > highest_limit_a:
        reasons.append(f"a limit of {limit_a:g} A is above the board's own, {highest_limit_a:g} A")
    if reasons:
        raise SafetyError(reasons)


def _range_reasons(info: BoardInfo, voltage_v: FloatArray, what: str) -> list[str]:
    # Written so that NaN is refused as well; a float32 copy of a limit may round outward.
    slack_v = 1e-6 * max(abs(info.voltage_min_v), abs(info.voltage_max_v))
    inside = (voltage_v >= info.voltage_min_v - slack_v) & (voltage_v <= info.voltage_max_v + slack_v)
    if inside.all():
        return []
    allowed = f"{info.voltage_min_v:g} to {info.voltage_max_v:g} V"
    first_v = float(voltage_v[~inside].flat[0])
    return [f"{counted(int((~inside).sum()), what)} outside {allowed}, or not finite (the first is {first_v:g} V)"]
