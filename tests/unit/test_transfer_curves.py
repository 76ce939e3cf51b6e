"""Curves of many columns at once against SciPy, the Cramer-Rao bound and the truth."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from benchmarks.calibration import TRUE_NOISE, Curves
from labrig_calibration.curves import fit_curves


def test_curves_reach_the_bound_and_know_their_errors() -> None:
    curves = Curves.drawn(64)
    found = curves.batched()
    assert bool(found.converged.all())
    assert curves.error_over_bound(found.value.numpy()) < 1.12
    z = (found.value.numpy() - curves.truth) / found.error.numpy()
    np.testing.assert_allclose(z.std(axis=1), 1.0, atol=0.25)
    assert np.abs(z.mean(axis=1)).max() < 0.45
    expected = np.array(TRUE_NOISE)[:, None] ** 2
    z_noise = (found.noise.numpy() - expected) / found.noise_error.numpy()
    np.testing.assert_allclose(z_noise.std(axis=1), 1.0, atol=0.25)


def test_scipy_finds_the_same_with_the_same_weights() -> None:
    curves = Curves.drawn(3)
    found = curves.batched()
    for column in range(3):
        x, y = curves.x[column], curves.y[column]
        height, rate, centre, offset = found.value[:, column].numpy()
        constant, relative = found.noise[:, column].numpy()
        sigma = np.sqrt(constant + relative * (height * np.tanh(rate * (x - centre))) ** 2)
        values, covariance = curve_fit(
            lambda x, a, b, c, d: a * np.tanh(b * (x - c)) + d,
            x,
            y,
            p0=[height, rate, centre, offset],
            sigma=sigma,
            absolute_sigma=True,
        )
        errors = np.sqrt(np.diag(covariance))
        assert (np.abs(values - found.value[:, column].numpy()) / errors).max() < 0.05
        np.testing.assert_allclose(found.error[:, column].numpy(), errors, rtol=0.03)


def test_units_do_not_matter() -> None:
    curves = Curves.drawn(4)
    one = curves.batched()
    other = fit_curves(torch.as_tensor(1e-3 * curves.x + 5.0), torch.as_tensor(1e-9 * curves.y))
    np.testing.assert_allclose(other.value[0].numpy(), 1e-9 * one.value[0].numpy(), rtol=1e-3)
    np.testing.assert_allclose(other.value[2].numpy(), 1e-3 * one.value[2].numpy() + 5.0, rtol=1e-4)
    np.testing.assert_allclose(other.error[1].numpy(), 1e3 * one.error[1].numpy(), rtol=1e-2)


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="y \\[columns, N >= 8\\]"):
        fit_curves(torch.zeros(4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="y has 18 values that are not finite"):
        fit_curves(torch.zeros(9), torch.full((2, 9), torch.nan))
