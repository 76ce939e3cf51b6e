"""`BenchCrossbar`: a crossbar without a board, read and programmed by source-meters through a switch matrix.

The slow and exact way. One word line at a time is driven, its cells' currents are measured at bit lines that the
meters hold at 0 V, all other lines are grounded, and the currents of all word lines are added as numbers. With every
bit line at 0 V each cell sees its own word line's voltage and nothing else, so the sum is what an MVM with all word
lines driven gives, for cells with a nonlinear I-V curve as well; only the drop along common wires is missing from it.

Programming puts half a pulse on the word line and the other half, negative, on the bit line, and grounds all others:
the selected cell sees all of it, cells on the same two lines half (the V/2 scheme), all others nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import numpy as np

from labrig_drivers.bench_cell_sweep import sweep_selected_cell
from labrig_drivers.bench_codes import ProgramProgress, bench_info, bit_line_current_a, coded
from labrig_drivers.bench_lines import BenchLines, compliance_at_zero
from labrig_drivers.bench_settings import BenchSettings
from labrig_drivers.capabilities import check_cell, check_cell_sweep_request
from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import InstrumentError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading, SourceMeter
from labrig_drivers.switch_matrix import SwitchMatrix


class BenchCrossbar:
    """A crossbar on a bench of source-meters; keeps the `CrossbarBoard` contract, with one array.

    Every request switches the outputs on at 0 V, does its work and leaves with outputs off and all relays open, also
    when it fails or is cancelled. One request runs at a time. Limits are set before levels, and no relay moves while
    an output is at a level.

    Args:
        word_source: Drives the word lines. All instruments are given closed and owned by this object from now on.
        bit_meters: Measure the bit lines; with more of them an MVM takes fewer connections.
        matrix: The relays between instruments and lines.
        settings: Wiring, ranges and envelope.
        gate_source: Drives the gates of select transistors (1T1R); None for a passive crossbar.
        expected: Identity that `open()` demands; the serial is the chip's.
        name: How messages call this board.
        progress: Called after every cell of a programming.
        clock: The board's clock in s.

    Raises:
        SafetyError: The settings contradict themselves or their envelope; every fault at once.
    """

    def __init__(
        self,
        word_source: SourceMeter,
        bit_meters: Sequence[SourceMeter],
        matrix: SwitchMatrix,
        settings: BenchSettings,
        *,
        gate_source: SourceMeter | None = None,
        expected: ExpectedIdentity | None = None,
        name: str = "bench-crossbar",
        progress: Callable[[ProgramProgress], None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        settings.check(name)
        wired = len(settings.geometry.meter_rows)
        if len(bit_meters) != wired or (gate_source is None) != (settings.geometry.gate_row is None):
            raise SafetyError(
                [f"{name}: {len(bit_meters)} bit meters and {'no' if gate_source is None else 'a'} gate source for "
                 f"{wired} meter rows and {'no' if settings.geometry.gate_row is None else 'a'} gate row"]
            )  # fmt: skip
        self._settings = settings
        self._lines = BenchLines(word_source, bit_meters, gate_source, matrix, settings.geometry, name)
        self._expected = expected or ExpectedIdentity()
        self._name = name
        self._progress = progress
        utc_offset_s = time.time() - time.monotonic()
        self._clock = clock or (lambda: utc_offset_s + time.monotonic())
        self._lock = asyncio.Lock()
        self._info: BoardInfo | None = None
        self._identity: Identity | None = None
        self._closing = False
        self._writes = settings.cells.writes_before

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> BenchCrossbar:
        """Makes the bench from the `[board.settings]` table of a rig file; see the guide for its keys.

        Raises:
            ConfigError: The table is wrong; every fault at once.
            SafetyError: The settings contradict their envelope.
        """
        from labrig_drivers.bench_config import bench_from_settings

        parts = bench_from_settings(settings)
        return cls(
            parts.word_source,
            parts.bit_meters,
            parts.matrix,
            parts.settings,
            gate_source=parts.gate_source,
            expected=expected,
            name=name,
        )

    @property
    def identity(self) -> Identity:
        """Who the bench is: the serial is the chip's, the firmware names the instruments; `StateError` before open."""
        if self._identity is None:
            raise StateError(f"{self._name} is not open; use `async with` or call open() first")
        return self._identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        if self._info is None:
            raise StateError(f"{self._name} is not open; use `async with` or call open() first")
        return self._info

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """As good as the weakest source-meter; `StateError` before `open()`."""
        return self._lines.protection(self.identity.model)

    async def open(self) -> None:
        """Opens all instruments and compares the matrix with the wiring; touches no output and no relay.

        Raises:
            IdentityError: An instrument, or the chip, is not the one that was named.
            LinkError: An instrument cannot be reached.
            SafetyError: The matrix is too small, or not rated for the settings.
            StateError: Open already.
        """
        async with self._lock:
            if self._info is not None:
                raise StateError(f"{self._name} is already open")
            await self._lines.open()
            try:
                self._settings.check_matrix(self._lines.matrix.info, self._name)
                identity = self._who()
                self._expected.check(identity, self._name)
            except BaseException:
                await self._lines.close()
                raise
            self._identity = identity
            self._info = bench_info(self._settings, self._lines.matrix.info.settle_s)
            self._closing = False

    async def close(self) -> None:
        """Ends a request that is running, makes the source-meters safe, opens the relays and disconnects.

        Harmless when closed; runs to its end even when the caller is cancelled meanwhile.

        Raises:
            StateError: An output could not be made safe: a person must do it.
            InstrumentError: A relay did not open.
        """
        self._closing = True
        await undivided(self._close())

    async def _close(self) -> None:
        async with self._lock:
            self._info = self._identity = None
            await self._lines.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch line by line; see `CrossbarBoard.mvm`.

        Relays switch once for each word line and group of bit lines, however long the batch is, so `time_s` of a
        vector is when its last line was read. A level of 0 V is not read: it adds nothing.

        Raises:
            InstrumentError: The word source cannot hold its level, or a relay is stuck.
        """
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        async with self._lock:
            info = self.info
            if self._writes == 0:
                raise StateError(
                    f"{self._name}: the crossbar was never programmed; program it first, or say in writes_before how "
                    "often it was programmed before"
                )
            current_a, time_s = np.zeros((len(line_v), info.columns)), np.zeros(len(line_v))
            async with self._reading():
                for word in range(info.rows):
                    for bits in self._settings.geometry.bit_groups:
                        await self._add_line(word, bits, line_v[:, word], current_a, time_s)
            return coded(info, current_a, time_s, self._writes - 1)

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell at the cell voltage; see `CrossbarBoard.read_conductance`."""
        check_cell(self.info, array, 0, 0, f"{self._name}: read_conductance")
        async with self._lock, self._reading():
            return await self._read_cells()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs cell by cell with growing pulses and a reading after each; see `CrossbarBoard.program`.

        A cell that does not come within the tolerance is left as it is after `max_pulses`; the root mean square
        error, over readings of all cells at the end, tells. A programming that was cut short counts as a write.

        Raises:
            InstrumentError: A relay is stuck.
        """
        target_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, target_s)
        async with self._lock:
            pulses = failed = 0
            async with self._programming():
                self._writes += 1
                for done, (word, bit) in enumerate(np.ndindex(target_s.shape), start=1):
                    spent, converged = await self._program_cell(word, bit, float(target_s[word, bit]))
                    pulses, failed = pulses + spent, failed + (not converged)
                    if self._progress is not None:
                        self._progress(ProgramProgress(done, target_s.size, pulses, failed))
                error_s = await self._read_cells() - target_s
            return ProgramReport(self._writes - 1, self._clock(), pulses, float(np.sqrt(np.mean(error_s**2))))

    async def pulse(self, array: int, row: int, column: int, voltage_v: float) -> float:
        """Gives one cell one pulse (word line positive for a positive voltage), for example to form it.

        Returns:
            The cell's conductance in S after it.

        Raises:
            SafetyError: The pulse is beyond the envelope `pulse.max_v`, or not finite; nothing was sent.
            CapabilityError: No such cell.
        """
        check_cell(self.info, array, row, column, f"{self._name}: pulse")
        max_v = self._settings.pulse.max_v
        if not abs(voltage_v) <= max_v:
            raise SafetyError([f"{self._name}: a pulse of {voltage_v:g} V is beyond pulse.max_v = {max_v:g} V"])
        async with self._lock, self._programming():
            await self._lines.select(row, (column,))
            zero_a = await self._zero_a()
            await self._give(voltage_v)
            return await self._cell_s(zero_a)

    @property
    def cell_reading_s(self) -> float:
        """Least time in s of one reading of `sweep_cell`; see `CellSweep`."""
        read, alone = self._settings.read, self._settings.geometry.columns == 1
        return read.reading_s if alone else read.settle_s + read.reading_s

    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        """Measures the I-V curve of one cell, programmed or not; see `CellSweep` and `bench_cell_sweep`."""
        read = self._settings.read
        check_cell_sweep_request(self.info, array, row, column, voltage_v, limit_a, read.limit_a)
        limit_a = read.limit_a if limit_a is None else limit_a
        async with self._lock, self._reading(limit_a):
            await self._lines.select(row, (column,))
            return await sweep_selected_cell(self._lines, self._settings, voltage_v, limit_a, self._demand_going)

    async def make_safe(self) -> None:
        """Ramps every output to zero and off, also one that somebody else left on, then opens every relay.

        Raises:
            StateError: Not open; or an output could not be made safe, and the relays were left as they are.
            InstrumentError: A relay did not open.
        """
        async with self._lock:
            _ = self.info
            await self._lines.safe_now()

    def _reading(self, cell_limit_a: float | None = None) -> AbstractAsyncContextManager[None]:
        """A session for reading, where a level may round above its limit, and one cell may have a limit of its own."""
        read, alone = self._settings.read, self._settings.geometry.columns == 1
        return self._lines.session(
            limit_a=read.limit_a, highest_v=read.max_v * (1 + 1e-6), gate_v=self._settings.cells.gate_v,
            nplc=read.nplc, **{"word_limit_a" if alone else "bit_limit_a": cell_limit_a},
        )  # fmt: skip

    def _programming(self) -> AbstractAsyncContextManager[None]:
        read, pulse = self._settings.read, self._settings.pulse
        highest_v = max(pulse.max_v, read.cell_v)
        return self._lines.session(
            limit_a=pulse.limit_a, highest_v=highest_v, gate_v=self._settings.cells.gate_v, nplc=read.nplc
        )

    async def _add_line(
        self, word: int, bits: tuple[int, ...], level_v: FloatArray, current_a: FloatArray, time_s: FloatArray
    ) -> None:
        """Adds one word line's currents to `current_a[batch, columns]` and notes when each vector was read."""
        if not level_v.any():
            time_s[:] = self._clock()
            return
        await self._lines.select(word, bits)
        zero_a = await self._zero_a()
        highest = int(np.abs(level_v).argmax())
        for index, value in enumerate(level_v):
            if value:
                found_a = np.array([bit_line_current_a(one) for one in await self._at(float(value))])
                # What a meter could not read is infinite; two such currents may cancel to NaN, which is no number.
                with np.errstate(invalid="ignore"):
                    current_a[index, bits] += found_a - zero_a
                if index == highest:
                    await self._lines.check_source()
            time_s[index] = self._clock()

    async def _read_cells(self) -> FloatArray:
        read, geometry = self._settings.read, self._settings.geometry
        conductance_s = np.zeros((geometry.rows, geometry.columns))
        for word in range(geometry.rows):
            for bits in geometry.bit_groups:
                await self._lines.select(word, bits)
                zero_a = await self._zero_a()
                found_a = np.array([bit_line_current_a(one) for one in await self._at(read.cell_v)])
                # A cell that draws more than the meter can read is at least this good.
                found_a = np.clip(found_a, -read.limit_a, read.limit_a)
                conductance_s[word, bits] = (found_a - zero_a) / read.cell_v
        return conductance_s

    async def _program_cell(self, word: int, bit: int, target_s: float) -> tuple[int, bool]:
        """Pulses spent on one cell, and whether it came within the tolerance."""
        settings = self._settings.pulse
        await self._lines.select(word, (bit,))
        zero_a = await self._zero_a()
        found_s = await self._cell_s(zero_a)
        raised: bool | None = None
        in_row = 0
        for spent in range(settings.max_pulses):
            if abs(target_s - found_s) <= settings.tolerance_s:
                return spent, True
            raises = bool(target_s > found_s)
            # After an overshoot the other direction starts gently.
            in_row = in_row + 1 if raises == raised else 0
            raised = raises
            amplitude_v = settings.amplitude_v(raises=raises, count=in_row)
            await self._give(amplitude_v if raises else -amplitude_v)
            found_s = await self._cell_s(zero_a)
        return settings.max_pulses, bool(abs(target_s - found_s) <= settings.tolerance_s)

    async def _give(self, voltage_v: float) -> None:
        """One pulse: half of it on either line."""
        await self._lines.drive(0.5 * voltage_v, -0.5 * voltage_v)
        await asyncio.sleep(self._settings.pulse.width_s)
        await self._lines.drive(0.0, 0.0)

    async def _cell_s(self, zero_a: FloatArray) -> float:
        read = self._settings.read
        (reading,) = await self._at(read.cell_v)
        found_a = np.clip(bit_line_current_a(reading), -self._settings.pulse.limit_a, self._settings.pulse.limit_a)
        return float((found_a - zero_a[0]) / read.cell_v)

    async def _zero_a(self) -> FloatArray:
        """What the meters read at 0 V on the present connection, in A: their own offsets and leakage."""
        if not self._settings.read.subtract_zero:
            return np.zeros(len(self._lines.selected))
        zero_a = np.array([bit_line_current_a(one) for one in await self._at(0.0)])
        if not np.isfinite(zero_a).all():
            limited = [
                f"bit meter {index} (bit line {line})"
                for index, line in enumerate(self._lines.selected)
                if not np.isfinite(zero_a[index])
            ]
            raise InstrumentError(0, compliance_at_zero(limited), "measure", self._name)
        return zero_a

    async def _at(self, word_v: float) -> list[Reading]:
        self._demand_going()
        await self._lines.drive(word_v)
        await asyncio.sleep(self._settings.read.settle_s)
        return await self._lines.read()

    def _demand_going(self) -> None:
        if self._closing:
            raise StateError(f"{self._name}: closed while a request was running; its result was thrown away")

    def _who(self) -> Identity:
        *meters, matrix = (one.identity.model for one in self._lines.instruments())
        return Identity("labrig", "BENCH-CROSSBAR", self._settings.cells.chip_id, " + ".join([matrix, *meters]))
