"""A rig that training can call from ordinary code: opened, recorded, metered, and made safe at the end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from labrig.config import RigConfig
from labrig.energy_meter import EnergyMeter
from labrig.events import EventBus, RunFinished, RunStarted, RunStatus
from labrig.plans.base import StreamCapacity
from labrig.portal import LoopPortal, PendingCall
from labrig.recording import RecordingHeader, RecordingWriter
from labrig.rig import open_rig
from labrig.run_control import RunControl
from labrig.training.pausing import PauseGate
from labrig.training.recorded_board import BoardPosition, RecordedBoard
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult, ProgramReport
from labrig_drivers.errors import IdentityError, PlanAbortedError


@dataclass(frozen=True)
class LiveRun:
    """What a training does on a rig.

    Attributes:
        config: The rig file.
        chip_id: The chip that the calibration belongs to; another one is refused.
        path: The recording to make.
        plan: Description for the recording, seeds included.
        capacity: Sizes the recording, given the board.
        control: Pauses it, with the array supply off; its stop is not looked at.
    """

    config: RigConfig
    chip_id: str
    path: Path
    plan: Mapping[str, object]
    capacity: Callable[[BoardInfo], Mapping[int, StreamCapacity]]
    control: RunControl | None = None


@asynccontextmanager
async def _recorded_board(run: LiveRun, bus: EventBus) -> AsyncIterator[RecordedBoard]:
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(open_rig(run.config))
        info = rig.board.info
        if info.chip_id != run.chip_id:
            raise IdentityError(
                f"chip {run.chip_id!r} of the calibration", f"chip {info.chip_id!r}", str(run.config.path)
            )
        header = RecordingHeader.for_rig(rig, run.plan)
        capacity = run.capacity(info)
        writer = await RecordingWriter.create(run.path, header, info, capacity)
        await stack.enter_async_context(writer)
        await stack.enter_async_context(rig.powered())
        meter = None
        if rig.supply is not None:
            meter = EnergyMeter(rig.supply, bus, writer.append_supply)
            await stack.enter_async_context(meter)
        mvms, writes = sum(one.rows for one in capacity.values()), sum(one.writes for one in capacity.values())
        bus.publish(RunStarted(str(run.plan["name"]), mvms, writes, run.path, run_id=writer.run_id or None))
        board = RecordedBoard(rig.board, writer, meter, bus)
        if run.control is not None:
            board.gate = PauseGate(rig, meter, bus, run.control, board.flush)
        started_s = time.monotonic()
        status: RunStatus = "aborted"
        try:
            yield board
            await board.flush()
            status = "finished"
        finally:
            joules = None if meter is None else meter.joules()
            seconds = time.monotonic() - started_s
            bus.publish(RunFinished(status, board.mvms, board.programmed, seconds, joules))


class LiveRig:
    """A chip for `PhysicalBackend`. Use as `with LiveRig(run, bus) as board:`; Ctrl-C leaves everything safe."""

    def __init__(self, run: LiveRun, bus: EventBus) -> None:
        self._run = run
        self._bus = bus
        self._portal = LoopPortal()
        self._context: AbstractAsyncContextManager[RecordedBoard] | None = None
        self._board: RecordedBoard | None = None

    def __enter__(self) -> Self:
        try:
            self._portal.__enter__()
            self._context = _recorded_board(self._run, self._bus)
            self._board = self._portal.call(self._context.__aenter__())
        except BaseException:
            self._portal.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._context is not None
        if exc is not None and not isinstance(exc, Exception):
            # A KeyboardInterrupt inside the loop's thread would end the loop before the outputs are off.
            exc_type, exc = PlanAbortedError, PlanAbortedError("stopped by the user")
        try:
            self._portal.call(self._context.__aexit__(exc_type, exc, tb))
        finally:
            self._portal.__exit__(None, None, None)

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array and records it."""
        return self._portal.call(self._opened().program(array, conductance_s))

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch and records it."""
        return self._portal.call(self._opened().mvm(array, voltage_v))

    def begin_mvm(self, array: int, voltage_v: FloatArray) -> PendingCall[MvmResult]:
        """Has one batch measured and recorded while the caller computes; see `AheadBoard`."""
        return self._portal.begin(self._opened().mvm(array, voltage_v))

    @property
    def info(self) -> BoardInfo:
        """The board."""
        return self._opened().board.info

    @property
    def counts(self) -> tuple[dict[int, int], dict[int, int]]:
        """MVMs and programmings that were made so far, by array."""
        board = self._opened()
        return dict(board.rows), dict(board.writes)

    def position(self) -> BoardPosition:
        """Where the run is, with everything measured safely in the recording."""
        return self._portal.call(self._opened().position())

    def restore(self, position: BoardPosition) -> bool:
        """Puts a commanded board where it was; False on any other board, whose arrays have to be programmed anew."""
        return self._portal.call(self._opened().restore(position))

    def joules(self) -> float | None:
        """Energy in J from the array supply since the start; None without a supply meter."""
        meter = self._opened().meter
        return None if meter is None else meter.joules()

    def _opened(self) -> RecordedBoard:
        assert self._board is not None, "use LiveRig as a context manager"
        return self._board
