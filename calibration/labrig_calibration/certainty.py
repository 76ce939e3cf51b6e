"""How well a fit knows each parameter, in the terms in which designs predict it, and what more MVMs add. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.cell_information import LAW, LINES
from labrig_calibration.predictions import Predicted
from labrig_surrogates.parameters import ArrayParameters, Estimate

if TYPE_CHECKING:
    from labrig_calibration.uncertainty import Posterior

FloatArray = NDArray[np.float64]

NOISE = ("amplifier_noise", "shot_noise", "conductance_noise")
"""The terms of the noise law that designs predict."""
# Where informations do not add up: of every write anew, and the spread of devices that are the same in both.
_ALONE = frozenset({"conductance", "mismatch"})


@dataclass(frozen=True)
class Certainty:
    """One parameter before and after more is measured.

    Attributes:
        now: Its standard error after the fit.
        more: The one that the MVMs to come would give by themselves.
        both: The one of a fit of all together.
    """

    now: Predicted
    more: Predicted
    both: Predicted


def known_errors(array: ArrayParameters, posterior: Posterior) -> dict[str, Predicted]:
    """The standard errors of a fit by the names of `predictions.PREDICTED`, root mean square over columns or cells.

    What was not fitted is left out, and so is what dead columns do not know.

    Args:
        array: The fitted array.
        posterior: Its covariances.
    """
    alive = np.isfinite(array.gain.error) & (array.gain.value != 0.0)
    highest_s = array.converters.conductance_max_s
    full_scale_a = (array.converters.code_max + 1) * float(np.median(array.converters.adc_lsb_a))
    drift_scale = max(abs(float(np.median(array.drift.value))), 0.01)
    found = [
        _of(array.gain, "gain", alive, None, "itself"),
        _of(array.offset, "offset", alive, full_scale_a if full_scale_a > 0 else None, "full scale"),
        _of(array.compression, "compression", alive, None, "itself"),
        _of(array.drift, "drift", alive, drift_scale, f"{drift_scale:g}"),
    ]
    if array.write_conductance_error_s is not None:
        cells = Estimate(array.write_conductance_s[:, :, alive], array.write_conductance_error_s[:, :, alive], "S")
        found.append(_of(cells, "conductance", None, highest_s, "the highest"))
    for name in NOISE:
        term = _of(getattr(array, name), name, alive, None, "itself")
        pooled = None if term is None else term.error / math.sqrt(max(int(alive.sum()), 1))
        found.append(None if term is None else replace(term, pooled_error=pooled))
    found.append(_noise_at_half_scale(array, posterior, alive, full_scale_a))
    found += _of_cells(array, posterior)
    return {one.name: one for one in found if one is not None}


def with_more(known: Mapping[str, Predicted], more: Mapping[str, Predicted]) -> dict[str, Certainty]:
    """What every parameter of both would be known to, from a fit of the old MVMs and the new ones together.

    Informations add up, but for what belongs to a write or to the devices: there the better one is all there is.
    """
    found = {}
    for name, now in known.items():
        if name not in more:
            continue
        error = min(now.error, more[name].error)
        if name not in _ALONE and error > 0:
            error = 1.0 / math.hypot(1.0 / now.error, 1.0 / more[name].error)
        found[name] = Certainty(now, more[name], replace(now, error=error, worst_error=math.nan, pooled_error=None))
    return found


def least_certain(known: Mapping[str, Predicted], names: Sequence[str]) -> list[str]:
    """Those of `names` that a fit knows, the worst relative error first."""
    return sorted((name for name in names if name in known), key=lambda name: -known[name].relative)


def _of(
    estimate: Estimate, name: str, alive: NDArray[np.bool_] | None, scale: float | None, relative_to: str
) -> Predicted | None:
    value, error = estimate.value, estimate.error
    if alive is not None:
        value, error = value[alive], error[alive]
    fitted = np.isfinite(error)
    if not fitted.any():
        return None
    typical = float(np.median(value))
    size = abs(typical) if scale is None else scale
    root = float(np.sqrt(np.mean(error[fitted] ** 2)))
    return Predicted(name, estimate.unit, typical, root, float(error[fitted].max()), size, relative_to)


def _noise_at_half_scale(
    array: ArrayParameters, posterior: Posterior, alive: NDArray[np.bool_], full_scale_a: float
) -> Predicted | None:
    """Standard deviation where equal inputs drive half of the ADC's range, as `predictions` has it."""
    if not set(NOISE) <= set(posterior.noise_names) or full_scale_a <= 0:
        return None
    place = [posterior.noise_names.index(name) for name in NOISE]
    covariance = posterior.noise_covariance[alive][:, place][:, :, place]
    values = np.stack([getattr(array, name).value[alive] for name in NOISE], axis=1)
    cells_s = array.write_conductance_s[:, :, alive]
    current_a = 0.5 * full_scale_a
    share = ((cells_s**2).sum(axis=1) / cells_s.sum(axis=1) ** 2).mean(axis=0)
    slope2 = (1.0 - np.tanh(array.compression.value[alive] * current_a) ** 2) ** 2
    features = np.stack([np.ones_like(slope2), slope2 * current_a, slope2 * current_a**2 * share], axis=1)
    sigma_a = np.sqrt(np.maximum((features * values).sum(axis=1), 1e-300))
    error_a = np.sqrt(np.maximum(np.einsum("ca,cab,cb->c", features, covariance, features), 0.0)) / (2.0 * sigma_a)
    typical = float(np.median(sigma_a))
    found = _of(Estimate(sigma_a, error_a, "A"), "noise", None, typical, "itself")
    return None if found is None else replace(found, pooled_error=found.error / math.sqrt(max(int(alive.sum()), 1)))


def _of_cells(array: ArrayParameters, posterior: Posterior) -> list[Predicted | None]:
    highest = [index for index, name in enumerate(posterior.law_names) if name == "programming"]
    middle = np.array([1.0, 0.5, 0.25])
    sigma = float(middle @ array.programming.value)
    covariance = posterior.law_covariance[np.ix_(highest, highest)]
    error = math.sqrt(max(float(middle @ covariance @ middle), 0.0)) if len(highest) == 3 else math.inf
    found = [_single("programming", "1", sigma, error, sigma, "itself")]
    for index in range(3):
        own = float(array.programming.error[index])
        found.append(_single(LAW[index], "1", float(array.programming.value[index]), own, sigma, "programming"))
    if array.mismatch is not None:
        value = float(array.mismatch.value)
        found.append(_single(LAW[3], "1", value, float(array.mismatch.error), value, "itself"))
    if array.wire_ohm is not None:
        for index, name in enumerate(LINES[:2]):
            value = float(array.wire_ohm.value[index])
            # Of lines that look alike one says what the other may be: a tenth of it is not nothing.
            scale = max(value, 0.1 * float(array.wire_ohm.value.max()))
            found.append(_single(name, "ohm", value, float(array.wire_ohm.error[index]), scale, "itself"))
    if array.crosstalk is not None:
        value = float(array.crosstalk.value)
        found.append(_single(LINES[2], "1", value, float(array.crosstalk.error), 1.0, "a neighbour"))
    return found


def _single(name: str, unit: str, value: float, error: float, scale: float, relative_to: str) -> Predicted | None:
    if not math.isfinite(error):
        return None
    return Predicted(name, unit, value, error, error, abs(scale), relative_to)
