"""Conductances that are changed by pulses: up and down steps that differ, and depend on where the device stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_surrogates.faults import counted, refuse


class PulseResponse(Protocol):
    """How a device answers pulses. States have a unit of its own, from the lowest to the highest that pulses reach."""

    @property
    def middle(self) -> float:
        """The state half-way between the two."""
        ...

    def step(self, state: Tensor, *, up: bool) -> Tensor:
        """Mean change by one pulse at each state; negative for down pulses."""
        ...

    def after(self, state: Tensor, pulses: Tensor) -> Tensor:
        """Mean state after so many pulses: up where positive, down where negative. Differentiable in the state."""
        ...

    def spread(self, state: Tensor, *, up: bool) -> Tensor:
        """Standard deviation of the change by one pulse, from cycle to cycle."""
        ...


@dataclass(frozen=True)
class ExponentialPulses:
    """Steps that shrink on the way to the end: `w(p) = B (1 - exp(-p / A)) - 1`, states -1 to 1.

    `A` and `B` are such that `pulses` pulses lead from one end to the other (NeuroSim V2.1; one A for each direction).
    With A much larger than `pulses` the device is linear; different A make it asymmetric.

    Attributes:
        up_curvature: A of up pulses, in pulses.
        down_curvature: A of down pulses, in pulses.
        pulses: Pulses from end to end.
        cycle_sigma: Standard deviation of each step from cycle to cycle, in units of the range.

    Raises:
        SurrogateError: A value is out of range; every fault is named.
    """

    up_curvature: float
    down_curvature: float
    pulses: int = 32
    cycle_sigma: float = 0.0

    def __post_init__(self) -> None:
        named = {"up_curvature": self.up_curvature, "down_curvature": self.down_curvature, "pulses": self.pulses}
        faults = [f"{name} = {value} must be positive" for name, value in named.items() if not value > 0]
        faults += [f"cycle_sigma = {self.cycle_sigma} must not be negative"] if not self.cycle_sigma >= 0 else []
        refuse("exponential pulses", faults)

    @property
    def middle(self) -> float:
        """Half-way between -1 and 1."""
        return 0.0

    def _end(self, curvature: float) -> float:
        """Where infinitely many pulses would lead, counted from the start: B."""
        return float(2.0 / -np.expm1(-self.pulses / curvature))

    def step(self, state: Tensor, *, up: bool) -> Tensor:
        """Change by one pulse; none beyond the end."""
        one = torch.ones_like(state) if up else -torch.ones_like(state)
        return self.after(state, one) - state

    def after(self, state: Tensor, pulses: Tensor) -> Tensor:
        """The state after pulses in closed form: each is a step towards B by the same share of the way."""
        up_end, down_end = self._end(self.up_curvature) - 1.0, 1.0 - self._end(self.down_curvature)
        risen = up_end + (state - up_end) * torch.exp(-pulses.clamp(min=0.0) / self.up_curvature)
        moved = down_end + (risen - down_end) * torch.exp(pulses.clamp(max=0.0) / self.down_curvature)
        return torch.clamp(moved, -1.0, 1.0)

    def spread(self, state: Tensor, *, up: bool) -> Tensor:
        """The same everywhere."""
        del up
        return torch.full_like(state, 2.0 * self.cycle_sigma)


@dataclass(frozen=True)
class MeasuredPulses:
    """Steps read from measured trains of pulses; linear between the points of a grid.

    Attributes:
        states: Grid, ascending, `[points]`.
        up_steps: Mean change by an up pulse at each, positive, `[points]`.
        down_steps: The same by a down pulse, negative, `[points]`.
        up_sigma: Spread of single up steps at each, `[points]`.
        down_sigma: The same of down steps, `[points]`.

    Raises:
        SurrogateError: A step has the wrong direction, or the grid does not ascend; every fault is named.
    """

    states: Tensor
    up_steps: Tensor
    down_steps: Tensor
    up_sigma: Tensor
    down_sigma: Tensor

    def __post_init__(self) -> None:
        faults = []
        if len(self.states) < 2 or not bool((self.states.diff() > 0).all()):
            faults.append(f"the grid of {counted(len(self.states), 'state')} must ascend at each of two or more")
        for name, steps, sign in (("up", self.up_steps, "positive"), ("down", self.down_steps, "negative")):
            wrong = int((~(steps > 0 if sign == "positive" else steps < 0)).sum())
            if wrong:
                faults.append(
                    f"{name} steps must be {sign}: {wrong} of {steps.numel()} {'is' if wrong == 1 else 'are'} not"
                )
        refuse("measured pulses", faults)

    @property
    def middle(self) -> float:
        """Half-way between the ends of the grid."""
        return 0.5 * float(self.states[0] + self.states[-1])

    def step(self, state: Tensor, *, up: bool) -> Tensor:
        """Mean change by one pulse."""
        return _linear(state, self.states, self.up_steps if up else self.down_steps)

    def spread(self, state: Tensor, *, up: bool) -> Tensor:
        """Standard deviation of one step."""
        return _linear(state, self.states, self.up_sigma if up else self.down_sigma)

    def after(self, state: Tensor, pulses: Tensor) -> Tensor:
        """The state after pulses, on the mean curve: pulses are counted along it, from the grid's first state."""
        risen = self._along(state, pulses.clamp(min=0.0), self.up_steps)
        return self._along(risen, -pulses.clamp(max=0.0), self.down_steps)

    def _along(self, state: Tensor, pulses: Tensor, steps: Tensor) -> Tensor:
        grid = self.states.to(state)
        slowness = 1.0 / steps.to(state)
        # Pulses from the first state on: the integral of ds / step, with the reciprocal linear in between.
        counted = torch.cumsum(0.5 * (slowness[1:] + slowness[:-1]) * grid.diff(), dim=0)
        counted = torch.cat([counted.new_zeros(1), counted])
        direction = 1.0 if bool(counted[-1] > 0) else -1.0
        place = _linear(state, grid, counted * direction) + direction * pulses
        moved = _linear(place, counted * direction, grid)
        return torch.where(pulses > 0, moved, state)


def _linear(x: Tensor, grid: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation, constant beyond the ends."""
    grid, values = grid.to(x), values.to(x)
    at = torch.searchsorted(grid, x.detach().contiguous()).clamp(1, len(grid) - 1) - 1
    share = ((x - grid[at]) / (grid[at + 1] - grid[at])).clamp(0.0, 1.0)
    return torch.lerp(values[at], values[at + 1], share)


def measured_pulses(up: NDArray[np.float64], down: NDArray[np.float64], *, points: int = 8) -> MeasuredPulses:
    """Mean steps and their spread from one train of up pulses and one of down pulses.

    The steps are those whose mean curve passes closest to the train; regressing single steps on the state would take
    the noise of the readings for a pull towards the middle. That noise is in the spread.

    Args:
        up: State after each of the consecutive up pulses.
        down: State after each of the consecutive down pulses.
        points: Points of the grid, between the 2nd and 98th percentile of all states.

    Raises:
        SurrogateError: A train is not of finite numbers, or shorter than ten readings for each point of the grid.
    """
    trains = {"up": up, "down": down}
    faults = [f"the {name} train has {len(one)} readings" for name, one in trains.items() if len(one) < 10 * points]
    bad = {name: int((~np.isfinite(one)).sum()) for name, one in trains.items()}
    faults += [
        f"the {name} train has {counted(n, 'reading that is', 'readings that are')} not finite"
        for name, n in bad.items()
        if n
    ]
    refuse(f"measured pulses (at least {10 * points} readings are needed)", faults)
    low, high = np.percentile(np.concatenate([up, down]), [2.0, 98.0])
    grid = np.linspace(low, high, points)
    up_steps, down_steps = _steps(up, grid), -_steps(-down, -grid[::-1])[::-1]
    sigma = [_spread(train, grid, steps) for train, steps in ((up, up_steps), (down, down_steps))]
    return MeasuredPulses(
        *(torch.from_numpy(np.ascontiguousarray(one)) for one in (grid, up_steps, down_steps, *sigma))
    )


def _steps(train: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positive steps at the points of a grid, by least squares of the curve that they lead along."""
    from scipy.optimize import least_squares

    count, span = len(train), grid[-1] - grid[0]
    numbers = np.arange(count)

    def slowness(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pulses for each unit of the state at the points of the grid."""
        return np.asarray(np.exp(logarithms) * count / span)

    def distance(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        start, slow = parameters[0], slowness(parameters[1:])
        counted = np.concatenate([[0.0], np.cumsum(0.5 * (slow[1:] + slow[:-1]) * np.diff(grid))])
        curve = np.interp(np.interp(start, grid, counted) + numbers, counted, grid)
        # Points that the train does not visit follow their neighbours.
        return np.concatenate([curve - train, 1e-2 * span * np.diff(parameters[1:], n=2)])

    first = np.concatenate([[np.median(train[:5])], np.zeros(len(grid))])
    found = least_squares(distance, first, x_scale=np.concatenate([[span], np.ones(len(grid))]))
    return np.asarray(1.0 / slowness(found.x[1:]))


def _spread(train: NDArray[np.float64], grid: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of single steps in the neighbourhood of each point of the grid."""
    squares = (np.diff(train) - np.interp(train[:-1], grid, steps)) ** 2
    hats = np.stack([np.interp(train[:-1], grid, unit) for unit in np.eye(len(grid))])
    weight = hats.sum(axis=1)
    mean = np.divide(hats @ squares, weight, out=np.full(len(grid), squares.mean()), where=weight > 0)
    return np.asarray(np.sqrt(mean))


def symmetry_point(response: PulseResponse, low: float, high: float) -> float:
    """The state where an up and a down pulse cancel, by bisection: there alternating pulses lead from anywhere.

    Args:
        response: A device whose up steps are larger at `low` and down steps at `high`.
        low: Lowest state.
        high: Highest state.

    Raises:
        SurrogateError: There is none in between.
    """

    def excess(state: float) -> float:
        here = torch.tensor([state], dtype=torch.float64)
        return float(response.step(here, up=True) + response.step(here, up=False))

    if not excess(low) >= 0.0 >= excess(high):
        refuse("symmetry point", [f"pulses do not cancel between {low} and {high}: the sum of steps keeps its sign"])
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
    return 0.5 * (low + high)


def pulsed_update(
    response: PulseResponse, state: Tensor, wanted: Tensor, generator: torch.Generator, *, most_pulses: int = 32
) -> tuple[Tensor, Tensor]:
    """Changes states by whole pulses, as many as a device without asymmetry would need for what is wanted.

    The number of pulses is what is wanted over the mean of the up and down step in the middle of the range, rounded to
    a whole number at random so that its mean is right; the state then follows the device's own steps, with their
    spread from cycle to cycle.

    Args:
        response: The device.
        state: States before, any shape.
        wanted: Changes that are wanted, such as minus the learning rate times the gradient, in units of the state.
        generator: Decides roundings and spreads.
        most_pulses: Most pulses of one update.

    Returns:
        States after, and the pulses that were given, signed.
    """
    middle = torch.full((1,), response.middle, dtype=state.dtype, device=state.device)
    typical = 0.5 * (response.step(middle, up=True) - response.step(middle, up=False))
    exact = (wanted / typical).clamp(-most_pulses, most_pulses)
    chance = torch.rand(exact.shape, generator=generator, dtype=exact.dtype, device=exact.device)
    pulses = torch.floor(exact + chance)
    spread = torch.where(pulses > 0, response.spread(state, up=True), response.spread(state, up=False))
    normal = torch.randn(exact.shape, generator=generator, dtype=exact.dtype, device=exact.device)
    return response.after(state, pulses) + pulses.abs().sqrt() * spread * normal, pulses
