"""How well a fit predicts measurements that it never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from labrig_calibration.dataset import MvmDataset
from labrig_calibration.divergence import Divergence, compare
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.parameters import ArrayParameters

FloatArray = NDArray[np.float64]

# Half width of the central 90 % of a normal distribution, in standard deviations.
_HALF_WIDTH_90 = 1.6448536269514722


@dataclass(frozen=True)
class Prediction:
    """What a fit says of recorded MVMs.

    Attributes:
        mean_a: Expected outputs before the ADC in A, `[N, columns]`.
        sigma_a: Their standard deviation in A, the ADC's step included, `[N, columns]`.
    """

    mean_a: FloatArray
    sigma_a: FloatArray


@dataclass(frozen=True)
class Diagnostics:
    """Judgement on held-out MVMs of recorded writes.

    Attributes:
        heldout: Number of held-out MVMs.
        residual_rms_a: Root mean square of measured minus predicted, `[columns]`.
        noise_rms_a: Root mean square of the predicted standard deviation, `[columns]`.
        nominal_rms_a: The same residual for the data sheet's ideal chip, `[columns]` (what calibration saves).
        coverage_90: Part of the outputs inside their 90 % interval.
        z_mean: Mean of the standardised residuals.
        z_std: Their standard deviation.
        divergence: Jensen-Shannon divergence of measured and predicted outputs.
        divergence_nominal: The same for the data sheet's ideal chip: the negative control.
    """

    heldout: int
    residual_rms_a: FloatArray
    noise_rms_a: FloatArray
    nominal_rms_a: FloatArray
    coverage_90: float
    z_mean: float
    z_std: float
    divergence: Divergence
    divergence_nominal: Divergence

    @property
    def error_over_noise(self) -> float:
        """Held-out error as a multiple of the noise floor; 1 when nothing but noise is left."""
        return float(np.sqrt((self.residual_rms_a**2).mean() / (self.noise_rms_a**2).mean()))


def predict_recorded(parameters: ArrayParameters, dataset: MvmDataset) -> Prediction:
    """Predicts MVMs of recorded writes."""
    surrogate = ArraySurrogate(parameters).double()
    mean_a = np.empty_like(dataset.current_a)
    sigma_a = np.empty_like(dataset.current_a)
    with torch.no_grad():
        for write in range(dataset.writes):
            rows = dataset.pattern == write
            mean, sigma = surrogate.moments(
                torch.as_tensor(parameters.write_conductance_s[write]),
                torch.as_tensor(dataset.voltage_v[rows]),
                age_s=torch.as_tensor(dataset.age_s[rows]),
                measured_log_age=0.0 if parameters.write_log_age is None else float(parameters.write_log_age[write]),
            )
            mean_a[rows], sigma_a[rows] = mean.numpy(), sigma.numpy()
    lsb_a = parameters.converters.adc_lsb_a
    return Prediction(mean_a, np.sqrt(sigma_a**2 + lsb_a**2 / 12.0))


def predict_nominal(dataset: MvmDataset) -> FloatArray:
    """Outputs in A of the data sheet's chip: targets reached exactly, ideal wires and amplifiers, `[N, columns]`."""
    current_a = np.empty_like(dataset.current_a)
    for write in range(dataset.writes):
        rows = dataset.pattern == write
        current_a[rows] = dataset.voltage_v[rows] @ dataset.target_conductance_s[write]
    return current_a


def through_adc(parameters: ArrayParameters, current_a: FloatArray) -> FloatArray:
    """Currents in A as the ADC would report them; unchanged where no ADC is known."""
    converters = parameters.converters
    if not (converters.adc_lsb_a > 0.0).all():
        return current_a
    code = np.clip(np.round(current_a / converters.adc_lsb_a), converters.code_min, converters.code_max)
    return np.asarray(code * converters.adc_lsb_a)


def diagnose(parameters: ArrayParameters, heldout: MvmDataset, *, rng: np.random.Generator) -> Diagnostics:
    """Judges a fit on held-out data; saturated outputs do not count.

    Args:
        parameters: The fit.
        heldout: Data that it was not fitted to.
        rng: Source of the draws that predictions are made with.
    """
    prediction = predict_recorded(parameters, heldout)
    nominal_a = predict_nominal(heldout)
    kept = ~heldout.saturated
    residual_a = np.where(kept, heldout.current_a - prediction.mean_a, 0.0)
    z = (residual_a / prediction.sigma_a)[kept]
    counts = np.maximum(kept.sum(axis=0), 1)
    drawn_sigma_a = np.sqrt(np.maximum(prediction.sigma_a**2 - parameters.converters.adc_lsb_a**2 / 12.0, 0.0))
    drawn_a = prediction.mean_a + drawn_sigma_a * rng.standard_normal(prediction.mean_a.shape)
    return Diagnostics(
        heldout=len(heldout),
        residual_rms_a=np.sqrt((residual_a**2).sum(axis=0) / counts),
        noise_rms_a=np.sqrt((prediction.sigma_a**2 * kept).sum(axis=0) / counts),
        nominal_rms_a=np.sqrt((((heldout.current_a - nominal_a) * kept) ** 2).sum(axis=0) / counts),
        coverage_90=float((np.abs(z) < _HALF_WIDTH_90).mean()),
        z_mean=float(z.mean()),
        z_std=float(z.std()),
        divergence=compare(heldout.current_a[kept], through_adc(parameters, drawn_a)[kept], rng=rng),
        divergence_nominal=compare(heldout.current_a[kept], through_adc(parameters, nominal_a)[kept], rng=rng),
    )
