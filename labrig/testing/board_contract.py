"""Contract checks of a crossbar board; see `driver_contract`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from labrig.testing.capability_contract import check_capabilities
from labrig.testing.promises import check_closed, check_identity, must_raise, require
from labrig_drivers.capabilities import READ_CONDUCTANCE
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, MvmResult
from labrig_drivers.errors import CapabilityError, LabrigError, SafetyError, StateError

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
        check_identity(board.identity)
        _check_info(board.info)
        await _check_refusals(board)
        await _check_programming(board)
        await _check_batches(board)
        await _check_order(board)
        await _check_callers_apart(board)
        await _check_cells(board)
        await check_capabilities(board)
        identity = board.identity
    finally:
        await board.close()
    await board.close()
    await must_raise(StateError, lambda: board.mvm(0, np.zeros((1, 1))), "mvm() after close()")
    await board.open()
    try:
        require(board.identity == identity, "a board that is opened again is the same board")
    finally:
        await board.close()
    async with make_board() as other:
        require(other.identity == identity, "every driver that the factory makes belongs to the same board")


async def _check_closed_board(board: CrossbarBoard) -> None:
    await check_closed(board)

    async def ask() -> object:
        return board.info

    closed: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
        ("info", ask),
        ("mvm()", lambda: board.mvm(0, np.zeros((1, 1)))),
        ("program()", lambda: board.program(0, np.zeros((1, 1)))),
        ("read_conductance()", lambda: board.read_conductance(0)),
    )
    for name, call in closed:
        await must_raise(StateError, call, f"{name} before open()")


def _check_info(info: BoardInfo) -> None:
    positive = ("arrays", "rows", "columns", "dac_bits", "adc_bits")
    for name in positive:
        require(getattr(info, name) > 0, f"info.{name} is positive")
    require(min(info.mvm_latency_s, info.program_latency_s) >= 0, "info: latencies are not negative")
    require(bool(info.chip_id), "info.chip_id is not empty")
    require(len(info.adc_full_scale_a) == info.columns, "info.adc_full_scale_a has one value for each column")
    require(min(info.adc_full_scale_a) > 0, "info.adc_full_scale_a is positive")
    require(
        0 <= info.conductance_min_s < info.conductance_max_s,
        "info: 0 <= conductance_min_s < conductance_max_s",
    )
    require(info.voltage_min_v <= 0 < info.voltage_max_v, "info: voltage_min_v <= 0 < voltage_max_v")
    require(info.adc_bits <= 16, "info.adc_bits: codes are int16")


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
        await must_raise(error, call, what)


async def _check_programming(board: CrossbarBoard) -> None:
    info = board.info
    for array in range(info.arrays):
        first = await board.program(array, _middle(info))
        second = await board.program(array, _middle(info))
        require(
            second.write_index == first.write_index + 1,
            "ProgramReport.write_index counts one up at each programming",
        )
        require(second.time_s >= first.time_s, "ProgramReport.time_s does not go back")
        require(second.pulses >= 0, "ProgramReport.pulses is not negative")
        require(
            bool(np.isfinite(second.rms_error_s)) and second.rms_error_s >= 0,
            "rms_error_s is finite, not negative",
        )
        require(
            second.rms_error_s < info.conductance_max_s,
            "rms_error_s is an error in S within the board's range",
        )
        result = await board.mvm(array, np.zeros((1, info.rows)))
        require(result.write_index == second.write_index, "MvmResult.write_index is that of the last programming")
        require(
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
        require(float(result.time_s[0]) >= last_s, "MvmResult.time_s does not go back between batches")
        last_s = float(result.time_s[-1])
    edges_v = np.array([[info.voltage_min_v] * info.rows, [info.voltage_max_v] * info.rows])
    _check_result(await board.mvm(0, edges_v), info, 2)


def _check_result(result: MvmResult, info: BoardInfo, batch: int) -> None:
    shape = (batch, info.columns)
    for name, dtype in (("code", np.int16), ("current_a", np.float64), ("saturated", np.bool_)):
        values: NDArray[np.generic] = getattr(result, name)
        require(values.shape == shape, f"MvmResult.{name} has shape {list(shape)}, not {list(values.shape)}")
        require(values.dtype == dtype, f"MvmResult.{name} is {np.dtype(dtype)}, not {values.dtype}")
    require(
        result.time_s.shape == (batch,),
        f"MvmResult.time_s has shape [{batch}], not {list(result.time_s.shape)}",
    )
    require(result.time_s.dtype == np.float64, "MvmResult.time_s is float64")
    require(bool((np.diff(result.time_s) >= 0).all()), "MvmResult.time_s does not go back within a batch")
    same = np.allclose(result.current_a, result.code * info.adc_lsb_a, rtol=1e-12, atol=0.0)
    require(same, "MvmResult.current_a is code times info.adc_lsb_a")
    low, high = -(2 ** (info.adc_bits - 1)), 2 ** (info.adc_bits - 1) - 1
    require(bool(((result.code >= low) & (result.code <= high)).all()), f"codes lie in {low} to {high}")
    at_end = (result.code == low) | (result.code == high)
    require(bool((at_end == result.saturated).all()), "saturated is true exactly where a code is at an end")


async def _check_order(board: CrossbarBoard) -> None:
    """Vectors are answered in their order: silent ones, with only offset and noise, among loud ones."""
    info = board.info
    line_v = np.zeros((64, info.rows))
    # Without symmetry, so that no reordering looks right.
    loud = np.random.default_rng(3).random(64) < 0.4
    line_v[loud] = info.voltage_max_v
    current_a = (await board.mvm(0, line_v)).current_a.mean(axis=1)
    apart = current_a[loud].min() > current_a[~loud].max()
    require(bool(apart), "the answers of a batch come in the order of its vectors, positive for positive voltages")


async def _check_callers_apart(board: CrossbarBoard) -> None:
    """Two callers at once, and one that gives up: every answer belongs to its own request."""
    info = board.info
    silent_v = np.zeros((5, info.rows))
    loud_v = np.full((7, info.rows), info.voltage_max_v)
    silent, loud = await asyncio.gather(board.mvm(0, silent_v), board.mvm(0, loud_v))
    apart = len(silent.code) == 5 and len(loud.code) == 7 and loud.current_a.mean() > silent.current_a.mean()
    require(bool(apart), "two callers at the same time each get the answer to their own request")
    impatient = asyncio.ensure_future(board.mvm(0, loud_v))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    after = await board.mvm(0, silent_v)
    require(
        len(after.code) == 5 and bool(after.current_a.mean() < loud.current_a.mean()),
        "after a cancelled request the next one gets its own answer",
    )


async def _check_cells(board: CrossbarBoard) -> None:
    """Cells are where they were programmed: `[rows, columns]`, not the other way round."""
    info = board.info
    rng = np.random.default_rng(2)
    target_s = rng.choice([info.conductance_min_s, info.conductance_max_s], (info.rows, info.columns))
    await board.program(0, target_s)
    if READ_CONDUCTANCE not in info.capabilities:
        await must_raise(
            CapabilityError,
            lambda: board.read_conductance(0),
            f"read_conductance() of a board that does not declare {READ_CONDUCTANCE!r}",
        )
        return
    read_s = await board.read_conductance(0)
    require(read_s.shape == target_s.shape, f"read_conductance() has shape [{info.rows}, {info.columns}]")
    require(read_s.dtype == np.float64, "read_conductance() is float64")
    require(bool(np.isfinite(read_s).all()), "read_conductance() is finite")
    high = target_s > 0.5 * (info.conductance_min_s + info.conductance_max_s)
    if high.any() and not high.all():
        right = np.mean((read_s > 0.5 * (info.conductance_min_s + info.conductance_max_s)) == high)
        require(bool(right > 0.8), "read_conductance() finds the cells that were programmed, each in its place")


def _middle(info: BoardInfo) -> FloatArray:
    return np.full((info.rows, info.columns), 0.5 * (info.conductance_min_s + info.conductance_max_s))
