"""`ConductanceBoard`: conductances that somebody measured, behind the contract of a crossbar board.

Cells are those of a real chip, everything else is computed: a product is Ohm's and Kirchhoff's law on the measured
conductances, with converters and without noise, wires or drift. What comes out says what these cells do to a network,
not how the chip would have answered, and no vendor's service is behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from labrig.conductance_files import MeasuredArray, read_conductances
from labrig_drivers.bench_codes import coded
from labrig_drivers.capabilities import READ_CONDUCTANCE
from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import CapabilityError, ConfigError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.wording import counted

_MVM_S = 1e-6
_PROGRAM_S = 1e-3
_SAME = 1e-6


@dataclass(frozen=True)
class ConductanceSettings:
    """What the board has beside the measured cells.

    Attributes:
        file: What `labrig import conductances` wrote.
        read_voltage_v: Largest input in V, of both signs.
        dac_bits: Resolution of the inputs.
        adc_bits: Resolution of the outputs.
        full_scale_a: Current in A at the upper end of the converters; None: what all cells of the strongest column
            give at half the largest input.
        repeat: Begin again with the first measurement of a target when there are no more.
    """

    file: Path
    read_voltage_v: float = 0.2
    dac_bits: int = 8
    adc_bits: int = 12
    full_scale_a: float | None = None
    repeat: bool = False


class ConductanceBoard:
    """A chip of measured cells. Arrays that are smaller than the largest are filled up with cells that conduct nothing.

    `program` takes a target that was measured and selects its measurement: the n-th programming of a target the n-th
    measurement. Every other target is refused, since nobody measured what becomes of it.

    Args:
        settings: File and converters.
        expected: Identity that `open()` demands.
        name: How messages call this board.
    """

    def __init__(
        self,
        settings: ConductanceSettings,
        *,
        expected: ExpectedIdentity | None = None,
        name: str = "conductance-board",
    ) -> None:
        self.settings = settings
        self.name = name
        self._expected = expected or ExpectedIdentity()
        self._arrays: list[MeasuredArray] = []
        self._identity: Identity | None = None
        self._info: BoardInfo | None = None
        self._given: list[int] = []
        self._time_s = 0.0

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> ConductanceBoard:
        """Makes a board from the `[board.settings]` table of a rig file; see `ConductanceSettings`.

        Raises:
            ConfigError: A key is unknown or missing, or its value has the wrong type or range; all faults at once.
        """
        kinds: dict[str, type | tuple[type, ...]] = {
            "file": str,
            "read_voltage_v": (int, float),
            "dac_bits": int,
            "adc_bits": int,
            "full_scale_a": (int, float),
            "repeat": bool,
        }
        faults = [
            f"board.settings.{key}: unknown key; known are {', '.join(kinds)}" for key in settings if key not in kinds
        ]
        faults += [
            f"board.settings.{key}: {value!r} is of the wrong type"
            for key, value in settings.items()
            if key in kinds
            and (not isinstance(value, kinds[key]) or (isinstance(value, bool) and kinds[key] is not bool))
        ]
        if "file" not in settings:
            faults.append("board.settings.file: is missing; labrig import conductances makes one")
        for key in ("read_voltage_v", "full_scale_a"):
            value = settings.get(key, 1.0)
            if isinstance(value, int | float) and not 0.0 < value < float("inf"):
                faults.append(f"board.settings.{key}: {value} must be above zero")
        for key in ("dac_bits", "adc_bits"):
            value = settings.get(key, 8)
            if isinstance(value, int) and not 2 <= value <= 16:
                faults.append(f"board.settings.{key}: {value} must lie between 2 and 16")
        if faults:
            raise ConfigError("\n".join(faults))
        values = {**settings, "file": Path(str(settings["file"]))}
        return cls(ConductanceSettings(**values), expected=expected, name=name)  # type: ignore[arg-type]

    @property
    def identity(self) -> Identity:
        """Says what it is; `StateError` before `open()`."""
        if self._identity is None:
            raise self._closed()
        return self._identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        if self._info is None:
            raise self._closed()
        return self._info

    async def open(self) -> None:
        """Reads the file on a thread.

        Raises:
            IdentityError: It is of another chip than the rig file names.
            StateError: Already open.
            StorageError: The file cannot be read.
        """
        if self._info is not None:
            raise StateError(f"{self.name} ({self.settings.file}) is already open")
        arrays, source, digest = await asyncio.to_thread(read_conductances, self.settings.file)
        identity = Identity("labrig", "measured conductances", digest, source)
        self._expected.check(identity, str(self.settings.file))
        self._arrays, self._identity = _filled(arrays), identity
        self._info = _info(self._arrays, self.settings, digest)
        self._given, self._time_s = [0] * len(arrays), 0.0

    async def close(self) -> None:
        """Forgets the file; harmless when closed."""
        self._identity = self._info = None
        self._arrays = []

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Selects the next measurement of this target; see `CrossbarBoard.program`.

        Raises:
            CapabilityError: It was not measured (so often), besides the reasons of the contract.
        """
        wanted_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, wanted_s)
        one, written = self._arrays[array], self._given[array]
        apart_s = float(np.abs(wanted_s - one.target_s).max())
        if apart_s > _SAME * self.info.conductance_max_s:
            raise CapabilityError(
                f"{self.name} ({self.settings.file}): program refused: array {array} ({one.name}) was measured for "
                f"another target, which differs by up to {apart_s:.3g} S"
            )
        if written >= len(one.measured_s) and not self.settings.repeat:
            raise CapabilityError(
                f"{self.name} ({self.settings.file}): array {array} ({one.name}) was measured after "
                f"{counted(len(one.measured_s), 'write')} only; repeat = true begins again"
            )
        self._given[array] = written + 1
        self._time_s += _PROGRAM_S
        error_s = self._cells_s(array) - one.target_s
        return ProgramReport(written, self._time_s, 0, float(np.sqrt(np.mean(error_s**2))))

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Products of the measured cells; see `CrossbarBoard.mvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        levels = np.rint(line_v / self.info.dac_step_v)
        current_a = (levels * self.info.dac_step_v) @ self._cells_s(array)
        time_s: FloatArray = self._time_s + _MVM_S * np.arange(1, len(line_v) + 1, dtype=np.float64)
        self._time_s = float(time_s[-1])
        return coded(self.info, current_a, time_s, self._given[array] - 1)

    async def read_conductance(self, array: int) -> FloatArray:
        """The measured conductances of the present write, `[rows, columns]` in S."""
        if not 0 <= array < self.info.arrays:
            there = f"the board has arrays 0 to {self.info.arrays - 1}"
            raise CapabilityError(f"read_conductance refused: array {array} does not exist ({there})")
        return self._cells_s(array).copy()

    def _cells_s(self, array: int) -> FloatArray:
        written = self._given[array]
        if not written:
            raise StateError(f"{self.name}: array {array} was not programmed yet: its target selects a measurement")
        measured_s = self._arrays[array].measured_s
        return np.asarray(measured_s[(written - 1) % len(measured_s)])

    def _closed(self) -> StateError:
        return StateError(f"{self.name} ({self.settings.file}) is not open; use `async with` or call open() first")


def _filled(arrays: list[MeasuredArray]) -> list[MeasuredArray]:
    """Arrays of one size."""
    rows, columns = (max(one.target_s.shape[axis] for one in arrays) for axis in (0, 1))
    made = []
    for one in arrays:
        missing = ((0, rows - one.target_s.shape[0]), (0, columns - one.target_s.shape[1]))
        target_s, measured_s = np.pad(one.target_s, missing), np.pad(one.measured_s, ((0, 0), *missing))
        made.append(MeasuredArray(one.name, target_s, measured_s))
    return made


def _info(arrays: list[MeasuredArray], settings: ConductanceSettings, chip_id: str) -> BoardInfo:
    rows, columns = arrays[0].target_s.shape
    strongest_s = max(float(one.measured_s.sum(axis=1).max()) for one in arrays)
    full_scale_a = settings.full_scale_a or 0.5 * settings.read_voltage_v * strongest_s
    return BoardInfo(
        chip_id=chip_id,
        arrays=len(arrays),
        rows=rows,
        columns=columns,
        conductance_min_s=0.0,
        conductance_max_s=max(float(one.target_s.max()) for one in arrays),
        voltage_min_v=-settings.read_voltage_v,
        voltage_max_v=settings.read_voltage_v,
        dac_bits=settings.dac_bits,
        adc_bits=settings.adc_bits,
        adc_full_scale_a=(full_scale_a,) * columns,
        mvm_latency_s=_MVM_S,
        program_latency_s=_PROGRAM_S,
        capabilities=frozenset({READ_CONDUCTANCE}),
    )
