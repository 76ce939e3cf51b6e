"""Do model and chip draw from one distribution: energy distance of whole output vectors, with a permutation test.

Histograms of single columns cannot see that columns err together; this can. It compares samples of vectors, so feed it
residuals or outputs in units of their spread, else the largest column alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import distance

from labrig_calibration.residuals import refuse
from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TwoSample:
    """Result of a comparison.

    Attributes:
        energy: Squared energy distance, 2 E|X - Y| - E|X - X'| - E|Y - Y'|; 0 for equal distributions only.
        floor: Its mean under permutation: what equal distributions give at these sizes.
        p_value: Part of the permutations with at least as much (with the usual +1).
        samples: Samples compared on each side.
    """

    energy: float
    floor: float
    p_value: float
    samples: tuple[int, int]


def energy_test(
    measured: FloatArray,
    predicted: FloatArray,
    *,
    rng: np.random.Generator,
    exchange: Literal["pairs", "all"] = "pairs",
    block: int = 1,
    permutations: int = 499,
    largest: int = 1000,
) -> TwoSample:
    """Compares two samples of vectors (Székely and Rizzo, J. Stat. Plan. Inference 143, 2013).

    Args:
        measured: Outputs of the chip, `[N, columns]`.
        predicted: Draws of the model, `[M, columns]`.
        rng: Source of the permutations, and of the choice where there are more than `largest`.
        exchange: "pairs" where row i of both had the same input: only partners change sides, as only they are
            exchangeable. "all" where rows have nothing to do with each other.
        block: Rows that change sides together, for outputs that remember; of the order of the correlation time.
        permutations: How many.
        largest: Samples taken of each side; memory goes with its square.

    Raises:
        JudgementError: Shapes do not fit, values are not finite, or there are fewer than 10 samples.
    """
    _refuse(measured, predicted, exchange, block)
    if exchange == "pairs":
        kept = _some_blocks(measured.shape[0], largest, block, rng)
        measured, predicted = measured[kept], predicted[kept]
    else:
        measured = measured[_some_blocks(measured.shape[0], largest, block, rng)]
        predicted = predicted[_some_blocks(predicted.shape[0], largest, block, rng)]
    n, m = measured.shape[0], predicted.shape[0]
    both = np.concatenate([measured, predicted])
    distances = distance.squareform(distance.pdist(both))
    swapped = _paired_weights(n, block, permutations, rng) if exchange == "pairs" else None
    # Rows of weights: 1/n for the first sample, -1/m for the second; the energy is minus their quadratic form.
    original = np.concatenate([np.full(n, 1.0 / n), np.full(m, -1.0 / m)])
    weights = swapped if swapped is not None else _shuffled(original, n, block, permutations, rng)
    energy = float(-(original @ distances @ original))
    permuted = -np.einsum("bi,bi->b", weights @ distances, weights)
    # Rounding must not make a permutation that changes nothing look smaller than the original.
    above = int((permuted >= energy * (1.0 - 1e-9)).sum())
    return TwoSample(energy, float(permuted.mean()), (1.0 + above) / (1.0 + permutations), (n, m))


def _paired_weights(n: int, block: int, permutations: int, rng: np.random.Generator) -> FloatArray:
    blocks = -(-n // block)
    signs = rng.choice([-1.0, 1.0], size=(permutations, blocks)).repeat(block, axis=1)[:, :n]
    return np.concatenate([signs, -signs], axis=1) / n


def _shuffled(original: FloatArray, n: int, block: int, permutations: int, rng: np.random.Generator) -> FloatArray:
    """Random sides for blocks of rows of both samples; a block never spans the two."""
    starts = np.concatenate([np.arange(0, n, block), np.arange(n, original.size, block)])
    lengths = np.diff(np.append(starts, original.size))
    first = original[starts] > 0
    weights = np.empty((permutations, original.size))
    for row in weights:
        side = rng.permutation(first).repeat(lengths)
        row[:] = np.where(side, 1.0 / max(int(side.sum()), 1), -1.0 / max(int((~side).sum()), 1))
    return weights


def _some_blocks(count: int, largest: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of at most `largest` rows, whole blocks in their order."""
    if count <= largest:
        return np.arange(count)
    starts = np.sort(rng.choice(count // block, size=max(largest // block, 1), replace=False)) * block
    return np.asarray((starts[:, None] + np.arange(block)).reshape(-1))


def _refuse(measured: FloatArray, predicted: FloatArray, exchange: str, block: int) -> None:
    faults = []
    shapes = f"{list(measured.shape)} and {list(predicted.shape)}"
    if measured.ndim != 2 or predicted.ndim != 2 or measured.shape[1] != predicted.shape[1]:
        faults.append(f"both samples must be [samples, columns] with as many columns, not {shapes}")
    elif exchange == "pairs" and measured.shape != predicted.shape:
        faults.append(f"pairs need as many rows on both sides, not {shapes}")
    if min(measured.shape[0], predicted.shape[0]) < 10 * block:
        faults.append(f"fewer than 10 blocks of {block} rows on a side ({shapes})")
    for name, values in (("measured", measured), ("predicted", predicted)):
        if bad := int((~np.isfinite(values)).sum()):
            what = counted(bad, "value that is", "values that are")
            faults.append(f"{name} has {what} not finite; leave out rows with gaps")
    refuse("samples cannot be compared", faults)
