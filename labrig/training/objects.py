"""Own models and data sets by import path: `package.module:name`, or `file.py:name` beside the training file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from labrig.own_files import module_of_file
from labrig_drivers.errors import ConfigError


def is_import_path(name: str) -> bool:
    """Whether a name of a training file is an import path and not one of labrig's own."""
    return ":" in name


def load_callable(path: str, base: Path) -> Callable[..., object]:
    """Imports what an import path names.

    Args:
        path: `package.module:name`, or `file.py:name` relative to `base`.
        base: Folder of the training file.

    Raises:
        ConfigError: It cannot be imported, or is nothing that can be called.
    """
    where, _, name = path.partition(":")
    try:
        module = module_of_file(base / where) if where.endswith(".py") else importlib.import_module(where)
    except ConfigError:
        raise
    except Exception as error:  # an own file may fail in any way
        raise ConfigError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{path}: {where} has no function or class {name!r}")
    if not callable(found):
        raise ConfigError(f"{path}: is of type {type(found).__name__}; a function or class is needed")
    return found  # type: ignore[no-any-return]
