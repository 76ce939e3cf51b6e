"""Random numbers from read noise: differences of two reads of one product, whitened by their measured covariance.

The mean of a read, whatever its errors, falls out of a difference; what is left is noise alone, with twice the variance
of one read. Whether it is random enough is measured, not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError

_SQRT_HALF = 0.5**0.5


class NormalSource(Protocol):
    """Where a sampler gets its standard normal numbers."""

    def normal(self, count: int, size: int) -> Tensor:
        """`count` vectors of `size` independent standard normal numbers."""
        ...


class PseudoNormal:
    """Pseudo-random normal numbers of a generator: the digital reference.

    Args:
        generator: Their source.
        dtype: Type of the numbers.
    """

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
        self._generator = generator
        self._dtype = dtype

    def normal(self, count: int, size: int) -> Tensor:
        """Standard normal numbers `[count, size]`."""
        return torch.randn((count, size), generator=self._generator, dtype=self._dtype)


class ReadNoise:
    """Normal numbers from an array, a vector of its columns for each two reads.

    Args:
        read: Reads one product `count` times, `[count, columns]`.
        lsb: Step of the ADC in the unit of the reads, `[columns]` or a number.
        characterise: Differences that the noise is judged by before the first number.
        block: Differences that are read at a time, at least; a request costs as much as many reads.
        covariance: Covariance of one read's noise, `[columns, columns]`, such as a calibration gives; estimated from
            those differences where None.

    Attributes:
        covariance: What the numbers are whitened by.

    Raises:
        SurrogateError: The ADC's step exceeds the noise in some column: what varies there is rounding, not noise.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        lsb: Tensor | float,
        *,
        characterise: int = 4096,
        block: int = 512,
        covariance: Tensor | None = None,
    ) -> None:
        self._read = read
        self._block = block
        differences = self._differences(characterise)
        step = torch.as_tensor(lsb, dtype=differences.dtype).expand(differences.shape[1])
        # Rounding adds a twelfth of a squared step to each read.
        noise = torch.sqrt((differences.var(dim=0) - step**2 / 12.0).clamp(min=0.0))
        coarse = torch.nonzero(noise < step).flatten().tolist()
        if coarse:
            listed = ", ".join(map(str, coarse[:8])) + (", ..." if len(coarse) > 8 else "")
            worst = int(coarse[int((noise[coarse] / step[coarse]).argmin())])
            raise SurrogateError(
                f"{len(coarse)} of {step.numel()} columns ({listed}) have less read noise than one step of the ADC "
                f"(worst: {float(noise[worst] / step[worst]):.2g} steps): their numbers would be rounding, not noise. "
                "Use columns with more noise, or a finer range of the ADC"
            )
        count, columns = differences.shape
        measured = differences.T @ differences / count
        self.covariance = measured if covariance is None else covariance.to(measured.dtype)
        factor = torch.linalg.cholesky(self.covariance)
        # The inverse of an estimated covariance is too large on average, by count / (count - columns - 1) (Wishart).
        unbiased = 1.0 if covariance is not None else (1.0 - (columns + 1) / count) ** 0.5
        self._whiten = unbiased * torch.linalg.inv(factor).T
        self._kept: Tensor = differences.new_empty(0)

    def normal(self, count: int, size: int) -> Tensor:
        """Standard normal numbers `[count, size]`; every number is used once."""
        needed = count * size
        while self._kept.numel() < needed:
            columns = self._whiten.shape[0]
            missing = -(-(needed - self._kept.numel()) // columns)
            fresh = self._differences(max(missing, self._block)) @ self._whiten
            self._kept = torch.cat([self._kept, fresh.flatten()])
        taken, self._kept = self._kept[:needed], self._kept[needed:]
        return taken.reshape(count, size)

    def _differences(self, count: int) -> Tensor:
        # Neighbours in time share what is slow; each read belongs to one difference only.
        reads = self._read(2 * count)
        return (reads[0::2] - reads[1::2]) * _SQRT_HALF


@dataclass(frozen=True)
class RandomnessReport:
    """Tests of numbers that should be independent and standard normal.

    Attributes:
        count: Numbers tested.
        mean_z: Mean in standard errors.
        variance_z: Variance minus one in standard errors.
        kurtosis_z: Excess kurtosis in standard errors.
        worst_autocorrelation_z: Largest autocorrelation of the first lags in standard errors, either sign.
        worst_correlation_z: Largest correlation between two places of a vector in standard errors, either sign.
        lags: Lags that were looked at.
        pairs: Pairs of places that were looked at.
        ks_statistic: Kolmogorov-Smirnov distance from the standard normal distribution.
        ks_p: Its p-value (asymptotic).
    """

    count: int
    mean_z: float
    variance_z: float
    kurtosis_z: float
    worst_autocorrelation_z: float
    worst_correlation_z: float
    lags: int
    pairs: int
    ks_statistic: float
    ks_p: float

    @property
    def smallest_p(self) -> float:
        """Smallest p-value of all tests, each multiplied by the number of looks that it took (Bonferroni)."""
        looks = (
            (self.mean_z, 1),
            (self.variance_z, 1),
            (self.kurtosis_z, 1),
            (self.worst_autocorrelation_z, self.lags),
            (self.worst_correlation_z, max(self.pairs, 1)),
        )
        found = [min(1.0, count * math.erfc(abs(z) * _SQRT_HALF)) for z, count in looks]
        return min(1.0, 6.0 * min(*found, self.ks_p))


def judge_randomness(vectors: Tensor, *, lags: int = 20) -> RandomnessReport:
    """Tests vectors `[count, size]` that should be independent and standard normal.

    Args:
        vectors: In the order of time.
        lags: How far back autocorrelations are looked at, along time in each place.

    Raises:
        SurrogateError: Fewer than 100 vectors.
    """
    count, size = vectors.shape
    if count < 100:
        raise SurrogateError(f"{count} vectors are too few to judge randomness by; take at least 100")
    x = vectors.double()
    total = x.numel()
    centred = x - x.mean()
    variance = float((centred**2).mean())
    kurtosis = float((centred**4).mean()) / variance**2 - 3.0
    scaled = (x - x.mean(dim=0)) / x.std(dim=0)
    autocorrelation = [
        float((scaled[lag:] * scaled[:-lag]).mean()) * ((count - lag) * size) ** 0.5 for lag in range(1, lags + 1)
    ]
    correlation = (scaled.T @ scaled / count * count**0.5)[tuple(torch.triu_indices(size, size, 1))]
    ordered = x.flatten().sort().values
    cdf = 0.5 * torch.erfc(-ordered * _SQRT_HALF)
    place = torch.arange(1, total + 1, dtype=torch.float64) / total
    distance = float(torch.maximum(place - cdf, cdf - place + 1.0 / total).max())
    return RandomnessReport(
        count=total,
        mean_z=float(x.mean()) * total**0.5,
        variance_z=(variance - 1.0) * (total / 2.0) ** 0.5,
        kurtosis_z=kurtosis * (total / 24.0) ** 0.5,
        worst_autocorrelation_z=max(autocorrelation, key=abs),
        worst_correlation_z=0.0 if size == 1 else float(correlation[correlation.abs().argmax()]),
        lags=lags,
        pairs=size * (size - 1) // 2,
        ks_statistic=distance,
        ks_p=_kolmogorov_p(distance * total**0.5),
    )


def _kolmogorov_p(x: float) -> float:
    """Tail of Kolmogorov's distribution: 2 sum (-1)^(k-1) exp(-2 k^2 x^2)."""
    if x < 0.2:  # the series does not converge there, and the tail is one to fifteen digits
        return 1.0
    tail = 2.0 * sum((1.0 if k % 2 else -1.0) * math.exp(-2.0 * k**2 * x**2) for k in range(1, 101))
    return min(max(tail, 0.0), 1.0)
