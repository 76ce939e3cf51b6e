"""Watches the array supply beside a run: what it reads, and the energy that it gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from labrig.events import Alarm, EventBus, SupplyRead
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading, SourceMeter

SUPPLY_PERIOD_S = 0.2
"""Usual pause in s between two readings of the array supply."""


class EnergyMeter:
    """Reads a source-meter again and again in a task of its own: `async with EnergyMeter(...) as meter:`.

    Args:
        supply: The source-meter, its output on.
        bus: Gets every reading, and an alarm when the supply is at its limit or can no longer be read.
        record: Called with every reading, such as `RecordingWriter.append_supply`.
        period_s: Pause in s between two readings.
        on_limit: Called with every reading at which the supply is at its limit.
    """

    def __init__(
        self,
        supply: SourceMeter,
        bus: EventBus,
        record: Callable[[Reading], Awaitable[object]] | None = None,
        *,
        period_s: float = SUPPLY_PERIOD_S,
        on_limit: Callable[[Reading], None] | None = None,
    ) -> None:
        self._supply = supply
        self._bus = bus
        self._record = record
        self._period_s = period_s
        self._on_limit = on_limit
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last: Reading | None = None
        self._joules = 0.0
        self._alarmed = False

    async def start(self) -> None:
        """Takes the first reading and goes on beside the caller."""
        await self._read()
        self._stopping.clear()
        self._task = asyncio.create_task(self._watch(), name="labrig-energy-meter")

    async def stop(self) -> None:
        """Takes the last reading and ends. Harmless when not started.

        Raises:
            LabrigError: The supply could not be read, now or earlier.
        """
        await self._end_task()
        self.check()
        if self._task is not None:
            self._task = None
            await self._read()

    async def halt(self) -> None:
        """Ends without a last reading, for a supply that is switched off or about to be; it may be started again."""
        await self._end_task()
        # What comes after the supply was off does not go on from here.
        self._last = None
        if self._task is not None and self._task.done() and not self._task.cancelled():
            # Perhaps it failed because the supply is off already; whoever halts knows that.
            self._task.exception()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            await self.stop()
        else:
            await self.halt()

    def joules(self) -> float:
        """Energy in J since the start, voltage times current integrated by trapezoids."""
        return self._joules

    def check(self) -> None:
        """Raises what ended the watching, if anything did: a run whose supply cannot be read should not go on."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def _end_task(self) -> None:
        # Asked to end, never cancelled: a reading that is cut in two leaves a link that cannot switch off at once.
        self._stopping.set()
        if self._task is not None:
            await undivided(asyncio.wait([self._task]))

    async def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._period_s)
                    return
                await self._read()
        except Exception as error:
            self._bus.publish(Alarm(f"the array supply can no longer be read: {error}"))
            raise

    async def _read(self) -> None:
        reading = await self._supply.measure()
        if self._last is not None:
            before_w = self._last.voltage_v * self._last.current_a
            now_w = reading.voltage_v * reading.current_a
            self._joules += 0.5 * (before_w + now_w) * (reading.time_s - self._last.time_s)
        self._last = reading
        if self._record is not None:
            await self._record(reading)
        self._bus.publish(SupplyRead(reading))
        if reading.in_compliance and self._on_limit is not None:
            self._on_limit(reading)
        if reading.in_compliance and not self._alarmed:
            self._alarmed = True
            self._bus.publish(
                Alarm(f"the array supply is at its limit ({reading.voltage_v:.4g} V, {reading.current_a:.4g} A)")
            )
