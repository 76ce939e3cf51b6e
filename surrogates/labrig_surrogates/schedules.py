"""How much noise at which step of a training: frozen objects, a number in, a level out.

A step is whatever the caller counts, optimiser steps or epochs; all schedules of one training count the same. A level
is the N of a `NoiseSpec` (or, for VANT as published, an absolute standard deviation). The forms are those of the
project's specification (linear, exponential) and of VANT's public code (per-image levels, overshoot; Wang et al., 2025,
arXiv 2503.16183, repository UniHD-CEG/VANT).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse, told

MEAN_OF_FOLDED_NORMAL = math.sqrt(2.0 / math.pi)
"""Mean of |n| for n ~ N(0, 1)."""


class Schedule(Protocol):
    """A noise level as a function of the step."""

    def level(self, step: int) -> float:
        """The level at a step from zero on; the mean level where a schedule draws one for each sample."""
        ...

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """A level for each of `samples` samples of a batch, `[samples]`, float32 on the generator's device."""
        ...


def _same(schedule: Schedule, step: int, samples: int, generator: torch.Generator) -> Tensor:
    return torch.full((samples,), schedule.level(step), device=generator.device)


def _level_faults(**levels: float) -> list[str]:
    return [
        f"{name} is {told(value)}: levels are finite and not negative"
        for name, value in levels.items()
        if not (math.isfinite(value) and value >= 0)
    ]


def _step_faults(**steps: int) -> list[str]:
    return [
        f"{name} is {told(value)}: it is a whole number of steps, one or more"
        for name, value in steps.items()
        if value < 1
    ]


def _checked(step: int) -> int:
    if step < 0:
        raise SurrogateError(f"step {step} of a schedule: steps count from zero")
    return step


@dataclass(frozen=True)
class Constant:
    """The same level at every step.

    Attributes:
        value: The level.
    """

    value: float

    def __post_init__(self) -> None:
        refuse("constant schedule", _level_faults(value=self.value))

    def level(self, step: int) -> float:
        """See `Schedule.level`."""
        _checked(step)
        return self.value

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`; nothing is drawn."""
        return _same(self, step, samples, generator)


@dataclass(frozen=True)
class Linear:
    """`start + (end - start) * t / steps`, then `end`.

    Attributes:
        start: Level at step zero.
        end: Level from `steps` on.
        steps: Length T of the ramp.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        refuse("linear schedule", _level_faults(start=self.start, end=self.end) + _step_faults(steps=self.steps))

    def level(self, step: int) -> float:
        """See `Schedule.level`."""
        done = min(_checked(step), self.steps) / self.steps
        return self.start * (1.0 - done) + self.end * done

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`; nothing is drawn."""
        return _same(self, step, samples, generator)


@dataclass(frozen=True)
class Exponential:
    """`start * (end / start) ** (t / steps)`, then `end`.

    Attributes:
        start: Level at step zero, more than zero.
        end: Level from `steps` on, more than zero.
        steps: Length T of the ramp.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        faults = _level_faults(start=self.start, end=self.end) + _step_faults(steps=self.steps)
        zero = [name for name in ("start", "end") if getattr(self, name) == 0]
        faults += [f"{name} is zero, where no ratio leads: start from a small level, or use Linear" for name in zero]
        refuse("exponential schedule", faults)

    def level(self, step: int) -> float:
        """See `Schedule.level`."""
        done = min(_checked(step), self.steps) / self.steps
        return self.end if done == 1 else self.start * (self.end / self.start) ** done

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`; nothing is drawn."""
        return _same(self, step, samples, generator)


@dataclass(frozen=True)
class Vant:
    """Variance-aware noisy training: a linear ramp from zero, then a level of its own for each sample.

    After the ramp `sigma_i = mean_factor * end + spread * |n_i|`, n_i ~ N(0, 1): a folded normal, as VANT's code has
    it (its text says N(mean_factor * sigma, spread)). The published settings for sigma = 1.3 ... 1.5 are the defaults;
    there the levels are absolute standard deviations, and `spread` was tuned from 0.05 to 0.96 together with sigma.
    VANT's `linspace(0, sigma, 100)` is `ramp_steps=99`.

    Attributes:
        end: The level sigma that the ramp leads to.
        ramp_steps: Length of the ramp.
        mean_factor: alpha, a pure number.
        spread: theta, in the unit of `end`.
    """

    end: float
    ramp_steps: int
    mean_factor: float = 0.45
    spread: float = 0.66

    def __post_init__(self) -> None:
        levels = _level_faults(end=self.end, mean_factor=self.mean_factor, spread=self.spread)
        refuse("VANT schedule", levels + _step_faults(ramp_steps=self.ramp_steps))

    def level(self, step: int) -> float:
        """See `Schedule.level`: the ramp, then `mean_factor * end + spread * sqrt(2 / pi)`."""
        if _checked(step) < self.ramp_steps:
            return self.end * step / self.ramp_steps
        return self.mean_factor * self.end + self.spread * MEAN_OF_FOLDED_NORMAL

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`: equal levels along the ramp, fresh ones afterwards."""
        if _checked(step) < self.ramp_steps:
            return _same(self, step, samples, generator)
        normal = torch.randn((samples,), generator=generator, device=generator.device)
        return self.mean_factor * self.end + self.spread * normal.abs()


@dataclass(frozen=True)
class Overshoot:
    """From zero up to `peak_factor * end`, down to `end`, both linear, then `end` (an option of VANT's code).

    Attributes:
        end: The level to stay at.
        rise_steps: Length of the way up.
        fall_steps: Length of the way down.
        peak_factor: Height of the peak as a multiple of `end`, one or more; 1.5 in VANT's code.
    """

    end: float
    rise_steps: int
    fall_steps: int
    peak_factor: float = 1.5

    def __post_init__(self) -> None:
        faults = _level_faults(end=self.end) + _step_faults(rise_steps=self.rise_steps, fall_steps=self.fall_steps)
        if not (math.isfinite(self.peak_factor) and self.peak_factor >= 1):
            faults.append(f"peak_factor is {told(self.peak_factor)}: a peak is one or more times the end")
        refuse("overshoot schedule", faults)

    def level(self, step: int) -> float:
        """See `Schedule.level`."""
        peak = self.peak_factor * self.end
        if _checked(step) <= self.rise_steps:
            return peak * step / self.rise_steps
        return Linear(peak, self.end, self.fall_steps).level(step - self.rise_steps)

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`; nothing is drawn."""
        return _same(self, step, samples, generator)


@dataclass(frozen=True)
class Then:
    """One schedule for some steps, then another, which counts from zero again.

    Attributes:
        first: The schedule of the first `steps` steps.
        steps: How many steps the first one has.
        second: The schedule afterwards.
    """

    first: Schedule
    steps: int
    second: Schedule

    def __post_init__(self) -> None:
        refuse("chained schedule", _step_faults(steps=self.steps))

    def level(self, step: int) -> float:
        """See `Schedule.level`."""
        part, inner = self._at(step)
        return part.level(inner)

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`."""
        part, inner = self._at(step)
        return part.draw(inner, samples, generator)

    def _at(self, step: int) -> tuple[Schedule, int]:
        return (self.first, step) if _checked(step) < self.steps else (self.second, step - self.steps)


@dataclass(frozen=True)
class Scaled:
    """A schedule times a factor: the same course for another layer or another test level.

    Attributes:
        schedule: The schedule.
        factor: What its levels are multiplied with.
    """

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        refuse("scaled schedule", _level_faults(factor=self.factor))

    def level(self, step: int) -> float:
        """See `Schedule.level`."""
        return self.factor * self.schedule.level(step)

    def draw(self, step: int, samples: int, generator: torch.Generator) -> Tensor:
        """See `Schedule.draw`."""
        return self.factor * self.schedule.draw(step, samples, generator)


_KINDS = {
    "constant": Constant,
    "linear": Linear,
    "exponential": Exponential,
    "vant": Vant,
    "overshoot": Overshoot,
    "then": Then,
    "scaled": Scaled,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_NESTED = {"first", "second", "schedule"}
_WHOLE = {"steps", "ramp_steps", "rise_steps", "fall_steps"}


def to_json(schedule: Schedule) -> str:
    """A schedule as JSON, for run files and checkpoints; `from_json` gives an equal object back.

    Raises:
        SurrogateError: The schedule, or a part of it, is of a class that is not defined here.
    """
    return json.dumps(_to_mapping(schedule))


def from_json(text: str) -> Schedule:
    """The schedule that `to_json` wrote.

    Raises:
        SurrogateError: Not JSON, an unknown kind, missing or unknown keys, values of a wrong type or out of range.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SurrogateError(f"schedule: not JSON ({error})") from error
    return _from_mapping(content, "schedule")


def _to_mapping(schedule: Schedule) -> dict[str, object]:
    kind = _NAMES.get(type(schedule))
    if kind is None:
        raise SurrogateError(f"{schedule!r} has no form in JSON; one of {', '.join(_KINDS)} has")
    content: dict[str, object] = {"kind": kind}
    for name in (field.name for field in fields(schedule)):  # type: ignore[arg-type]  # every kind is a dataclass
        value = getattr(schedule, name)
        content[name] = _to_mapping(value) if name in _NESTED else value
    return content


def _from_mapping(content: object, where: str) -> Schedule:
    if not isinstance(content, Mapping):
        raise SurrogateError(f"{where}: {json.dumps(content)[:60]} is not an object with a key 'kind'")
    kind = _KINDS.get(str(content.get("kind")))
    if kind is None:
        raise SurrogateError(f"{where}: kind {content.get('kind')!r} is none of {', '.join(_KINDS)}")
    given = {str(key): value for key, value in content.items() if key != "kind"}
    known = {field.name: field for field in fields(kind)}
    required = [name for name, field in known.items() if field.default is MISSING]
    faults = [f"unknown key {name!r}" for name in given if name not in known]
    faults += [f"key {name!r} is missing" for name in required if name not in given]
    faults += [fault for name, value in given.items() if name in known for fault in _type_faults(name, value)]
    refuse(f"{where} ({content['kind']})", faults)
    made = {k: _from_mapping(v, f"{where}.{k}") if k in _NESTED else v for k, v in given.items()}
    schedule: Schedule = kind(**made)
    return schedule


def _type_faults(name: str, value: object) -> list[str]:
    if name in _NESTED:
        return []
    number = int if name in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, number):
        return [f"{name} is {value!r}: not a {'whole ' if name in _WHOLE else ''}number"]
    return []
