"""What accuracies on many chips come to: means, drops, the worst chips, the curve over the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import integrate

AREA_TO: Final = 0.2
"""Noise up to which the area under the curve is taken."""

_TOLERATED_POINTS: Final = 5.0


@dataclass(frozen=True)
class CellScores:
    """Accuracies in % of one method at one noise: `values[seed][chip]`.

    Attributes:
        values: Of every seed and chip.
    """

    values: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        """Over chips and seeds."""
        return float(np.mean(self.values))

    @property
    def of_seeds(self) -> tuple[float, ...]:
        """Mean of each seed over its chips: what intervals are made of."""
        return tuple(float(np.mean(one)) for one in self.values)

    @property
    def chip_sd(self) -> float:
        """Standard deviation over the chips of a seed, root mean square over seeds; zero for one chip."""
        spreads = [float(np.var(one, ddof=1)) if len(one) > 1 else 0.0 for one in self.values]
        return float(np.sqrt(np.mean(spreads)))

    @property
    def fifth_percentile(self) -> float:
        """The accuracy that all but 5 % of the chips reach, mean over seeds."""
        return float(np.mean([np.percentile(one, 5.0) for one in self.values]))


def cell_text(cell: CellScores | None, beside: str = "") -> str:
    """A cell as tables say it: mean, standard deviation over chips, and what stands beside; or that it was not run."""
    return "not run" if cell is None else f"{cell.mean:.2f} +- {cell.chip_sd:.2f}{beside}"


def normalised_area(curve: Mapping[float, float]) -> float:
    """Mean accuracy over the noise from none to 20 %, by trapezia; NaN where the curve does not reach so far.

    Args:
        curve: Accuracy by noise N.
    """
    levels = sorted(level for level in curve if level <= AREA_TO)
    if len(levels) < 2 or levels[0] != 0.0 or levels[-1] != AREA_TO:
        return float("nan")
    return float(integrate.trapezoid([curve[level] for level in levels], levels) / AREA_TO)


def noise_tolerance(curve: Mapping[float, float], points: float = _TOLERATED_POINTS) -> float:
    """The noise N at which a network has lost so many points against itself without noise, between the levels measured.

    Args:
        curve: Accuracy by noise N, zero among them.
        points: How many.

    Returns:
        N, or infinity where the largest measured level costs less.
    """
    levels = sorted(curve)
    if not levels or levels[0] != 0.0:
        return float("nan")
    lost = [curve[0.0] - curve[level] for level in levels]
    for index in range(1, len(levels)):
        before, after = lost[index - 1], lost[index]
        if after >= points:
            step = levels[index] - levels[index - 1]
            return levels[index - 1] + step * max(0.0, points - before) / (after - before)
    return float("inf")


def folds(count: int, parts: int) -> Sequence[slice]:
    """Cuts so many images into equal parts; what does not divide is left out."""
    size = count // parts
    return [slice(part * size, (part + 1) * size) for part in range(parts)]
