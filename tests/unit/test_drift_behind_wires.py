"""Currents behind wires taken back to age zero: against the exact network of the drifted cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.drift_behind_wires import seen_at_age_zero
from labrig_surrogates.parameters import ArrayParameters, ConverterRange, Estimate
from labrig_surrogates.wires import transfer_matrix

ROWS, COLUMNS = 24, 16


def known(value: float, *shape: int) -> Estimate:
    return Estimate(np.full(shape, value), np.full(shape, 1e-3), "1")


def array(wire_ohm: float, drift: float, writes_s: np.ndarray, log_age: float) -> ArrayParameters:
    return ArrayParameters(
        array=0,
        gain=known(1.0, COLUMNS),
        offset=known(0.0, COLUMNS),
        compression=known(0.0, COLUMNS),
        drift=known(drift, COLUMNS),
        amplifier_noise=known(0.0, COLUMNS),
        shot_noise=known(0.0, COLUMNS),
        conductance_noise=known(0.0, COLUMNS),
        programming=known(0.0, 3),
        cell_slope=np.ones((ROWS, COLUMNS)),
        cell_intercept_s=np.zeros((ROWS, COLUMNS)),
        stuck=np.zeros((ROWS, COLUMNS), dtype=np.bool_),
        write_conductance_s=writes_s,
        drift_reference_s=1.0,
        converters=ConverterRange(0.3, 0.002, np.full(COLUMNS, 1e-8), -512, 511, 1e-6, 25e-6),
        wire_ohm=known(wire_ohm, 2) if wire_ohm else None,
        exact_wires=True,
        write_log_age=np.full(len(writes_s), log_age),
    )


@pytest.mark.parametrize("wire_ohm", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("drift", [0.02, 0.08])
def test_a_new_write_is_right_at_the_age_of_the_recording(wire_ohm: float, drift: float) -> None:
    rng = np.random.default_rng(0)
    cells_s = rng.uniform(1e-6, 25e-6, (4, ROWS, COLUMNS))

    def seen(log_age: float) -> np.ndarray:
        drifted = torch.as_tensor(cells_s * np.exp(-drift * log_age))
        return np.asarray(transfer_matrix(drifted, wire_ohm, wire_ohm).numpy())

    # What a fit finds: the exponent of the currents around the age of the readings, and writes taken back with it.
    log_age, step = 3.0, 0.2
    exponent = float(np.log(seen(log_age - step).sum() / seen(log_age + step).sum()) / (2.0 * step))
    assert exponent < drift
    found = array(wire_ohm, exponent, seen(log_age) * np.exp(exponent * log_age), log_age)
    target_s = torch.as_tensor(rng.uniform(1e-6, 25e-6, (ROWS, COLUMNS)))
    predicted = ArraySurrogate(found).double().new_write(target_s).numpy() * np.exp(-exponent * log_age)
    truth = transfer_matrix(target_s * float(np.exp(-drift * log_age)), wire_ohm, wire_ohm).numpy()
    lost = 1.0 - truth.sum() / (target_s.sum().item() * np.exp(-drift * log_age))
    error, before = predicted.sum() / truth.sum() - 1.0, predicted.sum() / seen_at_age_zero(found) / truth.sum() - 1.0
    # Of what the drift of the currents alone would be wrong by, a seventh at most is left.
    assert abs(before) > 0.7 * lost * exponent * log_age
    assert abs(error) < 0.15 * abs(before)


def test_without_wires_or_without_drift_there_is_nothing_to_do() -> None:
    writes_s = np.full((2, ROWS, COLUMNS), 1e-5)
    assert seen_at_age_zero(array(0.0, 0.08, writes_s, 3.0)) == 1.0
    assert seen_at_age_zero(array(5.0, 0.0, writes_s, 3.0)) == 1.0
    assert seen_at_age_zero(array(5.0, 0.08, writes_s, 0.0)) == 1.0
    assert seen_at_age_zero(array(5.0, 0.08, writes_s[:0], 3.0)) == 1.0
    assert 0.95 < seen_at_age_zero(array(5.0, 0.08, writes_s, 3.0)) < 1.0
