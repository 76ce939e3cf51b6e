"""The options of `labrig sweep` that run a plan at many settings of the rig's axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.plans import Plan


@dataclass(frozen=True)
class OverOptions:
    """What was given.

    Attributes:
        axes: One text for each axis, `NAME=VALUE,VALUE,...` or `NAME=FIRST:LAST:COUNT`.
        visits: Times that each setting is visited.
        random_order: Whether settings come in random order.
        settle_s: Time in s after the axes arrived.
        one_write: Whether one write is measured at all settings.
        seed: Determines the order.
    """

    axes: Sequence[str]
    visits: int
    random_order: bool
    settle_s: float
    one_write: bool
    seed: int


def over_axes(plan: Plan, options: OverOptions) -> Plan:
    """The plan at every combination of the values that were given; as it is where none were.

    Raises:
        ConfigError: Options are wrong; every fault at once.
    """
    import numpy as np

    from labrig.plans import OverAxes, grid, repeated, shuffled

    values, faults = _values(options.axes)
    if not options.axes:
        unused = {
            "--visits": options.visits != 1,
            "--random-order": options.random_order,
            "--settle": options.settle_s != 0.0,
            "--one-write": options.one_write,
        }
        faults += [f"{name}: goes with --over, which is missing" for name, given in unused.items() if given]
    if faults:
        raise ConfigError("; ".join(faults))
    if not options.axes:
        return plan
    settings = repeated(grid(values), options.visits)
    if options.random_order:
        settings = shuffled(settings, np.random.default_rng([options.seed, len(settings)]))
    return OverAxes(plan, tuple(settings), options.settle_s, rewrite=not options.one_write)


def _values(texts: Sequence[str]) -> tuple[dict[str, list[float]], list[str]]:
    found: dict[str, list[float]] = {}
    faults: list[str] = []
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals or not name:
            faults.append(f"--over {text}: expected NAME=VALUE,VALUE,... or NAME=FIRST:LAST:COUNT")
        elif name in found:
            faults.append(f"--over {text}: {name} was given twice")
        else:
            try:
                found[name] = _range(listed) if ":" in listed else [_number(one) for one in listed.split(",")]
            except ValueError as error:
                faults.append(f"--over {text}: {error}")
    return found, faults


def _range(text: str) -> list[float]:
    import numpy as np

    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError("a range is FIRST:LAST:COUNT")
    first, last, count = _number(parts[0]), _number(parts[1]), parts[2].strip()
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"the COUNT of a range is {parts[2]!r}, must be a whole number above 0")
    values: list[float] = np.linspace(first, last, int(count)).tolist()
    return values


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value
