"""Fisher information of measured vectors about the columns of an array, before anything is measured. Numpy only.

Model of a column as in `labrig_surrogates.parameters.ArrayParameters`, with w = gain * g of one write:

    u = (1 + age / reference) ** -drift * (v @ w),   y = offset + tanh(kappa u) / kappa,
    var = amplifier + slope**2 * (shot * sum |v w| + conductance * sum (v w)**2) + lsb**2 / 12

The means carry `J = sum_n (dy/dp) (dy/dp)^T / var` about offset, kappa, drift and every w: an arrow, as in
`labrig_calibration.columns`. The squared residuals carry `sum_n f f^T / (2 var**2)` about the coefficients of the
variance, f being its derivatives. Three nuisances stand beside them, so that it can be said what a fit without them
takes on trust: an even part of the curve, noise like the amplifier's but before the curve, and a misfit that is the
same whenever one vector is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.adc_step import fixed_step_variance
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.dataset import Converters

FloatArray = NDArray[np.float64]

BORDER = ("offset", "compression", "drift", "evenness")
VARIANCES = ("amplifier_noise", "shot_noise", "conductance_noise", "line_noise", "misfit")
# Vectors handled together: bounds the memory.
_CHUNK = 4096
# A prior this many scales wide stands in for none at all, so that what is unknown has a large error and no singularity.
_VAGUE = 1e3


@dataclass(frozen=True)
class WriteInformation:
    """What the vectors of one write say about each of some columns. Sums over vectors, so two of them add up.

    Attributes:
        border: About `BORDER`, `[columns, 4, 4]`.
        cross: Between `BORDER` and the conductances, `[columns, 4, rows]`.
        gram: About the conductances times gain, in 1/S^2, `[columns, rows, rows]`.
        variance: About `VARIANCES`, `[columns, 5, 5]`.
        mvms: Number of vectors.
    """

    border: FloatArray
    cross: FloatArray
    gram: FloatArray
    variance: FloatArray
    mvms: float

    @property
    def rows(self) -> int:
        """Word lines."""
        return int(self.gram.shape[1])

    def times(self, factor: float) -> WriteInformation:
        """The information of `factor` times as many such vectors."""
        return WriteInformation(
            factor * self.border,
            factor * self.cross,
            factor * self.gram,
            factor * self.variance,
            factor * self.mvms,
        )

    def aged(self, mean_log: float, mean_log2: float) -> WriteInformation:
        """With ages spread over the vectors of one for which they were all at log(1 + age / reference) = 1.

        Args:
            mean_log: Mean of log(1 + age / reference).
            mean_log2: Mean of its square.
        """
        factor = np.ones((4, 4))
        factor[2, :] = factor[:, 2] = mean_log
        factor[2, 2] = mean_log2
        cross = self.cross.copy()
        cross[:, 2] *= mean_log
        return WriteInformation(self.border * factor, cross, self.gram, self.variance, self.mvms)


def total(parts: Sequence[WriteInformation]) -> WriteInformation:
    """The information of all parts together, which are of one write."""
    first = parts[0]
    border, cross, gram, variance = (
        np.sum([getattr(part, name) for part in parts], axis=0) for name in ("border", "cross", "gram", "variance")
    )
    assert gram.shape == first.gram.shape
    return WriteInformation(border, cross, gram, variance, sum(part.mvms for part in parts))


def dac_levels_v(voltage_v: FloatArray, converters: Converters) -> FloatArray:
    """The commanded voltages as the DAC applies them, in V; as they are where no DAC is known."""
    step_v = converters.dac_step_v
    if step_v == 0.0:
        return voltage_v
    levels: FloatArray = np.clip(
        np.round(voltage_v / step_v) * step_v, converters.voltage_min_v, converters.voltage_max_v
    )
    return levels


def write_information(
    voltage_v: FloatArray,
    log_age: FloatArray,
    conductance_s: FloatArray,
    full_scale_a: FloatArray,
    converters: Converters,
    chip: AssumedChip,
) -> WriteInformation:
    """The information of the vectors of one write.

    Outputs beyond the ADC carry none. A vector that is measured again shares what its step of the ADC does to it.

    Args:
        voltage_v: Inputs in V, `[N, rows]`.
        log_age: `log(1 + age / reference)` of each, `[N]`.
        conductance_s: Conductances of some columns, gain not included, in S, `[rows, columns]`.
        full_scale_a: ADC full scale of these columns in A, `[columns]`.
        converters: Ranges and resolutions.
        chip: What the chip is taken to be.
    """
    rows, columns = conductance_s.shape
    voltage_v = dac_levels_v(voltage_v, converters)
    repeats = _repeats(voltage_v)
    border, variance = np.zeros((columns, 4, 4)), np.zeros((columns, 5, 5))
    cross, gram = np.zeros((columns, 4, rows)), np.zeros((columns, rows, rows))
    lsb_a = full_scale_a / float(2 ** (converters.adc_bits - 1))
    for start in range(0, len(voltage_v), _CHUNK):
        part = slice(start, start + _CHUNK)
        v, times = voltage_v[part], repeats[part, None]
        point = _Point.at(v, log_age[part], conductance_s, full_scale_a, lsb_a, chip)
        # Readings of one vector have the fixed part of the step's error in common.
        fixed_a2 = fixed_step_variance(point.noise_a, lsb_a)
        weight = point.counts / (point.variance_a2 + (times - 1.0) * fixed_a2)
        half = 0.5 * point.counts / point.variance_a2**2
        for column in range(columns):
            d_border, d_line = point.border[:, :, column], v * point.d_line[:, column, None]
            weighted = d_line * weight[:, column, None]
            border[column] += (d_border * weight[:, column]) @ d_border.T
            cross[column] += d_border @ weighted
            gram[column] += d_line.T @ weighted
            features = point.features[:, :, column]
            variance[column, :4, :4] += (features * half[:, column]) @ features.T
            variance[column, :4, 4] += features @ half[:, column]
            variance[column, 4, 4] += repeats[part] @ half[:, column]
    variance[:, 4, :4] = variance[:, :4, 4]
    return WriteInformation(border, cross, gram, variance, float(len(voltage_v)))


@dataclass(frozen=True)
class _Point:
    """Derivatives at some vectors: `[.., N, columns]`."""

    border: FloatArray
    d_line: FloatArray
    features: FloatArray
    variance_a2: FloatArray
    noise_a: FloatArray
    counts: FloatArray

    @classmethod
    def at(
        cls,
        voltage_v: FloatArray,
        log_age: FloatArray,
        conductance_s: FloatArray,
        full_scale_a: FloatArray,
        lsb_a: FloatArray,
        chip: AssumedChip,
    ) -> _Point:
        """Evaluates the model."""
        line_s = chip.gain * conductance_s
        decay = np.exp(-chip.drift * log_age)[:, None]
        u = decay * (voltage_v @ line_s)
        kappa = chip.compression_per_a
        curve = np.tanh(kappa * u)
        slope = 1.0 - curve**2
        d_kappa = (u * slope - curve / kappa) / kappa
        even = u**2 / full_scale_a
        features = np.stack(
            [
                np.ones_like(u),
                slope**2 * decay * (np.abs(voltage_v) @ line_s),
                (slope * decay) ** 2 * (voltage_v**2 @ line_s**2),
                slope**2,
            ]
        )
        law = np.array([chip.amplifier_noise_a2, chip.shot_noise_a, chip.conductance_noise])
        noise_a2: FloatArray = np.einsum("k,knc->nc", law, features[:3])
        return cls(
            border=np.stack([np.ones_like(u), d_kappa, -slope * u * log_age[:, None], even]),
            d_line=slope * decay,
            features=features,
            variance_a2=noise_a2 + lsb_a**2 / 12.0,
            noise_a=np.sqrt(noise_a2),
            counts=(np.abs(curve / kappa) < full_scale_a).astype(np.float64),
        )


def _repeats(voltage_v: FloatArray) -> FloatArray:
    """How often each vector occurs among all of them, `[N]`."""
    if not len(voltage_v):
        return np.zeros(0)
    keys = np.ascontiguousarray(voltage_v + 0.0).view(
        np.dtype((np.void, voltage_v.dtype.itemsize * voltage_v.shape[1]))
    )
    _, inverse, counts = np.unique(keys.ravel(), return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse], dtype=np.float64)


@dataclass(frozen=True)
class ColumnErrors:
    """Covariances of a few typical columns when all writes are fitted together, without even part.

    Attributes:
        border: Covariance of offset, compression and drift, `[columns, 3, 3]`.
        inverse: Inverse information of the conductances of each kind of write when offset, compression and drift are
            known, in S^2, `[kinds][columns, rows, rows]`.
        follow: How the conductances follow offset, compression and drift, `[kinds][columns, rows, 3]`.
        schur: Information about `BORDER` that is left when all conductances are unknown, `[columns, 4, 4]`.
        known: Information about `BORDER` if the conductances were known, `[columns, 4, 4]`.
    """

    border: FloatArray
    inverse: list[FloatArray]
    follow: list[FloatArray]
    schur: FloatArray
    known: FloatArray

    def conductance_error_s(self, kind: int) -> FloatArray:
        """Standard errors of the conductances times gain of one kind of write in S, `[rows, columns]`."""
        follow = self.follow[kind]
        extra = np.einsum("cia,cab,cib->ci", follow, self.border, follow)
        return np.asarray(np.sqrt(np.diagonal(self.inverse[kind], axis1=1, axis2=2) + extra).T)


def border_scales(converters: Converters, chip: AssumedChip) -> FloatArray:
    """What is a large change of each of `BORDER`.

    A fiftieth of the ADC's range, the compression itself, an exponent of 0.1, an even part of a tenth at full scale.
    """
    return np.array([0.02 * float(np.median(converters.adc_full_scale_a)), chip.compression_per_a, 0.1, 0.1])


def column_errors(
    kinds: Sequence[WriteInformation], times: Sequence[float], converters: Converters, chip: AssumedChip
) -> ColumnErrors:
    """Joins the writes of a design.

    Args:
        kinds: Information of each different kind of write.
        times: How many writes of each kind there are.
        converters: Ranges; they set the scale of what is unknown.
        chip: What the chip is taken to be.
    """
    scale = border_scales(converters, chip)
    line_vague = 1.0 / (_VAGUE * chip.gain * converters.conductance_max_s) ** 2
    known = np.zeros_like(kinds[0].border)
    schur = np.zeros_like(known)
    inverses, follows = [], []
    for info, count in zip(kinds, times, strict=True):
        inverse = np.linalg.inv(info.gram + line_vague * np.eye(info.rows))
        inverse = 0.5 * (inverse + inverse.transpose(0, 2, 1))
        follow = -inverse @ info.cross.transpose(0, 2, 1)
        schur += count * (info.border + info.cross @ follow)
        known += count * info.border
        inverses.append(inverse)
        follows.append(follow[:, :, :3])
    return ColumnErrors(_covariance(schur[:, :3, :3], scale[:3]), inverses, follows, schur, known)


def _covariance(information: FloatArray, scale: FloatArray) -> FloatArray:
    """Inverse of small matrices, in which what is unknown has an error of `_VAGUE` scales."""
    values, vectors = np.linalg.eigh(information * scale[:, None] * scale[None, :])
    inverse = np.einsum("cak,ck,cbk->cab", vectors, 1.0 / np.maximum(values, 1.0 / _VAGUE**2), vectors)
    return np.asarray(inverse * scale[:, None] * scale[None, :])
