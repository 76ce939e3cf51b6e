"""Wires in the cells of recorded writes: their resistance, whatever drift had left when the writes were read."""

from dataclasses import replace

import numpy as np
import torch

from labrig_calibration.cell_likelihood import BIT, WORD, CellData, CellModel
from labrig_calibration.cells import CellFit, fit_cells
from labrig_drivers.mock.nodal import transfer_matrix

LEFT = 0.7
HIGHEST_S = 50e-6


def cells_behind_wires(rng: np.random.Generator, size: int, word_ohm: float, bit_ohm: float) -> CellData:
    """Four writes, read when `LEFT` of their conductances is left, given at age zero as the fit of columns does."""
    first = rng.uniform(4e-6, HIGHEST_S, (2, size, size))
    target_s = np.stack([first, 4e-6 + HIGHEST_S - first], axis=1).reshape(4, size, size)
    slope = 1.0 + 0.04 * rng.standard_normal((size, size))
    cells_s = slope * target_s + 0.005 * HIGHEST_S * rng.standard_normal(target_s.shape)
    passed_s = np.stack([transfer_matrix(LEFT * one, word_ohm, bit_ohm) for one in cells_s]) / LEFT
    error_s = np.full_like(passed_s, 1e-3 * HIGHEST_S)
    return CellData(
        torch.as_tensor(passed_s + error_s * rng.standard_normal(passed_s.shape)),
        torch.as_tensor(error_s),
        torch.as_tensor(target_s),
        HIGHEST_S,
        torch.full((4,), LEFT, dtype=torch.float64),
    )


def mean_ohm(fit: CellFit) -> tuple[float, float]:
    """Mean resistance of both lines, and its standard error."""
    place = [fit.model.law.index(WORD), fit.model.law.index(BIT)]
    return float(fit.law[[WORD, BIT]].mean()), 0.5 * float(np.sqrt(fit.law_covariance[np.ix_(place, place)].sum()))


def test_drift_hides_no_resistance() -> None:
    data = cells_behind_wires(np.random.default_rng(3), 24, 9.0, 6.5)
    model = CellModel(crosstalk=False)
    found, error = mean_ohm(fit_cells(data, model))
    assert error < 0.9
    assert abs(found - 7.75) < 2.5 * error
    # Without being told, a fit takes what the undrifted cells would have lost.
    blind, _ = mean_ohm(fit_cells(replace(data, left=torch.ones(4, dtype=torch.float64)), model))
    assert abs(blind / found - LEFT) < 0.03


def test_a_start_leads_to_the_same_fit() -> None:
    data = cells_behind_wires(np.random.default_rng(4), 16, 12.0, 12.0)
    straight = fit_cells(data, CellModel(wires=False, crosstalk=False))
    fresh, led = fit_cells(data, CellModel(crosstalk=False)), fit_cells(data, CellModel(crosstalk=False), straight)
    assert abs(fresh.log_likelihood - led.log_likelihood) < 0.1
    np.testing.assert_allclose(led.law[[WORD, BIT]], fresh.law[[WORD, BIT]], rtol=0.02)
    assert fresh.log_likelihood > straight.log_likelihood + 50.0


def test_part_of_the_columns_is_enough_for_what_all_cells_share() -> None:
    data = cells_behind_wires(np.random.default_rng(6), 96, 0.3, 0.24)
    model = CellModel(crosstalk=False)
    part, whole = fit_cells(data, model, part=True), fit_cells(data, model)
    assert (part.looked_at, whole.looked_at) == (4 * 96 * 48, 4 * 96 * 96)
    # Every column has its gain, and every cell its slope, with the errors that so many cells give.
    np.testing.assert_allclose(part.gain, whole.gain, atol=3.0 * float(part.gain_error.max()))
    np.testing.assert_allclose(part.slope, whole.slope, atol=3.0 * float(part.slope_error.max()))
    assert mean_ohm(whole)[1] < mean_ohm(part)[1] < 2.0 * mean_ohm(whole)[1]
    for fit in (part, whole):
        found, error = mean_ohm(fit)
        assert abs(found - 0.27) < 2.5 * error
    # From there the whole is soon reached.
    led = fit_cells(data, model, part)
    assert abs(led.log_likelihood - whole.log_likelihood) < 0.2


def test_a_start_without_programming_errors_does_not_keep_them_at_nothing() -> None:
    """Below the least that counts the likelihood is flat: nothing would lead back from there."""
    data = cells_behind_wires(np.random.default_rng(5), 16, 12.0, 12.0)
    model = CellModel(wires=False, crosstalk=False)
    fresh = fit_cells(data, model)
    lost = fresh.law.copy()
    lost[:3] = (-0.03, 0.0, -0.01)
    found = fit_cells(data, model, replace(fresh, law=lost))
    assert abs(found.log_likelihood - fresh.log_likelihood) < 0.1
    np.testing.assert_allclose(found.slope_error, fresh.slope_error, rtol=0.01)
