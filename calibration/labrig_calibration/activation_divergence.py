"""Jensen-Shannon divergence of a layer's outputs, model against chip, column by column, against the chip's own floor.

Model and chip saw the same inputs, so row i of one belongs to row i of the other, and where model and chip are alike
the two may change places, and nothing else may. Swapping partners at random (in blocks, where outputs remember) gives
the floor, that is the plug-in value's bias, and the p-value. Shuffling all rows would do so only for unrelated samples:
what inputs scatter would hide what noise differs by. The other floor is the chip against itself, two runs at one
setting: a model as near to the chip as the chip is to itself cannot be improved, and the ratio to it is the figure of
merit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.divergence import jensen_shannon_rows
from labrig_calibration.histogram_bins import HistogramBins
from labrig_calibration.residuals import refuse
from labrig_surrogates.faults import counted

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LONGEST_MEMORY = 200


@dataclass(frozen=True)
class LayerDivergence:
    """Divergences in bits, 0 (equal) to 1 (disjoint), of each column and of the layer.

    Attributes:
        raw: Plug-in value of each column, `[columns]`.
        floor: Its mean when partners change places: what equal distributions give here, `[columns]`.
        p_value: Part of the exchanges with at least as much, `[columns]`.
        layer_raw: Mean of the columns' plug-in values.
        layer_floor: Its mean under exchange.
        layer_p_value: Part of the exchanges with a mean at least as large.
        layer_interval: Block-bootstrap interval of the mean divergence, floor taken off.
        level: Of the interval.
        worst_column: The column that stands out most from its floor.
        worst_p_value: Part of the exchanges in which any column stands out as much: the search for it is paid for.
        itself: Mean divergence of two runs of the chip, its floor taken off; NaN without a second run.
        samples: Samples on each side.
        effective: What they are worth, outputs being correlated in time, `[columns]`.
        block: Samples that change places together.
        bins: Bins of a column.
        zero_share: Part of the measured and of the predicted outputs that are exactly zero.
    """

    raw: FloatArray
    floor: FloatArray
    p_value: FloatArray
    layer_raw: float
    layer_floor: float
    layer_p_value: float
    layer_interval: tuple[float, float]
    level: float
    worst_column: int
    worst_p_value: float
    itself: float
    samples: int
    effective: FloatArray
    block: int
    bins: int
    zero_share: tuple[float, float]

    @property
    def corrected(self) -> FloatArray:
        """Each column's divergence less its floor, `[columns]`; 0 on average where distributions are equal."""
        return self.raw - self.floor

    @property
    def median(self) -> float:
        """Of the columns' corrected divergences."""
        return float(np.median(self.corrected))

    @property
    def worst(self) -> float:
        """Corrected divergence of the column that stands out most."""
        return float(self.corrected[self.worst_column])

    @property
    def ratio_to_itself(self) -> float:
        """The layer's raw divergence as a multiple of the chip's against itself, raw too; 1 is as good as can be."""
        return self.layer_raw / (self.itself + self.layer_floor)


def compare_activations(
    measured: FloatArray,
    predicted: FloatArray,
    *,
    rng: np.random.Generator,
    bins: HistogramBins | None = None,
    repeated: FloatArray | None = None,
    block: int | None = None,
    permutations: int = 200,
    bootstraps: int = 200,
    level: float = 0.9,
) -> LayerDivergence:
    """Compares a layer's outputs with the model's draws at the same inputs.

    Args:
        measured: Outputs of the chip in the order of measurement, `[N, columns]`.
        predicted: Draws of the model at the same inputs, through the same ADC and activation, `[N, columns]`.
        rng: Source of exchanges and resamples.
        bins: Bins; by default 64 of equal mass from both samples.
        repeated: A second run of the chip at the same inputs, `[N, columns]`.
        block: Samples that change places together; by default twice the correlation time, at most N/20.
        permutations: Exchanges for floors and p-values.
        bootstraps: Resamples for the interval.
        level: Of the interval.

    Raises:
        JudgementError: Shapes differ, values are not finite, or there are fewer than 20 blocks.
    """
    _refuse(measured, predicted, repeated)
    n = measured.shape[0]
    if bins is None:
        bins = HistogramBins.equal_mass(np.concatenate([measured, predicted]))
    first, second = bins.index(measured), bins.index(predicted)
    effective = effective_samples(first, second)
    if block is None:
        # Uncorrelated samples are worth a little less than their number, by chance: no blocks for that.
        block = min(max(1, int(np.ceil(2.0 * n / float(np.median(effective)) - 1.5))), max(n // 20, 1))
    if n < 20 * block:
        refuse("layers cannot be compared", [f"{n} samples make fewer than 20 blocks of {block}"])

    raw = _divergence(first, second, bins.count)
    exchanged = _exchanged(first, second, bins.count, block, permutations, rng)
    floor = exchanged.mean(axis=0)
    scatter = np.maximum(exchanged.std(axis=0), 1e-12)
    standing, standings = (raw - floor) / scatter, ((exchanged - floor) / scatter).max(axis=1)
    worst = int(np.argmax(standing))
    resampled = np.array([_resampled(first, second, bins.count, block, rng) for _ in range(bootstraps)])
    # A resample carries the bias once more; its scatter is what counts.
    half = (1.0 - level) / 2.0
    low, high = np.quantile(resampled - resampled.mean(), [half, 1.0 - half])
    layer = float(raw.mean() - floor.mean())
    itself = np.nan
    if repeated is not None:
        third = bins.index(repeated)
        own = _exchanged(first, third, bins.count, block, permutations, rng)
        itself = float(_divergence(first, third, bins.count).mean() - own.mean())
    return LayerDivergence(
        raw=raw,
        floor=floor,
        p_value=_share((exchanged >= raw - 1e-15).sum(axis=0), permutations),
        layer_raw=float(raw.mean()),
        layer_floor=float(floor.mean()),
        layer_p_value=float(_share((exchanged.mean(axis=1) >= raw.mean() - 1e-15).sum(), permutations)),
        layer_interval=(max(layer - float(high), 0.0), max(layer - float(low), 0.0)),
        level=level,
        worst_column=worst,
        worst_p_value=float(_share((standings >= standing[worst] - 1e-12).sum(), permutations)),
        itself=itself,
        samples=n,
        effective=effective,
        block=block,
        bins=bins.count,
        zero_share=(float((measured == 0.0).mean()), float((predicted == 0.0).mean())),
    )


def effective_samples(first: IntArray, second: IntArray) -> FloatArray:
    """How many independent samples the difference of two series of bins is worth, `[columns]`.

    N / (1 + 2 sum of autocorrelations), summed while pairs of neighbours stay positive (Geyer, Stat. Sci. 7, 1992). The
    inputs are common to both series and their memory cancels; what is left is that of the noise.
    """
    difference = (first - second).astype(np.float64)
    difference -= difference.mean(axis=0)
    n = difference.shape[0]
    length = 1 << (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(difference, length, axis=0)) ** 2
    lags = min(_LONGEST_MEMORY, n // 4) // 2 * 2
    covariance = np.fft.irfft(power, length, axis=0)[:lags]
    correlation = covariance / np.where(covariance[0] > 0, covariance[0], 1.0)
    pairs = correlation[0::2] + correlation[1::2]
    kept = np.cumprod(pairs > 0, axis=0)
    time = np.maximum(2.0 * (pairs * kept).sum(axis=0) - 1.0, 1.0)
    return np.asarray(n / np.where(covariance[0] > 0, time, 1.0))


def _counts(index: IntArray, bins: int) -> FloatArray:
    """Histogram of each column, `[columns, bins]`."""
    columns = index.shape[1]
    flat = (index + bins * np.arange(columns)).reshape(-1)
    counts = np.bincount(flat, minlength=bins * columns).reshape(columns, bins)
    return np.asarray(counts, dtype=np.float64)


def _divergence(first: IntArray, second: IntArray, bins: int) -> FloatArray:
    return jensen_shannon_rows(_counts(first, bins), _counts(second, bins))


def _exchanged(
    first: IntArray, second: IntArray, bins: int, block: int, times: int, rng: np.random.Generator
) -> FloatArray:
    """Divergences after whole blocks of partners have changed places at random, so many times, `[times, columns]`."""
    n = first.shape[0]
    # Whatever changes places: both together hold the same.
    both = _counts(first, bins) + _counts(second, bins)
    found = []
    for _ in range(times):
        swap = np.repeat(rng.random(-(-n // block)) < 0.5, block)[:n, None]
        one = _counts(np.where(swap, second, first), bins)
        found.append(jensen_shannon_rows(one, both - one))
    return np.stack(found)


def _resampled(first: IntArray, second: IntArray, bins: int, block: int, rng: np.random.Generator) -> float:
    """Mean divergence of a resample of blocks of partners, wherever they start (circular block bootstrap)."""
    n = first.shape[0]
    starts = rng.integers(0, n, size=-(-n // block))
    rows = ((starts[:, None] + np.arange(block)).reshape(-1) % n)[:n]
    return float(_divergence(first[rows], second[rows], bins).mean())


def _share(above: IntArray, count: int) -> FloatArray:
    return np.asarray((1.0 + above) / (1.0 + count), dtype=np.float64)


def _refuse(measured: FloatArray, predicted: FloatArray, repeated: FloatArray | None) -> None:
    faults = []
    others = [("predicted", predicted)] + ([] if repeated is None else [("repeated", repeated)])
    if measured.ndim != 2:
        faults.append(f"measured must be [N, columns], not {list(measured.shape)}")
    for name, values in others:
        if values.shape != measured.shape:
            faults.append(f"{name} has shape {list(values.shape)}, measured {list(measured.shape)}")
    for name, values in [("measured", measured), *others]:
        if bad := int((~np.isfinite(values)).sum()):
            faults.append(
                f"{name} has {counted(bad, 'value that is', 'values that are')} not finite; leave out those MVMs"
            )
    refuse("layers cannot be compared", faults)
