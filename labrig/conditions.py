"""The conditions of a rig file, as what a run's control looks at: quantities that have to stay in their bands.

`supply.compliance` is none of them: whether a supply stays below its limit shows only while it is on, so what feeds
the run looks at it; see `labrig.compliance`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from labrig.config import ConditionConfig
from labrig.rig import Rig
from labrig.rig_faults import BOARD_TEMPERATURE, SUPPLY_COMPLIANCE
from labrig.run_control import Condition
from labrig_drivers.axis import AxisReading
from labrig_drivers.capabilities import TemperatureSensor


def rig_conditions(rig: Rig) -> tuple[Condition, ...]:
    """The conditions of a rig's file, for one run: they remember what they saw.

    Args:
        rig: The rig; it has to be open when the conditions are looked at, not when they are made.
    """
    bands = {
        name: Band(config, *_quantity(rig, config.reads))
        for name, config in rig.config.conditions.items()
        if config.reads != SUPPLY_COMPLIANCE
    }
    return tuple(Condition(name, band.fault, band.poll_s) for name, band in bands.items())


class Band:
    """A quantity and the band that it has to stay in.

    It is read at most once in `poll_s`, however often it is looked at. After it was outside it counts as back only
    when it was inside for `hold_s` without a break.

    Args:
        config: The band.
        read: Reads the quantity.
        unit: Its unit.
        clock: A clock in s that never goes back.
    """

    def __init__(
        self,
        config: ConditionConfig,
        read: Callable[[], Awaitable[float]],
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._read = read
        self._unit = unit
        self._clock = clock
        self._read_s: float | None = None
        self._fault: str | None = None
        # Since when it is inside again after it was outside.
        self._back_s: float | None = None

    @property
    def poll_s(self) -> float:
        """Shortest time in s between two readings."""
        return self._config.poll_s

    async def fault(self) -> str | None:
        """What is wrong, as text; None while all is well.

        Raises:
            LabrigError: The quantity cannot be read.
        """
        now_s = self._clock()
        if self._read_s is None or now_s - self._read_s >= self._config.poll_s:
            value = await self._read()
            self._read_s = self._clock()
            self._fault = self._judge(value, self._read_s)
        return self._fault

    def _judge(self, value: float, now_s: float) -> str | None:
        outside = self._outside(value)
        if outside is not None:
            self._back_s = None
            return outside
        if self._fault is None:
            return None
        if self._back_s is None:
            self._back_s = now_s
        inside_s = now_s - self._back_s
        if inside_s >= self._config.hold_s:
            self._back_s = None
            return None
        return f"{value:.6g} {self._unit}, back for {inside_s:.3g} s of {self._config.hold_s:g} s"

    def _outside(self, value: float) -> str | None:
        low, high = self._config.low, self._config.high
        # Written so that NaN is outside.
        if low is not None and not value >= low:
            return f"{value:.6g} {self._unit} is below {low:g} {self._unit}"
        if high is not None and not value <= high:
            return f"{value:.6g} {self._unit} exceeds {high:g} {self._unit}"
        return None


def _quantity(rig: Rig, reads: str) -> tuple[Callable[[], Awaitable[float]], str]:
    """How a quantity is read, and its unit."""
    if reads == BOARD_TEMPERATURE:
        # Opening the rig has made sure that the board declares it.
        return cast(TemperatureSensor, rig.board).temperature_k, "K"
    axis = rig.axes[reads.removeprefix("axes.")]
    return partial(_value, axis.read), axis.unit


async def _value(read: Callable[[], Awaitable[AxisReading]]) -> float:
    return (await read()).value
