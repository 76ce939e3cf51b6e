"""What an ADC's step hides: how much of its error stays the same when one vector is measured again. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_TERMS = np.arange(1, 201, dtype=np.float64)


def fixed_step_variance(noise_a: FloatArray, lsb_a: FloatArray) -> FloatArray:
    """Variance in A^2, over where an output lies within a step, of the error that repeats do not average out.

    A reading's mean error is a Fourier series in the place within the step; Gaussian noise in front of the converter
    damps its terms by `exp(-2 (pi k noise / lsb)^2)` (Widrow and Kollar, Quantization Noise, 2008, dither). Without
    noise it is `lsb**2 / 12`, at half a step of noise 3e-5 of that.

    Args:
        noise_a: Standard deviation in A before the converter, any shape.
        lsb_a: Step in A, a shape that broadcasts.
    """
    ratio = np.asarray(noise_a / lsb_a)[..., None]
    terms = np.exp(-4.0 * (np.pi * _TERMS * ratio) ** 2) / (2.0 * (np.pi * _TERMS) ** 2)
    return np.asarray(lsb_a**2 * terms.sum(axis=-1))
