"""Own models and data sets by import path: `package.module:name`, or `file.py:name` beside the training file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType

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
        module = _of_file(base / where) if where.endswith(".py") else importlib.import_module(where)
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


def _of_file(path: Path) -> ModuleType:
    # A name of its own for each file, so that two of them called alike do not meet.
    name = f"labrig_own_{sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
