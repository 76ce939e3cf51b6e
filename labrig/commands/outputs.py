"""Results of commands, which may take the place of an earlier result of their kind and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from labrig_drivers.errors import ConfigError, StorageError

_HEAD_BYTES: Final = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of results.

    Attributes:
        name: As a message has it.
        holds: Whether a file that is there is one.
    """

    name: str
    holds: Callable[[Path], bool]


def _is_chip(path: Path) -> bool:
    from labrig_surrogates.io import is_chip_file

    return is_chip_file(path)


def _is_page(path: Path) -> bool:
    head = _head(path)
    return head.startswith(b"<!doctype html>") and b'<meta name="generator" content="labrig">' in head


def _is_plan(path: Path) -> bool:
    from labrig.plans.plan_file import read_plan_file

    try:
        read_plan_file(path)
    except ConfigError:
        return False
    return True


def _is_device_fits(path: Path) -> bool:
    document = _json(path)
    return isinstance(document, dict) and {"kind", "file", "fits"} == set(document)


def _is_schema(path: Path) -> bool:
    document = _json(path)
    return isinstance(document, dict) and "$schema" in document


CHIP: Final = Kind("fitted chip", _is_chip)
PAGE: Final = Kind("page of labrig", _is_page)
PLAN: Final = Kind("plan file", _is_plan)
DEVICE_FITS: Final = Kind("file of device fits", _is_device_fits)
SCHEMA: Final = Kind("JSON schema", _is_schema)


def output_faults(outputs: Iterable[tuple[Path | None, Kind]]) -> list[str]:
    """Why these results cannot be written, one text each; empty where nothing speaks against them.

    Args:
        outputs: Where each goes, and what it is; None for one that is not asked for.
    """
    from labrig.recording.whole_files import unwritable

    faults: list[str] = []
    seen: dict[Path, str] = {}
    for path, kind in outputs:
        if path is None:
            continue
        faults += unwritable([path])
        if path.is_file() and not kind.holds(path):
            faults.append(f"{path}: is there already, is no {kind.name}, and is not overwritten; choose another name")
        other = seen.setdefault(path.resolve(), kind.name)
        if other != kind.name:
            faults.append(f"{path}: is to hold a {other} and a {kind.name}; choose another name for one of them")
    return faults


def demand_outputs(*outputs: tuple[Path | None, Kind]) -> None:
    """Refuses results that cannot be written, before the work for them is done.

    Args:
        *outputs: See `output_faults`.

    Raises:
        StorageError: Some cannot; each is named.
    """
    if faults := output_faults(outputs):
        raise StorageError("; ".join(faults))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _json(path: Path) -> object:
    try:
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document
