"""A device that was measured: what cells did after programming, as a table of quantiles, in place of an equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_surrogates.device_laws import Numbers
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse

# Fewer cells say nothing of the tails.
_FEWEST_CELLS = 20


@dataclass(frozen=True)
class RelaxationTable:
    """How far cells moved from what was programmed, for each level and age: a `StateLaw`.

    A cell keeps its place in the distribution at every age. Between levels and between probabilities the shift is
    interpolated, between ages in the logarithm of the age; beyond the ends of the levels the last one counts.

    Attributes:
        levels_s: Mean programmed conductance in S of each level, ascending, `[levels]`.
        ages_s: Ages in s, ascending, the first positive, `[ages]`.
        shifts_s: Quantiles of the shift in S at evenly spaced probabilities (k + 1/2) / n, `[ages, levels, n]`.

    Raises:
        SurrogateError: The parts do not go together; every fault is named.
    """

    levels_s: Tensor
    ages_s: tuple[float, ...]
    shifts_s: Tensor

    def __post_init__(self) -> None:
        faults = []
        if self.shifts_s.shape[:-1] != (len(self.ages_s), len(self.levels_s)) or self.shifts_s.shape[-1] < 2:
            faults.append(
                f"shifts of {tuple(self.shifts_s.shape)} for {len(self.ages_s)} ages, {len(self.levels_s)} levels"
            )
        if len(self.levels_s) < 2 or not bool((self.levels_s.diff() > 0).all()):
            faults.append(f"levels must ascend, and be two at least, not {_listed(self.levels_s.tolist())} S")
        if not self.ages_s or self.ages_s[0] <= 0 or list(self.ages_s) != sorted(set(self.ages_s)):
            faults.append(f"ages must ascend from above zero, not {_listed(self.ages_s)} s")
        refuse("relaxation table", faults)

    def state_s(self, target_s: Tensor, age_s: float, numbers: Numbers) -> Tensor:
        """Conductances in S of cells that were programmed to their targets and verified, never below zero.

        Raises:
            SurrogateError: The age lies past the last measurement.
        """
        if age_s > self.ages_s[-1]:
            raise SurrogateError(
                f"age {age_s:g} s: these cells were measured up to {self.ages_s[-1]:g} s; ask for no later age"
            )
        if age_s == 0.0:
            return target_s
        count = self.shifts_s.shape[-1]
        rank = torch.special.ndtr(numbers("relaxation")) * count - 0.5
        lower, within = _between(rank, count)
        levels_s = self.levels_s.to(target_s)
        level = torch.searchsorted(levels_s, target_s.detach().contiguous()).clamp(1, len(levels_s) - 1) - 1
        share = ((target_s - levels_s[level]) / (levels_s[level + 1] - levels_s[level])).clamp(0.0, 1.0)
        shift = torch.zeros_like(target_s)
        for row, weight in self._rows(age_s):
            table = self.shifts_s[row].to(target_s)
            low, high = (torch.lerp(table[at, lower], table[at, lower + 1], within) for at in (level, level + 1))
            shift = shift + weight * torch.lerp(low, high, share)
        return torch.clamp(target_s + shift, min=0.0)

    def _rows(self, age_s: float) -> list[tuple[int, float]]:
        """Rows of the table and what each counts; before the first age, cells are on their way to it."""
        if age_s <= self.ages_s[0]:
            return [(0, age_s / self.ages_s[0])]
        after = next(row for row, one in enumerate(self.ages_s) if age_s <= one)
        start_s, end_s = self.ages_s[after - 1], self.ages_s[after]
        share = math.log(age_s / start_s) / math.log(end_s / start_s)
        return [(after - 1, 1.0 - share), (after, share)]


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"


def _between(rank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The quantile below a rank, and the way to the next, 0 to 1."""
    inside = torch.clamp(rank, 0.0, count - 1.0)
    lower = inside.floor().clamp(max=count - 2.0)
    return lower.long(), inside - lower


@dataclass(frozen=True)
class Relaxation:
    """Single measurements of cells after programming, one row each.

    Attributes:
        cell: Which cell, `[rows]`.
        level: Number of the level that it was programmed to, `[rows]`.
        programmed_s: Conductance in S right after programming, `[rows]`.
        state_s: Conductance in S at the age, `[rows]`.
        age_s: Age in s, as planned, `[rows]`.
    """

    cell: NDArray[np.int64]
    level: NDArray[np.int64]
    programmed_s: NDArray[np.float64]
    state_s: NDArray[np.float64]
    age_s: NDArray[np.float64]

    def rows(self, chosen: NDArray[np.bool_]) -> Relaxation:
        """Some of the rows."""
        return Relaxation(
            self.cell[chosen], self.level[chosen], self.programmed_s[chosen], self.state_s[chosen], self.age_s[chosen]
        )


def read_relaxation(path: Path) -> Relaxation:
    """Reads a table of relaxation data: tab-separated, without a header, plain or gzipped.

    Columns: address, time in s, resistance in ohm, conductance in S, conductance right after programming in S, level,
    planned time in s; the form of the RRAM data of A. Levy (github.com/akashlevy/RRAM-Relaxation-Master-Model).

    Raises:
        SurrogateError: It cannot be read, or has other columns.
    """
    try:
        table = np.loadtxt(path, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise SurrogateError(f"{path}: is no table of numbers: {error}") from error
    if table.shape[1] != 7:
        raise SurrogateError(f"{path}: has {table.shape[1]} columns, not the 7 of relaxation data")
    address, _, _, state_s, programmed_s, level, age_s = table.T
    return Relaxation(address.astype(np.int64), level.astype(np.int64), programmed_s, state_s, age_s)


def relaxation_table(data: Relaxation, *, quantiles: int = 64) -> RelaxationTable:
    """Quantiles of the shifts of each level at each age.

    Args:
        data: Measurements; those at age zero are what the shifts are counted from and make no row of their own.
        quantiles: How many.

    Raises:
        SurrogateError: A level has too few cells at some age; each is named.
    """
    ages_s, levels = sorted({*data.age_s.tolist()} - {0.0}), np.unique(data.level)
    means_s = np.array([data.programmed_s[data.level == level].mean() for level in levels])
    order = np.argsort(means_s)
    probabilities = (np.arange(quantiles) + 0.5) / quantiles
    shifts_s, faults = np.zeros((len(ages_s), len(levels), quantiles)), []
    for row, age_s in enumerate(ages_s):
        for place, level in enumerate(levels[order]):
            chosen = (data.age_s == age_s) & (data.level == level)
            if np.count_nonzero(chosen) < _FEWEST_CELLS:
                faults.append(f"level {level} has {np.count_nonzero(chosen)} cells at {age_s:g} s")
                continue
            shifts_s[row, place] = np.quantile(data.state_s[chosen] - data.programmed_s[chosen], probabilities)
    refuse(f"relaxation data (at least {_FEWEST_CELLS} cells each are needed)", faults)
    return RelaxationTable(torch.from_numpy(means_s[order]), tuple(ages_s), torch.from_numpy(shifts_s))
