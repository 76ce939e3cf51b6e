"""A fitted chip as a noise model of IBM's aihwkit, as text: nothing of aihwkit is imported.

Equations of aihwkit 1.2 (`aihwkit.inference.noise.custom.StateIndependentNoiseModel` and
`aihwkit.simulator.parameters.io.IOParameters`), conductances in µS, weights between -1 and 1 on a pair of devices:

    programming   sigma = sum_i prog_coeff[i] * (g / g_max)**i
    drift         g(t) = g * ((t + t_0) / t_0)**-nu, nu = |drift_nu_mean + drift_nu_std * xi|
    each MVM      y = W x + w_noise * sqrt(|W| x**2) * xi + out_noise * xi, then an ADC of step 2 * out_bound * out_res

labrig's drift is the same law with `t_0 = drift_reference_s`. Its read noise is drawn at every MVM, so it goes to
`w_noise`; `read_noise_scale`, drawn once for each evaluation, is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labrig.export.chip_numbers import ChipNumbers

# More terms than three are needed where a mismatch adds to a programming error as a square.
_TERMS = 5


@dataclass(frozen=True)
class AihwkitModel:
    """What aihwkit's classes take.

    Attributes:
        converter: Arguments of `SinglePairConductanceConverter`.
        noise_model: Arguments of `StateIndependentNoiseModel`.
        forward: Fields of `InferenceRPUConfig().forward`.
        misfit: Largest difference between labrig's and aihwkit's programming error, part of the highest conductance.
    """

    converter: dict[str, float]
    noise_model: dict[str, float | list[float]]
    forward: dict[str, float | str]
    misfit: float


def aihwkit_model(numbers: ChipNumbers) -> AihwkitModel:
    """Converts; two columns with an ADC each make one output."""
    g_max_us, g_min_us = 1e6 * numbers.conductance_max_s, 1e6 * numbers.conductance_min_s
    coefficients_us, misfit = _programming_us(numbers)
    unit_a = numbers.unit_current_a
    after_a2 = numbers.amplifier_noise_a2.value + numbers.line_noise_a2.value
    forward: dict[str, float | str] = {
        "inp_bound": 1.0,
        "inp_res": numbers.dac_step_v / (2.0 * numbers.voltage_max_v) if numbers.dac_step_v else -1.0,
        # Two columns are read for one output, each with its own amplifier.
        "out_noise": float(np.sqrt(2.0 * after_a2)) / unit_a,
        "w_noise_type": "PCM_READ",
        "w_noise": weight_noise(numbers),
        "noise_management": "NONE",
        "bound_management": "NONE",
    }
    if numbers.adc_lsb_a:
        bound = numbers.code_max * numbers.adc_lsb_a / unit_a
        forward |= {"out_bound": bound, "out_res": numbers.adc_lsb_a / unit_a / (2.0 * bound)}
    else:
        forward |= {"out_bound": 0.0, "out_res": -1.0}
    if numbers.wire_ohm is not None and numbers.wire_ohm[1].value > 0.0:
        forward |= {
            "ir_drop": 1.0,
            "ir_drop_g_ratio": 1.0 / (numbers.wire_ohm[1].value * numbers.conductance_max_s),
        }
    return AihwkitModel(
        {"g_max": g_max_us, "g_min": g_min_us},
        {
            "prog_coeff": coefficients_us,
            "prog_noise_scale": 1.0,
            "drift_nu_mean": max(numbers.drift.value, 0.0),
            "drift_nu_std": numbers.drift_spread.value,
            "t_0": numbers.drift_reference_s,
            "read_noise_scale": 0.0,
        },
        forward,
        misfit,
    )


def weight_noise(numbers: ChipNumbers) -> float:
    """`w_noise` that gives the same variance on average over weights spread evenly between -1 and 1.

    labrig: `c * sum x^2 ((m + |w|)^2 + m^2)`, both devices of the pair, `m = g_min / (g_max - g_min)`;
    aihwkit: `w_noise^2 * sum x^2 |w|`. Means over |w| are `1/3 + m + 2 m^2` and `1/2`.
    """
    m = numbers.conductance_min_s / (numbers.conductance_max_s - numbers.conductance_min_s)
    return float(np.sqrt(2.0 * numbers.conductance_noise.value * (1.0 / 3.0 + m + 2.0 * m**2)))


def _programming_us(numbers: ChipNumbers) -> tuple[list[float], float]:
    """Coefficients in µS over the relative target, and the largest misfit."""
    relative = np.linspace(numbers.conductance_min_s / numbers.conductance_max_s, 1.0, 201)
    fitted = numbers.programming @ np.stack([np.ones_like(relative), relative, relative**2])
    if numbers.mismatch.value == 0.0 and fitted.min() >= 0.0:
        return [1e6 * numbers.conductance_max_s * one for one in numbers.programming.tolist()], 0.0
    # aihwkit multiplies a negative spread by normal numbers as it does a positive one: below zero there is none.
    sigma = numbers.programming_sigma_s(relative * numbers.conductance_max_s) / numbers.conductance_max_s
    powers = relative[:, None] ** np.arange(_TERMS)
    coefficients = np.linalg.lstsq(powers, sigma, rcond=None)[0]
    misfit = float(np.abs(powers @ coefficients - sigma).max())
    return [1e6 * numbers.conductance_max_s * one for one in coefficients.tolist()], misfit
