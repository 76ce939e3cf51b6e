"""Contract checks of what a crossbar board declares beyond the basics; see `driver_contract`.

A board that declares a capability has the verb, and it works. One that does not declare it has no such verb, or
refuses it with `CapabilityError`.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from labrig.testing.promises import must_raise, require
from labrig_drivers.capabilities import (
    FLOATING_LINES,
    TEMPERATURE,
    TRANSPOSED_MVM,
    FloatingLines,
    TemperatureSensor,
    TransposedMvm,
)
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, FloatArray, MvmResult
from labrig_drivers.errors import CapabilityError, SafetyError


async def check_capabilities(board: CrossbarBoard) -> None:
    """Checks the optional verbs of an open board; array 0 is programmed anew.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    await _check_temperature(board)
    await _check_transposed(board)
    await _check_floating(board)


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


def _require_undeclared(declared: bool, name: str, verb: str) -> None:
    require(not declared, f"a board that declares {name!r} has {verb}")


def _undeclared(verb: str, name: str) -> str:
    return f"{verb} of a board that does not declare {name!r}"
