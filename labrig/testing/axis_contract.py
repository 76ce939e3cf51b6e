"""Contract checks of an axis; see `driver_contract`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial

from labrig.testing.promises import check_closed, check_identity, must_raise, require
from labrig_drivers.axis import Axis, AxisReading
from labrig_drivers.errors import SafetyError, StateError


async def check_axis(make_axis: Callable[[], Axis], targets: tuple[float, float], tolerance: float) -> None:
    """Checks an axis driver against `Axis`. It is moved to the targets, as often as four times.

    Args:
        make_axis: Makes a new, closed driver of the same axis each time.
        targets: Two values far from each other, neither of them where the axis stands.
        tolerance: How near a value counts as there, noise included.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    await _check_closed_axis(make_axis())
    async with make_axis() as axis:
        check_identity(axis.identity)
        await must_raise(StateError, axis.open, "open() twice")
        before = _reading(await axis.read())
        await _check_refusals(axis)
        require(abs((await axis.read()).value - before.value) <= tolerance, "a refused value moves nothing")
        for target in targets:
            arrived = _reading(await axis.move_to(target))
            require(abs(arrived.value - target) <= tolerance, f"move_to({target:g}) returns when it is there")
            now = _reading(await axis.read())
            require(abs(now.value - target) <= tolerance, f"read() after move_to({target:g}) is {target:g}")
            require(now.time_s >= arrived.time_s, "times of readings do not go back")
        await _check_interrupted(axis, targets[0])
        await axis.move_to(targets[1])
        await axis.make_safe()
    await axis.close()
    await must_raise(StateError, axis.read, "read() after close()")


async def _check_closed_axis(axis: Axis) -> None:
    await check_closed(axis)
    require(bool(axis.quantity) and bool(axis.unit), "quantity and unit are known before open()")
    require(math.isfinite(axis.low) and math.isfinite(axis.high) and axis.low < axis.high, "low is below high")
    if axis.safe_value is not None:
        require(axis.low <= axis.safe_value <= axis.high, "safe_value lies within low to high")
    closed: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
        ("read()", axis.read),
        ("move_to()", lambda: axis.move_to(axis.low)),
        ("make_safe()", axis.make_safe),
    )
    for name, call in closed:
        await must_raise(StateError, call, f"{name} before open()")


async def _check_refusals(axis: Axis) -> None:
    span = axis.high - axis.low
    for value in (axis.low - span, axis.high + span, math.nan, math.inf, -math.inf):
        await must_raise(SafetyError, partial(axis.move_to, value), f"move_to({value:g})")


async def _check_interrupted(axis: Axis, target: float) -> None:
    """A move can be looked at, keeps others out, and can be cancelled; the axis works afterwards."""
    moving = asyncio.create_task(axis.move_to(target))
    await asyncio.sleep(0)
    require(not moving.done(), "move_to() returns when it is there, not when it has been asked for")
    _reading(await axis.read())
    if not moving.done():
        await must_raise(StateError, lambda: axis.move_to(target), "move_to() while it moves")
    moving.cancel()
    (outcome,) = await asyncio.gather(moving, return_exceptions=True)
    require(isinstance(outcome, asyncio.CancelledError | AxisReading), "a cancelled move ends as such")
    _reading(await axis.read())


def _reading(reading: AxisReading) -> AxisReading:
    require(isinstance(reading, AxisReading) and math.isfinite(reading.value), "a reading is a finite number")
    return reading
