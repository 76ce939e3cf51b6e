"""Contract checks of what a crossbar board declares beyond the basics; see `driver_contract`.

A board that declares a capability has the verb, and it works. One that does not declare it has no such verb, or
refuses it with `CapabilityError`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from labrig.testing.promises import must_raise, require
from labrig_drivers.capabilities import (
    CELL_SWEEP,
    FLOATING_LINES,
    TEMPERATURE,
    TRANSPOSED_MVM,
    CellSweep,
    FloatingLines,
    TemperatureSensor,
    TransposedMvm,
)
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, FloatArray, MvmResult
from labrig_drivers.errors import CapabilityError, SafetyError
from labrig_drivers.source_meter import Reading


async def check_capabilities(board: CrossbarBoard) -> None:
    """Checks the optional verbs of an open board; array 0 is programmed anew.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    await _check_temperature(board)
    await _check_transposed(board)
    await _check_floating(board)
    await _check_cell_sweep(board)


async def _check_temperature(board: CrossbarBoard) -> None:
    declared = TEMPERATURE in board.info.capabilities
    if not isinstance(board, TemperatureSensor):
        _require_undeclared(declared, TEMPERATURE, "temperature_k()")
        return
    sensor: TemperatureSensor = board
    if not declared:
        await must_raise(CapabilityError, sensor.temperature_k, _undeclared("temperature_k()", TEMPERATURE))
        return
    temperature_k = await sensor.temperature_k()
    require(isinstance(temperature_k, float), "temperature_k() is a float")
    require(0.0 < temperature_k < 1000.0, f"temperature_k() is a temperature in K, not {temperature_k:g}")


async def _check_transposed(board: CrossbarBoard) -> None:
    info = board.info
    declared = TRANSPOSED_MVM in info.capabilities
    # `isinstance` on a protocol with a property would ask the property, which an undeclared verb refuses.
    if not hasattr(type(board), "mvm_transposed"):
        _require_undeclared(declared, TRANSPOSED_MVM, "mvm_transposed()")
        return
    transposed = cast(TransposedMvm, board)
    silent_v = np.zeros((2, info.columns))
    if not declared:
        await must_raise(
            CapabilityError,
            lambda: transposed.mvm_transposed(0, silent_v),
            _undeclared("mvm_transposed()", TRANSPOSED_MVM),
        )
        return
    wild_v = silent_v.copy()
    wild_v[0, 0] = 2.0 * info.voltage_max_v
    await must_raise(SafetyError, lambda: transposed.mvm_transposed(0, wild_v), "mvm_transposed() above the range")
    await must_raise(
        CapabilityError, lambda: transposed.mvm_transposed(info.arrays, silent_v), "mvm_transposed() on no array"
    )
    await must_raise(
        CapabilityError, lambda: transposed.mvm_transposed(0, silent_v[0]), "mvm_transposed() with one vector"
    )
    require(isinstance(board, TransposedMvm), "mvm_transposed() comes with transposed_full_scale_a")
    full_scale_a = transposed.transposed_full_scale_a
    require(len(full_scale_a) == info.rows, "transposed_full_scale_a has one value for each row")
    # Half of the word lines high, the others low: the answers must follow the rows.
    high = np.random.default_rng(4).permutation(info.rows) < info.rows // 2
    target_s = np.where(high[:, None], info.conductance_max_s, info.conductance_min_s) * np.ones((1, info.columns))
    await board.program(0, target_s)
    loud_v = np.full((3, info.columns), info.voltage_max_v)
    result = await transposed.mvm_transposed(0, loud_v)
    _check_transposed_result(result, info, full_scale_a, len(loud_v))
    if high.any() and not high.all():
        current_a = result.current_a.mean(axis=0)
        right = np.mean((current_a > 0.5 * (current_a.min() + current_a.max())) == high)
        require(
            bool(right > 0.8 and current_a[high].mean() > 0.0),
            "mvm_transposed() answers for the word lines, [batch, rows], positive for positive voltages",
        )


def _check_transposed_result(result: MvmResult, info: BoardInfo, full_scale_a: tuple[float, ...], batch: int) -> None:
    shape = (batch, info.rows)
    for name, dtype in (("code", np.int16), ("current_a", np.float64), ("saturated", np.bool_)):
        values: NDArray[np.generic] = getattr(result, name)
        require(values.shape == shape, f"mvm_transposed(): {name} has shape {list(shape)}, not {list(values.shape)}")
        require(values.dtype == dtype, f"mvm_transposed(): {name} is {np.dtype(dtype)}, not {values.dtype}")
    lsb_a = np.asarray(full_scale_a) / float(2 ** (info.adc_bits - 1))
    same = np.allclose(result.current_a, result.code * lsb_a, rtol=1e-12, atol=0.0)
    require(same, "mvm_transposed(): current_a is code times the ADC step of transposed_full_scale_a")


async def _check_floating(board: CrossbarBoard) -> None:
    info = board.info
    declared = FLOATING_LINES in info.capabilities
    if not isinstance(board, FloatingLines):
        _require_undeclared(declared, FLOATING_LINES, "mvm_floating()")
        return
    lines: FloatingLines = board
    driven = np.arange(info.rows) < (info.rows + 1) // 2
    line_v: FloatArray = np.where(driven, info.voltage_max_v, 0.0)[None, :]
    if not declared:
        await must_raise(
            CapabilityError,
            lambda: lines.mvm_floating(0, line_v, driven),
            _undeclared("mvm_floating()", FLOATING_LINES),
        )
        return
    await board.program(0, np.full((info.rows, info.columns), info.conductance_max_s))
    result = await lines.mvm_floating(0, line_v, driven)
    require(result.code.shape == (1, info.columns), f"mvm_floating(): code has shape [1, {info.columns}]")
    silent = await board.mvm(0, np.zeros((1, info.rows)))
    grounded = await board.mvm(0, line_v)
    offset_a = silent.current_a.mean()
    require(
        bool(result.current_a.mean() - offset_a > 0.5 * (grounded.current_a.mean() - offset_a)),
        "mvm_floating() drives the lines that are to be driven",
    )


async def _check_cell_sweep(board: CrossbarBoard) -> None:
    info = board.info
    declared = CELL_SWEEP in info.capabilities
    if not isinstance(board, CellSweep):
        _require_undeclared(declared, CELL_SWEEP, "sweep_cell()")
        return
    cells: CellSweep = board
    if not declared:
        undeclared = _undeclared("sweep_cell()", CELL_SWEEP)
        await must_raise(CapabilityError, lambda: cells.sweep_cell(0, 0, 0, [0.0]), undeclared)
        return
    require(0.0 <= cells.cell_reading_s < math.inf, "cell_reading_s is a time in s")
    last_row, last_column, high_v = info.rows - 1, info.columns - 1, info.voltage_max_v
    for cell in ((info.arrays, 0, 0), (0, info.rows, 0), (0, 0, info.columns), (0, -1, 0)):
        await must_raise(CapabilityError, partial(cells.sweep_cell, *cell, [0.0]), f"sweep_cell() of no cell {cell}")
    await must_raise(CapabilityError, lambda: cells.sweep_cell(0, 0, 0, []), "sweep_cell() without a level")
    for level_v, limit_a in ((2.0 * high_v, None), (math.nan, None), (0.0, 0.0), (0.0, math.nan)):
        wild = partial(cells.sweep_cell, 0, 0, 0, [0.0, level_v], limit_a)
        await must_raise(SafetyError, wild, f"sweep_cell() to {level_v:g} V with a limit of {limit_a} A")
    # One cell of its row and its column is high, the others are low: the answer has to be that cell's.
    target_s = np.full((info.rows, info.columns), info.conductance_min_s)
    target_s[last_row, last_column] = info.conductance_max_s
    await board.program(0, target_s)
    levels_v = [0.0, 0.5 * high_v, high_v, -high_v, 0.5 * high_v]
    high = await cells.sweep_cell(0, last_row, last_column, levels_v)
    _check_curve(high, levels_v)
    if info.rows > 1 and info.conductance_max_s > 4.0 * info.conductance_min_s:
        low = await cells.sweep_cell(0, 0, last_column, levels_v)
        _check_curve(low, levels_v)
        require(
            high[2].current_a > 2.0 * abs(low[2].current_a),
            "sweep_cell() measures the cell that it is asked for, and none beside it",
        )
    # A limit that the cell reaches is kept and told, in either direction.
    limit_a = 0.25 * high[2].current_a
    limited = await cells.sweep_cell(0, last_row, last_column, [0.0, high_v, -high_v], limit_a)
    require(
        [one.in_compliance for one in limited] == [False, True, True],
        "sweep_cell() says in_compliance where the limit determined the current, and only there",
    )
    kept = all(abs(one.current_a) < 1.5 * limit_a for one in limited if math.isfinite(one.current_a))
    require(kept, f"sweep_cell() keeps its limit of {limit_a:g} A")


def _check_curve(readings: list[Reading], levels_v: list[float]) -> None:
    require(len(readings) == len(levels_v), "sweep_cell() gives one reading for each level")
    for one, level_v in zip(readings, levels_v, strict=True):
        require(isinstance(one, Reading), "sweep_cell() gives readings")
        require(not one.in_compliance, "sweep_cell() without a limit of its own leaves room for the cell's current")
        near = abs(one.voltage_v - level_v) <= 0.05 * max(abs(level) for level in levels_v)
        require(near, f"sweep_cell(): voltage_v is across the cell, {level_v:g} V and not {one.voltage_v:g} V")
    times_s = [one.time_s for one in readings]
    require(times_s == sorted(times_s), "sweep_cell() measures in the order of the levels")
    require(
        readings[2].current_a > readings[1].current_a > 0.0 > readings[3].current_a,
        "sweep_cell(): current_a flows from the word line to the bit line, positive for positive voltages",
    )


def _require_undeclared(declared: bool, name: str, verb: str) -> None:
    require(not declared, f"a board that declares {name!r} has {verb}")


def _undeclared(verb: str, name: str) -> str:
    return f"{verb} of a board that does not declare {name!r}"
