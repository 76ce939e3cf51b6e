"""What a fit promises its users: predictions, gradients, draws of chips, files, and what the ladder says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_chips import MeasuredChip, measure, true_ladder

from labrig_calibration.bootstrap import block_bootstrap
from labrig_calibration.fit import fit
from labrig_calibration.ladder import RUNGS, Ladder
from labrig_calibration.result import CalibrationResult
from labrig_calibration.uncertainty import trade_offs
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.nodal import transfer_matrix
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.io import load_chip

SETTINGS = ChipSettings(
    seed=21,
    arrays=1,
    rows=16,
    columns=12,
    adc_full_scale_a=48e-6,
    compression_a=40e-6,
    wire_ohm=8.0,
    stuck_fraction=0.01,
    drift_exponent=0.04,
    drift_exponent_sigma=0.0,
)
AGE_S = 5.0


@pytest.fixture(scope="module")
def chip() -> MeasuredChip:
    return measure(SETTINGS, np.random.default_rng(0))


@pytest.fixture(scope="module")
def result(chip: MeasuredChip) -> CalibrationResult:
    return fit(chip.dataset, rng=np.random.default_rng(0))


def inputs(chip: MeasuredChip, count: int, seed: int = 4) -> np.ndarray:
    return chip.truth.dac_v(np.random.default_rng(seed).uniform(-0.2, 0.2, (count, SETTINGS.rows)))


def test_the_ladder_says_what_each_rung_brought(result: CalibrationResult) -> None:
    assert [verdict.rung for verdict in result.ladder] == list(RUNGS)
    kept = {verdict.rung for verdict in result.ladder if verdict.kept}
    assert {"global", "cells", "columns", "curve", "stuck", "drift"} <= kept
    assert "residual" not in kept
    assert "left out" in result.ladder[-1].reason
    counts = [
        verdict.parameters for verdict in result.ladder if verdict.rung in {"global", "cells", "columns", "curve"}
    ]
    assert counts == sorted(counts)
    scores = {verdict.rung: verdict.heldout_nll for verdict in result.ladder}
    assert scores["curve"] < scores["columns"] < scores["cells"] < scores["global"]
    assert result.rung == "drift"


def test_without_the_second_rung_the_error_is_several_times_the_noise(chip: MeasuredChip) -> None:
    # The programming error of every cell is the largest thing that a chip does: one gain cannot stand for it.
    low = fit(chip.dataset, ladder=Ladder(("global", "cells")), rng=np.random.default_rng(0))
    assert low.rung == "cells"
    scores = [verdict.heldout_nll for verdict in low.ladder]
    assert scores[0] - scores[1] > 3.0
    with pytest.raises(ValueError, match="rungs have to begin with global, cells"):
        Ladder(("global", "curve"))


def test_recorded_writes_are_predicted_to_the_noise(chip: MeasuredChip, result: CalibrationResult) -> None:
    voltage_v = inputs(chip, 4000)
    errors, spreads = [], []
    for write, written in enumerate(chip.written):
        batch = chip.truth.mvm(written, voltage_v, written.time_s + AGE_S, 900 + write)
        mean_a, std_a = result.predict(voltage_v, write, age_s=AGE_S)
        lsb_a = SETTINGS.adc_full_scale_a / 512
        errors.append(np.where(batch.saturated, np.nan, batch.code * lsb_a - mean_a))
        spreads.append(std_a)
    floor_a2 = _noise_floor_a2(chip, voltage_v)
    rms = np.sqrt(np.nanmean(np.stack(errors) ** 2))
    assert rms < 1.05 * np.sqrt(floor_a2)
    z = np.stack(errors) / np.stack(spreads)
    assert 0.95 < np.nanstd(z) < 1.05


def test_new_writes_are_predicted_to_read_noise_and_programming_error() -> None:
    # A cell's own slope is known to its programming error over the root of the writes: a few do not reach the bound.
    chip = measure(SETTINGS, np.random.default_rng(9), writes=12)
    result = fit(chip.dataset, rng=np.random.default_rng(0))
    voltage_v = inputs(chip, 400)
    rng = np.random.default_rng(5)
    squares, z = [], []
    for write in range(8):
        target_s = rng.uniform(4e-6, 50e-6, (SETTINGS.rows, SETTINGS.columns))
        written = chip.truth.program(target_s, 50 + write, 1e4)
        batch = chip.truth.mvm(written, voltage_v, 1e4 + AGE_S, 950 + write)
        mean_a, std_a = result.predict(voltage_v, target_conductance_s=target_s, age_s=AGE_S)
        error = np.where(batch.saturated, np.nan, batch.code * SETTINGS.adc_full_scale_a / 512 - mean_a)
        squares.append(error**2)
        z.append(error / std_a)
    programming_a2 = _programming_a2(chip, voltage_v)
    bound = 1.05 * np.sqrt(_noise_floor_a2(chip, voltage_v) + programming_a2)
    assert np.sqrt(np.nanmean(squares)) < bound
    assert 0.85 < np.nanstd(z) < 1.1


def test_gradients_point_where_the_chip_goes(chip: MeasuredChip, result: CalibrationResult) -> None:
    # Finite differences of the hidden chip, without its noise, against the gradient of the surrogate.
    surrogate = result.surrogate.double()
    voltage_v = inputs(chip, 6)
    weights = np.random.default_rng(8).normal(size=(6, SETTINGS.columns))
    written, settings = chip.written[0], SETTINGS
    cells_s = chip.truth.conductance_s(written, written.time_s + AGE_S)
    transfer_s = transfer_matrix(cells_s, settings.wire_ohm, settings.wire_ohm)

    def chip_loss(line_v: np.ndarray) -> float:
        u = line_v @ transfer_s * chip.truth.gain
        return float((weights * (chip.truth.compression_a * np.tanh(u / chip.truth.compression_a))).sum())

    step = 1e-4
    finite = np.zeros_like(voltage_v)
    for index in np.ndindex(*voltage_v.shape):
        high, low = voltage_v.copy(), voltage_v.copy()
        high[index] += step
        low[index] -= step
        finite[index] = (chip_loss(high) - chip_loss(low)) / (2 * step)
    line = torch.tensor(voltage_v, requires_grad=True)
    cells = torch.as_tensor(result.array_parameters.write_conductance_s[0])
    (surrogate(cells, line, age_s=AGE_S, convert=False) * torch.as_tensor(weights)).sum().backward()
    assert line.grad is not None
    gradient = line.grad.numpy()
    cosine = (gradient * finite).sum() / np.linalg.norm(gradient) / np.linalg.norm(finite)
    assert cosine >= 0.99


def test_drawn_chips_scatter_as_the_errors_say(result: CalibrationResult) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [result.sample_chip(generator) for _ in range(400)]
    for name in ("offset", "compression", "gain", "drift"):
        values = np.stack([one.estimates()[name].value for one in drawn])
        # Beside one another: what unseen wires may have taken from all gains, the conductances would have got.
        ratio = values.std(axis=0) / result.array_parameters.estimates()[name].error
        assert 0.85 < np.median(ratio) < 1.15, name
    # Cells move together with the curve: more compression means larger conductances.
    compression = np.stack([one.compression.value for one in drawn])[:, 0]
    total = np.stack([(one.write_conductance_s * one.gain.value).mean(axis=(0, 1)) for one in drawn])[:, 0]
    assert np.corrcoef(compression, total)[0, 1] > 0.2
    again = result.sample_chip(torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(again.cell_slope, drawn[0].cell_slope)
    assert (drawn[0].amplifier_noise.value >= 0).all()
    ArraySurrogate(drawn[0])


def test_saved_chips_hold_errors_units_and_the_story(result: CalibrationResult, tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    result.save(path)
    loaded = load_chip(path)
    array = loaded.arrays[0]
    for name, estimate in result.array_parameters.estimates().items():
        np.testing.assert_array_equal(array.estimates()[name].error, estimate.error)
        assert array.estimates()[name].unit == estimate.unit
    np.testing.assert_array_equal(array.write_conductance_error_s, result.array_parameters.write_conductance_error_s)
    assert loaded.provenance["array_0_rung"] == "drift"
    assert loaded.provenance["array_0_data_sha256"] == result.dataset.sha256()
    assert '"rung": "curve"' in str(loaded.provenance["array_0_ladder"])


def test_parameters_that_trade_off_are_named(result: CalibrationResult) -> None:
    # The three coefficients of the programming law describe one curve over a short range.
    assert any("programming (linear) and programming (quadratic)" in text for text in trade_offs(result.posterior))
    assert all("hard to tell apart" in note for note in result.notes if not note.startswith("wires are not seen"))


@pytest.mark.parametrize(("draws", "within"), [(6, 1.6), pytest.param(60, 1.25, marks=pytest.mark.nightly)])
def test_block_bootstrap_agrees_with_the_hessian(draws: int, within: float) -> None:
    settings = replace(SETTINGS, rows=8, adc_full_scale_a=24e-6, compression_a=20e-6, wire_ohm=0.0, drift_exponent=0.0)
    measured = measure(settings, np.random.default_rng(7))
    result = fit(measured.dataset, ladder=true_ladder(settings), rng=np.random.default_rng(0))
    errors = block_bootstrap(result, rng=np.random.default_rng(1), draws=draws)
    for name in ("offset", "compression", "amplifier_noise"):
        ratio = np.sqrt(np.mean((errors[name] / result.parameters[name].error) ** 2))
        assert 1.0 / within < ratio < within, name
    with pytest.raises(ValueError, match="two draws"):
        block_bootstrap(result, rng=np.random.default_rng(1), draws=1)


def test_predictions_say_what_they_need(result: CalibrationResult) -> None:
    voltage_v = np.zeros((2, SETTINGS.rows))
    with pytest.raises(ValueError, match=r"array 0 .* either pattern, a recorded write, or target_conductance_s"):
        result.predict(voltage_v)
    with pytest.raises(ValueError, match="pattern names writes 4 to 4, and those that were recorded are 0 to 3"):
        result.predict(voltage_v, 4)
    with pytest.raises(ValueError, match=r"target_conductance_s has shape \[2, 2\]"):
        result.predict(voltage_v, target_conductance_s=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"voltage_v .* \[2, 3\].*pattern has shape \[3\].*age_s has shape \[4\]"):
        result.predict(voltage_v[:, :3], np.zeros(3, dtype=np.int64), age_s=np.zeros(4))


def test_noise_has_its_place(chip: MeasuredChip) -> None:
    # Shot noise behind the curve instead of in front of it: strong compression tells the two apart.
    settings = replace(SETTINGS, compression_a=25e-6, compression_sigma=0.02, shot_noise_a=0.0, conductance_noise=0.002)
    measured = measure(replace(settings, drift_exponent=0.0, wire_ohm=0.0), np.random.default_rng(2))
    dataset = measured.dataset
    rng = np.random.default_rng(3)
    load_a = np.abs(dataset.voltage_v) @ np.full((16, 12), 27e-6)
    extra_a = np.sqrt(8e-9 * load_a) * rng.standard_normal(load_a.shape)
    lsb_a = dataset.converters.adc_lsb_a
    noisy = replace(dataset, current_a=np.round((dataset.current_a + extra_a) / lsb_a) * lsb_a)
    found = fit(noisy, ladder=true_ladder(measured.settings), rng=rng).parameters
    assert "output_shot_noise" in found
    assert np.median(found["output_shot_noise"].value) == pytest.approx(8e-9, rel=0.2)
    assert np.median(found["shot_noise"].value) < 2e-9


def _noise_floor_a2(chip: MeasuredChip, voltage_v: np.ndarray) -> float:
    """Mean variance of a reading at fixed devices, the ADC's step included."""
    squares = []
    for write, written in enumerate(chip.written):
        reads = [
            chip.truth.mvm(written, voltage_v[:400], written.time_s + AGE_S, 2000 + 100 * write + k) for k in range(20)
        ]
        code = np.stack([np.where(one.saturated, np.nan, one.code) for one in reads])
        squares.append(np.nanmean(np.nanvar(code, axis=0, ddof=1)))
    return float(np.mean(squares)) * (SETTINGS.adc_full_scale_a / 512) ** 2


def _programming_a2(chip: MeasuredChip, voltage_v: np.ndarray) -> float:
    """Mean variance of the noiseless output over programmings of one target."""
    rng = np.random.default_rng(6)
    squares = []
    for group in range(6):
        target_s = rng.uniform(4e-6, 50e-6, (SETTINGS.rows, SETTINGS.columns))
        means = []
        for repeat in range(12):
            written = chip.truth.program(target_s, 5000 + 100 * group + repeat, 0.0)
            cells_s = chip.truth.conductance_s(written, AGE_S)
            u = voltage_v @ transfer_matrix(cells_s, SETTINGS.wire_ohm, SETTINGS.wire_ohm) * chip.truth.gain
            means.append(chip.truth.compression_a * np.tanh(u / chip.truth.compression_a))
        squares.append(np.var(np.stack(means), axis=0, ddof=1).mean())
    return float(np.mean(squares))
