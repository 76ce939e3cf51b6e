"""Contract checks of a source-meter; see `driver_contract`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from labrig.testing.promises import check_closed, check_identity, must_raise, require
from labrig_drivers.errors import StateError
from labrig_drivers.source_meter import SourceMeter


async def check_source_meter(
    make_meter: Callable[[], SourceMeter], *, voltage_v: float = 0.5, limit_a: float = 10e-3
) -> None:
    """Checks a source-meter driver against `SourceMeter`.

    Args:
        make_meter: Makes a new, closed driver of the same instrument each time; its output is off.
        voltage_v: Level in V that what is connected stands, and at which it draws less than the limit.
        limit_a: Compliance limit in A.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    await _check_closed_meter(make_meter())
    async with make_meter() as meter:
        check_identity(meter.identity)
        require(not await meter.output_is_on(), "open() leaves the output as it is, and the factory's is off")
        await _check_meter_order(meter, voltage_v, limit_a)
        await _check_readings(meter, voltage_v)
        await meter.output_off()
        require(not await meter.output_is_on(), "output_off() switches the output off")
        await must_raise(StateError, meter.measure, "measure() with the output off")
        require(await meter.errors() == [], "nothing that the driver did left an error in the instrument's queue")
        # A level does not have to outlive its output.
        await meter.set_limit(current_a=limit_a)
        await meter.set_level(voltage_v=voltage_v)
        await meter.output_on()
    await meter.close()
    async with make_meter() as meter:
        require(not await meter.output_is_on(), "close() switches the output off")


async def _check_closed_meter(meter: SourceMeter) -> None:
    await check_closed(meter)
    closed: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
        ("measure()", meter.measure),
        ("output_on()", meter.output_on),
        ("output_is_on()", meter.output_is_on),
    )
    for name, call in closed:
        await must_raise(StateError, call, f"{name} before open()")


async def _check_meter_order(meter: SourceMeter, voltage_v: float, limit_a: float) -> None:
    await meter.configure(source="voltage", nplc=0.1)
    await must_raise(StateError, lambda: meter.set_level(voltage_v=voltage_v), "set_level() before set_limit()")
    await must_raise(StateError, meter.output_on, "output_on() before limit and level")
    await must_raise(StateError, meter.measure, "measure() with the output off")
    await meter.set_limit(current_a=limit_a)
    await meter.set_level(voltage_v=voltage_v)
    require(not await meter.output_is_on(), "nothing before output_on() switches the output on")
    await meter.output_on()
    require(await meter.output_is_on(), "output_on() switches the output on")


async def _check_readings(meter: SourceMeter, voltage_v: float) -> None:
    reading = await meter.measure()
    require(not reading.in_compliance, "a load below the limit is not in compliance")
    close = abs(reading.voltage_v - voltage_v) <= 0.02 * abs(voltage_v) + 1e-3
    require(close, f"measure() finds the level {voltage_v:g} V, not {reading.voltage_v:g} V")
    require(bool(np.isfinite(reading.current_a)), "measure() finds a finite current")
    later = await meter.measure()
    require(later.time_s >= reading.time_s, "Reading.time_s does not go back")
    levels_v = [0.0, 0.5 * voltage_v, voltage_v]
    readings = await meter.sweep(voltage_v=levels_v)
    found_v = np.array([reading.voltage_v for reading in readings])
    swept = len(readings) == 3 and np.allclose(found_v, levels_v, rtol=0.02, atol=1e-3)
    require(swept, "sweep() answers one reading for each level, in the order of the levels")
