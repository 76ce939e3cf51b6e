"""Chips drawn at random over a wide range, measured, and what a fit of them should find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_calibration.ladder import Ladder, RungName
from labrig_calibration.predictions import analyse
from labrig_calibration.result import CalibrationResult
from labrig_calibration.stimulus import MvmDesign, StimulusCounts, design_mvm_calibration
from labrig_drivers.mock.chip import ChipSettings, SimulatedArray, WrittenArray

FloatArray = NDArray[np.float64]

# The polynomial of `labrig_drivers.mock.chip.programming_sigma_s`, over the highest conductance.
_PROGRAMMING = np.array([0.26348, 1.9650, -1.1731]) / 25.0
COUNTS = StimulusCounts(sparse=128, random=192, activation=256)


@dataclass(frozen=True)
class MeasuredChip:
    """A chip and its recording.

    Attributes:
        settings: What it is made of.
        truth: Its devices.
        written: What each write left.
        dataset: What was measured.
        design: What was planned.
    """

    settings: ChipSettings
    truth: SimulatedArray
    written: tuple[WrittenArray, ...]
    dataset: MvmDataset
    design: MvmDesign


def draw_settings(rng: np.random.Generator, sizes: tuple[int, ...] = (8, 12, 16, 24, 32)) -> ChipSettings:
    """A chip between mild and terrible."""
    rows, columns = (int(size) for size in rng.choice(sizes, 2))
    full_scale_a = 2.5e-6 * rows * rng.uniform(0.8, 1.4)
    lsb_a = full_scale_a / 512

    def spread(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    # Share of the voltage that the wires of the last cell lose, on average.
    drop = spread(0.01, 0.12) if rng.random() < 0.5 else 0.0
    wire_ohm = drop / (25e-6 * (rows**2 + columns**2) / 2.0)
    # Word and bit lines of similar metal: their difference over their sum.
    unlike = float(np.clip(0.3 * rng.standard_normal(), -0.6, 0.6))
    return ChipSettings(
        seed=int(rng.integers(1, 2**31)),
        arrays=1,
        rows=rows,
        columns=columns,
        adc_full_scale_a=full_scale_a,
        programming_scale=spread(0.2, 1.5),
        mismatch_sigma=spread(0.03, 0.2),
        stuck_fraction=float(rng.choice([0.0, 0.01, 0.04])),
        wire_ohm=wire_ohm * (1.0 + unlike),
        bit_wire_ohm=wire_ohm * (1.0 - unlike),
        gain_sigma=spread(0.02, 0.15),
        offset_sigma_a=lsb_a * spread(1.0, 15.0),
        compression_a=full_scale_a * spread(0.5, 1.5),
        compression_sigma=spread(0.02, 0.15),
        amplifier_noise_a=lsb_a * spread(0.6, 3.0),
        shot_noise_a=lsb_a * spread(0.0005, 0.02),
        conductance_noise=spread(0.005, 0.04),
        drift_exponent=float(rng.uniform(0.01, 0.08)) if rng.random() < 0.5 else 0.0,
        drift_exponent_sigma=0.0,
    )


def measure(settings: ChipSettings, rng: np.random.Generator, writes: int = 4) -> MeasuredChip:
    """Carries a calibration out on array 0, with seconds between the batches."""
    converters = Converters(
        voltage_min_v=-settings.voltage_max_v,
        voltage_max_v=settings.voltage_max_v,
        dac_bits=settings.dac_bits,
        adc_bits=settings.adc_bits,
        adc_full_scale_a=np.full(settings.columns, settings.adc_full_scale_a),
        conductance_min_s=settings.conductance_min_s,
        conductance_max_s=settings.conductance_max_s,
    )
    design = design_mvm_calibration(
        settings.rows, settings.columns, converters, writes=writes, seed=int(rng.integers(2**31)), counts=COUNTS
    )
    truth = SimulatedArray(settings, 0)
    lsb_a = settings.adc_full_scale_a / 2 ** (settings.adc_bits - 1)
    written, voltage, current, saturated, time, pattern = [], [], [], [], [], []
    now_s = 0.0
    for write, part in enumerate(design.writes):
        now_s += 1.0
        written.append(truth.program(part.target_conductance_s, write, now_s))
        for request, block in enumerate(part.blocks):
            now_s += float(rng.uniform(0.1, 4.0))
            batch = truth.mvm(written[-1], block.voltage_v, now_s, request)
            voltage.append(block.voltage_v)
            current.append(batch.code * lsb_a)
            saturated.append(batch.saturated)
            time.append(np.full(len(block.voltage_v), now_s))
            pattern.append(np.full(len(block.voltage_v), write, dtype=np.int64))
    dataset = MvmDataset(
        voltage_v=np.concatenate(voltage),
        current_a=np.concatenate(current),
        pattern=np.concatenate(pattern),
        target_conductance_s=np.stack([part.target_conductance_s for part in design.writes]),
        time_s=np.concatenate(time),
        programmed_at_s=np.array([one.time_s for one in written]),
        saturated=np.concatenate(saturated),
        converters=converters,
        chip_id=f"SIM-{settings.seed}",
    )
    return MeasuredChip(settings, truth, tuple(written), dataset, design)


def true_ladder(settings: ChipSettings) -> Ladder:
    """The rungs that the chip is made of, each of them kept."""
    rungs: list[RungName] = ["global", "cells", "columns", "curve"]
    rungs += ["wires"] * (settings.wire_ohm > 0)
    rungs += ["stuck"]
    rungs += ["drift"] * (settings.drift_exponent > 0)
    return Ladder(tuple(rungs), select=False, exact_wires=True)


def z_scores(chip: MeasuredChip, result: CalibrationResult) -> dict[str, FloatArray]:
    """Errors of every family of parameters in standard errors, NaN for what lies at a boundary.

    A parameter that cannot be negative is away from its boundary where the truth is at least three standard errors; of
    wires one and a half of those that the design predicted, without what one line says of the other, for the fit's own
    are small where its resistance came out small.
    """
    settings, truth, array = chip.settings, chip.truth, result.array_parameters
    healthy = ~(truth.stuck_low | truth.stuck_high | array.stuck)
    mean_slope = np.array(
        [truth.mismatch[healthy[:, j], j].mean() if healthy[:, j].any() else np.nan for j in range(array.columns)]
    )
    gauge = truth.gain * mean_slope
    transfer_s = np.stack([truth.transfer_s(one.conductance_s) for one in chip.written])
    truths: dict[str, FloatArray] = {
        "offset": truth.offset_a,
        "compression": 1.0 / truth.compression_a,
        "gain": gauge,
        "amplifier_noise": np.full(array.columns, settings.amplifier_noise_a**2),
        "shot_noise": settings.shot_noise_a * truth.gain,
        "conductance_noise": np.full(array.columns, settings.conductance_noise**2),
        "programming": settings.programming_scale * _PROGRAMMING,
        "mismatch": np.asarray(settings.mismatch_sigma),
        "write_conductance": transfer_s / mean_slope,
        "cell_slope": np.where(healthy, truth.mismatch / mean_slope, np.nan),
    }
    if settings.drift_exponent > 0:
        truths["drift"] = _drift_of_currents(chip, transfer_s)
    if settings.wire_ohm > 0:
        truths["wire_ohm"] = np.array([settings.wire_ohm, settings.bit_wire_ohm or settings.wire_ohm])
        truths["crosstalk"] = np.zeros(())
    bounded = {"amplifier_noise", "shot_noise", "conductance_noise", "wire_ohm", "mismatch"}
    scores = {}
    for name, value in truths.items():
        if name not in result.parameters:
            continue
        estimate = result.parameters[name]
        z = (estimate.value - value) / np.where(estimate.error > 0, estimate.error, np.nan)
        if name in bounded:
            # By the typical error: a single one is small where its own estimate is.
            # Both lines or none: of each by itself the larger one would be chosen, which is drawn towards the other.
            error = wire_error_ohm(chip).mean() if name == "wire_ohm" else np.median(estimate.error)
            z = np.where(np.mean(value) > 1.5 * error if name == "wire_ohm" else value > 3.0 * error, z, np.nan)
        scores[name] = np.where(np.isfinite(estimate.error), z, np.nan)
    return scores


def _drift_of_currents(chip: MeasuredChip, transfer_s: FloatArray) -> FloatArray:
    """Exponents of the columns' currents over the ages at which they were measured, `[columns]`.

    Behind wires a current drifts less than the cells do, and the more so the younger they are: their drop drifts too.
    """
    log_age = np.quantile(np.log1p(chip.dataset.age_s), np.linspace(0.05, 0.95, 7))
    fallen = []
    for one in log_age:
        left = np.exp(-chip.settings.drift_exponent * one)
        late_s = np.stack([chip.truth.transfer_s(write.conductance_s * left) for write in chip.written])
        fallen.append((transfer_s * late_s).sum(axis=(0, 1)) / (transfer_s**2).sum(axis=(0, 1)))
    return np.asarray(-np.polyfit(log_age, np.log(np.stack(fallen)), 1)[0])


def wire_error_ohm(chip: MeasuredChip) -> FloatArray:
    """What the design predicts for the standard errors of word and bit lines in ohm, `[2]`."""
    settings = chip.settings
    assumed = AssumedChip(
        gain=1.0,
        compression_per_a=1.0 / settings.compression_a,
        drift=settings.drift_exponent,
        drift_reference_s=settings.drift_start_s,
        amplifier_noise_a2=settings.amplifier_noise_a**2,
        shot_noise_a=settings.shot_noise_a,
        conductance_noise=settings.conductance_noise**2,
        programming=tuple(settings.programming_scale * _PROGRAMMING),
        mismatch=settings.mismatch_sigma,
        wire_ohm=0.5 * (settings.wire_ohm + (settings.bit_wire_ohm or settings.wire_ohm)),
        crosstalk=0.0,
        source="truth",
    )
    assert chip.dataset.converters is not None
    analysis = analyse(chip.design, chip.dataset.converters, assumed, mvm_s=1e-2)
    return np.array([analysis.predicted[name].error for name in ("word_line_ohm", "bit_line_ohm")])


def noise_ratios(chip: MeasuredChip, result: CalibrationResult) -> dict[str, tuple[float, float]]:
    """Mean of each noise term over the columns by its truth, and the standard error predicted for that."""
    settings, gain = chip.settings, chip.truth.gain
    truths = {
        "amplifier_noise": np.full_like(gain, settings.amplifier_noise_a**2),
        "shot_noise": settings.shot_noise_a * gain,
        "conductance_noise": np.full_like(gain, settings.conductance_noise**2),
    }
    found = {}
    for name, truth in truths.items():
        estimate = result.parameters[name]
        error = np.sqrt(np.mean((estimate.error / truth) ** 2) / gain.size)
        found[name] = (float((estimate.value / truth).mean()), float(error))
    return found
