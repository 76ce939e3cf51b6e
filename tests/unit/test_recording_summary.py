"""Figures that a recording gives away at once."""

from __future__ import annotations

import numpy as np
import pytest

from labrig.recording import SupplyTrace


def energy_j(*times_s: float) -> float:
    count = len(times_s)
    return SupplyTrace(np.array(times_s), np.full(count, 1.2), np.full(count, 0.05), np.zeros(count, bool)).energy_j


def test_energy_is_power_over_the_time_that_the_supply_was_on() -> None:
    assert energy_j() == energy_j(3.0) == 0.0
    assert energy_j(0.0, 0.5) == pytest.approx(0.06 * 0.5)
    assert energy_j(*np.linspace(0.0, 10.0, 51)) == pytest.approx(0.6)


def test_a_night_without_a_reading_costs_nothing() -> None:
    feeding = np.linspace(0.0, 2.0, 11)
    assert energy_j(*feeding, *(36_000.0 + feeding)) == pytest.approx(2 * 0.12)
    # A slow meter's own pace is no gap, and neither is a moment in which a link was opened again.
    assert energy_j(0.0, 30.0, 60.0, 90.0) == pytest.approx(5.4)
    assert energy_j(*feeding, 3.5, 3.7) == pytest.approx(0.06 * 3.7)
