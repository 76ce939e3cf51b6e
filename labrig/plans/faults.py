"""What goes wrong inside a plan, told with the place in it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from labrig_drivers.errors import ConfigError, LabrigError


@contextmanager
def plan_faults(name: str, doing: str) -> Iterator[None]:
    """Turns what a plan of one's own trips over into one message; labrig's own errors go on as they are.

    Args:
        name: Of the plan.
        doing: What it was asked for, such as `its points`.

    Raises:
        ConfigError: Code of the plan failed; the message has its file and line.
    """
    try:
        yield
    except (LabrigError, StopAsyncIteration):
        raise
    except Exception as error:  # own code may fail in any way
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"plan {name!r}: {doing} cannot be had: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        ) from error
