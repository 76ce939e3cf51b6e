"""Fisher information of vectors against closed forms, finite differences, and the exact circuit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig_calibration.adc_step import fixed_step_variance
from labrig_calibration.assumptions import ASSUMABLE, AssumedChip, AssumptionError
from labrig_calibration.dataset import Converters
from labrig_calibration.information import WriteInformation, column_errors, write_information
from labrig_calibration.line_loads import neighbours_s, wire_loads_s
from labrig_calibration.stimulus import hadamard_signs
from labrig_drivers.mock.nodal import transfer_matrix

FloatArray = NDArray[np.float64]

ROWS = 16
AMPLITUDE_V = 0.25
NOISE_A = 3e-7
# A converter that stands in nobody's way.
FINE = Converters(-0.25, 0.25, 20, 24, np.full(3, 1e-3), 4e-6, 5e-5)
ADDITIVE = replace(
    AssumedChip.from_data_sheet(FINE),
    compression_per_a=1.0,
    drift=0.0,
    amplifier_noise_a2=NOISE_A**2,
    shot_noise_a=0.0,
    conductance_noise=0.0,
)
CONDUCTANCE_S = np.random.default_rng(0).uniform(4e-6, 5e-5, (ROWS, 3))


def information(voltage_v: FloatArray, chip: AssumedChip = ADDITIVE) -> WriteInformation:
    return write_information(voltage_v, np.zeros(len(voltage_v)), CONDUCTANCE_S, np.full(3, 1e-3), FINE, chip)


def conductance_errors_s(voltage_v: FloatArray, chip: AssumedChip = ADDITIVE) -> FloatArray:
    """Standard errors where offset, compression and drift are known."""
    found = column_errors([information(voltage_v, chip)], [1.0], FINE, chip)
    return np.sqrt(np.diagonal(found.inverse[0], axis1=1, axis2=2))


@pytest.mark.parametrize("repeats", [1, 4, 25])
def test_one_hot_has_the_error_of_the_closed_form(repeats: int) -> None:
    errors_s = conductance_errors_s(np.tile(AMPLITUDE_V * np.eye(ROWS), (repeats, 1)))
    np.testing.assert_allclose(errors_s, NOISE_A / (AMPLITUDE_V * math.sqrt(repeats)), rtol=1e-3)


@pytest.mark.parametrize("repeats", [1, 9])
def test_hadamard_has_the_error_of_the_closed_form(repeats: int) -> None:
    errors_s = conductance_errors_s(np.tile(AMPLITUDE_V * hadamard_signs(ROWS), (repeats, 1)))
    np.testing.assert_allclose(errors_s, NOISE_A / (AMPLITUDE_V * math.sqrt(ROWS * repeats)), rtol=1e-3)


def test_s_matrix_of_one_sign_saves_a_quarter_of_that() -> None:
    rows = ROWS - 1
    ones = (hadamard_signs(ROWS)[1:, 1:] < 0).astype(np.float64)
    info = write_information(AMPLITUDE_V * ones, np.zeros(rows), CONDUCTANCE_S[:rows], np.full(3, 1e-3), FINE, ADDITIVE)
    errors_s = np.sqrt(np.diagonal(np.linalg.inv(info.gram), axis1=1, axis2=2))
    # Harwit and Sloane, Hadamard Transform Optics, 1979: 2 sqrt(n) / (n + 1).
    np.testing.assert_allclose(errors_s, NOISE_A / AMPLITUDE_V * 2.0 * math.sqrt(rows) / (rows + 1), rtol=1e-3)


def test_hadamard_gains_nothing_where_noise_is_shot_noise() -> None:
    shot = replace(ADDITIVE, amplifier_noise_a2=1e-24, shot_noise_a=1e-9)
    level = np.full((ROWS, 3), 2e-5)

    def errors_s(voltage_v: FloatArray) -> FloatArray:
        info = write_information(voltage_v, np.zeros(ROWS), level, np.full(3, 1e-3), FINE, shot)
        return np.sqrt(np.diagonal(np.linalg.inv(info.gram), axis1=1, axis2=2))

    hadamard, one_hot = errors_s(AMPLITUDE_V * hadamard_signs(ROWS)), errors_s(AMPLITUDE_V * np.eye(ROWS))
    np.testing.assert_allclose(hadamard / one_hot, 1.0, rtol=1e-3)


@pytest.mark.parametrize(("relative", "reads"), [(0.1, 51), (0.05, 201), (0.02, 1251), (0.01, 5001)])
def test_a_standard_deviation_needs_the_published_number_of_reads(relative: float, reads: int) -> None:
    info = information(np.zeros((reads, ROWS)))
    # One of the reads goes to the mean.
    variance_error = 1.0 / math.sqrt(float(info.variance[0, 0, 0]) * (reads - 1) / reads)
    assert variance_error / (2.0 * NOISE_A**2) == pytest.approx(relative, rel=1e-3)


def test_sums_of_vectors_are_sums_of_information() -> None:
    voltage_v = np.random.default_rng(1).uniform(-0.25, 0.25, (60, ROWS))
    both, parts = information(voltage_v), [information(voltage_v[:20]), information(voltage_v[20:])]
    np.testing.assert_allclose(both.gram, parts[0].gram + parts[1].gram, rtol=1e-9)
    np.testing.assert_allclose(both.times(3.0).border, 3.0 * both.border)


def test_information_is_that_of_finite_differences() -> None:
    """Means of the model, written once more, differentiated step by step."""
    rng = np.random.default_rng(2)
    full_scale_a = 8e-5
    limits = replace(FINE, adc_bits=10, adc_full_scale_a=np.full(1, full_scale_a))
    chip = AssumedChip.from_data_sheet(limits)
    target_s, voltage_v = rng.uniform(4e-6, 5e-5, (6, 1)), rng.uniform(-0.25, 0.25, (40, 6))
    log_age = rng.uniform(0.0, 1.0, 40)
    lsb_a = full_scale_a / 512

    def mean_a(parameters: FloatArray) -> FloatArray:
        offset_a, kappa, nu = parameters[:3]
        u = np.exp(-nu * log_age) * (voltage_v @ parameters[3:])
        return np.asarray(offset_a + np.tanh(kappa * u) / kappa)

    at = np.array([0.0, chip.compression_per_a, chip.drift, *target_s[:, 0]])
    step = np.array([1e-9, 1.0, 1e-4, *np.full(6, 1e-10)])
    columns = []
    for index in range(len(at)):
        up, down = at.copy(), at.copy()
        up[index] += step[index]
        down[index] -= step[index]
        columns.append((mean_a(up) - mean_a(down)) / (2.0 * step[index]))
    jacobian = np.stack(columns, axis=1)
    u = np.exp(-chip.drift * log_age) * (voltage_v @ target_s[:, 0])
    slope2 = (1.0 - np.tanh(chip.compression_per_a * u) ** 2) ** 2
    decay = np.exp(-chip.drift * log_age)
    variance_a2 = (
        chip.amplifier_noise_a2
        + chip.shot_noise_a * slope2 * decay * (np.abs(voltage_v) @ target_s[:, 0])
        + chip.conductance_noise * slope2 * decay**2 * (voltage_v**2 @ target_s[:, 0] ** 2)
        + lsb_a**2 / 12.0
    )
    expected = jacobian.T @ (jacobian / variance_a2[:, None])
    info = write_information(voltage_v, log_age, target_s, np.full(1, full_scale_a), limits, chip)
    scale = np.sqrt(np.diagonal(expected))
    found = np.block([[info.border[0, :3, :3], info.cross[0, :3]], [info.cross[0, :3].T, info.gram[0]]])
    np.testing.assert_allclose(found / np.outer(scale, scale), expected / np.outer(scale, scale), atol=2e-5)


def test_outputs_beyond_the_adc_say_nothing() -> None:
    voltage_v = np.tile(AMPLITUDE_V * np.eye(ROWS), (3, 1))
    clipped = write_information(voltage_v, np.zeros(48), CONDUCTANCE_S, np.full(3, 5e-7), FINE, ADDITIVE)
    assert not clipped.gram.any()
    assert not clipped.variance.any()


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.3, 0.6])
def test_what_repeats_cannot_average_out_of_a_step(ratio: float) -> None:
    """Quantised Gaussian readings, drawn; 4e5 readings of 400 places within a step."""
    rng = np.random.default_rng(3)
    place = (np.arange(400) + 0.5) / 400 - 0.5
    codes = np.round(place[:, None] + ratio * rng.standard_normal((400, 1000)))
    bias = codes.mean(axis=1) - place
    drawn = float(np.mean(bias**2) - np.mean(codes.var(axis=1, ddof=1)) / 1000)
    predicted = float(fixed_step_variance(np.array([ratio]), np.array([1.0]))[0])
    assert predicted == pytest.approx(drawn, rel=0.03, abs=1e-4)


def test_repeats_of_one_vector_do_not_beat_a_coarse_step() -> None:
    coarse = replace(FINE, adc_bits=8, adc_full_scale_a=np.full(3, 1e-3))
    quiet = replace(ADDITIVE, amplifier_noise_a2=(0.05 * 1e-3 / 128) ** 2)

    def error_s(repeats: int) -> float:
        voltage_v = np.tile(AMPLITUDE_V * np.eye(ROWS), (repeats, 1))
        info = write_information(voltage_v, np.zeros(len(voltage_v)), CONDUCTANCE_S, np.full(3, 1e-3), coarse, quiet)
        return float(np.sqrt(1.0 / info.gram[0, 0, 0]))

    floor_s = 1e-3 / 128 / math.sqrt(12.0) / AMPLITUDE_V
    assert error_s(10_000) == pytest.approx(error_s(100), rel=0.02)
    assert 0.8 * floor_s < error_s(10_000) < floor_s


def test_loads_of_wires_are_those_of_the_exact_circuit() -> None:
    conductance_s = np.random.default_rng(4).uniform(4e-6, 5e-5, (9, 7))
    word, bit = wire_loads_s(conductance_s)
    ohm = 1e-3
    for load, word_ohm, bit_ohm in ((word, ohm, 0.0), (bit, 0.0, ohm), (word + bit, ohm, ohm)):
        lost = 1.0 - transfer_matrix(conductance_s, word_ohm, bit_ohm) / conductance_s
        np.testing.assert_allclose(lost / ohm, load, rtol=1e-4)
    with pytest.raises(AssertionError):  # lines driven from the other end are another circuit
        np.testing.assert_allclose(wire_loads_s(conductance_s[:, ::-1])[0][:, ::-1], word, rtol=0.01)


def test_neighbours_are_those_of_the_surrogates_crosstalk() -> None:
    torch = pytest.importorskip("torch")
    from labrig_surrogates.crosstalk import apply_crosstalk

    conductance_s = np.random.default_rng(5).uniform(4e-6, 5e-5, (4, 6))
    picked_up = apply_crosstalk(torch.tensor(conductance_s), [0.5], conserving=False).numpy() - conductance_s
    np.testing.assert_allclose(0.5 * neighbours_s(conductance_s), picked_up)


def test_impossible_assumptions_are_refused_with_every_fault() -> None:
    chip = AssumedChip.from_data_sheet(FINE)
    assert set(chip.as_options()) == set(ASSUMABLE)
    assert chip.with_values({"programming_p1": 0.01, "wire_ohm": 2.0}).programming == (0.03, 0.01, 0.0)
    with pytest.raises(AssumptionError, match=r"gain is -1.*wire_ohm is -2.*programming is \(-0.1"):
        chip.with_values({"gain": -1.0, "wire_ohm": -2.0, "programming_p0": -0.1})
    with pytest.raises(AssumptionError, match="no colour to assume; there are: gain"):
        chip.with_values({"colour": 1.0})
