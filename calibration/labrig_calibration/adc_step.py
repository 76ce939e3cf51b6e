"""What an ADC's step hides: how much of its error stays the same when one vector is measured again. Numpy only."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_TERMS = np.arange(1, 1001, dtype=np.float64)
# Noise in steps beyond which nothing is left (exp(-4 pi^2) of the first term).
_NOTHING_LEFT = 1.0


def fixed_step_variance(noise_a: FloatArray, lsb_a: FloatArray) -> FloatArray:
    """Variance in A^2, over where an output lies within a step, of the error that repeats do not average out.

    A reading's mean error is a Fourier series in the place within the step; Gaussian noise in front of the converter
    damps its terms by `exp(-2 (pi k noise / lsb)^2)` (Widrow and Kollar, Quantization Noise, 2008, dither). Without
    noise it is `lsb**2 / 12`, at half a step of noise 3e-5 of that.

    Args:
        noise_a: Standard deviation in A before the converter, any shape.
        lsb_a: Step in A, a shape that broadcasts.
    """
    ratio, part = _table()
    return np.asarray(lsb_a**2 * np.interp(noise_a / lsb_a, ratio, part))


@cache
def _table() -> tuple[FloatArray, FloatArray]:
    """The variance in squared steps over the noise in steps."""
    ratio = np.linspace(0.0, _NOTHING_LEFT, 4001)
    terms = np.exp(-4.0 * (np.pi * _TERMS * ratio[:, None]) ** 2) / (2.0 * (np.pi * _TERMS) ** 2)
    part = terms.sum(axis=1)
    part[0] = 1.0 / 12.0
    return ratio, part
