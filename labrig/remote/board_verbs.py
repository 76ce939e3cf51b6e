"""The verbs of a board on the rig's side: from a request to a call of the guarded board, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, cast

import numpy as np

from labrig.remote.envelope import Arrays
from labrig.remote.messages import Request, Values
from labrig.remote.results import (
    flags,
    floats,
    identity_values,
    mvm_parts,
    number,
    number_or_none,
    reading_arrays,
    report_values,
    whole,
    writes_from,
)
from labrig_drivers.board_messages import info_to_json
from labrig_drivers.capabilities import (
    CELL_SWEEP,
    FLOATING_LINES,
    TEMPERATURE,
    TRANSPOSED_MVM,
    CellSweep,
    FloatingLines,
    TemperatureSensor,
    TransposedMvm,
    require_capability,
)
from labrig_drivers.commanded import COMMANDED, CommandedBoard
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, FloatArray, MvmResult


@dataclass(frozen=True)
class Outcome:
    """What carrying out a request gave.

    Attributes:
        values: Plain values by name.
        arrays: Arrays by name.
        measured: A batch as the board answered it, for those who watch; None where none was measured.
    """

    values: Values = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    measured: MvmResult | None = None


BoardVerb = Callable[[CrossbarBoard, Request], Awaitable[Outcome]]


def transposed_lsb_a(info: BoardInfo, full_scale_a: tuple[float, ...]) -> FloatArray:
    """Current in A of one ADC step of each word line."""
    return np.asarray(full_scale_a, dtype=np.float64) / float(2 ** (info.adc_bits - 1))


def board_card(board: CrossbarBoard) -> Values:
    """What a client has to know of an open board."""
    card: dict[str, float | str | list[float] | dict[str, str]] = {
        "identity": identity_values(board.identity),
        "info": info_to_json(board.info),
    }
    if TRANSPOSED_MVM in board.info.capabilities:
        card["transposed_full_scale_a"] = list(cast(TransposedMvm, board).transposed_full_scale_a)
    if CELL_SWEEP in board.info.capabilities:
        card["cell_reading_s"] = cast(CellSweep, board).cell_reading_s
    return card


async def _program(board: CrossbarBoard, request: Request) -> Outcome:
    array = whole(request.values, "array")
    return Outcome(report_values(await board.program(array, floats(request.arrays, "conductance_s"))))


async def _mvm(board: CrossbarBoard, request: Request) -> Outcome:
    result = await board.mvm(whole(request.values, "array"), floats(request.arrays, "voltage_v"))
    return Outcome(*mvm_parts(result, board.info.adc_lsb_a), measured=result)


async def _mvm_transposed(board: CrossbarBoard, request: Request) -> Outcome:
    require_capability(board.info, TRANSPOSED_MVM)
    transposed = cast(TransposedMvm, board)
    result = await transposed.mvm_transposed(whole(request.values, "array"), floats(request.arrays, "voltage_v"))
    return Outcome(*mvm_parts(result, transposed_lsb_a(board.info, transposed.transposed_full_scale_a)))


async def _mvm_floating(board: CrossbarBoard, request: Request) -> Outcome:
    require_capability(board.info, FLOATING_LINES)
    array, line_v = whole(request.values, "array"), floats(request.arrays, "voltage_v")
    result = await cast(FloatingLines, board).mvm_floating(array, line_v, flags(request.arrays, "driven"))
    return Outcome(*mvm_parts(result, board.info.adc_lsb_a))


async def _read_conductance(board: CrossbarBoard, request: Request) -> Outcome:
    return Outcome(arrays={"conductance_s": await board.read_conductance(whole(request.values, "array"))})


async def _sweep_cell(board: CrossbarBoard, request: Request) -> Outcome:
    require_capability(board.info, CELL_SWEEP)
    cell = [whole(request.values, name) for name in ("array", "row", "column")]
    levels_v = floats(request.arrays, "voltage_v").tolist()
    limit_a = number_or_none(request.values, "limit_a")
    readings = await cast(CellSweep, board).sweep_cell(cell[0], cell[1], cell[2], levels_v, limit_a)
    return Outcome(arrays=reading_arrays(readings))


async def _temperature(board: CrossbarBoard, _: Request) -> Outcome:
    require_capability(board.info, TEMPERATURE)
    return Outcome({"temperature_k": await cast(TemperatureSensor, board).temperature_k()})


async def _now(board: CrossbarBoard, _: Request) -> Outcome:
    require_capability(board.info, COMMANDED)
    return Outcome({"now_s": await cast(CommandedBoard, board).now_s()})


async def _let_pass(board: CrossbarBoard, request: Request) -> Outcome:
    require_capability(board.info, COMMANDED)
    await cast(CommandedBoard, board).let_pass(number(request.values, "duration_s"))
    return Outcome()


async def _restore(board: CrossbarBoard, request: Request) -> Outcome:
    require_capability(board.info, COMMANDED)
    now_s = number(request.values, "now_s")
    await cast(CommandedBoard, board).restore(now_s, writes_from(request.arrays))
    return Outcome()


BOARD_VERBS: Final[Mapping[str, BoardVerb]] = MappingProxyType(
    {
        "program": _program,
        "mvm": _mvm,
        "mvm-transposed": _mvm_transposed,
        "mvm-floating": _mvm_floating,
        "read-conductance": _read_conductance,
        "sweep-cell": _sweep_cell,
        "temperature": _temperature,
        "now": _now,
        "let-pass": _let_pass,
        "restore": _restore,
    }
)
"""Every verb of a board by its name on the wire."""
