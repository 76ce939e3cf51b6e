"""I-V curves: a known law comes back with honest intervals, the right law is chosen, and scipy agrees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit

from labrig_calibration.devices.iv import Curve, fit_iv, split_branches
from labrig_calibration.devices.iv_laws import thickness_permittivity_f
from labrig_calibration.devices.values import DeviceFitError, FloatArray
from labrig_surrogates.cell_curves import MiloCurve, cell_current_a, poole_frenkel_current_a

VOLTAGE_V = np.concatenate([np.linspace(0.02, 0.5, 30), np.linspace(-0.02, -0.5, 30)])


def measured(current_a: FloatArray, rng: np.random.Generator, relative: float = 0.01, name: str = "cell") -> Curve:
    sigma_a = np.hypot(1e-9, relative * current_a)
    noisy_a = current_a + sigma_a * rng.standard_normal(len(current_a))
    return Curve(name, VOLTAGE_V, noisy_a, np.zeros(len(current_a), dtype=bool))


def poole_frenkel(prefactor_s: float, d_eps_f: float) -> FloatArray:
    current = poole_frenkel_current_a(torch.from_numpy(VOLTAGE_V), torch.tensor(prefactor_s), torch.tensor(d_eps_f))
    return np.asarray(current.numpy(), dtype=np.float64)


def cubic(conductance_s: float, bend: float) -> FloatArray:
    return np.asarray(conductance_s * (VOLTAGE_V - bend * VOLTAGE_V**3))


def coverage(sets: int) -> dict[str, tuple[str, float]]:
    """For each law: what was chosen over all sets, and how many intervals hold the truth."""
    rng = np.random.default_rng(1)
    b = 1.5
    d_eps_f = thickness_permittivity_f(b, 293.15)
    found = {}
    for name, current_a, law, truth in (
        ("Poole-Frenkel", poole_frenkel(1e-5, d_eps_f), "Poole-Frenkel", (1e-5, b)),
        ("cubic", cubic(1e-4, 0.5), "odd cubic", (1e-4, 0.5)),
        ("straight", 5e-5 * VOLTAGE_V, "ohmic", (5e-5,)),
    ):
        fit = fit_iv([measured(current_a, rng) for _ in range(sets)])
        holds = [one.holds(true) for numbers in fit.laws[law].numbers for one, true in zip(numbers, truth, strict=True)]
        found[name] = (fit.law, float(np.mean(holds)))
    return found


def test_laws_are_told_apart_and_their_parameters_found() -> None:
    found = coverage(12)
    assert [law for law, _ in found.values()] == ["Poole-Frenkel", "odd cubic", "ohmic"]
    assert all(rate > 0.75 for _, rate in found.values())


def test_readings_that_a_converter_made_zero_do_not_say_that_there_is_no_noise() -> None:
    rng = np.random.default_rng(4)
    voltage_v = np.linspace(-0.2, 0.2, 41)
    voltage_v[20] = 0.0
    step_a = 2e-8
    curves = []
    for number in range(24):
        current_a = 2e-5 * voltage_v
        noisy_a = current_a + np.hypot(0.5 * step_a, 0.02 * current_a) * rng.standard_normal(41)
        codes = np.round(noisy_a / step_a)
        if number % 2:
            codes[20] = 0.0  # as every second one or so has it anyway
        curves.append(Curve("cell", voltage_v, codes * step_a, np.zeros(41, dtype=bool)))
    fit = fit_iv(curves)
    ohmic = fit.laws["ohmic"]
    assert fit.law == "ohmic"
    # Half a step of noise, and what rounding adds to it.
    assert np.median(ohmic.floor_a) == pytest.approx(math.hypot(0.5, 12**-0.5) * step_a, rel=0.35)
    assert ohmic.floor_a.min() > 0.01 * step_a
    assert np.mean([numbers[0].holds(2e-5) for numbers in ohmic.numbers]) >= 0.75
    assert max(numbers[0].high / numbers[0].low for numbers in ohmic.numbers) < 1.1


def test_zeros_below_what_an_instrument_shows_do_not_bend_the_law() -> None:
    rng = np.random.default_rng(6)
    voltage_v = np.linspace(-1.0, 1.0, 41)
    current_a = 2e-6 * voltage_v * (1.0 + 0.01 * rng.standard_normal(41))
    shown_a = np.where(np.abs(current_a) < 1e-6, 0.0, current_a)
    fit = fit_iv([Curve("cell", voltage_v, shown_a, np.zeros(41, dtype=bool))])
    (conductance,) = fit.laws["ohmic"].numbers[0]
    assert fit.law == "ohmic"
    assert conductance.value == pytest.approx(2e-6, rel=0.01)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_intervals_hold_as_often_as_they_say() -> None:
    found = coverage(400)
    print("\n".join(f"{name}: {law} chosen, intervals hold {rate:.3f}" for name, (law, rate) in found.items()))
    assert [law for law, _ in found.values()] == ["Poole-Frenkel", "odd cubic", "ohmic"]
    assert all(0.85 < rate < 0.95 for _, rate in found.values())


def test_errors_of_a_curve_do_not_depend_on_what_is_fitted_beside_it() -> None:
    rng = np.random.default_rng(2)
    short = measured(cubic(1e-4, 0.5), rng)
    voltage_v = np.tile(VOLTAGE_V, 20)
    many = 5e-5 * voltage_v * (1.0 + 0.01 * rng.standard_normal(len(voltage_v)))
    long = Curve("long", voltage_v, many, np.zeros(len(voltage_v), dtype=bool))
    alone, beside = (fit_iv(curves).laws["odd cubic"].numbers[0] for curves in ([short], [short, long]))
    for one, other in zip(alone, beside, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-4)
        assert other.error == pytest.approx(one.error, rel=1e-3)


def test_scipy_agrees_where_the_noise_is_known() -> None:
    rng = np.random.default_rng(3)
    curve = measured(poole_frenkel(2e-5, 2e-15), rng)
    fit = fit_iv([curve])
    floor_a, relative = fit.laws["Poole-Frenkel"].floor_a[0], fit.laws["Poole-Frenkel"].relative[0]
    prefactor, slope = fit.laws["Poole-Frenkel"].numbers[0]

    def current_a(voltage_v: FloatArray, log_c: float, b: float) -> FloatArray:
        return np.asarray(np.exp(log_c) * voltage_v * np.exp(b * np.sqrt(np.abs(voltage_v))))

    sigma_a = np.hypot(floor_a, relative * current_a(curve.voltage_v, math.log(prefactor.value), slope.value))
    best, covariance = curve_fit(
        current_a, curve.voltage_v, curve.current_a, (math.log(2e-5), 1.0), sigma=sigma_a, absolute_sigma=True
    )
    assert slope.value == pytest.approx(best[1], abs=0.3 * slope.error)
    assert math.log(prefactor.value) == pytest.approx(best[0], abs=0.3 * prefactor.error / prefactor.value)
    # Ours may be larger: it is the larger of the plain error and that for readings that resemble each other.
    assert 0.9 < slope.error / math.sqrt(covariance[1, 1]) < 1.7
    assert fit.poole_frenkel(0)[1].holds(2e-15)


def test_the_published_cubic_of_milo_is_recovered_and_a_layer_can_use_the_fit() -> None:
    rng = np.random.default_rng(5)
    voltage, conductance = torch.from_numpy(VOLTAGE_V), torch.tensor(62.5e-6, dtype=torch.float64)
    truth_a = cell_current_a(MiloCurve(), conductance, voltage).numpy()
    fit = fit_iv([measured(truth_a, rng, 0.002) for _ in range(4)])
    assert fit.law == "cubic"
    conductance_s, second, third = fit.laws["cubic"].numbers[0]
    # Published spot values: I / (G V) at +0.5 and -0.5 V.
    for sign, expected in ((1.0, 0.8466), (-1.0, 1.2280)):
        ratio = conductance_s.value / 62.5e-6 * (1 + sign * 0.5 * second.value + 0.25 * third.value)
        assert ratio == pytest.approx(expected, abs=0.003)
    bent = fit_iv([measured(cubic(1e-4, 0.5), rng, 0.002) for _ in range(3)]).curve()
    assert bent.per_v2 == pytest.approx(0.5, abs=0.03)


def test_readings_in_compliance_are_left_out_and_branches_cut() -> None:
    up_v = np.linspace(0.0, 1.0, 41)
    sweep_v = np.concatenate([up_v, up_v[::-1], -up_v[1:], -up_v[:-1][::-1]])
    current_a = np.clip(1e-4 * sweep_v, -1.0, 5e-5) + 1e-9 * np.random.default_rng(0).standard_normal(len(sweep_v))
    curve = Curve("sweep", sweep_v, current_a, current_a > 4.9e-5)
    pieces = split_branches(curve)
    assert [len(one.voltage_v) for one in pieces] == [41, 80, 41]
    assert sum(len(one.voltage_v) for one in pieces) == len(sweep_v)
    fit = fit_iv([pieces[0], pieces[1].within(0.0, 1.0)])
    assert fit.law == "ohmic"
    assert fit.laws["ohmic"].numbers[0][0].value == pytest.approx(1e-4, rel=1e-3)
    assert fit.left_out == np.count_nonzero(current_a > 4.9e-5)


def test_a_curve_that_no_law_fits_is_noted() -> None:
    rng = np.random.default_rng(2)
    wavy = measured(1e-4 * (VOLTAGE_V + 0.05 * np.sin(20 * VOLTAGE_V)), rng, 0.001)
    assert any("bends otherwise" in note for note in fit_iv([wavy]).summary().notes)
    assert fit_iv([measured(cubic(1e-4, 0.5), rng)]).summary().notes == ()


def test_every_fault_is_named() -> None:
    few = Curve("few", VOLTAGE_V[:5], VOLTAGE_V[:5], np.zeros(5, dtype=bool))
    nan = Curve("nan", VOLTAGE_V, np.full(60, np.nan), np.zeros(60, dtype=bool))
    wrong = Curve("wrong", VOLTAGE_V, -1e-5 * VOLTAGE_V, np.zeros(60, dtype=bool))
    uneven = Curve("uneven", VOLTAGE_V, VOLTAGE_V[1:], np.zeros(60, dtype=bool))
    with pytest.raises(DeviceFitError, match=r"few: 5 readings.*nan: .*not finite; wrong: .*signs wrong.*; uneven: "):
        fit_iv([few, nan, wrong, uneven])
    with pytest.raises(DeviceFitError, match="there are no curves"):
        fit_iv([])
