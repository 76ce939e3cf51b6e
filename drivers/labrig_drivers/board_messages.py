"""The messages of labrig's board protocol, as values; `board_protocol` turns them into bytes and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import Identity
from labrig_drivers.wording import counted

# What the wire carries: half the bytes of float64, and far finer than any converter.
Float32Array = NDArray[np.float32]


class FaultCode(IntEnum):
    """Why a board refused a request."""

    BAD_REQUEST = 1
    UNSAFE_VALUE = 2
    NOT_PROGRAMMED = 3
    SUPPLY_OFF = 4
    BUSY = 5
    UNSUPPORTED = 6
    INTERNAL = 7


@dataclass(frozen=True)
class Hello:
    """First request of every session: the versions of the protocol that the host speaks."""

    min_version: int
    max_version: int


@dataclass(frozen=True)
class Welcome:
    """Answer to `Hello`: who the board is and what it can do. Nothing was driven.

    Attributes:
        version: The version that both speak, chosen by the board.
        session: Number of this session, counted by the board; the host builds its idempotency keys from it.
        max_payload_bytes: Longest payload that the board takes or sends.
        max_requests: How many requests the board takes in before it has answered the first of them; at least 1.
        silence_s: The board grounds all lines when the host is silent for longer than this, in s; 0 is never.
        identity: Manufacturer, model, serial number, firmware.
        info_json: All of `BoardInfo` as a JSON object, see `info_to_json`.
    """

    version: int
    session: int
    max_payload_bytes: int
    max_requests: int
    silence_s: float
    identity: Identity
    info_json: str


@dataclass(frozen=True, eq=False)
class Program:
    """Programs one array.

    Attributes:
        array: Which array.
        idempotency_key: A board that knows this key repeats its first answer and programs nothing.
        conductance_s: Targets in S, `[rows, columns]`.
    """

    array: int
    idempotency_key: int
    conductance_s: Float32Array


@dataclass(frozen=True)
class Programmed:
    """Answer to `Program`; the fields are those of `ProgramReport`."""

    write_index: int
    time_s: float
    pulses: int
    rms_error_s: float


@dataclass(frozen=True, eq=False)
class Mvm:
    """Applies input vectors to one array, one after another: `voltage_v[batch, rows]` in V."""

    array: int
    voltage_v: Float32Array


@dataclass(frozen=True, eq=False)
class MvmAnswer:
    """Answer to `Mvm`; the fields of `MvmResult` without the currents, which follow from the codes."""

    write_index: int
    time_s: NDArray[np.float64]
    code: NDArray[np.int16]
    saturated: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StreamMvm:
    """Asks for the same as `Mvm`, answered by several `MvmPart`, each sent as soon as it is measured.

    Attributes:
        array: Which array.
        part_vectors: The most vectors that one part may answer, at least 1; the board may send shorter parts.
        voltage_v: Inputs in V, `[batch, rows]`.
    """

    array: int
    part_vectors: int
    voltage_v: Float32Array


@dataclass(frozen=True, eq=False)
class MvmPart:
    """A part of the answer to `StreamMvm`; parts come in order and without gaps.

    Attributes:
        first: Which vector of the request is the first one answered here.
        last: True for the last part.
        answer: The results of the part.
    """

    first: int
    last: bool
    answer: MvmAnswer


@dataclass(frozen=True)
class ReadConductance:
    """Reads every cell of one array."""

    array: int


@dataclass(frozen=True, eq=False)
class Conductance:
    """Answer to `ReadConductance`: `conductance_s[rows, columns]` in S."""

    conductance_s: Float32Array


@dataclass(frozen=True)
class Ping:
    """Asks for a sign of life; the answer repeats the nonce."""

    nonce: int


@dataclass(frozen=True)
class Pong:
    """Answer to `Ping`."""

    nonce: int


@dataclass(frozen=True)
class Safe:
    """Grounds all lines. What is programmed stays."""


@dataclass(frozen=True)
class Done:
    """Answer to `Safe`."""


@dataclass(frozen=True)
class Fault:
    """Answer to any request that the board refused or failed.

    Attributes:
        code: A `FaultCode`; a number that is not one of them comes from a newer board.
        text: What happened, for a person.
    """

    code: int
    text: str


Message = (
    Hello
    | Welcome
    | Program
    | Programmed
    | Mvm
    | MvmAnswer
    | StreamMvm
    | MvmPart
    | ReadConductance
    | Conductance
    | Ping
    | Pong
    | Safe
    | Done
    | Fault
)

_WHOLE_NUMBERS = ("arrays", "rows", "columns", "dac_bits", "adc_bits")
_NUMBERS = (
    "conductance_min_s",
    "conductance_max_s",
    "voltage_min_v",
    "voltage_max_v",
    "mvm_latency_s",
    "program_latency_s",
)


def info_to_json(info: BoardInfo) -> str:
    """Writes a board's description as the JSON object that `Welcome` carries; numbers keep all digits."""
    return json.dumps({**asdict(info), "capabilities": sorted(info.capabilities)}, sort_keys=True)


def info_from_json(text: str) -> BoardInfo:
    """Reads a board's description; keys that this version does not know are left aside.

    Raises:
        ProtocolError: Not a JSON object, or fields are missing or senseless; every fault in one error.
    """
    try:
        values: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the board's description is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ProtocolError("the board's description is not a JSON object")
    wholes = [name for name in _WHOLE_NUMBERS if not _is_count(values.get(name))]
    faults = [f"{name} {_found(values, name)}, not a positive whole number" for name in wholes]
    numbers = [name for name in _NUMBERS if not _is_number(values.get(name))]
    faults += [f"{name} {_found(values, name)}, not a finite number" for name in numbers]
    full_scale = values.get("adc_full_scale_a", [])
    if not isinstance(full_scale, list) or not all(_is_number(value) and value > 0 for value in full_scale):
        faults.append(f"adc_full_scale_a {_found(values, 'adc_full_scale_a')}, not a list of positive numbers")
    elif len(full_scale) != values.get("columns"):
        faults.append(f"adc_full_scale_a has {counted(len(full_scale), 'number')}, not one for each column")
    if not isinstance(values.get("chip_id"), str):
        faults.append(f"chip_id {_found(values, 'chip_id')}, not a text")
    capabilities = values.get("capabilities", [])
    if not isinstance(capabilities, list) or not all(isinstance(name, str) for name in capabilities):
        faults.append(f"capabilities {_found(values, 'capabilities')}, not a list of texts")
    if not faults and max(values["dac_bits"], values["adc_bits"]) > 16:
        bits = f"dac_bits = {values['dac_bits']}, adc_bits = {values['adc_bits']}"
        faults.append(f"{bits}: converters of more than 16 bits do not fit the protocol")
    if faults:
        raise ProtocolError("the board's description is wrong: " + "; ".join(faults))
    return BoardInfo(
        chip_id=values["chip_id"],
        arrays=values["arrays"],
        rows=values["rows"],
        columns=values["columns"],
        conductance_min_s=float(values["conductance_min_s"]),
        conductance_max_s=float(values["conductance_max_s"]),
        voltage_min_v=float(values["voltage_min_v"]),
        voltage_max_v=float(values["voltage_max_v"]),
        dac_bits=values["dac_bits"],
        adc_bits=values["adc_bits"],
        adc_full_scale_a=tuple(float(value) for value in full_scale),
        mvm_latency_s=float(values["mvm_latency_s"]),
        program_latency_s=float(values["program_latency_s"]),
        capabilities=frozenset(capabilities),
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _found(values: Mapping[str, object], name: str) -> str:
    """What a description says for a field, as JSON and not at any length."""
    return f"is {json.dumps(values[name])[:60]}" if name in values else "is missing"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**16
