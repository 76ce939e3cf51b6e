"""What happens in a run, as typed events, and the bus that hands each of them to every listener."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_drivers.source_meter import Reading

_log = logging.getLogger(__name__)

RunStatus = Literal["finished", "stopped", "aborted"]
"""`stopped`: at a checkpoint, as asked; `aborted`: by an error, or at once as asked."""


def new_run_id() -> str:
    """An identity for a run that no other run has: a random UUID."""
    return str(uuid.uuid4())


@dataclass(frozen=True)
class RunStarted:
    """A run begins.

    Attributes:
        plan: Name of the plan.
        planned_mvms: MVMs that the plan still has to measure: all, unless the run goes on with an interrupted one.
        planned_writes: Programmings that it still has to make.
        recording: The file, where there is one.
        least_s: What the board alone needs for it, with the plan's own pauses, in s; None where that is not known.
        planned_curves: I-V curves that it still has to take.
        run_id: Identity of the run, as its recording has it; None where there is none.
    """

    plan: str
    planned_mvms: int
    planned_writes: int
    recording: Path | None
    least_s: float | None = None
    planned_curves: int = 0
    run_id: str | None = None


@dataclass(frozen=True)
class BlockCommitted:
    """One block of MVMs is safely in the recording.

    Attributes:
        array: Which array was measured.
        write: Which write of its array was read, from 0 as the recording counts; at a served rig as its lease counts,
            -1 for one from before the lease.
        mvms: MVMs in the block.
        total_mvms: MVMs committed in this run so far, over all arrays.
    """

    array: int
    write: int
    mvms: int
    total_mvms: int


@dataclass(frozen=True)
class CurveCommitted:
    """One I-V curve is safely in the recording.

    Attributes:
        curve: Which curve of the plan.
        readings: Readings of it.
        total_curves: Curves committed in this run so far.
    """

    curve: int
    readings: int
    total_curves: int


@dataclass(frozen=True)
class PointMissed:
    """A point can no longer be measured at the age that it was due at; the recording says so.

    Attributes:
        array: Which array.
        write: Which programming of this array in the plan.
        due_s: Age of the write in s at which it was due.
        age_s: Age of the write in s when it came to it.
    """

    array: int
    write: int
    due_s: float
    age_s: float


@dataclass(frozen=True)
class AxesArrived:
    """Axes of the rig are where the plan wants them.

    Attributes:
        setting: Index of the setting in the recording.
        values: What each moved axis reads, by name, in its unit.
    """

    setting: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class SupplyRead:
    """The array supply was read."""

    reading: Reading


@dataclass(frozen=True)
class StepDone:
    """One step of training or fitting ended.

    Attributes:
        phase: Which part of the training, such as `surrogate` or `in-loop`.
        step: Steps done so far in this phase.
        steps: Steps that this phase will take.
        loss: Training loss of the step; None where there is none.
        accuracy: Accuracy between 0 and 1, where it was evaluated.
        passes: Passes of batches through the chip so far, where there is one.
        gap: Largest gap between chip and surrogate in this step's pass, relative to the output, where there was one.
    """

    phase: str
    step: int
    steps: int
    loss: float | None
    accuracy: float | None = None
    passes: int | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Message:
    """A line for whoever watches."""

    text: str


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at now."""

    text: str


@dataclass(frozen=True)
class RunPaused:
    """The array supply is off and the run waits: for an interlock, a person, conditions, or a supply at its limit.

    Attributes:
        reason: What for, for a person.
    """

    reason: str


@dataclass(frozen=True)
class RunResumed:
    """What a run waited for is there: the array supply is on, and it goes on with the point that it stopped at.

    Attributes:
        waited_s: How long the run waited in s.
    """

    waited_s: float


@dataclass(frozen=True)
class RunFinished:
    """A run ended.

    Attributes:
        status: `finished`; `stopped` by a person; or `aborted` by an error, or in the middle.
        mvms: MVMs committed.
        writes: Programmings committed.
        duration_s: Wall time of the run in s.
        energy_j: Energy in J from the array supply; None without one.
    """

    status: RunStatus
    mvms: int
    writes: int
    duration_s: float
    energy_j: float | None


Event = (
    RunStarted
    | BlockCommitted
    | CurveCommitted
    | PointMissed
    | AxesArrived
    | SupplyRead
    | StepDone
    | Message
    | Alarm
    | RunPaused
    | RunResumed
    | RunFinished
)
Listener = Callable[[Event], None]


@dataclass(frozen=True, eq=False)
class MeasuredBlock:
    """The numbers of a committed block, for those who draw them. No `Event`: it is too large to be kept in queues.

    Attributes:
        array: Which array was measured.
        write: Which write of this array was read, as in `BlockCommitted`.
        target_s: Target of that programming in S, `[rows, columns]`; None where it is not known.
        voltage_v: Inputs in V, `[batch, rows]`.
        result: What the board answered.
    """

    array: int
    write: int
    target_s: FloatArray | None
    voltage_v: FloatArray
    result: MvmResult


BlockListener = Callable[[MeasuredBlock], None]


class EventBus:
    """Hands every event to every listener, in order, at once.

    A listener can never stop or slow a run by failing: one that raises is reported once and dropped. It is called in
    the thread where the event happens: that of the run's event loop, of a training, or of telemetry.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._block_listeners: list[BlockListener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener and returns the function that removes it again (harmless when called twice)."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def subscribe_blocks(self, listener: BlockListener) -> Callable[[], None]:
        """Adds a listener of measured numbers and returns the function that removes it again; see `publish_block`."""
        self._block_listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._block_listeners:
                self._block_listeners.remove(listener)

        return unsubscribe

    @property
    def wants_blocks(self) -> bool:
        """Whether anybody wants the numbers of blocks; where nobody does, none need to be put together."""
        return bool(self._block_listeners)

    def publish(self, event: Event) -> None:
        """Calls every listener with `event`."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:
                if listener in self._listeners:
                    self._listeners.remove(listener)
                self._dropped(listener, error)

    def publish_block(self, block: MeasuredBlock) -> None:
        """Calls every listener of measured numbers; its arrays are the run's own, so nobody may change them."""
        for listener in tuple(self._block_listeners):
            try:
                listener(block)
            except Exception as error:
                if listener in self._block_listeners:
                    self._block_listeners.remove(listener)
                self._dropped(listener, error)

    def _dropped(self, listener: object, error: Exception) -> None:
        _log.warning("an event listener failed and was dropped: %r", listener, exc_info=error)
        self.publish(Message(f"an event listener failed and was dropped: {error!r}"))
