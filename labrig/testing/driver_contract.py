"""Contract checks that a driver author calls from a test: does my driver keep what everything above relies on?

Each check takes a factory, drives what it makes like a careful user and a clumsy one, and raises `AssertionError`
with one sentence about the first promise that was broken::

    async def test_my_board() -> None:
        await check_crossbar_board(lambda: MyBoard("/dev/ttyACM0"))

The checks program arrays and switch outputs on: run them on a simulator, or on hardware that may be used so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, MvmResult
from labrig_drivers.errors import CapabilityError, LabrigError, SafetyError, StateError
from labrig_drivers.instrument import Identity, Instrument
from labrig_drivers.source_meter import SourceMeter

FloatArray = NDArray[np.float64]


async def check_crossbar_board(make_board: Callable[[], CrossbarBoard]) -> None:
    """Checks a board driver against `CrossbarBoard`.

    Args:
        make_board: Makes a new, closed driver of the same board each time; its array supply is on.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    await _check_closed_board(make_board())
    board = make_board()
    await board.open()
    try:
        _check_identity(board.identity)
        _check_info(board.info)
        await _check_refusals(board)
        await _check_programming(board)
        await _check_batches(board)
        await _check_order(board)
        await _check_callers_apart(board)
        await _check_cells(board)
        identity = board.identity
    finally:
        await board.close()
    await board.close()
    _require(
        await _raises(StateError, lambda: board.mvm(0, np.zeros((1, 1)))), "mvm() after close(): StateError"
    )
    await board.open()
    try:
        _require(board.identity == identity, "a board that is opened again is the same board")
    finally:
        await board.close()
    async with make_board() as other:
        _require(other.identity == identity, "every driver that the factory makes belongs to the same board")


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
        _check_identity(meter.identity)
        _require(
            not await meter.output_is_on(), "open() leaves the output as it is, and the factory's is off"
        )
        await _check_meter_order(meter, voltage_v, limit_a)
        await _check_readings(meter, voltage_v)
        await meter.output_off()
        _require(not await meter.output_is_on(), "output_off() switches the output off")
        _require(await _raises(StateError, meter.measure), "measure() with the output off: StateError")
        _require(
            await meter.errors() == [], "nothing that the driver did left an error in the instrument's queue"
        )
        await meter.output_on()
    await meter.close()
    async with make_meter() as meter:
        _require(not await meter.output_is_on(), "close() switches the output off")


async def _check_closed_board(board: CrossbarBoard) -> None:
    await _check_closed(board)
    _require(
        await _raises(StateError, lambda: _evaluate(lambda: board.info)), "info before open(): StateError"
    )
    closed = (
        ("mvm()", lambda: board.mvm(0, np.zeros((1, 1)))),
        ("program()", lambda: board.program(0, np.zeros((1, 1)))),
        ("read_conductance()", lambda: board.read_conductance(0)),
    )
    for name, call in closed:
        _require(await _raises(StateError, call), f"{name} before open(): StateError")


async def _check_closed_meter(meter: SourceMeter) -> None:
    await _check_closed(meter)
    closed: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
        ("measure()", meter.measure),
        ("output_on()", meter.output_on),
        ("output_is_on()", meter.output_is_on),
    )
    for name, call in closed:
        _require(await _raises(StateError, call), f"{name} before open(): StateError")


async def _check_closed(instrument: Instrument) -> None:
    early = await _raises(StateError, lambda: _evaluate(lambda: instrument.identity))
    _require(early, "identity before open(): StateError")
    # Must not raise: a rig closes everything, also what never came to be opened.
    await instrument.close()


def _check_identity(identity: Identity) -> None:
    for field in fields(identity):
        text = getattr(identity, field.name)
        _require(
            isinstance(text, str) and bool(text.strip()), f"identity.{field.name} is a text and not empty"
        )


def _check_info(info: BoardInfo) -> None:
    positive = ("arrays", "rows", "columns", "dac_bits", "adc_bits", "mvm_latency_s", "program_latency_s")
    for name in positive:
        _require(getattr(info, name) > 0, f"info.{name} is positive")
    _require(bool(info.chip_id), "info.chip_id is not empty")
    _require(
        len(info.adc_full_scale_a) == info.columns, "info.adc_full_scale_a has one value for each column"
    )
    _require(min(info.adc_full_scale_a) > 0, "info.adc_full_scale_a is positive")
    _require(
        0 <= info.conductance_min_s < info.conductance_max_s,
        "info: 0 <= conductance_min_s < conductance_max_s",
    )
    _require(info.voltage_min_v <= 0 < info.voltage_max_v, "info: voltage_min_v <= 0 < voltage_max_v")
    _require(info.adc_bits <= 16, "info.adc_bits: codes are int16")


async def _check_refusals(board: CrossbarBoard) -> None:
    info = board.info
    target_s, line_v = _middle(info), np.zeros((2, info.rows))
    wild_s, wild_v = target_s.copy(), line_v.copy()
    wild_s[0, 0], wild_v[0, 0] = 2.0 * info.conductance_max_s, 2.0 * info.voltage_max_v
    absent_s, absent_v = target_s.copy(), line_v.copy()
    absent_s[0, 0], absent_v[0, 0] = np.nan, np.nan
    refusals: tuple[tuple[str, type[LabrigError], Callable[[], Awaitable[object]]], ...] = (
        (
            "program() of an array that is not there",
            CapabilityError,
            lambda: board.program(info.arrays, target_s),
        ),
        ("program() of array -1", CapabilityError, lambda: board.program(-1, target_s)),
        ("program() with a row too few", CapabilityError, lambda: board.program(0, target_s[1:])),
        ("program() above the range", SafetyError, lambda: board.program(0, wild_s)),
        ("program() of NaN", SafetyError, lambda: board.program(0, absent_s)),
        ("mvm() on an array that is not there", CapabilityError, lambda: board.mvm(info.arrays, line_v)),
        ("mvm() with one vector in place of a batch", CapabilityError, lambda: board.mvm(0, line_v[0])),
        ("mvm() of an empty batch", CapabilityError, lambda: board.mvm(0, line_v[:0])),
        ("mvm() with a row too few", CapabilityError, lambda: board.mvm(0, line_v[:, 1:])),
        ("mvm() above the range", SafetyError, lambda: board.mvm(0, wild_v)),
        ("mvm() of NaN", SafetyError, lambda: board.mvm(0, absent_v)),
        ("read_conductance() of no array", CapabilityError, lambda: board.read_conductance(info.arrays)),
    )
    for what, error, call in refusals:
        _require(await _raises(error, call), f"{what}: {error.__name__}")


async def _check_programming(board: CrossbarBoard) -> None:
    info = board.info
    for array in range(info.arrays):
        first = await board.program(array, _middle(info))
        second = await board.program(array, _middle(info))
        _require(
            second.write_index == first.write_index + 1,
            "ProgramReport.write_index counts one up at each programming",
        )
        _require(second.time_s >= first.time_s, "ProgramReport.time_s does not go back")
        _require(second.pulses >= 0, "ProgramReport.pulses is not negative")
        _require(
            bool(np.isfinite(second.rms_error_s)) and second.rms_error_s >= 0,
            "rms_error_s is finite, not negative",
        )
        _require(
            second.rms_error_s < info.conductance_max_s,
            "rms_error_s is an error in S within the board's range",
        )
        result = await board.mvm(array, np.zeros((1, info.rows)))
        _require(
            result.write_index == second.write_index, "MvmResult.write_index is that of the last programming"
        )
        _require(
            float(result.time_s[0]) >= second.time_s,
            "MvmResult.time_s is not before the programming it reads",
        )


async def _check_batches(board: CrossbarBoard) -> None:
    info = board.info
    rng = np.random.default_rng(1)
    last_s = -np.inf
    # The last one is longer than a frame of a narrow link may be.
    for batch in (1, 2, 33, 1500):
        line_v = rng.uniform(info.voltage_min_v, info.voltage_max_v, (batch, info.rows))
        result = await board.mvm(0, line_v)
        _check_result(result, info, batch)
        _require(float(result.time_s[0]) >= last_s, "MvmResult.time_s does not go back between batches")
        last_s = float(result.time_s[-1])
    edges_v = np.array([[info.voltage_min_v] * info.rows, [info.voltage_max_v] * info.rows])
    _check_result(await board.mvm(0, edges_v), info, 2)


def _check_result(result: MvmResult, info: BoardInfo, batch: int) -> None:
    shape = (batch, info.columns)
    for name, dtype in (("code", np.int16), ("current_a", np.float64), ("saturated", np.bool_)):
        values: NDArray[np.generic] = getattr(result, name)
        _require(values.shape == shape, f"MvmResult.{name} has shape {list(shape)}, not {list(values.shape)}")
        _require(values.dtype == dtype, f"MvmResult.{name} is {np.dtype(dtype)}, not {values.dtype}")
    _require(
        result.time_s.shape == (batch,),
        f"MvmResult.time_s has shape [{batch}], not {list(result.time_s.shape)}",
    )
    _require(result.time_s.dtype == np.float64, "MvmResult.time_s is float64")
    _require(bool((np.diff(result.time_s) >= 0).all()), "MvmResult.time_s does not go back within a batch")
    same = np.allclose(result.current_a, result.code * info.adc_lsb_a, rtol=1e-12, atol=0.0)
    _require(same, "MvmResult.current_a is code times info.adc_lsb_a")
    low, high = -(2 ** (info.adc_bits - 1)), 2 ** (info.adc_bits - 1) - 1
    _require(bool(((result.code >= low) & (result.code <= high)).all()), f"codes lie in {low} to {high}")
    at_end = (result.code == low) | (result.code == high)
    _require(bool((at_end == result.saturated).all()), "saturated is true exactly where a code is at an end")


async def _check_order(board: CrossbarBoard) -> None:
    """Vectors are answered in their order: silent ones, where only offset and noise remain, between loud ones."""
    info = board.info
    line_v = np.zeros((64, info.rows))
    loud = np.arange(64) % 3 == 0
    line_v[loud] = info.voltage_max_v
    current_a = (await board.mvm(0, line_v)).current_a.mean(axis=1)
    apart = current_a[loud].min() > current_a[~loud].max()
    _require(
        bool(apart), "the answers of a batch come in the order of its vectors, positive for positive voltages"
    )


async def _check_callers_apart(board: CrossbarBoard) -> None:
    """Two callers at once, and one that gives up: every answer belongs to its own request."""
    info = board.info
    silent_v = np.zeros((5, info.rows))
    loud_v = np.full((7, info.rows), info.voltage_max_v)
    silent, loud = await asyncio.gather(board.mvm(0, silent_v), board.mvm(0, loud_v))
    apart = len(silent.code) == 5 and len(loud.code) == 7 and loud.current_a.mean() > silent.current_a.mean()
    _require(bool(apart), "two callers at the same time each get the answer to their own request")
    impatient = asyncio.ensure_future(board.mvm(0, loud_v))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    after = await board.mvm(0, silent_v)
    _require(
        len(after.code) == 5 and bool(after.current_a.mean() < loud.current_a.mean()),
        "after a cancelled request the next one gets its own answer",
    )


async def _check_cells(board: CrossbarBoard) -> None:
    """Cells are where they were programmed: `[rows, columns]`, not the other way round."""
    info = board.info
    rng = np.random.default_rng(2)
    target_s = rng.choice([info.conductance_min_s, info.conductance_max_s], (info.rows, info.columns))
    await board.program(0, target_s)
    read_s = await board.read_conductance(0)
    _require(read_s.shape == target_s.shape, f"read_conductance() has shape [{info.rows}, {info.columns}]")
    _require(read_s.dtype == np.float64, "read_conductance() is float64")
    _require(bool(np.isfinite(read_s).all()), "read_conductance() is finite")
    high = target_s > 0.5 * (info.conductance_min_s + info.conductance_max_s)
    if high.any() and not high.all():
        right = np.mean((read_s > 0.5 * (info.conductance_min_s + info.conductance_max_s)) == high)
        _require(
            bool(right > 0.8), "read_conductance() finds the cells that were programmed, each in its place"
        )


async def _check_meter_order(meter: SourceMeter, voltage_v: float, limit_a: float) -> None:
    await meter.configure(source="voltage", nplc=0.1)
    early = await _raises(StateError, lambda: meter.set_level(voltage_v=voltage_v))
    _require(early, "set_level() before set_limit(): StateError")
    _require(await _raises(StateError, meter.output_on), "output_on() before limit and level: StateError")
    _require(await _raises(StateError, meter.measure), "measure() with the output off: StateError")
    await meter.set_limit(current_a=limit_a)
    await meter.set_level(voltage_v=voltage_v)
    _require(not await meter.output_is_on(), "nothing before output_on() switches the output on")
    await meter.output_on()
    _require(await meter.output_is_on(), "output_on() switches the output on")


async def _check_readings(meter: SourceMeter, voltage_v: float) -> None:
    reading = await meter.measure()
    _require(not reading.in_compliance, "a load below the limit is not in compliance")
    close = abs(reading.voltage_v - voltage_v) <= 0.02 * abs(voltage_v) + 1e-3
    _require(close, f"measure() finds the level {voltage_v:g} V, not {reading.voltage_v:g} V")
    _require(bool(np.isfinite(reading.current_a)), "measure() finds a finite current")
    later = await meter.measure()
    _require(later.time_s >= reading.time_s, "Reading.time_s does not go back")
    levels_v = [0.0, 0.5 * voltage_v, voltage_v]
    readings = await meter.sweep(voltage_v=levels_v)
    found_v = np.array([reading.voltage_v for reading in readings])
    swept = len(readings) == 3 and np.allclose(found_v, levels_v, rtol=0.02, atol=1e-3)
    _require(swept, "sweep() answers one reading for each level, in the order of the levels")


def _middle(info: BoardInfo) -> FloatArray:
    return np.full((info.rows, info.columns), 0.5 * (info.conductance_min_s + info.conductance_max_s))


async def _evaluate(get: Callable[[], object]) -> object:
    return get()


async def _raises(error: type[LabrigError], call: Callable[[], Awaitable[object]]) -> bool:
    """Whether `call` raises `error`; another kind of error comes through."""
    try:
        await call()
    except error:
        return True
    return False


def _require(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"broken promise: {promise}")
