"""`RemoteBoard`: the board of a rig that `labrig serve` offers, behind the contract of a crossbar board."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from labrig.boards.remote_instrument import RemoteInstrument
from labrig.boards.remote_settings import remote_session
from labrig.remote.board_verbs import transposed_lsb_a
from labrig.remote.envelope import LONGEST_MESSAGE_BYTES, Arrays
from labrig.remote.messages import Answer, Values
from labrig.remote.results import floats, mvm_from, number, numbers, readings_from, report_from, text, write_arrays
from labrig.remote.session import RemoteSession
from labrig_drivers.board_messages import info_from_json
from labrig_drivers.capabilities import (
    CELL_SWEEP,
    FLOATING_LINES,
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
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.errors import CapabilityError, ProtocolError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.source_meter import Reading

_INSTRUMENT: Final = "board"
# What a message holds besides the numbers of a batch.
_ROOM_BYTES: Final = 1 << 20
# Longest in s for what depends on the instruments behind the board.
_CELL_SWEEP_S: Final = 600.0
_PROGRAM_S: Final = 600.0


class RemoteBoard:
    """A board on another machine; keeps `CrossbarBoard` and, as far as the rig declares them, its extensions.

    A request is checked here before anything is sent, and by the envelope of the rig again. One that did not end with
    its own answer raises; whether it was carried out is then not known, except that it was carried out at most once.
    Numbers travel as they are, so that results are equal to those on the rig bit for bit.

    Args:
        session: Connection and lease; may be shared with source-meters of the same rig.
        expected: Identity that `open()` demands.
        name: How messages call this board.
    """

    make_link = staticmethod(remote_session)

    def __init__(
        self, session: RemoteSession, *, expected: ExpectedIdentity | None = None, name: str = "board"
    ) -> None:
        self._remote = RemoteInstrument(session, _INSTRUMENT, expected or ExpectedIdentity(), name)
        self._info: BoardInfo | None = None
        self._transposed_full_scale_a: tuple[float, ...] = ()
        self._cell_reading_s = 0.0

    @classmethod
    def from_settings(cls, link: RemoteSession, expected: ExpectedIdentity, name: str) -> RemoteBoard:
        """Makes the board from what a rig file gives; its settings went into the session, see `remote_session`."""
        return cls(link, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the board said it is; `StateError` before `open()`."""
        return self._remote.identity

    @property
    def info(self) -> BoardInfo:
        """Geometry, ranges and converters; `StateError` before `open()`."""
        if self._info is None:
            raise StateError(f"{self._remote.where} is not open; use `async with` or call open() first")
        return self._info

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What the rig does when this program or its network is gone; `StateError` before `open()`."""
        return self._remote.host_loss_protection

    @property
    def transposed_full_scale_a(self) -> tuple[float, ...]:
        """Current in A at the upper end of the ADC of each word line; see `TransposedMvm`."""
        require_capability(self.info, TRANSPOSED_MVM)
        return self._transposed_full_scale_a

    async def open(self) -> None:
        """Connects, gets the rig's lease and checks who the board is; nothing is driven.

        Raises:
            IdentityError: Another board than the rig file names.
            LinkError: No broker, or nobody serves the rig.
            ProtocolError: The rig speaks another version.
            StateError: Already open, or somebody else has the rig.
        """
        card = await self._remote.open()
        try:
            info = info_from_json(text(card, "info"))
            if TRANSPOSED_MVM in info.capabilities:
                self._transposed_full_scale_a = numbers(card, "transposed_full_scale_a", info.rows)
            if CELL_SWEEP in info.capabilities:
                self._cell_reading_s = number(card, "cell_reading_s")
        except BaseException:
            await self._remote.close()
            raise
        self._info = info

    async def close(self) -> None:
        """Has the board made safe and gives the rig back, as far as it still answers; its lease ends by itself."""
        self._info = None
        await self._remote.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array; see `CrossbarBoard.program`. The rig never carries it out twice."""
        target_s = np.asarray(conductance_s, dtype=np.float64)
        check_program_request(self.info, array, target_s)
        takes_s = _PROGRAM_S + self.info.program_latency_s
        answer = await self._ask("program", {"array": array}, {"conductance_s": target_s}, takes_s)
        return report_from(answer.values)

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`.

        Raises:
            CapabilityError: The batch is larger than a message may be, besides the reasons of the contract.
        """
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_mvm_request(self.info, array, line_v)
        return await self._measured("mvm", {"array": array}, {"voltage_v": line_v}, self.info.adc_lsb_a)

    async def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch from the bit lines to the word lines; see `TransposedMvm`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        check_transposed_request(self.info, array, line_v)
        lsb_a = transposed_lsb_a(self.info, self._transposed_full_scale_a)
        return await self._measured("mvm-transposed", {"array": array}, {"voltage_v": line_v}, lsb_a)

    async def mvm_floating(self, array: int, voltage_v: FloatArray, driven: NDArray[np.bool_]) -> MvmResult:
        """Measures one batch with some word lines left open; see `FloatingLines`."""
        line_v = np.asarray(voltage_v, dtype=np.float64)
        require_capability(self.info, FLOATING_LINES)
        check_mvm_request(self.info, array, line_v)
        arrays = {"voltage_v": line_v, "driven": np.asarray(driven, dtype=np.bool_)}
        return await self._measured("mvm-floating", {"array": array}, arrays, self.info.adc_lsb_a)

    async def read_conductance(self, array: int) -> FloatArray:
        """Reads every cell; see `CrossbarBoard.read_conductance`."""
        info = self.info
        if not 0 <= array < info.arrays:
            raise CapabilityError(
                f"read_conductance refused, nothing was sent: array {array} does not exist "
                f"(the board has arrays 0 to {info.arrays - 1})"
            )
        require_capability(info, READ_CONDUCTANCE)
        takes_s = _PROGRAM_S + info.rows * info.columns * info.mvm_latency_s
        answer = await self._ask("read-conductance", {"array": array}, {}, takes_s)
        conductance_s = floats(answer.arrays, "conductance_s")
        if conductance_s.shape != (info.rows, info.columns):
            raise ProtocolError(f"{self._remote.where}: conductances of shape {list(conductance_s.shape)}")
        return conductance_s

    @property
    def cell_reading_s(self) -> float:
        """Least time in s of one reading of `sweep_cell`; see `CellSweep`."""
        return self._cell_reading_s

    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        """Measures the I-V curve of one cell; see `CellSweep`."""
        require_capability(self.info, CELL_SWEEP)
        check_cell_sweep_request(self.info, array, row, column, voltage_v, limit_a)
        values: Values = {"array": array, "row": row, "column": column, "limit_a": limit_a}
        levels_v = {"voltage_v": np.asarray(voltage_v, dtype=np.float64)}
        return readings_from((await self._ask("sweep-cell", values, levels_v, _CELL_SWEEP_S)).arrays)

    async def temperature_k(self) -> float:
        """Temperature of the chip in K; see `TemperatureSensor`."""
        require_capability(self.info, TEMPERATURE)
        return number((await self._ask("temperature")).values, "temperature_k")

    async def now_s(self) -> float:
        """The board's clock in s; see `CommandedBoard`."""
        require_capability(self.info, COMMANDED)
        return number((await self._ask("now")).values, "now_s")

    async def let_pass(self, duration_s: float) -> None:
        """Moves the board's clock on; see `CommandedBoard`."""
        require_capability(self.info, COMMANDED)
        await self._ask("let-pass", {"duration_s": duration_s})

    async def restore(self, now_s: float, writes: Sequence[PastWrite]) -> None:
        """Puts the board where it was; see `CommandedBoard`."""
        require_capability(self.info, COMMANDED)
        await self._ask("restore", {"now_s": now_s}, write_arrays(writes))

    async def _measured(self, verb: str, values: Values, arrays: Arrays, lsb_a: FloatArray) -> MvmResult:
        batch = len(arrays["voltage_v"])
        # The answer has to fit too: code, saturation, and the currents where they are no multiples of codes.
        needs_bytes = batch * max(8 * arrays["voltage_v"].shape[1], 11 * len(lsb_a) + 8) + _ROOM_BYTES
        if needs_bytes > LONGEST_MESSAGE_BYTES:
            most = batch * (LONGEST_MESSAGE_BYTES - _ROOM_BYTES) // (needs_bytes - _ROOM_BYTES)
            raise CapabilityError(
                f"{verb} refused, nothing was sent: {batch} vectors are longer than a message may be; "
                f"send at most {most} at a time"
            )
        answer = await self._ask(verb, values, arrays, batch * self.info.mvm_latency_s)
        return mvm_from(answer.values, answer.arrays, lsb_a, batch)

    async def _ask(
        self, verb: str, values: Values | None = None, arrays: Arrays | None = None, takes_s: float = 0.0
    ) -> Answer:
        if not self._remote.is_open:
            raise StateError(f"{self._remote.where} is not open; use `async with` or call open() first")
        return await self._remote.session.ask(verb, _INSTRUMENT, values, arrays, takes_s=takes_s)
