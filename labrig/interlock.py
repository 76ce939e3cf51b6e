"""Feeds a run: the array supply is read while it measures, and switched off while something speaks against it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from labrig.compliance import ComplianceWatch
from labrig.energy_meter import SUPPLY_PERIOD_S, EnergyMeter
from labrig.events import Alarm, EventBus, RunPaused, RunResumed
from labrig.rig import Rig
from labrig.run_control import RunControl
from labrig_drivers.errors import LabrigError, PlanAbortedError
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading

T = TypeVar("T")

# How soon a run that rests notices that it was asked to stop.
_REST_SLICE_S = 0.2


class RunStoppedError(Exception):
    """The run was asked to stop, and this is a checkpoint."""


async def wait_until_clear(rig: Rig, bus: EventBus, control: RunControl) -> None:
    """Returns when every interlock of the rig is closed and nothing else speaks against the run; or when it is stopped.

    Raises:
        LabrigError: An interlock or a condition cannot be read.
    """
    speaks_against = partial(_reasons, rig, control)
    reasons = await speaks_against()
    if not reasons:
        return
    started_s = time.monotonic()
    bus.publish(RunPaused(_said(reasons)))
    await _until_clear(rig, control, speaks_against)
    if not control.stopping:
        bus.publish(RunResumed(time.monotonic() - started_s))


def poll_s(rig: Rig) -> float:
    """Time in s between two looks at the rig's interlocks."""
    return min((one.poll_s for one in rig.config.interlocks.values()), default=1.0)


class SupplyFeed:
    """Watches the array supply, the interlocks and the run's control: `async with SupplyFeed(...) as feed:`.

    The rig is powered when it is entered. When an interlock opens, the supply is ramped down and off at once, beside
    the request in flight, which ends as it may; `make` then waits, powers up and makes that request again. A supply
    that is at its limit is treated the same where the rig file has a condition for it: off, a rest, and on again, so
    many times.

    Args:
        rig: The rig.
        bus: Gets every reading of the supply, and `RunPaused` and `RunResumed`.
        record: Called with every reading of the supply.
        control: Stops, pauses and suspends the run.
        settle: Awaited before the run counts as paused: what was measured so far is committed then. What it raises
            ends the run.
        period_s: Pause in s between two readings of the supply.
    """

    def __init__(
        self,
        rig: Rig,
        bus: EventBus,
        record: Callable[[Reading], Awaitable[object]],
        control: RunControl | None = None,
        *,
        settle: Callable[[], Awaitable[None]] | None = None,
        period_s: float = SUPPLY_PERIOD_S,
    ) -> None:
        self._rig = rig
        self._settle = settle
        self._period_s = period_s
        self._bus = bus
        self._record = record
        self._control = control or RunControl()
        self._meter: EnergyMeter | None = None
        self._earlier_j = 0.0
        self._watcher: asyncio.Task[None] | None = None
        # Why the watcher switches off, or has done so.
        self._noticed: list[str] = []
        self._compliance = ComplianceWatch.of_rig(rig.config)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self._stop_watcher()
        finally:
            if self._meter is not None:
                await (self._meter.stop() if exc is None else self._meter.halt())

    def joules(self) -> float | None:
        """Energy in J from the array supply while it was on; None without one."""
        if self._rig.supply is None:
            return None
        return self._earlier_j + (0.0 if self._meter is None else self._meter.joules())

    async def make(self, request: Callable[[], Awaitable[T]]) -> T:
        """Makes one request on the fed board, and makes it again for as long as the supply had to go off meanwhile.

        Raises:
            LabrigError: The request failed with all interlocks closed and the supply below its limit, or supply,
                interlock or condition cannot be read.
            PlanAbortedError: The supply reached its limit too often.
            RunStoppedError: The run was asked to stop; the request was not made.
        """
        while True:
            await self._rig.keep_watch()
            if self._control.stopping:
                raise RunStoppedError
            reasons = await self._reasons()
            if not reasons:
                try:
                    if self._meter is not None:
                        self._meter.check()
                    answer = await request()
                except LabrigError:
                    # Interlock and limit take the supply away in hardware, and then it is the board that complains
                    # first.
                    if not self._went_off() and not await self._was_taken_away():
                        raise
                    reasons = await self._reasons()
                else:
                    if not self._went_off():
                        return answer
            await self._pause(reasons)

    async def rest(self, duration_s: float) -> None:
        """Lets time pass with the board left alone and fed.

        Raises:
            RunStoppedError: The run was asked to stop.
        """
        until_s = time.monotonic() + duration_s
        while (left_s := until_s - time.monotonic()) > 0.0:
            if self._control.stopping:
                raise RunStoppedError
            await self._rig.keep_watch()
            await asyncio.sleep(min(left_s, _REST_SLICE_S))

    async def _pause(self, reasons: list[str]) -> None:
        """Supply down (done already where the watcher saw it first), wait, supply up."""
        started_s = time.monotonic()
        await self._stop_watcher()
        reasons = reasons or self._noticed or await self._taken_away_by()
        await self._switch_off()
        if self._settle is not None:
            await self._settle()
        # Now it is true that the supply is off and the file at rest.
        self._bus.publish(RunPaused(_said(reasons)))
        while True:
            self._rest()
            await _until_clear(self._rig, self._control, self._reasons)
            if self._control.stopping:
                raise RunStoppedError
            try:
                await self._rig.power_up()
            except LabrigError:
                # Opened again in this moment; the instrument refuses then.
                if not await self._rig.open_interlocks():
                    raise
                await self._rig.power_down()
                continue
            break
        await self._start()
        self._bus.publish(RunResumed(time.monotonic() - started_s))

    async def _start(self) -> None:
        self._noticed = []
        compliance = self._compliance
        if self._rig.supply is not None:
            if compliance is not None:
                compliance.switched_on()
            on_limit = None if compliance is None else compliance.note
            self._meter = EnergyMeter(
                self._rig.supply, self._bus, self._record, period_s=self._period_s, on_limit=on_limit
            )
            await self._meter.start()
        if self._rig.config.interlocks or compliance is not None:
            self._watcher = asyncio.create_task(self._watch(), name="labrig-interlocks")

    async def _watch(self) -> None:
        """Switches off when an interlock is open or the supply at its limit, and ends."""
        while not self._noticed:
            await self._until_next_look()
            # Before the ramp: an answer that comes during it counts no more.
            self._noticed = await self._taken_away_by()
        await self._switch_off()

    async def _until_next_look(self) -> None:
        if self._compliance is None:
            await asyncio.sleep(poll_s(self._rig))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll_s(self._rig)):
                await self._compliance.reached.wait()

    async def _taken_away_by(self) -> list[str]:
        names = await self._rig.open_interlocks()
        limited = None if self._compliance is None else self._compliance.reason()
        return [*([_opened(names)] if names else []), *([limited] if limited is not None else [])]

    async def _was_taken_away(self) -> bool:
        """Whether an interlock or the limit explains why a request failed."""
        if self._compliance is not None and self._rig.supply is not None:
            # The next reading of the meter may be some time away.
            with contextlib.suppress(LabrigError):
                reading = await self._rig.supply.measure()
                if reading.in_compliance:
                    self._compliance.note(reading)
        return bool(await self._taken_away_by())

    async def _reasons(self) -> list[str]:
        """Everything that speaks against the next request."""
        return [*await self._taken_away_by(), *await self._control.reasons()]

    def _rest(self) -> None:
        """Lets a supply that reached its limit rest; an alarm and an end where it did so too often."""
        if self._compliance is None:
            return
        try:
            self._compliance.switched_off()
        except PlanAbortedError as error:
            self._bus.publish(Alarm(str(error)))
            raise

    async def _switch_off(self) -> None:
        meter = self._meter
        if meter is not None:
            # First, or it would complain that the supply is off.
            await meter.halt()
            self._earlier_j += meter.joules()
            self._meter = None
        await self._rig.power_down()

    def _went_off(self) -> bool:
        """Whether the supply is off or about to be, or the watcher failed to see."""
        limited = self._compliance is not None and self._compliance.reason() is not None
        return limited or bool(self._noticed) or (self._watcher is not None and self._watcher.done())

    async def _stop_watcher(self) -> None:
        """Ends the watcher, never in the middle of switching off; raises what it failed with."""
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        watcher.cancel()
        await undivided(asyncio.wait([watcher]))
        if not watcher.cancelled():
            watcher.result()


async def _reasons(rig: Rig, control: RunControl) -> list[str]:
    names = await rig.open_interlocks()
    return [*([_opened(names)] if names else []), *await control.reasons()]


async def _until_clear(rig: Rig, control: RunControl, speaks_against: Callable[[], Awaitable[list[str]]]) -> None:
    every_s = min(poll_s(rig), control.poll_s)
    # Instruments do not call; they have to be asked.
    while not control.stopping and await speaks_against():  # noqa: ASYNC110
        await asyncio.sleep(every_s)


def _opened(names: list[str]) -> str:
    return f"interlock {', '.join(names)} is open"


def _said(reasons: list[str]) -> str:
    return f"{'; '.join(reasons)}; the array supply is off, and the run waits"
