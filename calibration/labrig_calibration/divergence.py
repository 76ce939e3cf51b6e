"""Jensen-Shannon divergence of measured and predicted outputs, with its bias, its floor and a permutation test.

This module has the divergence itself and the comparison of two samples as one; `activation_divergence` compares whole
layers column by column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """Result of one comparison, base 2, between 0 (equal) and 1 (disjoint).

    Attributes:
        raw: Plug-in value.
        floor: Mean of the plug-in value when labels are permuted: what equal distributions give at these sizes.
        p_value: Fraction of permutations at least as large as `raw` (with the usual +1).
        bins: Equal-mass bins used.
        samples: Samples on each side.
    """

    raw: float
    floor: float
    p_value: float
    bins: int
    samples: tuple[int, int]

    @property
    def corrected(self) -> float:
        """The plug-in value less its floor; equal distributions give 0 on average, so that it may be negative."""
        return self.raw - self.floor


def jensen_shannon(p: FloatArray, q: FloatArray) -> float:
    """Jensen-Shannon divergence in bits of two histograms over the same bins (Lin, IEEE Trans. Inf. Theory 1991)."""
    return float(jensen_shannon_rows(p[None], q[None])[0])


def jensen_shannon_rows(p: FloatArray, q: FloatArray) -> FloatArray:
    """The same for many pairs of histograms, bins along the last axis."""
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    bits = special.entr(0.5 * (p + q)) - 0.5 * (special.entr(p) + special.entr(q))
    return np.asarray(np.maximum(bits.sum(axis=-1), 0.0) / np.log(2.0))


def plug_in_bias(bins: int, first: int, second: int) -> float:
    """What two independent samples of one distribution give on average, in bits, to first order.

    (K - 1)(1/n + 1/m) / (8 ln 2), for equal sizes (K - 1) / (4 N ln 2), K the bins that can be met. 4 N ln 2 times the
    plug-in value is chi-squared with K - 1 degrees of freedom, as it is half of the G-test's statistic.
    """
    return (bins - 1) * (1.0 / first + 1.0 / second) / (8.0 * math.log(2.0))


def miller_madow(p: FloatArray, q: FloatArray) -> float:
    """The divergence in bits of two histograms of counts, each entropy with Miller and Madow's correction."""
    both = p + q
    corrections = [((one > 0).sum() - 1) / (2.0 * one.sum()) for one in (both, p, q)]
    correction = corrections[0] - 0.5 * (corrections[1] + corrections[2])
    return jensen_shannon(p, q) + float(correction) / math.log(2.0)


def compare(
    measured: FloatArray,
    predicted: FloatArray,
    *,
    rng: np.random.Generator,
    bins: int = 64,
    permutations: int = 200,
) -> Divergence:
    """Compares two samples that have nothing to do with each other, in equal-mass bins of the pooled data.

    Args:
        measured: Outputs of the chip, any shape.
        predicted: Outputs of the model, any shape.
        rng: Source of the permutations.
        bins: Number of bins.
        permutations: Permutations for floor and p-value.
    """
    a, b = measured.ravel(), predicted.ravel()
    pooled = np.concatenate([a, b])
    edges = np.unique(np.quantile(pooled, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    count = len(edges) + 1
    first = np.bincount(np.searchsorted(edges, a), minlength=count)
    total = first + np.bincount(np.searchsorted(edges, b), minlength=count)
    raw = jensen_shannon(first.astype(np.float64), (total - first).astype(np.float64))
    # Which of the pooled values fall to the first side is a draw without replacement from the bins' counts.
    drawn = rng.multivariate_hypergeometric(total, a.size, size=permutations, method="marginals")
    permuted = jensen_shannon_rows(drawn.astype(np.float64), (total - drawn).astype(np.float64))
    p_value = float((1 + (permuted >= raw).sum()) / (1 + permutations))
    return Divergence(raw, float(permuted.mean()), p_value, count, (int(a.size), int(b.size)))
