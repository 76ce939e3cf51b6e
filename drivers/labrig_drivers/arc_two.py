"""`ArcTwoBoard`: ArC Instruments' ArC TWO with a chip in its socket, through the maker's Python library `pyarc2`.

NOT RUN ON HARDWARE. Written from the documents of pyarc2 0.6.0 and tested against a fake with the same interface
(`labrig.testing.fake_arc_two`). Read docs/how-to/arc-two.md before the first use: begin with a known resistor.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from labrig_drivers.arc_two_process import ArcTwoProcess
from labrig_drivers.arc_two_settings import ArcTwoSettings
from labrig_drivers.capabilities import READ_CONDUCTANCE, TRANSPOSED_MVM, check_transposed_request
from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import ConfigError, LinkLostError, ProtocolError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.settling import settle

PYARC2_INSTRUMENT = "pyarc2:Instrument"

# libarc2 paces each batch of instructions by this; a vector takes two of them, a read of a word line two.
_PACING_S = 2.5e-3
# Documented delays are far shorter; ten times the pacing is what a call may take before it counts as stuck.
_CALL_S = 10.0 * _PACING_S
# Vectors in one request: few enough that a stuck one shows soon, many enough that the pipe costs nothing.
_VECTORS = 64
_OPEN_TIMEOUT_S = 60.0
_HALF = 0.5


class ArcTwoBoard:
    """An ArC TWO as a crossbar board; keeps `CrossbarBoard`. NOT run on hardware.

    All calls to the library happen in a process of their own, one after another, each with a deadline. A call that
    does not return raises `LinkTimeoutError`; the process is killed, and every further call is refused with
    `LinkDesyncedError` until the board was closed and opened again. (In a thread it could neither be given up nor be
    noticed: pyarc2 0.6.0 never releases Python's global lock.)

    `open()` loads the firmware, which takes all outputs to 0 V. Between requests all lines are at 0 V, after `close()`
    at hard ground. Voltages are rounded to the levels that `info` declares; the channels' own step is 0.3 mV. Currents
    are measured with the instrument's 18 bits and its automatic ranges, and rounded to the codes of `info`. Latencies
    in `info` follow from documented delays, they were not measured.

    Cells are programmed one by one with pulses and reads (`PulseRecipe`); half-selected neighbours get what the
    instrument's idle channels give them. Chips with selectors are not supported.

    Args:
        settings: The instrument and the chip.
        expected: Identity that `open()` demands.
        name: How messages call this board.
        factory: Import name of what is called in the process with port and firmware.
    """

    def __init__(
        self,
        settings: ArcTwoSettings,
        *,
        expected: ExpectedIdentity | None = None,
        name: str = "arc-two",
        factory: str = PYARC2_INSTRUMENT,
    ) -> None:
        self.settings = settings
        self.name = name
        self._expected = expected or ExpectedIdentity()
        self._factory = factory
        self._lock = asyncio.Lock()
        self._process: ArcTwoProcess | None = None
        self._identity: Identity | None = None
        self._programmings = 0
        # The worker stamps with the system's monotonic clock, which is the same in both processes.
        self._epoch_s = time.time() - time.monotonic()

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> ArcTwoBoard:
        """Makes the driver from the `[board.settings]` table of a rig file.

        Raises:
            ConfigError: A setting is wrong, or pyarc2 is not installed; all faults at once.
        """
        faults: list[str] = []
        found = None
        for check in (lambda: ArcTwoSettings.from_table(settings), _demand_pyarc2):
            try:
                found = check() or found
            except ConfigError as error:
                faults.append(str(error))
        if faults or found is None:
            raise ConfigError("\n".join(faults))
        return cls(found, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Maker and model, the serial number from the settings, and a digest of the firmware that was loaded."""
        if self._identity is None:
            raise self._closed()
        return self._identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        if self._process is None:
            raise self._closed()
        settings, recipe = self.settings, self.settings.recipe
        rows, columns = len(settings.row_channels), len(settings.column_channels)
        pulse_and_read_s = recipe.pulse_s + 2 * _PACING_S
        return BoardInfo(
            chip_id=settings.chip_id,
            arrays=1,
            rows=rows,
            columns=columns,
            conductance_min_s=settings.conductance_min_s,
            conductance_max_s=settings.conductance_max_s,
            voltage_min_v=-settings.voltage_max_v,
            voltage_max_v=settings.voltage_max_v,
            dac_bits=settings.dac_bits,
            adc_bits=settings.adc_bits,
            adc_full_scale_a=(settings.adc_full_scale_a,) * columns,
            mvm_latency_s=2 * _PACING_S + settings.settle_s,
            program_latency_s=rows * columns * recipe.max_pulses * pulse_and_read_s,
            capabilities=frozenset({READ_CONDUCTANCE, TRANSPOSED_MVM}),
        )

    @property
    def transposed_full_scale_a(self) -> tuple[float, ...]:
        """See `TransposedMvm`; every channel has the same converters."""
        return (self.settings.adc_full_scale_a,) * self.info.rows

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What protects the chip right now; `StateError` before `open()`."""
        if self._process is None:
            raise self._closed()
        return HostLossProtection(
            None,
            "a process of its own grounds all lines when this one dies, but nothing does when the computer fails: "
            "the instrument has no time-out of its own",
        )

    async def open(self) -> None:
        """Starts the process and loads the firmware, with which all outputs go to 0 V; no voltage is applied.

        Raises:
            ConfigError: pyarc2 is not installed, or the firmware cannot be read.
            IdentityError: The settings name another instrument than the rig file expects.
            InstrumentError: The library cannot open the instrument.
            LinkError: It does not answer.
            StateError: Already open.
        """
        async with self._lock:
            if self._process is not None:
                raise StateError(f"{self.name} is already open")
            if self._factory == PYARC2_INSTRUMENT:
                _demand_pyarc2()
            digest = await asyncio.to_thread(_digest, Path(self.settings.firmware))
            identity = Identity("ArC Instruments", "ArC TWO", self.settings.serial, digest)
            self._expected.check(identity, self.name)
            self._process = await self._opened()
            self._identity = identity

    async def close(self) -> None:
        """Grounds all lines and ends the process; after a stuck call, from a new process. A cancellation waits.

        Raises:
            LinkLostError: The lines could not be grounded; the board counts as closed all the same.
        """
        closing = asyncio.ensure_future(self._close())
        cancelled = await settle(closing)
        closing.result()
        if cancelled is not None:
            raise cancelled

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs the array cell by cell, each with at most `max_pulses` pulses; see `CrossbarBoard.program`.

        Every cell is read first: currents of the wrong sign would drive all cells to an end of their range, and are
        refused before the first pulse.

        Raises:
            ProtocolError: Currents are not numbers, or have the wrong sign.
        """
        target_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, target_s)
        settings, recipe = self.settings, self.settings.recipe
        async with self._lock:
            before_s = await self._read_all()
            if np.median(before_s) < -_HALF * settings.conductance_min_s:
                raise ProtocolError(
                    f"{self.name}: reads give negative conductances (median {np.median(before_s):g} S); no pulse was "
                    "given. Set current_sign in the board's settings the other way, and check with a known resistor"
                )
            pulses = 0
            duration_s = len(settings.column_channels) * (recipe.max_pulses + 1) * (recipe.pulse_s + _CALL_S)
            for row, targets_s in zip(settings.row_channels, target_s, strict=True):
                request = {
                    "verb": "program",
                    "row": row,
                    "columns": settings.column_channels,
                    "target_s": targets_s.tolist(),
                    "recipe": asdict(recipe),
                    "current_sign": settings.current_sign,
                }
                answer = await self._ask(request, duration_s)
                pulses += int(answer["pulses"])  # type: ignore[call-overload]
            reached_s = await self._read_all()
            self._programmings += 1
            return ProgramReport(
                write_index=self._programmings - 1,
                time_s=self._epoch_s + time.monotonic(),
                pulses=pulses,
                rms_error_s=float(np.sqrt(np.mean((reached_s - target_s) ** 2))),
            )

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Drives the word lines with one vector after another and reads the bit lines; see `CrossbarBoard.mvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        return await self._measured(line_v, self.settings.row_channels, self.settings.column_channels)

    async def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Drives the bit lines and reads the word lines; see `TransposedMvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_transposed_request(self.info, array, line_v)
        return await self._measured(line_v, self.settings.column_channels, self.settings.row_channels)

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell at the verify voltage, one word line at a time; see `CrossbarBoard.read_conductance`."""
        info = self.info
        check_program_request(info, array, np.full((info.rows, info.columns), info.conductance_min_s))
        async with self._lock:
            return await self._read_all()

    async def _measured(self, line_v: FloatArray, driven: Sequence[int], sensed: Sequence[int]) -> MvmResult:
        info = self.info
        levels_v = np.rint(line_v / info.dac_step_v) * info.dac_step_v
        levels_v = np.clip(levels_v, info.voltage_min_v, info.voltage_max_v)
        currents, times = [], []
        async with self._lock:
            if not self._programmings:
                raise StateError(f"{self.name}: the array was never programmed since this driver was made; program it")
            for start in range(0, len(levels_v), _VECTORS):
                piece = levels_v[start : start + _VECTORS]
                request = {
                    "verb": "mvm",
                    "driven": driven,
                    "sensed": sensed,
                    "voltage_v": piece.tolist(),
                    "settle_s": self.settings.settle_s,
                }
                answer = await self._ask(request, len(piece) * (2 * _CALL_S + self.settings.settle_s))
                currents.append(self._currents(answer, (len(piece), len(sensed))))
                times.append(np.asarray(answer["time_s"], dtype=np.float64))
            write_index = self._programmings - 1
        lsb_a = self.settings.adc_full_scale_a / float(2 ** (info.adc_bits - 1))
        lowest, highest = -(2 ** (info.adc_bits - 1)), 2 ** (info.adc_bits - 1) - 1
        code = np.clip(np.rint(np.concatenate(currents) / lsb_a), lowest, highest).astype(np.int16)
        return MvmResult(
            code=code,
            current_a=np.asarray(code * lsb_a, dtype=np.float64),
            saturated=(code == lowest) | (code == highest),
            time_s=self._epoch_s + np.concatenate(times),
            write_index=write_index,
        )

    async def _read_all(self) -> FloatArray:
        settings = self.settings
        request = {
            "verb": "read",
            "rows": settings.row_channels,
            "columns": settings.column_channels,
            "read_v": settings.recipe.verify_v,
        }
        answer = await self._ask(request, len(settings.row_channels) * 2 * _CALL_S)
        shape = (len(settings.row_channels), len(settings.column_channels))
        return self._currents(answer, shape) / settings.recipe.verify_v

    def _currents(self, answer: Mapping[str, object], shape: tuple[int, int]) -> FloatArray:
        current_a = self.settings.current_sign * np.asarray(answer["current_a"], dtype=np.float64)
        if current_a.shape != shape:
            raise ProtocolError(f"{self.name}: {list(current_a.shape)} currents came, {list(shape)} were asked for")
        if not np.isfinite(current_a).all():
            wrong = int((~np.isfinite(current_a)).sum())
            raise ProtocolError(
                f"{self.name}: {wrong} of {current_a.size} currents are not numbers; the library gives such for a "
                "range that it does not know. Measure one cell with the maker's software"
            )
        return current_a

    async def _ask(self, request: Mapping[str, object], duration_s: float) -> Mapping[str, object]:
        if self._process is None:
            raise self._closed()
        return await self._process.ask(request, self.settings.timeout_s + duration_s)

    async def _opened(self) -> ArcTwoProcess:
        process = ArcTwoProcess(self.name)
        try:
            await process.start()
            request = {
                "verb": "open",
                "factory": self._factory,
                "port": self.settings.port,
                "firmware": self.settings.firmware,
            }
            await process.ask(request, _OPEN_TIMEOUT_S)
        except BaseException:
            await process.end()
            raise
        return process

    async def _close(self) -> None:
        async with self._lock:
            process, self._process, self._identity = self._process, None, None
            if process is None:
                return
            if await process.end() and not process.given_up:
                return
            # Stuck or failed: what the lines carry is unknown. A new process resets and grounds them.
            try:
                fresh = await self._opened()
                try:
                    await fresh.ask({"verb": "safe"}, self.settings.timeout_s)
                finally:
                    await fresh.end()
            except Exception as error:
                raise LinkLostError(
                    f"{self.name}: the lines could not be grounded ({error}); SWITCH THE INSTRUMENT OFF now"
                ) from error

    def _closed(self) -> StateError:
        return StateError(f"{self.name} is not open; use `async with` or call open() first")


def _demand_pyarc2() -> None:
    if find_spec("pyarc2") is None:
        raise ConfigError(
            "board.driver: this board needs pyarc2, not installed here; run: pip install 'labrig[arc2]' "
            "(x86-64 Linux or Windows)"
        )


def _digest(firmware: Path) -> str:
    try:
        content = firmware.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"board.settings.firmware: {firmware} cannot be read ({error.strerror}); it comes with the instrument"
        ) from error
    return f"{firmware.name} sha256 {hashlib.sha256(content).hexdigest()[:12]}"
