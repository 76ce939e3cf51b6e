"""What can hang at the terminals of a simulated source-meter, and what the terminals show then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# Thermal voltage k T / q at 300 K in V.
_THERMAL_VOLTAGE_V = 0.025852
# exp() of more than this is beyond any current that a source-meter can limit.
_LARGEST_EXPONENT = 200.0
# How far beyond its level a source-meter at its limit is looked for, in V.
_FIRST_PUSH_V, _LARGEST_PUSH_V = 0.1, 300.0
# Halvings of 210 V until nothing of a double is left.
_BISECTIONS = 80


class Load(Protocol):
    """Something that draws current; the current must not fall when the voltage rises."""

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        """Mean current in A that flows in at `voltage_v` between two times of the server's clock.

        The two times are equal when the current of one moment is wanted.
        """
        ...

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        """Is told that the source was set to `voltage_v` at a time of the server's clock; 0.0 when off."""
        ...


@dataclass(frozen=True)
class ResistorLoad:
    """An ideal resistor.

    Attributes:
        resistance_ohm: Resistance in ohm, positive.
    """

    resistance_ohm: float

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:  # noqa: ARG002
        """Current in A by Ohm's law."""
        return voltage_v / self.resistance_ohm

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        """A resistor has no memory."""


@dataclass(frozen=True)
class DiodeLoad:
    """An ideal diode at 300 K, `I = I_s (exp(V / (n V_T)) - 1)` (Shockley).

    Attributes:
        saturation_current_a: Saturation current `I_s` in A.
        ideality: Ideality factor `n`.
    """

    saturation_current_a: float
    ideality: float

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:  # noqa: ARG002
        """Current in A by the diode equation."""
        exponent = min(voltage_v / (self.ideality * _THERMAL_VOLTAGE_V), _LARGEST_EXPONENT)
        return self.saturation_current_a * math.expm1(exponent)

    def supply_changed(self, voltage_v: float, time_s: float) -> None:
        """A diode has no memory."""


@dataclass(frozen=True)
class Terminals:
    """What the terminals show.

    Attributes:
        voltage_v: Voltage in V.
        current_a: Current out of the source in A.
        in_compliance: True when the limit, not the level, rules.
    """

    voltage_v: float
    current_a: float
    in_compliance: bool


def at_voltage(load: Load, level_v: float, limit_a: float, start_s: float, stop_s: float) -> Terminals:
    """A voltage source of `level_v` that gives no more than `limit_a` in either direction."""
    current_a = load.current_a(level_v, start_s, stop_s)
    if abs(current_a) <= limit_a:
        return Terminals(level_v, current_a, in_compliance=False)
    held_a = math.copysign(limit_a, current_a)
    low_v, high_v = sorted((0.0, level_v))
    # A load with sources of its own pushes the terminals beyond that.
    step_v = max(abs(level_v), _FIRST_PUSH_V)
    while load.current_a(low_v, start_s, stop_s) > held_a and low_v > -_LARGEST_PUSH_V:
        low_v, step_v = low_v - step_v, 2.0 * step_v
    while load.current_a(high_v, start_s, stop_s) < held_a and high_v < _LARGEST_PUSH_V:
        high_v, step_v = high_v + step_v, 2.0 * step_v
    voltage_v = _voltage_at(lambda v: load.current_a(v, start_s, stop_s), held_a, low_v, high_v)
    return Terminals(voltage_v, held_a, in_compliance=True)


def at_current(load: Load, level_a: float, limit_v: float, start_s: float, stop_s: float) -> Terminals:
    """A current source of `level_a` that gives no more than `limit_v` in either direction."""
    lowest_a = load.current_a(-limit_v, start_s, stop_s)
    highest_a = load.current_a(limit_v, start_s, stop_s)
    if level_a < lowest_a:
        return Terminals(-limit_v, lowest_a, in_compliance=True)
    if level_a > highest_a:
        return Terminals(limit_v, highest_a, in_compliance=True)
    voltage_v = _voltage_at(lambda v: load.current_a(v, start_s, stop_s), level_a, -limit_v, limit_v)
    return Terminals(voltage_v, level_a, in_compliance=False)


def _voltage_at(current_a: Callable[[float], float], wanted_a: float, low_v: float, high_v: float) -> float:
    """Voltage in V at which a current that rises with the voltage is `wanted_a`, by bisection."""
    for _ in range(_BISECTIONS):
        middle_v = 0.5 * (low_v + high_v)
        if current_a(middle_v) < wanted_a:
            low_v = middle_v
        else:
            high_v = middle_v
    return 0.5 * (low_v + high_v)
