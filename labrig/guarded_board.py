"""A crossbar board whose every request is held against the envelope before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from labrig.safety import BoardEnvelope
from labrig_drivers.capabilities import (
    CELL_SWEEP,
    FLOATING_LINES,
    READ_CONDUCTANCE,
    TEMPERATURE,
    TRANSPOSED_MVM,
    CellSweep,
    FloatingLines,
    TemperatureSensor,
    TransposedMvm,
    check_cell_sweep_request,
    check_transposed_request,
    require_capability,
)
from labrig_drivers.commanded import COMMANDED, CommandedBoard, PastWrite, commanded
from labrig_drivers.crossbar import (
    BoardInfo,
    CrossbarBoard,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import CapabilityError, SafetyError
from labrig_drivers.instrument import Identity
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading

# Those that are checked here, and those that drive nothing. Streaming is left out: a plan waits for a whole block.
_GUARDED_CAPABILITIES: Final = frozenset(
    {CELL_SWEEP, COMMANDED, FLOATING_LINES, READ_CONDUCTANCE, TEMPERATURE, TRANSPOSED_MVM}
)


class GuardedBoard:
    """Keeps the contract of the board inside, so nothing above knows that the guard is there.

    Args:
        inner: The board.
        envelope: What it must keep, beside the board's own ranges.
        before_drive: Awaited once after each opening, before the first request that drives lines.
    """

    def __init__(
        self,
        inner: CrossbarBoard,
        envelope: BoardEnvelope,
        before_drive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._inner = inner
        self._envelope = envelope
        self._before_drive = before_drive
        self._may_drive = False

    @property
    def identity(self) -> Identity:
        """Who the board said it is; `StateError` before `open()`."""
        return self._inner.identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`.

        Of the board's capabilities, those whose requests pass through here; the others' would not be checked.
        """
        info = self._inner.info
        return replace(info, capabilities=info.capabilities & _GUARDED_CAPABILITIES)

    async def open(self) -> None:
        """Connects and checks the identity, without touching an output."""
        self._may_drive = False
        await self._inner.open()

    async def close(self) -> None:
        """Makes the board safe and disconnects."""
        await self._inner.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array; see `CrossbarBoard.program`.

        Raises:
            SafetyError: A target lies outside the envelope or the board's range; every reason at once.
        """
        reasons: list[str] = []
        try:
            check_program_request(self._inner.info, array, conductance_s)
        except SafetyError as error:
            reasons += error.reasons
        reasons += self._envelope.program_reasons(array, conductance_s)
        await self._admit(reasons)
        return await self._inner.program(array, conductance_s)

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`.

        Raises:
            SafetyError: A voltage lies outside the envelope or the board's range; every reason at once.
        """
        reasons: list[str] = []
        try:
            check_mvm_request(self._inner.info, array, voltage_v)
        except SafetyError as error:
            reasons += error.reasons
        reasons += self._envelope.read_reasons(array, voltage_v)
        await self._admit(reasons)
        return await self._inner.mvm(array, voltage_v)

    @property
    def transposed_full_scale_a(self) -> tuple[float, ...]:
        """Current in A at the upper end of the ADC of each word line; see `TransposedMvm`."""
        require_capability(self.info, TRANSPOSED_MVM)
        return cast(TransposedMvm, self._inner).transposed_full_scale_a

    async def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch from the bit lines to the word lines; see `TransposedMvm`.

        Raises:
            SafetyError: A voltage lies outside the envelope or the board's range; every reason at once.
        """
        reasons: list[str] = []
        try:
            check_transposed_request(self.info, array, voltage_v)
        except SafetyError as error:
            reasons += error.reasons
        reasons += self._envelope.read_reasons(array, voltage_v, "bit line voltages")
        await self._admit(reasons)
        return await cast(TransposedMvm, self._inner).mvm_transposed(array, voltage_v)

    async def mvm_floating(self, array: int, voltage_v: FloatArray, driven: NDArray[np.bool_]) -> MvmResult:
        """Measures one batch with some word lines left open; see `FloatingLines`.

        Raises:
            SafetyError: A voltage lies outside the envelope or the board's range; every reason at once.
        """
        require_capability(self.info, FLOATING_LINES)
        reasons: list[str] = []
        try:
            check_mvm_request(self._inner.info, array, voltage_v)
        except SafetyError as error:
            reasons += error.reasons
        reasons += self._envelope.read_reasons(array, voltage_v)
        await self._admit(reasons)
        return await cast(FloatingLines, self._inner).mvm_floating(array, voltage_v, driven)

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell; see `CrossbarBoard.read_conductance`."""
        await self._admit([])
        return await self._inner.read_conductance(array)

    @property
    def cell_reading_s(self) -> float:
        """Least time in s of one reading of `sweep_cell`; see `CellSweep`."""
        return cast(CellSweep, self._inner).cell_reading_s

    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        """Measures the I-V curve of one cell; see `CellSweep`.

        Raises:
            SafetyError: A level or the limit lies outside the envelope or the board's range; every reason at once.
        """
        reasons: list[str] = []
        try:
            check_cell_sweep_request(self.info, array, row, column, voltage_v, limit_a)
        except SafetyError as error:
            reasons += error.reasons
        reasons += self._envelope.cell_sweep_reasons(array, np.asarray(voltage_v, dtype=np.float64), limit_a)
        await self._admit(reasons)
        # What a board declares it has; the contract tests check it.
        return await cast(CellSweep, self._inner).sweep_cell(array, row, column, voltage_v, limit_a)

    async def temperature_k(self) -> float:
        """Temperature of the chip in K, which drives nothing; see `TemperatureSensor`."""
        require_capability(self.info, TEMPERATURE)
        return await cast(TemperatureSensor, self._inner).temperature_k()

    async def now_s(self) -> float:
        """The board's clock in s; see `CommandedBoard`."""
        return await self._commanded().now_s()

    async def let_pass(self, duration_s: float) -> None:
        """Moves the board's clock on; see `CommandedBoard`."""
        await self._commanded().let_pass(duration_s)

    async def restore(self, now_s: float, writes: Sequence[PastWrite]) -> None:
        """Puts the board where it was; see `CommandedBoard`."""
        await self._commanded().restore(now_s, writes)

    def _commanded(self) -> CommandedBoard:
        require_capability(self._inner.info, COMMANDED)
        found = commanded(self._inner, self._inner.info)
        if found is None:
            raise CapabilityError(f"{self.identity}: declares {COMMANDED!r}, but has no such verbs")
        return found

    async def _admit(self, reasons: list[str]) -> None:
        if reasons:
            raise SafetyError(reasons)
        if not self._may_drive and self._before_drive is not None:
            await undivided(self._prepare(self._before_drive))

    async def _prepare(self, before_drive: Callable[[], Awaitable[None]]) -> None:
        await before_drive()
        self._may_drive = True
