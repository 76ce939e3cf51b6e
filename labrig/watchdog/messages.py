"""What a rig and its watchdog process say to each other: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from labrig.instruments import InstrumentSpec

READY = "ready"
ARM, ARMED, DISARM, BYE, ERROR = "arm", "armed", "disarm", "bye", "error"


def to_line(message: Mapping[str, object]) -> bytes:
    """One message as it is sent. What JSON cannot hold (a date in a driver's settings) goes as text."""
    return json.dumps(message, default=str).encode() + b"\n"


def from_line(line: bytes) -> dict[str, object]:
    """The inverse of `to_line`.

    Raises:
        ValueError: The line is no JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"{line!r} is no JSON object")  # noqa: TRY004 - the line is what is wrong
    return message


def arm(spec: InstrumentSpec) -> dict[str, object]:
    """The message that gives an instrument into the watchdog's care."""
    return {ARM: asdict(spec)}


def armed_spec(message: Mapping[str, object]) -> InstrumentSpec:
    """The instrument of an `arm` message; `TypeError` where it is none."""
    fields = message[ARM]
    if not isinstance(fields, dict):
        raise TypeError(f"{fields!r} describes no instrument")
    return InstrumentSpec(**fields)
