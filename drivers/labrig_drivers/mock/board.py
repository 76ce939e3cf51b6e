"""`MockBoard`: the simulated chip behind the contract of a crossbar board, in this process and without a socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.capabilities import (
    CELL_SWEEP,
    READ_CONDUCTANCE,
    TEMPERATURE,
    TRANSPOSED_MVM,
    check_cell_sweep_request,
    check_transposed_request,
    require_capability,
)
from labrig_drivers.commanded import COMMANDED, PastWrite
from labrig_drivers.crossbar import (
    BoardInfo,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import ConfigError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.mock.chip import ChipSettings, MeasuredBatch, SimulatedArray, WrittenArray
from labrig_drivers.mock.clock import Clock, CommandedClock
from labrig_drivers.mock.supply import SupplyPin
from labrig_drivers.settings_table import as_toml
from labrig_drivers.source_meter import Reading

FloatArray = NDArray[np.float64]

# Converters and references of the periphery, drawn whenever the array supply is on.
_IDLE_CURRENT_A = 4e-3
# Power of the converters during MVMs, and of the pulse generators during programming, beside the lines' own.
_CONVERTER_POWER_W = 15e-3
_PROGRAMMING_POWER_W = 40e-3
_PULSES_PER_CELL = 8
# Compliance limit of the source-meters that measure single cells.
_CELL_LIMIT_A = 1e-3

MOCK_CAPABILITIES = frozenset({CELL_SWEEP, READ_CONDUCTANCE, TEMPERATURE, TRANSPOSED_MVM})
"""Everything that a `MockBoard` can be asked to offer."""
USUAL_CAPABILITIES = frozenset({READ_CONDUCTANCE, TEMPERATURE})
"""What it offers where nobody asks: what a board with sensors but without access to single cells has."""


class MockBoard:
    """A crossbar board that is simulated in this process; the same contract as every other board.

    Noise is keyed by (seed, array, write, request since that write), and the clock moves only by the chip's own busy
    time and by `clock.advance()`, so that a rerun gives the same codes bit for bit.

    Args:
        settings: What the chip is made of.
        clock: Time base; a `CommandedClock` at zero when None.
        minimum_supply_v: Below this array supply in V every MVM and programming is refused; None when the board
            feeds itself.
        expected: Identity that `open()` demands.
        name: How messages call this board.
        capabilities: What it declares, out of `MOCK_CAPABILITIES`.

    Raises:
        ConfigError: A capability that a mock cannot offer.
    """

    def __init__(
        self,
        settings: ChipSettings | None = None,
        *,
        clock: Clock | None = None,
        minimum_supply_v: float | None = None,
        expected: ExpectedIdentity | None = None,
        name: str = "mock-board",
        capabilities: frozenset[str] = USUAL_CAPABILITIES,
    ) -> None:
        if unknown := sorted(capabilities - MOCK_CAPABILITIES):
            raise ConfigError(
                f"{name}: a mock offers no {', '.join(unknown)}, only {', '.join(sorted(MOCK_CAPABILITIES))}"
            )
        self.settings = settings or ChipSettings()
        self.clock: Clock = clock or CommandedClock()
        self.capabilities = capabilities | ({COMMANDED} if isinstance(self.clock, CommandedClock) else set())
        self.name = name
        self._expected = expected or ExpectedIdentity()
        self._minimum_supply_v = minimum_supply_v
        self._supply = SupplyPin(_IDLE_CURRENT_A)
        self._written: list[WrittenArray | None] = [None] * self.settings.arrays
        self._requests = [0] * self.settings.arrays
        self._open = False

    @cached_property
    def _arrays(self) -> list[SimulatedArray]:
        """The arrays, drawn when they are needed: a rig file that is only checked needs none."""
        return [SimulatedArray(self.settings, index) for index in range(self.settings.arrays)]

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> MockBoard:
        """Makes a board from the `[board.settings]` table of a rig file.

        Its keys are the fields of `ChipSettings`, and `capabilities`: a list of names out of `MOCK_CAPABILITIES`.

        Raises:
            ConfigError: A key is unknown, a value has the wrong type, or no chip is like it; all faults at once.
        """
        known = {field.name: _number_type(field) for field in fields(ChipSettings)}
        faults = []
        values: dict[str, int | float] = {}
        capabilities = MOCK_CAPABILITIES
        for key, value in settings.items():
            if key == "capabilities":
                if isinstance(value, list) and MOCK_CAPABILITIES.issuperset(map(str, value)):
                    capabilities = frozenset(map(str, value))
                else:
                    known_names = ", ".join(sorted(MOCK_CAPABILITIES))
                    faults.append(f"board.settings.capabilities: {as_toml(value)} is not a list out of {known_names}")
            elif key not in known:
                names = ", ".join(sorted({*known, "capabilities"}))
                faults.append(f"board.settings.{key}: unknown key; known are {names}")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                faults.append(f"board.settings.{key}: {as_toml(value)} is not a number")
            elif known[key] is int and not isinstance(value, int):
                faults.append(f"board.settings.{key}: {as_toml(value)} is not a whole number")
            else:
                values[key] = known[key](value)
        chip = ChipSettings(**values)  # type: ignore[arg-type]
        faults += [f"board.settings.{fault}" for fault in chip.faults()]
        if faults:
            raise ConfigError("\n".join(faults))
        return cls(chip, expected=expected, name=name, capabilities=capabilities)

    @property
    def chip_id(self) -> str:
        """Serial number of the chip: its seed."""
        return f"SIM-{self.settings.seed:04d}"

    @property
    def identity(self) -> Identity:
        """Who the board is; `StateError` before `open()`."""
        self._demand_open()
        return Identity("labrig", "LR-SIM1", self.chip_id, "1.0")

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        self._demand_open()
        settings = self.settings
        return BoardInfo(
            chip_id=self.chip_id,
            arrays=settings.arrays,
            rows=settings.rows,
            columns=settings.columns,
            conductance_min_s=settings.conductance_min_s,
            conductance_max_s=settings.conductance_max_s,
            voltage_min_v=-settings.voltage_max_v,
            voltage_max_v=settings.voltage_max_v,
            dac_bits=settings.dac_bits,
            adc_bits=settings.adc_bits,
            adc_full_scale_a=(settings.adc_full_scale_a,) * settings.columns,
            mvm_latency_s=settings.mvm_latency_s,
            program_latency_s=settings.program_latency_s,
            capabilities=self.capabilities,
        )

    async def open(self) -> None:
        """Checks the expected identity; nothing is driven."""
        self._open = True
        try:
            self._expected.check(self.identity, self.name)
        except BaseException:
            self._open = False
            raise

    async def close(self) -> None:
        """Grounds the lines (which a mock only drives during an MVM) and ends."""
        self._open = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array; see `CrossbarBoard.program`."""
        target_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, target_s)
        self._demand_supply("program")
        previous = self._written[array]
        write = 0 if previous is None else previous.write + 1
        start_s = self.clock.now_s()
        self.clock.spend(self.settings.program_latency_s)
        self._supply.burst(start_s, start_s + self.settings.program_latency_s, _PROGRAMMING_POWER_W)
        written = self._arrays[array].program(target_s, write, start_s + self.settings.program_latency_s)
        self._written[array] = written
        self._requests[array] = 0
        error_s = self._verify(array, written) - target_s
        return ProgramReport(
            write_index=write,
            time_s=written.time_s,
            pulses=_PULSES_PER_CELL * target_s.size,
            rms_error_s=float(np.sqrt(np.mean(error_s**2))),
        )

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        written = self._demand_written(array)
        self._demand_supply("mvm")
        return self._measured(self._arrays[array].mvm, array, written, line_v, self.info.adc_full_scale_a)

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell with the verify amplifier; see `CrossbarBoard.read_conductance`."""
        check_program_request(
            self.info, array, np.full((self.settings.rows, self.settings.columns), self.settings.conductance_min_s)
        )
        require_capability(self.info, READ_CONDUCTANCE)
        written = self._demand_written(array)
        self._demand_supply("read_conductance")
        return self._verify(array, written)

    @property
    def transposed_full_scale_a(self) -> tuple[float, ...]:
        """See `TransposedMvm`; the word lines have the same converters as the bit lines."""
        require_capability(self.info, TRANSPOSED_MVM)
        return (self.settings.adc_full_scale_a,) * self.settings.rows

    async def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch from the bit lines to the word lines; see `TransposedMvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_transposed_request(self.info, array, line_v)
        written = self._demand_written(array)
        self._demand_supply("mvm_transposed")
        measure = self._arrays[array].mvm_transposed
        return self._measured(measure, array, written, line_v, self.transposed_full_scale_a)

    @property
    def cell_reading_s(self) -> float:
        """Least time in s of one reading of `sweep_cell`; see `CellSweep`."""
        return self.settings.cell_reading_s

    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        """Measures the I-V curve of one cell; see `CellSweep`."""
        check_cell_sweep_request(self.info, array, row, column, voltage_v, limit_a, _CELL_LIMIT_A)
        written = self._demand_written(array)
        self._demand_supply("sweep_cell")
        level_v = np.asarray(voltage_v, dtype=np.float64)
        reading_s, start_s = self.settings.cell_reading_s, self.clock.now_s()
        middle_s = start_s + 0.5 * len(level_v) * reading_s
        cell_a = self._arrays[array].sweep_cell(written, (row, column), level_v, middle_s, self._next_request(array))
        self.clock.spend(len(level_v) * reading_s)
        limit_a = _CELL_LIMIT_A if limit_a is None else limit_a
        readings = []
        for index, (one_v, one_a) in enumerate(zip(level_v.tolist(), cell_a.tolist(), strict=True), start=1):
            # The part of the level that drives the limit through the cell and its wires.
            share = min(1.0, limit_a / abs(one_a)) if one_a else 1.0
            current_a = float(np.clip(share * one_a, -limit_a, limit_a))
            readings.append(
                Reading(share * one_v, current_a, in_compliance=share < 1.0, time_s=start_s + index * reading_s)
            )
        return readings

    async def temperature_k(self) -> float:
        """Temperature of the chip in K; see `TemperatureSensor`."""
        require_capability(self.info, TEMPERATURE)
        return self.settings.temperature_k

    async def now_s(self) -> float:
        """The board's clock in s; see `CommandedBoard`."""
        return self.clock.now_s()

    async def let_pass(self, duration_s: float) -> None:
        """Moves the clock on; see `CommandedBoard`."""
        self._commanded_clock().advance(duration_s)

    async def restore(self, now_s: float, writes: Sequence[PastWrite]) -> None:
        """Puts the chip where it was; see `CommandedBoard`."""
        clock = self._commanded_clock()
        for one in writes:
            check_program_request(self.info, one.array, one.conductance_s)
        self._written = [None] * self.settings.arrays
        self._requests = [0] * self.settings.arrays
        for one in writes:
            target_s = np.asarray(one.conductance_s, dtype=np.float64)
            self._written[one.array] = self._arrays[one.array].program(target_s, one.write_index, one.time_s)
            # The read-back that ends a programming is a request too.
            self._requests[one.array] = one.requests + 1
        clock.set(now_s)

    def _commanded_clock(self) -> CommandedClock:
        require_capability(self.info, COMMANDED)
        assert isinstance(self.clock, CommandedClock)
        return self.clock

    def set_supply_voltage(self, voltage_v: float) -> None:
        """Tells the board what its array supply pin sees, in V."""
        self._supply.voltage_v = voltage_v

    def supply_current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        """Mean current in A that the array supply pin draws between two times of `clock`."""
        return self._supply.mean_current_a(voltage_v, start_s, stop_s)

    def hidden_array(self, array: int) -> SimulatedArray:
        """The truth behind one array, for tests that judge a calibration; nothing else may look."""
        return self._arrays[array]

    def _measured(
        self,
        measure: Callable[[WrittenArray, FloatArray, float, int], MeasuredBatch],
        array: int,
        written: WrittenArray,
        line_v: FloatArray,
        full_scale_a: tuple[float, ...],
    ) -> MvmResult:
        batch = line_v.shape[0]
        start_s = self.clock.now_s()
        duration_s = batch * self.settings.mvm_latency_s
        measured = measure(written, line_v, start_s + 0.5 * duration_s, self._next_request(array))
        self.clock.spend(duration_s)
        self._supply.burst(start_s, start_s + duration_s, _CONVERTER_POWER_W + measured.power_w)
        return MvmResult(
            code=measured.code,
            current_a=measured.code * (np.asarray(full_scale_a) / float(2 ** (self.settings.adc_bits - 1))),
            saturated=measured.saturated,
            time_s=start_s + self.settings.mvm_latency_s * np.arange(1, batch + 1),
            write_index=written.write,
        )

    def _verify(self, array: int, written: WrittenArray) -> FloatArray:
        return self._arrays[array].verify(written, self.clock.now_s(), self._next_request(array))

    def _next_request(self, array: int) -> int:
        request = self._requests[array]
        self._requests[array] += 1
        return request

    def _demand_open(self) -> None:
        if not self._open:
            raise StateError(f"{self.name} is not open; use `async with` or call open() first")

    def _demand_written(self, array: int) -> WrittenArray:
        written = self._written[array]
        if written is None:
            raise StateError(f"{self.name}: array {array} was never programmed; program it first")
        return written

    def _demand_supply(self, verb: str) -> None:
        if self._minimum_supply_v is not None and self._supply.voltage_v < self._minimum_supply_v:
            raise StateError(
                f"{self.name}: {verb} refused, the array supply is at {self._supply.voltage_v:g} V "
                f"and must be at least {self._minimum_supply_v:g} V; switch the array supply on first"
            )


def _number_type(field: Field[int | float]) -> type[int] | type[float]:
    """Whether a setting counts or measures; every one has a default."""
    return int if isinstance(field.default, int) else float
