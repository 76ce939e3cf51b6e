"""Runs a session on a rig: recorded, checkpointed, and on again where the rig was lost for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from labrig.config import RigConfig
from labrig.events import EventBus, Message
from labrig.plans.base import StreamCapacity
from labrig.rig import RigError
from labrig.run_control import RunControl
from labrig.training.assembly import assemble
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.checkpoint import (
    board_position,
    latest_checkpoint,
    restore_held,
    restore_session,
    save_checkpoint,
)
from labrig.training.chip_model import ChipModel
from labrig.training.config import TrainConfig
from labrig.training.datasets import ImageSet
from labrig.training.live_rig import LiveRig, LiveRun
from labrig.training.pausing import wait_between_steps
from labrig.training.plan import Plan
from labrig.training.ranks import ALONE, Ranks
from labrig.training.replay_backend import RecordedWrite, recorded_writes
from labrig.training.run_folder import CHECKPOINTS, configuration_hash
from labrig.training.segments import Segments
from labrig.training.session import Line, Session
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import LinkError, ProtocolError, StateError
from labrig_surrogates.io import load_chip, save_chip

_LONGEST_WAIT_S = 30.0

LOST = (LinkError, ProtocolError, RigError, StateError)
"""What says that the rig was lost, or lost what was on it, and may come back."""


@dataclass(frozen=True)
class Job:
    """What a session is assembled from.

    Attributes:
        config: The training file, with its run folder.
        data: The task.
        plan: What is done.
        chip: The calibrated chip.
        rig: The rig file; None for a method that does without.
        teacher: Outputs of a teacher, where the loss has one.
        checkpoint: Tensors and numbers that the session goes on from; None for a new one.
        ranks: Which of several processes this is.
        control: Pauses the training; None where nobody does.
    """

    config: TrainConfig
    data: ImageSet
    plan: Plan
    chip: ChipModel
    rig: RigConfig | None
    teacher: Tensor | None
    checkpoint: tuple[dict[str, Tensor], dict[str, object]] | None
    ranks: Ranks = ALONE
    control: RunControl | None = None


def run_session(
    job: Job, start: nn.Module, bus: EventBus, journal: Callable[[Line], None], flush: Callable[[], None]
) -> Session:
    """Trains a network in place.

    Args:
        job: What the session is assembled from.
        start: The network.
        bus: Gets the events of the rig.
        journal: Gets a line for each step.
        flush: Called before each checkpoint, so that the lines are not behind it.

    Raises:
        LabrigError: The rig or a file failed, the rig more often than it is opened again.
    """
    return _on_rig(job, start, bus, journal, flush) if job.rig is not None else _alone(job, start, bus, journal, flush)


def versioned_chip(folder: Path, chip: ChipModel, version: int) -> ChipModel:
    """The calibration that a run had come to."""
    return chip if version == 0 else ChipModel.of(load_chip(_chip_path(folder, version)), version)


def _chip_path(folder: Path, version: int) -> Path:
    return folder / f"chip-v{version}.safetensors"


def recorded_passes(config: TrainConfig, chip: ChipModel) -> dict[int, list[RecordedWrite]] | None:
    """The passes that a training file names for replayed layers; None where it names none.

    Raises:
        LabrigError: They cannot be read, or are of another chip.
    """
    replay = config.file.chip.replay
    return None if replay is None else recorded_writes(config.base / replay, chip.chip_id, sorted(chip.surrogates))


def _alone(
    job: Job, start: nn.Module, bus: EventBus, journal: Callable[[Line], None], flush: Callable[[], None]
) -> Session:
    folder, every = job.config.folder, job.config.file.run.checkpoint_every
    session = assemble(
        start,
        job.chip,
        job.data,
        job.plan,
        job.config.file.run.seed,
        teacher=job.teacher,
        recorded=recorded_passes(job.config, job.chip),
        ranks=job.ranks,
    )
    if job.checkpoint is not None:
        restore_session(session, *job.checkpoint, latest_checkpoint(job.config.folder / CHECKPOINTS))

    def after_step() -> None:
        if every and session.step % every == 0:
            flush()
            save_checkpoint(folder / CHECKPOINTS, session, None, [])
        wait_between_steps(bus, job.control, flush)

    session.run(journal, after_step)
    return session


def _on_rig(
    job: Job, start: nn.Module, bus: EventBus, journal: Callable[[Line], None], flush: Callable[[], None]
) -> Session:
    assert job.rig is not None
    segments = _segments(job)
    session: Session | None = None
    watch: _Watch | None = None
    lost = 0
    while True:
        run = LiveRun(
            config=job.rig,
            chip_id=job.chip.chip_id,
            path=segments.next_path(),
            plan={
                "name": "training",
                "seed": job.config.file.run.seed,
                "configuration": configuration_hash(job.config.folder),
                "file": job.config.source_text,
            },
            capacity=_capacity(job, start),
            control=job.control,
        )
        ended = False
        try:
            with LiveRig(run, bus) as board:
                session, restored = _attached(job, start, board, session)
                step = session.step if watch is None else watch.lost_at
                segments.begin(run.path, step, fresh=not restored, restored=restored)
                watch = _Watch(job, session, board, segments, flush)
                try:
                    session.run(journal, watch.after_step)
                    ended = True
                    watch.end()
                except LOST:
                    watch.failed()
                    raise
        except LOST as error:
            if ended or lost >= job.config.file.run.reconnects:
                raise
            wait_s = min(2.0**lost, _LONGEST_WAIT_S)
            lost += 1
            bus.publish(Message(f"the rig was lost ({error}); opening it again in {wait_s:.0f} s"))
            if session is not None:
                session.bench.ledger.reconnects += 1
            time.sleep(wait_s)
            continue
        return session


def _attached(job: Job, start: nn.Module, board: LiveRig, session: Session | None) -> tuple[Session, dict[int, int]]:
    """The session on a rig that was just opened, and the writes that are on it already, by array."""
    if session is not None:
        physical = session.bench.chip
        physical.board, session.meter_j = board, board.joules
        physical.new_write()  # what the lost rig holds now is anybody's guess
        return session, {}
    seed = job.config.file.run.seed
    session = assemble(
        start,
        job.chip,
        job.data,
        job.plan,
        seed,
        board=board,
        teacher=job.teacher,
        recorded=recorded_passes(job.config, job.chip),
        meter_j=board.joules,
    )
    restored: dict[int, int] = {}
    if job.checkpoint is not None:
        restore_session(session, *job.checkpoint, latest_checkpoint(job.config.folder / CHECKPOINTS))
        position = board_position(*job.checkpoint)
        if position is not None and board.restore(position):
            restore_held(session, *job.checkpoint)
            restored = {one.array: 1 for one in position.past}
    return session, restored


def _segments(job: Job) -> Segments:
    segments = Segments.load(job.config.folder)
    position = None if job.checkpoint is None else board_position(*job.checkpoint)
    if job.checkpoint is None or position is None:
        segments.every.clear()
        return segments
    names = job.checkpoint[1]["recordings"]
    assert isinstance(names, list)
    segments.back_to(str(names[-1]), position.rows, position.writes)
    return segments


class _Watch:
    """What happens after each step on a rig: counts, versions of the calibration, checkpoints."""

    def __init__(
        self, job: Job, session: Session, board: LiveRig, segments: Segments, flush: Callable[[], None]
    ) -> None:
        self._folder = job.config.folder
        self._every = job.config.file.run.checkpoint_every
        self._session, self._board, self._segments, self._flush = session, board, segments, flush
        self._counts = board.counts
        self._version = session.version
        self._launched_at = session.step
        session.bench.chip.launches[:] = [self._launched]

    def after_step(self) -> None:
        session = self._session
        if not session.bench.chip.holding:
            self._counts = self._board.counts
        if session.version != self._version:
            assert session.chip is not None
            save_chip(_chip_path(self._folder, session.version), session.chip.parameters)
            self._version = session.version
        if self._every and session.step % self._every == 0:
            session.method.settle(session.bench)  # a pass that is under way ends before the board says where it is
            position = self._board.position()
            self._flush()
            self._segments.counted(position.rows, position.writes)
            names = [one.file for one in self._segments.every]
            save_checkpoint(self._folder / CHECKPOINTS, session, position, names)

    def end(self) -> None:
        position = self._board.position()
        self._segments.counted(position.rows, position.writes)

    @property
    def lost_at(self) -> int:
        """Steps before the first one whose requests another recording has; the pass under way is made again."""
        return self._launched_at if self._session.bench.chip.holding else self._session.step

    def _launched(self) -> None:
        # What the pass, or the look at the canaries, measures counts when it has arrived: the rig may be lost before.
        self._counts, self._launched_at = self._board.counts, self._session.step

    def failed(self) -> None:
        self._segments.counted(*self._counts)


def _capacity(job: Job, network: nn.Module) -> Callable[[BoardInfo], Mapping[int, StreamCapacity]]:
    """Sizes the recording; one that outgrows it is extended."""
    placement = job.chip.placement(network)
    images = min(job.plan.optimisation.batch, len(job.data.train_y))
    passes = job.plan.most_passes() * (2 if job.plan.method == "spsa" else 1)
    planned = [PlannedPasses(max(passes, 1), images, max(passes, 1))]
    return lambda info: training_capacity(placement, planned, info.arrays)
