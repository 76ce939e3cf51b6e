"""A board whose every programming and measurement goes into a recording, written behind the measuring."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from labrig.energy_meter import EnergyMeter
from labrig.events import BlockCommitted, EventBus, MeasuredBlock
from labrig.plans.base import MvmPoint
from labrig.recording import RecordingWriter
from labrig.training.pausing import PauseGate
from labrig_calibration.stimulus import StimulusKind
from labrig_drivers.commanded import PastWrite, commanded
from labrig_drivers.crossbar import CrossbarBoard, FloatArray, MvmResult, ProgramReport
from labrig_drivers.settling import undivided


@dataclass(frozen=True)
class BoardPosition:
    """Where a run is: what its recording holds, and the state of a board whose time is commanded.

    Attributes:
        rows: MVMs in the recording, by array.
        writes: Programmings in the recording, by array.
        now_s: The board's clock in s; None where the board is no commanded one.
        past: The latest write of each array, for a commanded board.
    """

    rows: dict[int, int]
    writes: dict[int, int]
    now_s: float | None
    past: tuple[PastWrite, ...]


@dataclass
class RecordedBoard:
    """Measures and hands what it measured to the recording, whose thread writes it meanwhile."""

    board: CrossbarBoard
    writer: RecordingWriter
    meter: EnergyMeter | None
    bus: EventBus
    mvms: int = 0
    blocks: int = 0
    programmed: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)
    past: dict[int, PastWrite] = field(default_factory=dict)
    pending: deque[asyncio.Future[int]] = field(default_factory=deque)
    gate: PauseGate | None = None

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array; see `CrossbarBoard.program`."""
        async with self._passage():
            report = await self.board.program(array, conductance_s)
        await self._behind(await self.writer.put_write(array, conductance_s, report))
        self.writes[array] = self.writes.get(array, 0) + 1
        self.past[array] = PastWrite(array, report.write_index, conductance_s.copy(), report.time_s, 0)
        self.programmed += 1
        return report

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch; see `CrossbarBoard.mvm`."""
        if self.meter is not None:
            self.meter.check()
        async with self._passage():
            result = await self.board.mvm(array, voltage_v)
        past = self.past.get(array)
        if past is not None:
            self.past[array] = PastWrite(array, past.write_index, past.conductance_s, past.time_s, past.requests + 1)
        write = self.writes[array] - 1
        point = MvmPoint(array, write, self.blocks, int(StimulusKind.ACTIVATION), voltage_v)
        await self._behind(await self.writer.put_mvms(array, point.kind, voltage_v, result, point.hash))
        self.blocks += 1
        self.mvms += voltage_v.shape[0]
        self.rows[array] = self.rows.get(array, 0) + voltage_v.shape[0]
        self.bus.publish(BlockCommitted(array, write, voltage_v.shape[0], self.mvms))
        if self.bus.wants_blocks:
            target_s = None if past is None else past.conductance_s
            self.bus.publish_block(MeasuredBlock(array, write, target_s, voltage_v, result))
        return result

    async def flush(self) -> None:
        """Waits until everything measured is in the file.

        Raises:
            StorageError: It could not be written.
        """
        while self.pending:
            await undivided(_settled(self.pending.popleft()))

    async def position(self) -> BoardPosition:
        """Where the run is, with everything measured in the file."""
        await self.flush()
        simulated = commanded(self.board, self.board.info)
        now_s = None if simulated is None else await simulated.now_s()
        past = () if simulated is None else tuple(self.past.values())
        return BoardPosition(dict(self.rows), dict(self.writes), now_s, past)

    async def restore(self, position: BoardPosition) -> bool:
        """Puts a commanded board where it was, so that it goes on as if never left; False on any other board.

        The recording of this board starts with the writes that are on it.
        """
        simulated = commanded(self.board, self.board.info)
        if simulated is None or position.now_s is None:
            return False
        await simulated.restore(position.now_s, position.past)
        for one in position.past:
            report = ProgramReport(one.write_index, one.time_s, 0, float("nan"))
            await self._behind(await self.writer.put_write(one.array, one.conductance_s, report))
            self.writes[one.array] = 1
            self.past[one.array] = one
        return True

    def _passage(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.gate is None else self.gate.passage()

    async def _behind(self, committed: asyncio.Future[int]) -> None:
        # A run that ends by another error never asks again; then nobody has to be told.
        committed.add_done_callback(_looked_at)
        self.pending.append(committed)
        while self.pending and self.pending[0].done():
            self.pending.popleft().result()


def _looked_at(future: asyncio.Future[int]) -> None:
    if not future.cancelled():
        future.exception()


async def _settled(future: asyncio.Future[int]) -> int:
    return await asyncio.shield(future)
