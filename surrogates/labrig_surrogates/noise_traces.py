"""Noise with a memory: 1/f noise as a sum of relaxations, random telegraph noise as jumps between two levels.

Read noise that is drawn anew at each product has no spectrum. These have: a trace is made step by step, exactly for any
step, from a state that whoever reads keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from labrig_surrogates.faults import refuse


@dataclass(frozen=True)
class Flicker:
    """1/f noise between two frequencies: Ornstein-Uhlenbeck processes with log-spaced times and equal variances.

    `x <- x exp(-dt / tau) + sigma sqrt(1 - exp(-2 dt / tau)) xi` for each is exact for any dt; the one-sided spectrum
    is `S(f) = sum 4 sigma**2 tau / (1 + (2 pi f tau)**2)`.

    Attributes:
        sigma: Standard deviation of the whole.
        times_s: tau of each process in s.

    Raises:
        SurrogateError: A value is out of range; every fault is named.
    """

    sigma: float
    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        faults = [f"sigma = {self.sigma} must not be negative"] if not self.sigma >= 0 else []
        faults += [f"time {one} s must be positive" for one in self.times_s if not one > 0]
        faults += [] if self.times_s else ["there is no time"]
        refuse("1/f noise", faults)

    @classmethod
    def between(cls, sigma: float, low_hz: float, high_hz: float, *, per_decade: int = 2) -> Self:
        """Noise whose spectrum falls as 1/f from `low_hz` to `high_hz`."""
        if not 0 < low_hz < high_hz:
            refuse("1/f noise", [f"frequencies must be positive and ascend, not {low_hz} to {high_hz} Hz"])
        count = max(2, math.ceil(per_decade * math.log10(high_hz / low_hz)) + 1)
        ratio = (high_hz / low_hz) ** (1.0 / (count - 1))
        return cls(sigma, tuple(1.0 / (2.0 * math.pi * low_hz * ratio**number) for number in range(count)))

    @property
    def label(self) -> str:
        """What tells it from other traces of one cell."""
        return f"1/f {self.sigma} from {self.times_s[0]} to {self.times_s[-1]} s"

    def start(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """A state in equilibrium, `[processes, *shape]`, on the device of the generator."""
        return self.begin(_normal(self.numbers(shape), generator, dtype))

    def step(self, state: Tensor, step_s: float, generator: torch.Generator) -> Tensor:
        """The state so much later."""
        return self.go_on(state, step_s, _normal(tuple(state.shape), generator, state.dtype))

    def numbers(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the normal numbers that `begin` and `go_on` take for noise of a shape."""
        return (len(self.times_s), *shape)

    def begin(self, numbers: Tensor) -> Tensor:
        """A state in equilibrium, made of standard normal numbers."""
        return numbers * (self.sigma / math.sqrt(len(self.times_s)))

    def go_on(self, state: Tensor, step_s: float, numbers: Tensor) -> Tensor:
        """The state so much later, made with standard normal numbers."""
        times_s = torch.tensor(self.times_s, dtype=state.dtype, device=state.device)
        times_s = times_s.reshape(-1, *[1] * (state.dim() - 1))
        each = self.sigma / math.sqrt(len(self.times_s))
        fresh = each * torch.sqrt(-torch.expm1(-2.0 * step_s / times_s)) * numbers
        return state * torch.exp(-step_s / times_s) + fresh

    @staticmethod
    def value(state: Tensor) -> Tensor:
        """The noise of a state."""
        return state.sum(dim=0)

    def spectrum(self, frequency_hz: Tensor) -> Tensor:
        """One-sided power spectral density at frequencies, in units squared per Hz."""
        tau = torch.tensor(self.times_s, dtype=frequency_hz.dtype, device=frequency_hz.device)
        each = self.sigma**2 / len(self.times_s)
        return (4.0 * each * tau / (1.0 + (2.0 * math.pi * frequency_hz[..., None] * tau) ** 2)).sum(dim=-1)


@dataclass(frozen=True)
class Telegraph:
    """A trap that is full or empty: jumps between 0 and `amplitude` at random times (two-state Markov process).

    Attributes:
        amplitude: Height of a jump.
        up_hz: Rate of jumps up in 1/s while it is down.
        down_hz: Rate of jumps down in 1/s while it is up.

    Raises:
        SurrogateError: A rate is not positive; every fault is named.
    """

    amplitude: float
    up_hz: float
    down_hz: float

    def __post_init__(self) -> None:
        rates = {"up_hz": self.up_hz, "down_hz": self.down_hz}
        refuse("telegraph noise", [f"{name} = {rate} must be positive" for name, rate in rates.items() if not rate > 0])

    @property
    def label(self) -> str:
        """What tells it from other traces of one cell."""
        return f"telegraph {self.amplitude} up {self.up_hz} down {self.down_hz} Hz"

    @property
    def share_up(self) -> float:
        """Part of the time that it is up."""
        return self.up_hz / (self.up_hz + self.down_hz)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """A state in equilibrium: True where it is up, on the device of the generator."""
        return self.begin(_normal(shape, generator, torch.float64))

    def step(self, state: Tensor, step_s: float, generator: torch.Generator) -> Tensor:
        """The state so much later: exact, however many jumps are in between."""
        return self.go_on(state, step_s, _normal(tuple(state.shape), generator, torch.float64))

    @staticmethod
    def numbers(shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the normal numbers that `begin` and `go_on` take for noise of a shape."""
        return shape

    def begin(self, numbers: Tensor) -> Tensor:
        """A state in equilibrium, made of standard normal numbers."""
        up: Tensor = torch.special.ndtr(numbers) < self.share_up
        return up

    def go_on(self, state: Tensor, step_s: float, numbers: Tensor) -> Tensor:
        """The state so much later, made with standard normal numbers."""
        stay = math.exp(-(self.up_hz + self.down_hz) * step_s)
        chance = self.share_up + (state.to(numbers.dtype) - self.share_up) * stay
        up: Tensor = torch.special.ndtr(numbers) < chance
        return up

    def value(self, state: Tensor) -> Tensor:
        """The noise of a state."""
        return self.amplitude * state.to(torch.get_default_dtype())

    def spectrum(self, frequency_hz: Tensor) -> Tensor:
        """One-sided power spectral density, a Lorentzian (Machlup 1954), without the mean."""
        rate = self.up_hz + self.down_hz
        variance = self.amplitude**2 * self.share_up * (1.0 - self.share_up)
        return 4.0 * variance * rate / (rate**2 + (2.0 * math.pi * frequency_hz) ** 2)


def _normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
