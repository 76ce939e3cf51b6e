"""`AihwkitBoard`: a chip simulated by IBM's aihwkit behind the contract of a crossbar board.

A chip that nobody of labrig has written: what labrig's own simulated chip and its surrogate might have in common by
mistake, this one has not. It can be swept, calibrated and trained on like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Self

import numpy as np

from labrig.boards.aihwkit_tile import AihwkitSettings, AihwkitTile, Tile, demand_aihwkit
from labrig_drivers.capabilities import READ_CONDUCTANCE
from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import ConfigError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.mock.clock import Clock, CommandedClock

_PROGRAMMING, _READING, _OUTPUT = 1, 2, 3


class AihwkitBoard:
    """A crossbar board simulated by aihwkit in this process.

    One weight of a tile is one conductance, `weight = conductance_s / conductance_max_s`; one input is one voltage,
    `input = voltage_v / voltage_max_v`; a product times `voltage_max_v * conductance_max_s` is a current, which the
    board's ADC turns into a code. The clock is commanded: it moves by the chip's own busy time and `clock.advance()`,
    and drift follows it. The accumulated 1/f noise of the cells is drawn once for each request, as aihwkit does.

    Programming errors, drift and 1/f noise are the same in every run with the same seed. Output noise comes from
    generators inside aihwkit that have no seed: with `out_noise = 0` a rerun is equal bit for bit, else not.

    Args:
        settings: What the chip is made of.
        clock: Time base; a `CommandedClock` at zero when None.
        expected: Identity that `open()` demands.
        name: How messages call this board.
        make_tile: Makes one array; aihwkit's tile by default.
    """

    def __init__(
        self,
        settings: AihwkitSettings | None = None,
        *,
        clock: Clock | None = None,
        expected: ExpectedIdentity | None = None,
        name: str = "aihwkit-board",
        make_tile: Callable[[AihwkitSettings], Tile] = AihwkitTile,
    ) -> None:
        self.settings = settings or AihwkitSettings()
        self.clock: Clock = clock or CommandedClock()
        self.name = name
        self._expected = expected or ExpectedIdentity()
        self._make_tile = make_tile
        self._tiles: list[Tile] = []
        self._programmings = [0] * self.settings.arrays
        self._programmed_at_s = [0.0] * self.settings.arrays
        self._requests = [0] * self.settings.arrays
        self._open = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> AihwkitBoard:
        """Makes a board from the `[board.settings]` table of a rig file.

        Raises:
            ConfigError: A key is not a field of `AihwkitSettings`, its value has the wrong type, or aihwkit is not
                installed; all faults at once.
        """
        known = {field.name: isinstance(field.default, int) for field in fields(AihwkitSettings)}
        faults = []
        values: dict[str, int | float] = {}
        for key, value in settings.items():
            if key not in known:
                faults.append(f"board.settings.{key}: unknown key; known are {', '.join(sorted(known))}")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                faults.append(f"board.settings.{key}: {value!r} is not a number")
            elif known[key] and not isinstance(value, int):
                faults.append(f"board.settings.{key}: {value!r} is not a whole number")
            else:
                values[key] = int(value) if known[key] else float(value)
        try:
            demand_aihwkit()
        except ConfigError as error:
            faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))
        return cls(AihwkitSettings(**values), expected=expected, name=name)  # type: ignore[arg-type]

    @property
    def identity(self) -> Identity:
        """Who the board is; `StateError` before `open()`."""
        self._demand_open()
        return Identity("aihwkit", "PCM inference tile", f"AIHWKIT-{self.settings.seed:04d}", "1.0")

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        self._demand_open()
        settings = self.settings
        return BoardInfo(
            chip_id=f"AIHWKIT-{settings.seed:04d}",
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
            capabilities=frozenset({READ_CONDUCTANCE}),
        )

    async def open(self) -> None:
        """Makes the tiles, where they were not made before; nothing is driven.

        Raises:
            ConfigError: aihwkit is not installed.
            IdentityError: The rig file names another chip.
        """
        self._open = True
        try:
            self._expected.check(self.identity, self.name)
            if not self._tiles:
                self._tiles = [self._make_tile(self.settings) for _ in range(self.settings.arrays)]
        except BaseException:
            self._open = False
            raise

    async def close(self) -> None:
        """Ends; the chip keeps what was programmed."""
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
        write = self._programmings[array]
        self.clock.spend(self.settings.program_latency_s)
        weight = np.clip(target_s / self.settings.conductance_max_s, 0.0, 1.0)
        self._tiles[array].program(weight, self._seed(_PROGRAMMING, array, write, 0))
        self._programmings[array] = write + 1
        self._programmed_at_s[array] = self.clock.now_s()
        self._requests[array] = 0
        error_s = self._aged(array).weights() * self.settings.conductance_max_s - target_s
        return ProgramReport(
            write_index=write,
            time_s=self._programmed_at_s[array],
            pulses=0,  # aihwkit's programming model is statistical, it counts none
            rms_error_s=float(np.sqrt(np.mean(error_s**2))),
        )

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        info = self.info
        check_mvm_request(info, array, line_v)
        self._demand_written(array)
        settings, batch = self.settings, len(line_v)
        seed = self._seed(_OUTPUT, array, self._programmings[array], self._requests[array])
        products = self._aged(array).forward(np.clip(line_v / settings.voltage_max_v, -1.0, 1.0), seed)
        start_s = self.clock.now_s()
        self.clock.spend(batch * settings.mvm_latency_s)
        lowest, highest = -(2 ** (settings.adc_bits - 1)), 2 ** (settings.adc_bits - 1) - 1
        current_a = products * (settings.voltage_max_v * settings.conductance_max_s)
        code = np.clip(np.rint(current_a / info.adc_lsb_a), lowest, highest).astype(np.int16)
        return MvmResult(
            code=code,
            current_a=code * info.adc_lsb_a,
            saturated=(code == lowest) | (code == highest),
            time_s=start_s + settings.mvm_latency_s * np.arange(1, batch + 1, dtype=np.float64),
            write_index=self._programmings[array] - 1,
        )

    async def read_conductance(self, array: int) -> FloatArray:
        """The conductances of all cells as they are now, with 1/f noise; see `CrossbarBoard.read_conductance`."""
        settings = self.settings
        check_program_request(self.info, array, np.full((settings.rows, settings.columns), settings.conductance_min_s))
        self._demand_written(array)
        return self._aged(array).weights() * settings.conductance_max_s

    def _aged(self, array: int) -> Tile:
        """The tile as its devices are now; each request sees its own draw of their slow noise."""
        tile = self._tiles[array]
        seed = self._seed(_READING, array, self._programmings[array], self._requests[array])
        self._requests[array] += 1
        tile.age(self.clock.now_s() - self._programmed_at_s[array], seed)
        return tile

    def _seed(self, *key: int) -> int:
        return int(np.random.SeedSequence([self.settings.seed, *key]).generate_state(1)[0])

    def _demand_open(self) -> None:
        if not self._open:
            raise StateError(f"{self.name} is not open; use `async with` or call open() first")

    def _demand_written(self, array: int) -> None:
        if not self._programmings[array]:
            raise StateError(f"{self.name}: array {array} was never programmed; program it first")
