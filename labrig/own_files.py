"""Python files of the user's own, such as plans and models, as modules."""

from __future__ import annotations

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from labrig_drivers.errors import ConfigError


def module_of_file(path: Path) -> ModuleType:
    """Runs a file, once for each content of it.

    Raises:
        ConfigError: It cannot be read, or fails when it is run.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    # A name of its own for each file, so that two of them called alike do not meet.
    name = f"labrig_own_{sha256(str(path.resolve()).encode() + content).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is no Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        # An own file may fail in any way.
        raise ConfigError(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    return module
