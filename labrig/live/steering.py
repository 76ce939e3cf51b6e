"""What the page may do to a run, and who holds the rig."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from labrig.events import Alarm, EventBus, Message
from labrig.run_control import RunControl
from labrig.user import user_name


@dataclass(frozen=True)
class Lease:
    """Who may measure on the rig now.

    Attributes:
        holder: Who holds it, for a person.
        expires_unix_s: When it ends unless it is renewed, in s since 1970 UTC; None where it lasts as long as the run.
        waiting: Who is next, in order.
    """

    holder: str
    expires_unix_s: float | None = None
    waiting: tuple[str, ...] = ()


class Steering(Protocol):
    """What the page may ask of a run. Called in the thread of the page; each call returns at once."""

    @property
    def can_stop(self) -> bool:
        """Whether there is something to stop."""
        ...

    @property
    def stop_ends(self) -> str:
        """What a stop ends besides switching outputs off, such as `the run`."""
        ...

    @property
    def can_pause(self) -> bool:
        """Whether the run can wait with its outputs off, and go on."""
        ...

    def lease(self) -> Lease | None:
        """Who holds the rig now; None where nobody does."""
        ...

    def stop(self, who: str) -> None:
        """Has the outputs switched off now, whatever the run is doing; anybody who may watch may ask for it."""
        ...

    def pause(self, who: str) -> None:
        """Has the run wait after the block in hand, with its outputs off."""
        ...

    def resume(self, who: str) -> None:
        """Lets a paused run go on; only asked for by who holds the lease."""
        ...


class ThisProgram:
    """Steers the run of this program.

    Stopping is a SIGTERM to itself: every verb already ends at once then, with outputs off and files closed, whatever
    it is doing. The run can be resumed by whoever started it.

    Args:
        bus: Gets a line about everything that was asked, with who asked.
        verb: What runs, such as `labrig sweep`.
        control: Pauses the run; None where it cannot be paused.
        end: Ends the program; only tests give another.
    """

    stop_ends = "the run"

    def __init__(
        self, bus: EventBus, verb: str, control: RunControl | None = None, end: Callable[[], None] | None = None
    ) -> None:
        self._bus = bus
        self._control = control
        self._end = end or _terminate
        self._lease = Lease(f"{user_name()} on {socket.gethostname()}, {verb}, process {os.getpid()}")

    @property
    def can_stop(self) -> bool:
        """Always: a program can be ended."""
        return True

    @property
    def can_pause(self) -> bool:
        """Whether the run has a control."""
        return self._control is not None

    def lease(self) -> Lease:
        """Whoever started the program holds the rig until it ends."""
        return self._lease

    def stop(self, who: str) -> None:
        """See `Steering`."""
        self._bus.publish(Alarm(f"STOP by {who}: outputs are switched off, the run ends"))
        self._end()

    def pause(self, who: str) -> None:
        """See `Steering`."""
        if self._control is not None:
            self._bus.publish(Message(f"pause asked for by {who}; it takes effect after the block in hand"))
            self._control.pause(f"by {who}")

    def resume(self, who: str) -> None:
        """See `Steering`."""
        if self._control is not None:
            self._bus.publish(Message(f"going on, asked for by {who}"))
            self._control.resume()


class OnlyWatching:
    """For a file, which another program may be writing: there is nothing to steer from here."""

    can_stop = False
    stop_ends = "nothing"
    can_pause = False

    def lease(self) -> None:
        """Not known from a file."""

    def stop(self, who: str) -> None:
        """Does nothing."""

    def pause(self, who: str) -> None:
        """Does nothing."""

    def resume(self, who: str) -> None:
        """Does nothing."""


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
