"""Checks a TOML text against a pydantic model: every fault at once, as `file:line: key: reason`."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from labrig.toml_lines import key_lines, line_of
from labrig.toml_reasons import reason_of
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SI_UNIT = re.compile(r"_(v_per_s|a_per_s|v|a|w|s)$")
_UNIT = re.compile(r"_[a-z]+(_per_[a-z]+)?$", re.IGNORECASE)


class Section(BaseModel):
    """Base of every table of a labrig TOML file: no unknown keys, no silent conversion, no infinite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


ModelT = TypeVar("ModelT", bound=Section)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        key: Path of the key.
        reason: Why, without the key.
    """

    key: tuple[str, ...]
    reason: str


CrossCheck = Callable[[Mapping[str, object]], Iterable[Fault]]


def read_toml(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: The file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def check_toml(
    text: str, path: Path, model: type[ModelT], cross_check: CrossCheck, when_wrong: CrossCheck | None = None
) -> ModelT:
    """Checks the text of a file.

    Args:
        text: The TOML text.
        path: Where the text comes from, for messages.
        model: What the file must be.
        cross_check: Faults between keys, found on values that are perhaps not valid by themselves, so that all
            come in one error.
        when_wrong: Further faults, which are looked for only where there are some already: what would otherwise be
            told only when those are mended. Keys of which something is told already are left out.

    Raises:
        ConfigError: The text is wrong; the message lists every fault.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_fault(error, text, path)) from error
    except RecursionError:
        raise ConfigError(f"{path}: TOML: arrays or tables lie too deep in one another") from None
    faults = list(cross_check(raw))
    checked: ModelT | None = None
    try:
        checked = model.model_validate(raw)
    except ValidationError as error:
        faults += [_schema_fault(model, item) for item in error.errors()]
    if faults or checked is None:
        told = {fault.key for fault in faults}
        faults += [] if when_wrong is None else [fault for fault in when_wrong(raw) if fault.key not in told]
        lines = key_lines(text)
        located = sorted((line_of(lines, fault.key), ".".join(fault.key), fault.reason) for fault in faults)
        raise ConfigError("\n".join(f"{path}:{line}: {key}: {reason}" for line, key, reason in located))
    return checked


def _syntax_fault(error: tomllib.TOMLDecodeError, text: str, path: Path) -> str:
    message = str(error)
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    line = int(found.group(1)) if found else len(text.splitlines()) or 1
    return f"{path}:{line}: TOML: {message}"


def _schema_fault(model: type[Section], error: ErrorDetails) -> Fault:
    # pydantic marks a bad key of a mapping by an extra "[key]" behind it.
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return Fault(key, "is missing")
    if error["type"] == "extra_forbidden":
        return Fault(key, _unknown_key(_keys_at(model, key[:-1]), key[-1]))
    return Fault(key, reason_of(error))


def _unknown_key(known: list[str], name: str) -> str:
    # The unit ends a name: level_voltage_mv and level_voltage both mean level_voltage_v.
    stems = {name, _UNIT.sub("", name)}
    meant = [one for one in known if _SI_UNIT.search(one) and _SI_UNIT.sub("", one) in stems]
    if meant:
        # max_ramp_ma_per_s could be both max_ramp_v_per_s and max_ramp_a_per_s by its stem.
        (nearest,) = difflib.get_close_matches(name, meant, n=1, cutoff=0.0)
        return f"unknown key; did you mean {nearest}? (SI units)"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; known {'are' if len(known) > 1 else 'is'} {', '.join(known)}"


def _keys_at(model: type[BaseModel], table: tuple[str, ...]) -> list[str]:
    """The keys that a table may hold; the name of an entry of a mapping of tables stands for any name."""
    for name in table:
        field = model.model_fields.get(name)
        if field is None:
            continue
        inside = [field.annotation, *get_args(field.annotation)]
        tables = [kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if tables:
            model = tables[0]
    return list(model.model_fields)
