"""What the ladder takes up and what it leaves out: each effect on a chip that has it, and on one that has not."""

from dataclasses import replace

import numpy as np
import pytest
from random_chips import MeasuredChip, draw_settings, measure

from labrig_calibration.fit import fit
from labrig_calibration.ladder import Ladder
from labrig_calibration.result import CalibrationResult
from labrig_drivers.mock.chip import ChipSettings

PLAIN = ChipSettings(
    seed=31,
    arrays=1,
    rows=16,
    columns=16,
    adc_full_scale_a=48e-6,
    compression_a=1.0,
    compression_sigma=0.0,
    mismatch_sigma=0.02,
    wire_ohm=0.0,
    stuck_fraction=0.0,
    drift_exponent=0.0,
    drift_exponent_sigma=0.0,
    shot_noise_a=0.0,
    conductance_noise=0.0,
    amplifier_noise_a=0.2e-6,
)


def climbed(settings: ChipSettings) -> tuple[MeasuredChip, CalibrationResult, set[str]]:
    chip = measure(settings, np.random.default_rng(1))
    result = fit(chip.dataset, rng=np.random.default_rng(0))
    return chip, result, {verdict.rung for verdict in result.ladder if verdict.kept}


def test_a_chip_with_nothing_to_find_yields_nothing() -> None:
    _, result, kept = climbed(PLAIN)
    assert not kept & {"drift", "residual", "wires"}
    assert not result.array_parameters.stuck.any()
    assert result.flagged.sum() == 0
    assert np.abs(result.array_parameters.drift.value).max() == 0.0
    # What was looked for and not found still says how large it could have been.
    assert np.isfinite(result.array_parameters.drift.error).all()


@pytest.mark.parametrize("number", [1000, 1018, 1060])
def test_wires_are_not_taken_up_where_there_are_none(number: int) -> None:
    # Their gains would come out a percent larger with wires, which is no likelihood.
    rng = np.random.default_rng([77, number])
    chip = measure(draw_settings(rng), rng)
    assert chip.settings.wire_ohm == 0.0
    result = fit(
        chip.dataset, ladder=Ladder(("global", "cells", "columns", "curve", "wires", "stuck", "drift")), rng=rng
    )
    (verdict,) = [one for one in result.ladder if one.rung == "wires"]
    assert not verdict.kept


def test_each_effect_is_taken_up_where_it_is() -> None:
    settings = replace(
        PLAIN,
        compression_a=45e-6,
        conductance_noise=0.02,
        wire_ohm=25.0,
        stuck_fraction=0.03,
        drift_exponent=0.05,
        mismatch_sigma=0.05,
    )
    _, result, kept = climbed(settings)
    assert {"curve", "wires", "stuck", "drift"} <= kept
    array = result.array_parameters
    assert array.wire_ohm is not None
    assert np.abs(array.wire_ohm.value.mean() - 25.0) < 8.0


def test_a_curve_that_is_no_tanh_calls_for_the_residual_network() -> None:
    chip = measure(replace(PLAIN, amplifier_noise_a=0.1e-6), np.random.default_rng(1))
    dataset = chip.dataset
    lsb_a = dataset.converters.adc_lsb_a
    # A dead zone around zero, as a class-B output stage has it.
    bent_a = dataset.current_a - 1.2e-6 * np.tanh(dataset.current_a / 2e-6)
    bent = replace(dataset, current_a=np.round(bent_a / lsb_a) * lsb_a)
    result = fit(bent, rng=np.random.default_rng(0))
    verdict = result.ladder[-1]
    assert verdict.rung == "residual"
    assert verdict.kept
    assert result.rung == "residual"
    assert result.array_parameters.residual is not None
    without = fit(bent, ladder=Ladder(("global", "cells", "columns", "curve", "stuck")), rng=np.random.default_rng(0))
    # The zone is a fortieth of the range wide: the network has to be able to bend that sharply.
    assert result.diagnostics.error_over_noise < 0.8 * without.diagnostics.error_over_noise
    mean_a, _ = result.predict(dataset.voltage_v[:50], 0)
    assert np.isfinite(mean_a).all()
