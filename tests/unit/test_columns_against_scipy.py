"""The batched Gauss-Newton and the noise law against SciPy and iminuit on problems that those can do."""

import numpy as np
import torch
from iminuit import Minuit
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from labrig_calibration.columns import ColumnState, Factor, climb, in_own_units
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.linear_rungs import robust_start
from labrig_calibration.measurements import Measurements
from labrig_calibration.noise_law import NoiseTerms, fit_noise_law

ROWS, COLUMNS, COUNT = 3, 4, 400
NOISE_A = 0.1e-6
FREE = (0, 1, 2)


def make_data(seed: int = 0) -> tuple[MvmDataset, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    voltage = rng.uniform(-0.3, 0.3, (COUNT, ROWS))
    age = np.sort(rng.uniform(0.0, 30.0, COUNT))
    conductance = rng.uniform(5e-6, 5e-5, (ROWS, COLUMNS))
    truth = np.stack([rng.normal(0, 2e-6, COLUMNS), 1.0 / rng.uniform(15e-6, 30e-6, COLUMNS), np.full(COLUMNS, 0.05)])
    u = (1.0 + age[:, None]) ** -truth[2] * (voltage @ conductance)
    y = truth[0] + np.tanh(truth[1] * u) / truth[1] + NOISE_A * rng.standard_normal(u.shape)
    dataset = MvmDataset(
        voltage_v=voltage,
        current_a=y,
        pattern=np.zeros(COUNT, dtype=np.int64),
        target_conductance_s=conductance[None],
        time_s=age,
        programmed_at_s=np.zeros(1),
    )
    return dataset, truth


def fit_all(dataset: MvmDataset) -> tuple[ColumnState, Factor]:
    data = Measurements.of(dataset)
    start = robust_start(data)
    shared = start.shared.clone()
    shared[1] = 0.5 / torch.as_tensor(np.abs(dataset.current_a).max(axis=0))
    known = NoiseTerms.constant(torch.full((COLUMNS,), NOISE_A**2, dtype=torch.float64), start.noise.floor_a2)
    state, factor, resting = climb(data, ColumnState(shared, start.conductance_s, known), FREE)
    assert resting
    return state, in_own_units(factor, state, FREE)


def test_columns_equal_scipy_curve_fit_values_and_errors() -> None:
    dataset, _ = make_data()
    state, factor = fit_all(dataset)
    voltage, log_age = dataset.voltage_v, np.log1p(dataset.age_s)

    def model(_: object, offset: float, kappa: float, drift: float, *g: float) -> NDArray[np.float64]:
        u = np.exp(-drift * log_age) * (voltage @ (np.array(g) * 1e-6))
        return np.asarray(offset + np.tanh(kappa * 1e5 * u) / (kappa * 1e5) * 1e6)

    for column in range(COLUMNS):
        values, covariance = curve_fit(
            model,
            np.zeros(COUNT),
            1e6 * dataset.current_a[:, column],
            p0=[0.0, 0.3, 0.01, *([20.0] * ROWS)],
            sigma=np.full(COUNT, 0.1),
            absolute_sigma=True,
        )
        values[1] = abs(values[1])  # the curve is the same for both signs
        errors = np.sqrt(np.diag(covariance))
        ours = [*state.shared[:3, column].tolist(), *state.conductance_s[0, :, column].tolist()]
        our_errors = [*factor.shared_error()[:, column].tolist(), *factor.cell_error_s()[0, :, column].tolist()]
        scale = np.array([1e6, 1e-5, 1.0, *([1e6] * ROWS)])
        np.testing.assert_allclose(np.array(ours) * scale, values, atol=2e-3 * errors.min(), rtol=1e-3)
        np.testing.assert_allclose(np.array(our_errors) * scale, errors, rtol=1e-2)


def test_errors_cover_the_truth_over_many_data_sets() -> None:
    scores = []
    for seed in range(25):
        dataset, truth = make_data(seed)
        state, factor = fit_all(dataset)
        scores.append(((state.shared[:3] - torch.as_tensor(truth)) / factor.shared_error()).numpy())
    stacked = np.stack(scores)
    assert abs(stacked.mean()) < 0.2
    np.testing.assert_allclose(stacked.std(axis=(0, 2)), 1.0, atol=0.25)


def test_noise_law_equals_the_gamma_likelihood_of_iminuit() -> None:
    rng = np.random.default_rng(1)
    features = np.stack([np.ones((4000, 1)), rng.uniform(0, 1, (4000, 1)), rng.uniform(0, 1, (4000, 1)) ** 2])
    truth = np.array([0.5, 0.8, 1.5])
    variance = np.einsum("k,knc->nc", truth, features) + 0.1
    squared = variance * rng.standard_normal(variance.shape) ** 2
    law = fit_noise_law(
        torch.as_tensor(squared),
        torch.as_tensor(features),
        torch.tensor([0.1], dtype=torch.float64),
        torch.ones(variance.shape, dtype=torch.bool),
        iterations=50,
    )

    def negative_log_likelihood(a: float, b: float, c: float) -> float:
        v = np.einsum("k,knc->nc", np.array([a, b, c]), features) + 0.1
        return float(0.5 * (np.log(v) + squared / v).sum())

    oracle = Minuit(negative_log_likelihood, a=1.0, b=1.0, c=1.0)
    oracle.errordef = Minuit.LIKELIHOOD
    oracle.limits = [(1e-6, None)] * 3
    oracle.migrad()
    oracle.hesse()
    np.testing.assert_allclose(law.value[:, 0].numpy(), np.array(oracle.values), rtol=2e-3)
    np.testing.assert_allclose(law.error[:, 0].numpy(), np.array(oracle.errors), rtol=0.15)


def test_a_term_that_is_not_there_is_zero_not_negative() -> None:
    rng = np.random.default_rng(2)
    features = np.stack([np.ones((500, 30)), rng.uniform(0, 1, (500, 30)), rng.uniform(0, 1, (500, 30)) ** 2])
    squared = rng.standard_normal((500, 30)) ** 2
    law = fit_noise_law(
        torch.as_tensor(squared),
        torch.as_tensor(features),
        torch.zeros(30, dtype=torch.float64),
        torch.ones((500, 30), dtype=torch.bool),
    )
    assert (law.value >= 0).all()
    assert (law.value[1:] == 0).any()
    assert law.value[0].mean() > 0.8
