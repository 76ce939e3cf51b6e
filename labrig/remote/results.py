"""What boards and source-meters answer, as values and arrays of a message, and back; every bit stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labrig.remote.envelope import Arrays
from labrig.remote.messages import Values
from labrig_drivers.commanded import PastWrite
from labrig_drivers.crossbar import FloatArray, MvmResult, ProgramReport
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import Identity
from labrig_drivers.source_meter import Reading

_READING: Final = ("voltage_v", "current_a", "time_s", "instrument_time_s")


def whole(values: Values, name: str) -> int:
    """A whole number.

    Raises:
        ProtocolError: It is missing, or is none.
    """
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProtocolError(f"{name} is missing, or no whole number")
    return value


def number(values: Values, name: str) -> float:
    """A finite number.

    Raises:
        ProtocolError: It is missing, or is none.
    """
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"{name} is missing, or no number")
    return float(value)


def number_or_none(values: Values, name: str) -> float | None:
    """A finite number, or None where there is none.

    Raises:
        ProtocolError: It is something else.
    """
    return None if values.get(name) is None else number(values, name)


def numbers(values: Values, name: str, count: int) -> tuple[float, ...]:
    """So many finite numbers.

    Raises:
        ProtocolError: They are missing, or are none, or of another count.
    """
    value = values.get(name)
    if not isinstance(value, list) or len(value) != count or any(isinstance(one, str) for one in value):
        raise ProtocolError(f"{name} is missing, or not {count} numbers")
    return tuple(float(one) for one in value)


def text(values: Values, name: str) -> str:
    """A text.

    Raises:
        ProtocolError: It is missing, or is none.
    """
    value = values.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} is missing, or no text")
    return value


def texts(values: Values, name: str) -> dict[str, str]:
    """Texts by name.

    Raises:
        ProtocolError: They are missing, or are none.
    """
    value = values.get(name)
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} is missing, or not texts by name")
    return value


def floats(arrays: Arrays, name: str) -> FloatArray:
    """An array of float64.

    Raises:
        ProtocolError: It is missing, or has another type.
    """
    values = arrays.get(name)
    if values is None or values.dtype != np.float64:
        raise ProtocolError(f"the array {name} is missing, or not of float64")
    return np.asarray(values, dtype=np.float64)


def flags(arrays: Arrays, name: str) -> NDArray[np.bool_]:
    """An array of truth values.

    Raises:
        ProtocolError: It is missing, or has another type.
    """
    values = arrays.get(name)
    if values is None or values.dtype != np.bool_:
        raise ProtocolError(f"the array {name} is missing, or not of truth values")
    return np.asarray(values, dtype=np.bool_)


def identity_values(identity: Identity) -> dict[str, str]:
    """An identity as texts."""
    return asdict(identity)


def identity_from(values: dict[str, str]) -> Identity:
    """The identity again.

    Raises:
        ProtocolError: A text is missing.
    """
    try:
        return Identity(values["manufacturer"], values["model"], values["serial"], values["firmware"])
    except KeyError as error:
        raise ProtocolError(f"an identity without {error}") from None


def report_values(report: ProgramReport) -> Values:
    """A programming report."""
    return asdict(report)


def report_from(values: Values) -> ProgramReport:
    """The programming report again.

    Raises:
        ProtocolError: A value is missing.
    """
    return ProgramReport(
        whole(values, "write_index"), number(values, "time_s"), whole(values, "pulses"), number(values, "rms_error_s")
    )


def mvm_parts(result: MvmResult, lsb_a: FloatArray) -> tuple[Values, Arrays]:
    """The answers to a batch; the currents only where they are not codes times the step.

    Args:
        result: The answers.
        lsb_a: Current in A of one ADC step of each line that was read.
    """
    arrays: dict[str, NDArray[np.generic]] = {
        "code": result.code,
        "saturated": result.saturated,
        "time_s": result.time_s,
    }
    if not np.array_equal(result.code * lsb_a, result.current_a):
        arrays["current_a"] = result.current_a
    return {"write_index": result.write_index}, arrays


def mvm_from(values: Values, arrays: Arrays, lsb_a: FloatArray, batch: int) -> MvmResult:
    """The answers to a batch again.

    Args:
        values: Of the message.
        arrays: Of the message.
        lsb_a: Current in A of one ADC step of each line that was read.
        batch: How many vectors were asked for.

    Raises:
        ProtocolError: Something is missing, or of the wrong size.
    """
    code, saturated, time_s = arrays.get("code"), flags(arrays, "saturated"), floats(arrays, "time_s")
    if code is None or code.dtype != np.int16:
        raise ProtocolError("the array code is missing, or not of int16")
    shape = (batch, len(lsb_a))
    if code.shape != shape or saturated.shape != shape or time_s.shape != shape[:1]:
        raise ProtocolError(f"the answers have shape {list(code.shape)}, not {list(shape)}")
    codes = np.asarray(code, dtype=np.int16)
    current_a = floats(arrays, "current_a") if "current_a" in arrays else codes * lsb_a
    if current_a.shape != shape:
        raise ProtocolError(f"the currents have shape {list(current_a.shape)}, not {list(shape)}")
    return MvmResult(codes, current_a, saturated, time_s, whole(values, "write_index"))


def reading_arrays(readings: Sequence[Reading]) -> Arrays:
    """Readings; also those that are no numbers, which JSON could not hold."""
    columns = {name: np.array([_or_nan(getattr(one, name)) for one in readings]) for name in _READING}
    columns = {name: values.astype(np.float64) for name, values in columns.items()}
    stamped = np.array([one.instrument_time_s is not None for one in readings], dtype=np.bool_)
    limited = np.array([one.in_compliance for one in readings], dtype=np.bool_)
    return {**columns, "in_compliance": limited, "stamped": stamped}


def readings_from(arrays: Arrays) -> list[Reading]:
    """The readings again.

    Raises:
        ProtocolError: An array is missing, or they differ in length.
    """
    columns = [floats(arrays, name) for name in _READING]
    limited, stamped = flags(arrays, "in_compliance"), flags(arrays, "stamped")
    if any(one.ndim != 1 or one.shape != limited.shape for one in (*columns, stamped)):
        raise ProtocolError("the arrays of readings differ in length")
    rows = zip(*(one.tolist() for one in columns), limited.tolist(), stamped.tolist(), strict=True)
    return [
        Reading(voltage_v, current_a, in_compliance, time_s, instrument_s if has_stamp else None)
        for voltage_v, current_a, time_s, instrument_s, in_compliance, has_stamp in rows
    ]


def write_arrays(writes: Sequence[PastWrite]) -> Arrays:
    """Past writes of a commanded board."""
    return {
        "array": np.array([one.array for one in writes], dtype=np.int64),
        "write_index": np.array([one.write_index for one in writes], dtype=np.int64),
        "requests": np.array([one.requests for one in writes], dtype=np.int64),
        "time_s": np.array([one.time_s for one in writes], dtype=np.float64),
        "conductance_s": np.array([one.conductance_s for one in writes], dtype=np.float64),
    }


def writes_from(arrays: Arrays) -> list[PastWrite]:
    """The past writes again.

    Raises:
        ProtocolError: An array is missing, or they differ in length.
    """
    counts = [arrays.get(name) for name in ("array", "write_index", "requests")]
    time_s, conductance_s = floats(arrays, "time_s"), floats(arrays, "conductance_s")
    lengths = {len(one) for one in (*counts, time_s, conductance_s) if one is not None and one.ndim}
    if len(lengths) != 1 or any(one is None or one.dtype != np.int64 or one.ndim != 1 for one in counts):
        raise ProtocolError("the arrays of past writes are missing, or differ in length")
    array, write_index, requests = (one.tolist() for one in counts if one is not None)
    rows = zip(array, write_index, conductance_s, time_s.tolist(), requests, strict=True)
    return [PastWrite(*row) for row in rows]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
