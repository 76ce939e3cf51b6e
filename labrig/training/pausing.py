"""Where a training waits while it is paused: on a rig with the array supply off, else between two steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from labrig.energy_meter import EnergyMeter
from labrig.events import EventBus, RunPaused, RunResumed
from labrig.interlock import wait_until_clear
from labrig.portal import LoopPortal
from labrig.rig import Rig
from labrig.run_control import RunControl

_LOOK_EVERY_S = 0.1


def wait_between_steps(bus: EventBus, control: RunControl | None, flush: Callable[[], None]) -> None:
    """Returns at once, or, while the training is paused, when it may go on; for steps that ask no rig.

    Args:
        bus: Gets `RunPaused` and `RunResumed`.
        control: Says when to wait; None where nobody does.
        flush: Called before the training counts as paused, so that its log is complete then.
    """
    if control is None or not control.paused:
        return
    started_s = time.monotonic()
    flush()
    with LoopPortal() as portal:  # a notebook has a loop that runs already
        reasons = portal.call(control.reasons())
    bus.publish(RunPaused(f"{'; '.join(reasons)}; the run waits"))
    while control.paused:
        time.sleep(_LOOK_EVERY_S)
    bus.publish(RunResumed(time.monotonic() - started_s))


class PauseGate:
    """Every request of a training passes here: `async with gate.passage(): await board.mvm(...)`.

    While the training is paused the next request waits; those under way end first, what was measured is committed, and
    the array supply is ramped down. Going on, it is ramped up, and the request is made.

    Args:
        rig: The rig, powered.
        meter: Reads its array supply; None without one.
        bus: Gets `RunPaused` and `RunResumed`.
        control: Says when to wait.
        settle: Awaited before the training counts as paused: what was measured so far is committed then.
    """

    def __init__(
        self,
        rig: Rig,
        meter: EnergyMeter | None,
        bus: EventBus,
        control: RunControl,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        self._rig = rig
        self._meter = meter
        self._bus = bus
        self._control = control
        self._settle = settle
        self._turn = asyncio.Lock()
        self._under_way = 0
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Waits while the training is paused, then holds the gate open for one request."""
        async with self._turn:
            if self._control.paused:
                await self._wait()
            self._under_way += 1
            self._none_under_way.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._none_under_way.set()

    async def _wait(self) -> None:
        await self._none_under_way.wait()
        if self._meter is not None:
            # First, or it would complain that the supply is off.
            await self._meter.halt()
        await self._rig.power_down()
        await self._settle()
        await wait_until_clear(self._rig, self._bus, self._control)
        await self._rig.power_up()
        if self._meter is not None:
            await self._meter.start()
