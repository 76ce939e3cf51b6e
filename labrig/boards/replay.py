"""`ReplayBoard`: a recording behind the contract of a crossbar board; it answers what was recorded, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from labrig.boards.tape import ArrayTape
from labrig.recording import Recording
from labrig.recording.rows import read_rows
from labrig.rig import BOARD_NAME
from labrig_drivers.capabilities import READ_CONDUCTANCE, require_capability
from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import CapabilityError, ConfigError, StateError, StorageError
from labrig_drivers.instrument import ExpectedIdentity, Identity

T = TypeVar("T")


class ReplayBoard:
    """A recorded chip; keeps `CrossbarBoard` as far as the recording goes.

    An MVM that was recorded (same array, same write, same vector after the DAC) is answered with the recorded codes
    and times; several recordings of one vector are given out in turn. `program` with a target that was recorded
    selects its write, the n-th programming of one target the n-th recorded write of it. Everything else is refused
    with `CapabilityError`, which names the nearest thing there is. The same plan, run again on this board, gives the
    same data set bit for bit; a plan or a training whose requests depend on other answers soon asks for something new.

    Identity and description are those of the recorded board, less the abilities that a recording has not. Each
    `open()` starts at the beginning. Write indices count from 0, as in the recording.

    Args:
        recording: The recording.
        expected: Identity that `open()` demands.
        name: How messages call this board.
        repeat: Give recordings of a vector out again, from the first, when there are no more. Off by default: the
            noise of a repeated answer is not new.
    """

    def __init__(
        self,
        recording: Path | str,
        *,
        expected: ExpectedIdentity | None = None,
        name: str = "replay-board",
        repeat: bool = False,
    ) -> None:
        self.path = Path(recording)
        self.name = name
        self._expected = expected or ExpectedIdentity()
        self._repeat = repeat
        self._identity: Identity | None = None
        self._info: BoardInfo | None = None
        self._tapes: dict[int, ArrayTape] = {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], expected: ExpectedIdentity, name: str) -> ReplayBoard:
        """Makes a board from the `[board.settings]` table of a rig file: `recording`, and `repeat` if wanted.

        Raises:
            ConfigError: A key is unknown or missing, or its value has the wrong type; all faults at once.
        """
        faults = [
            f"board.settings.{key}: unknown key; known are recording, repeat"
            for key in settings
            if key not in {"recording", "repeat"}
        ]
        recording, repeat = settings.get("recording"), settings.get("repeat", False)
        if recording is None:
            faults.append("board.settings.recording: is missing; it names the file to play back")
        elif not isinstance(recording, str) or not recording:
            faults.append(f"board.settings.recording: {recording!r} is not the name of a file")
        if not isinstance(repeat, bool):
            faults.append(f"board.settings.repeat: {repeat!r} is neither true nor false")
        if faults:
            raise ConfigError("\n".join(faults))
        return cls(str(recording), expected=expected, name=name, repeat=bool(repeat))

    @property
    def identity(self) -> Identity:
        """Who the recorded board was; `StateError` before `open()`."""
        if self._identity is None:
            raise self._closed()
        return self._identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters of the recorded board; `StateError` before `open()`."""
        if self._info is None:
            raise self._closed()
        return self._info

    async def open(self) -> None:
        """Reads the whole recording on a thread, every row checked, and begins at its beginning.

        Raises:
            IdentityError: It was recorded on another board than the rig file names.
            StateError: Already open.
            StorageError: The recording cannot be read or believed.
        """
        if self._info is not None:
            raise StateError(f"{self.name} ({self.path}) is already open")
        identity, info, tapes = await asyncio.to_thread(self._read)
        self._expected.check(identity, str(self.path))
        self._identity, self._info, self._tapes = identity, info, tapes

    async def close(self) -> None:
        """Forgets the recording; harmless when closed."""
        self._identity = self._info = None
        self._tapes = {}

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Selects the next recorded write of this target; see `CrossbarBoard.program`.

        Raises:
            CapabilityError: It was not recorded (so often), besides the reasons of the contract.
        """
        target_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, target_s)
        tape = self._tape(array, "program")
        write = self._named(tape.program, target_s)
        return ProgramReport(
            write_index=tape.programmings - 1,
            time_s=float(tape.recorded.programmed_at_s[write]),
            pulses=int(tape.recorded.pulses[write]),
            rms_error_s=float(tape.recorded.rms_error_s[write]),
        )

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Answers with what was recorded; see `CrossbarBoard.mvm`.

        Raises:
            CapabilityError: A vector was not recorded (so often) on the selected write, besides the reasons of the
                contract; then no vector of the batch was given out.
        """
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        tape = self._tape(array, "mvm")
        rows = self._named(tape.mvm, line_v)
        code = tape.recorded.code[rows]
        return MvmResult(
            code=code,
            current_a=code * self.info.adc_lsb_a,
            saturated=tape.recorded.saturated[rows],
            time_s=tape.recorded.time_s[rows],
            write_index=tape.programmings - 1,
        )

    async def read_conductance(self, array: int) -> FloatArray:
        """Refused: recordings hold no reads of single cells.

        Raises:
            CapabilityError: Always.
        """
        require_capability(self.info, READ_CONDUCTANCE)
        raise CapabilityError(f"{self.name} ({self.path}): cells of array {array} were not recorded")

    def _read(self) -> tuple[Identity, BoardInfo, dict[int, ArrayTape]]:
        with Recording.open(self.path) as recording:
            identity = recording.header.identities.get(BOARD_NAME)
            if identity is None:
                raise StorageError(f"{self.path}: does not say which board it was recorded on")
            info = replace(recording.info, capabilities=frozenset())
            tapes = {
                array: ArrayTape(array, read_rows(recording, array), info, repeat=self._repeat)
                for array in recording.arrays
            }
        return identity, info, tapes

    def _tape(self, array: int, verb: str) -> ArrayTape:
        tape = self._tapes.get(array)
        if tape is None:
            recorded = ", ".join(map(str, sorted(self._tapes))) or "none"
            raise CapabilityError(
                f"{self.name} ({self.path}): {verb} refused: array {array} was not recorded; recorded are: {recorded}"
            )
        return tape

    def _named(self, ask: Callable[[FloatArray], T], values: FloatArray) -> T:
        try:
            return ask(values)
        except (CapabilityError, StateError) as error:
            raise type(error)(f"{self.name} ({self.path}): {error}") from None

    def _closed(self) -> StateError:
        return StateError(f"{self.name} ({self.path}) is not open; use `async with` or call open() first")
