"""What is wrong with a value of a TOML file, in words: what was found there, and what it must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

INSTRUMENT_NAME: Final = r"^[A-Za-z][A-Za-z0-9_-]*$"
ARRAY_NUMBER: Final = r"^(0|[1-9][0-9]*)$"
LINK_URL: Final = r"^[a-z]+://.+"
BROKER_URL: Final = r"^mqtts?://.+"
VARIABLE_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"

_FORMS: Final[Mapping[str, str]] = {
    INSTRUMENT_NAME: "must begin with a letter, and have letters, digits, _ and - only",
    ARRAY_NUMBER: "must be the number of an array, counted from 0",
    LINK_URL: "must be an address such as tcp://192.168.0.7:5025",
    BROKER_URL: "must be mqtt://HOST:PORT or mqtts://HOST:PORT",
    VARIABLE_NAME: "must be the name of an environment variable",
}
# A password may stand there by mistake.
_NEVER_REPEATED: Final = frozenset({BROKER_URL, VARIABLE_NAME})
_KINDS: Final[Mapping[str, str]] = {
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "finite_number": "must be finite",
}
_BOUNDS: Final[Mapping[str, str]] = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
}
_LONGEST: Final = 60


def reason_of(error: ErrorDetails) -> str:
    """The reason of one error of pydantic, without the key."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        pattern = str(limits["pattern"])
        asked = _FORMS.get(pattern, f"must match {pattern}")
        is_key = error["loc"][-1:] == ("[key]",)
        return asked if is_key or pattern in _NEVER_REPEATED else f"is {value_text(error['input'])}, {asked}"
    wanted = _BOUNDS[kind].format(**limits) if kind in _BOUNDS else _KINDS.get(kind)
    if wanted is None:
        message = error["msg"].removeprefix("Value error, ")
        return f"is {value_text(error['input'])}; {message[:1].lower() + message[1:]}"
    return f"is {value_text(error['input'])}, {wanted}"


def value_text(value: object) -> str:
    """A value as a TOML or JSON file has it, cut where it is long."""
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
