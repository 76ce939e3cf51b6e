"""Steers a run from elsewhere in its event loop: stop at the next checkpoint, pause, go on, suspend on conditions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """What must hold while a run measures, such as a temperature in its band.

    Attributes:
        name: What messages call it.
        fault: Looks, and returns what is wrong as text, or None while all is well. An error that it raises ends the
            run.
        poll_s: Time in s between two looks while the run is suspended.
    """

    name: str
    fault: Callable[[], Awaitable[str | None]]
    poll_s: float = 1.0


class RunControl:
    """Stops, pauses and suspends one run; takes effect between two points, with the block in hand committed.

    While the run is paused, or a condition does not hold, the array supply is off. The run goes on by itself with the
    next point when nothing speaks against it any more.

    Args:
        conditions: What must hold while the run measures.
    """

    def __init__(self, conditions: Sequence[Condition] = ()) -> None:
        self._conditions = tuple(conditions)
        self._paused: str | None = None
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stopping

    @property
    def paused(self) -> bool:
        """Whether the run was asked to pause, and not yet to go on."""
        return self._paused is not None

    @property
    def poll_s(self) -> float:
        """Time in s between two looks while the run is suspended."""
        return min((one.poll_s for one in self._conditions), default=0.1)

    @contextmanager
    def watching(self, conditions: Sequence[Condition]) -> Iterator[None]:
        """Looks at more conditions, such as those of the rig file, for as long as the block lasts."""
        own = self._conditions
        self._conditions = (*own, *conditions)
        try:
            yield
        finally:
            self._conditions = own

    def stop(self) -> None:
        """Ends the run at the next checkpoint, for good; a paused one too."""
        self._stopping = True

    def pause(self, reason: str = "on request") -> None:
        """Holds the run at the next checkpoint until `resume()`."""
        self._paused = reason

    def resume(self) -> None:
        """Lets a paused run go on."""
        self._paused = None

    async def reasons(self) -> list[str]:
        """Everything that speaks against the next request; empty while the run may go on."""
        found = [] if self._paused is None else [f"paused: {self._paused}"]
        for condition in self._conditions:
            fault = await condition.fault()
            if fault is not None:
                found.append(f"{condition.name}: {fault}")
        # Two who look at the same thing say it once.
        return list(dict.fromkeys(found))
