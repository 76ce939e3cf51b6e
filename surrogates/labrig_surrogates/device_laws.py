"""What devices do between being programmed and being read: error of programming, drift, relaxation, read noise.

Every law works in the unit of its fit (`unit_s`: so many siemens) and hands out siemens. Numbers that belong to a
device come as standard normals from outside: `numbers("name")` gives the same ones at each call, so that a device that
is asked at two ages is the same device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from labrig_surrogates.current_noise import BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C
from labrig_surrogates.device_curves import Curve
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse, value_faults

Numbers = Callable[[str], Tensor]
"""Standard normal numbers, one for each device, that belong to the device until it is programmed again, by name."""

_MICROSIEMENS = 1e-6


class StateLaw(Protocol):
    """From the targets of devices to their conductances at an age."""

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """Conductances in S, `age_s` after the devices were programmed."""
        ...


class ReadLaw(Protocol):
    """How far one reading of a device lies from its conductance."""

    def sigma_s(self, state_s: Tensor, fresh_s: Tensor, age_s: float) -> Tensor:
        """Standard deviation in S.

        Args:
            state_s: Conductances now.
            fresh_s: What they were right after programming.
            age_s: Time in s since then.
        """
        ...


@dataclass(frozen=True)
class Programmed:
    """Programming misses the target by a Gaussian error, and nothing happens afterwards.

    Attributes:
        sigma: Standard deviation in units of `unit_s`, of the target relative to `reference_s`.
        reference_s: Conductance that counts as one.
        unit_s: Unit of `sigma` in S.
    """

    sigma: Curve
    reference_s: float = _MICROSIEMENS
    unit_s: float = _MICROSIEMENS

    def sigma_s(self, target_s: Tensor) -> Tensor:
        """Standard deviation in S of the error at these targets."""
        return self.sigma(target_s / self.reference_s) * self.unit_s

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """The programmed conductances, never below zero, at every age."""
        del age_s
        return torch.clamp(target_s + self.sigma_s(target_s) * numbers("programming"), min=0.0)


@dataclass(frozen=True)
class PowerLawDrift:
    """Programming error, then `g (t / t0)**-nu` with an exponent of each device's own.

    Attributes:
        programming: What programming leaves.
        exponent_mean: Mean of nu, of the target relative to `reference_s`.
        exponent_sigma: Its spread over devices; nu is the magnitude of the draw.
        reference_s: Conductance that counts as one.
        first_s: t0: the age in s at which the programming error was measured; a reading at age t happens at t + t0.
    """

    programming: Programmed
    exponent_mean: Curve
    exponent_sigma: Curve
    reference_s: float
    first_s: float

    def exponent(self, target_s: Tensor, numbers: Numbers) -> Tensor:
        """Exponent of each device."""
        relative = target_s / self.reference_s
        return torch.abs(self.exponent_mean(relative) + self.exponent_sigma(relative) * numbers("drift"))

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """Conductances `age_s` after `first_s`."""
        fresh_s = self.programming.state_s(target_s, 0.0, numbers)
        if age_s == 0.0:
            return fresh_s
        return fresh_s * torch.exp(-self.exponent(target_s, numbers) * math.log1p(age_s / self.first_s))


@dataclass(frozen=True)
class LogRelaxation:
    """Programming error, then a shift whose mean and spread over devices are linear in the logarithm of the age.

    Ages below 1 s count as 1 s, where the fit has no mean shift.

    Attributes:
        programming: What programming leaves.
        mean_per_ln: Mean shift for each factor e of the age, in units of `unit_s`.
        sigma_per_ln: The same of the spread.
        sigma_start: Spread at 1 s.
        unit_s: Unit in S.
    """

    programming: Programmed
    mean_per_ln: float
    sigma_per_ln: float
    sigma_start: float
    unit_s: float = _MICROSIEMENS

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """Conductances at an age, never below zero; right after programming nothing has relaxed yet."""
        fresh_s = self.programming.state_s(target_s, 0.0, numbers)
        if age_s == 0.0:
            return fresh_s
        logarithm = math.log(max(age_s, 1.0))
        sigma = self.sigma_per_ln * logarithm + self.sigma_start
        shift_s = (self.mean_per_ln * logarithm + sigma * numbers("relaxation")) * self.unit_s
        return torch.clamp(fresh_s + shift_s, min=0.0)


@dataclass(frozen=True)
class Retention:
    """Programming error, then the loss of what is stored: `end + (g - end) exp(-(t / tau)**beta)`.

    The stretched exponential of Kohlrausch (1854). tau differs from device to device, lognormally, and follows the
    temperature by the law of Arrhenius (1889), so that a bake at a high temperature predicts years at a low one:
    `tau(T) = tau exp(E / k (1 / T - 1 / T_rated))`.

    Attributes:
        programming: What programming leaves.
        time_s: Median of tau over devices in s, at `rated_k`.
        end_s: Conductance in S that devices end at.
        beta: Exponent; 1 is an exponential.
        ln_sigma: Standard deviation of ln tau over devices.
        activation_ev: E in eV; zero does not depend on the temperature.
        rated_k: Temperature in K at which `time_s` was found.
        temperature_k: Temperature in K at which the devices are kept.

    Raises:
        SurrogateError: A value is out of range; every fault is named.
    """

    programming: Programmed
    time_s: float
    end_s: float = 0.0
    beta: float = 1.0
    ln_sigma: float = 0.0
    activation_ev: float = 0.0
    rated_k: float = 300.0
    temperature_k: float = 300.0

    def __post_init__(self) -> None:
        positive = ("time_s", "beta", "rated_k", "temperature_k")
        faults = value_faults(self)
        faults += [f"{one} = {getattr(self, one)} must be positive" for one in positive if not getattr(self, one) > 0]
        not_negative = ("end_s", "ln_sigma", "activation_ev")
        faults += [f"{one} = {getattr(self, one)} is negative" for one in not_negative if getattr(self, one) < 0]
        refuse("retention", faults)

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """Conductances in S at an age."""
        fresh_s = self.programming.state_s(target_s, 0.0, numbers)
        if age_s == 0.0:
            return fresh_s
        inverse_ev = (1.0 / self.temperature_k - 1.0 / self.rated_k) * ELEMENTARY_CHARGE_C / BOLTZMANN_J_PER_K
        exponent = math.log(age_s / self.time_s) - self.activation_ev * inverse_ev
        # Not `exp(-(t / tau)**beta)` of a tau that may overflow: in logarithms it cannot.
        log_loss = self.beta * (exponent - self.ln_sigma * numbers("retention"))
        return self.end_s + (fresh_s - self.end_s) * torch.exp(-torch.exp(log_loss.clamp(max=80.0)))


@dataclass(frozen=True)
class ErrorAt:
    """Mean and spread of the distance from the target, measured at one age.

    Attributes:
        age_s: The age.
        sigma: Spread, in units of the law.
        mean: Mean; None is zero.
    """

    age_s: float
    sigma: Curve
    mean: Curve | None = None


@dataclass(frozen=True)
class ReplacedError:
    """An error that was measured at several ages, each time anew: a later one replaces the earlier, it does not add up.

    Between two ages mean and spread are interpolated, in the age or in its logarithm; a device keeps its place in the
    distribution. Before the first age the first counts; past the last there is no answer.

    Attributes:
        errors: By age.
        reference_s: Conductance that counts as one.
        unit_s: Unit in S of mean and spread.
        logarithmic: Whether to interpolate in the logarithm of the age.
    """

    errors: tuple[ErrorAt, ...]
    reference_s: float
    unit_s: float = _MICROSIEMENS
    logarithmic: bool = True

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """Conductances at an age, never below zero.

        Raises:
            SurrogateError: The age lies past the last measurement.
        """
        relative, shares = target_s / self.reference_s, self._shares(age_s)
        mean = torch.zeros_like(target_s)
        for error, share in shares:
            if error.mean is not None:
                mean = mean + share * error.mean(relative)
        # The spread belongs to the conductance that the mean has moved to.
        moved = relative + mean * (self.unit_s / self.reference_s)
        sigma = torch.zeros_like(target_s)
        for error, share in shares:
            sigma = sigma + share * error.sigma(moved)
        return torch.clamp(target_s + (mean + sigma * numbers("programming")) * self.unit_s, min=0.0)

    def _shares(self, age_s: float) -> list[tuple[ErrorAt, float]]:
        if age_s <= self.errors[0].age_s:
            return [(self.errors[0], 1.0)]
        place = math.log if self.logarithmic else float
        for before, after in pairwise(self.errors):
            if age_s <= after.age_s:
                start = place(before.age_s)
                share = (place(age_s) - start) / (place(after.age_s) - start)
                return [(before, 1.0 - share), (after, share)]
        last_s = self.errors[-1].age_s
        raise SurrogateError(f"age {age_s:g} s: these devices were measured up to {last_s:g} s; ask for no later age")


@dataclass(frozen=True)
class AccumulatedFlicker:
    """1/f noise summed from the time of one reading to the age: `g Q sqrt(ln((t + t_read) / (2 t_read)))`.

    Attributes:
        amplitude: Q, of the programmed conductance relative to `reference_s`.
        reference_s: Conductance that counts as one.
        read_s: Duration of a reading in s.
        first_s: Added to the age: t is counted from the start of programming.
    """

    amplitude: Curve
    reference_s: float
    read_s: float
    first_s: float

    def sigma_s(self, state_s: Tensor, fresh_s: Tensor, age_s: float) -> Tensor:
        """Standard deviation in S."""
        return state_s * self.amplitude(fresh_s / self.reference_s) * _flicker_growth(age_s + self.first_s, self.read_s)


@dataclass(frozen=True)
class LogFlicker:
    """1/f noise summed in the same way, in proportion to the decimal logarithm of the conductance.

    Attributes:
        factor: For a conductance of ten `unit_s`, in `unit_s`.
        read_s: Duration of a reading in s.
        unit_s: Unit in S.
    """

    factor: float
    read_s: float
    unit_s: float = _MICROSIEMENS

    def sigma_s(self, state_s: Tensor, fresh_s: Tensor, age_s: float) -> Tensor:
        """Standard deviation in S; zero below one unit."""
        del fresh_s
        decades = torch.log10(torch.clamp(state_s / self.unit_s, min=1.0))
        return self.factor * decades * _flicker_growth(age_s, self.read_s) * self.unit_s


@dataclass(frozen=True)
class StateNoise:
    """Read noise that depends on the conductance alone.

    Attributes:
        sigma: Standard deviation in `unit_s`, of the conductance in `unit_s`.
        unit_s: Unit in S.
    """

    sigma: Curve
    unit_s: float = _MICROSIEMENS

    def sigma_s(self, state_s: Tensor, fresh_s: Tensor, age_s: float) -> Tensor:
        """Standard deviation in S."""
        del fresh_s, age_s
        return self.sigma(state_s / self.unit_s) * self.unit_s


def _flicker_growth(time_s: float, read_s: float) -> float:
    """Zero until one reading has passed."""
    return math.sqrt(math.log(max((time_s + read_s) / (2.0 * read_s), 1.0)))
