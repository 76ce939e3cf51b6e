"""Jensen-Shannon divergence of measured and predicted outputs, with its bias, its floor and a permutation test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def jensen_shannon(p: FloatArray, q: FloatArray) -> float:
    """Jensen-Shannon divergence in bits of two histograms over the same bins (Lin, IEEE Trans. Inf. Theory 1991)."""
    p, q = p / p.sum(), q / q.sum()
    m = 0.5 * (p + q)
    return _entropy(m) - 0.5 * (_entropy(p) + _entropy(q))


def compare(
    measured: FloatArray,
    predicted: FloatArray,
    *,
    rng: np.random.Generator,
    bins: int = 64,
    permutations: int = 200,
) -> Divergence:
    """Compares two samples in equal-mass bins of the pooled data.

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
    index = np.searchsorted(edges, pooled)
    count = len(edges) + 1
    total = np.bincount(index, minlength=count).astype(np.float64)

    def divergence(first: NDArray[np.int64]) -> float:
        p = np.bincount(first, minlength=count).astype(np.float64)
        return jensen_shannon(p, total - p)

    raw = divergence(index[: a.size])
    permuted = np.array([divergence(rng.permutation(index)[: a.size]) for _ in range(permutations)])
    floor = float(permuted.mean())
    p_value = float((1 + (permuted >= raw).sum()) / (1 + permutations))
    return Divergence(raw, floor, p_value, count, (int(a.size), int(b.size)))


def _entropy(p: FloatArray) -> float:
    inside = p[p > 0]
    return float(-(inside * np.log2(inside)).sum())
