"""Steers a rig that serves others: shows who has it, and switches its outputs off without ending the program."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from labrig.events import Alarm, EventBus
from labrig.live.steering import Lease
from labrig.remote.service import RigService

READY: Final = "READY"
"""The word for a rig that nobody has."""


class ServedRig:
    """What a page may do to a rig that serves others; see `Steering`.

    It is made before the rig is opened, so that the page outlasts it and does not say that outputs are off before
    they are.

    Args:
        bus: Gets a line about everything that was asked, with who asked.
    """

    stop_ends = "the lease"
    can_pause = False

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._served: tuple[RigService, asyncio.AbstractEventLoop] | None = None

    @property
    def can_stop(self) -> bool:
        """Always: whoever sees a rig may switch it off."""
        return True

    def serve(self, service: RigService | None) -> None:
        """Steers a service from now on, whose event loop this is called in; None: no longer."""
        self._served = None if service is None else (service, asyncio.get_running_loop())

    def lease(self) -> Lease | None:
        """Who has the rig, until when, and who waits for it."""
        served = self._served
        if served is None:
            return None
        service, _ = served
        lease, waiting = service.standing()
        if lease is None:
            return None
        # Whole seconds: the same moment must not look like another one each time that two clocks are read.
        return Lease(lease.who, float(round(time.time() + lease.until_s - service.now_s())), waiting)

    def stop(self, who: str) -> None:
        """Ends the lease and has all outputs switched off; the rig is there for the next one afterwards."""
        served = self._served
        if served is None:
            # Opening switches nothing on, and closing switches everything off.
            self._bus.publish(Alarm(f"{who} asked for outputs off while the rig is opened or closed"))
            return
        self._bus.publish(Alarm(f"STOP by {who}: outputs are switched off, the lease ends"))
        service, loop = served
        loop.call_soon_threadsafe(service.switch_off, who)

    def pause(self, who: str) -> None:
        """Does nothing: what is measured next is decided on another machine."""

    def resume(self, who: str) -> None:
        """Does nothing; going on takes a lease."""
