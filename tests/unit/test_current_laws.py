"""Thermal and shot noise, curved cells, noise with a memory: moments, spectra and values of their equations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import OutputEffect
from labrig_surrogates.cell_curves import (
    CellCurve,
    CellCurves,
    CubicCurve,
    MiloCurve,
    PooleFrenkelCurve,
    cell_current_a,
    poole_frenkel_current_a,
)
from labrig_surrogates.convert import to_analog
from labrig_surrogates.current_noise import (
    ShotNoise,
    ThermalNoise,
    poisson_current,
    shot_variance_a2,
    thermal_variance_a2,
)
from labrig_surrogates.effect_settings import Dac, Mapping, NoiseDraws
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.model_tools import noise_off
from labrig_surrogates.noise_traces import Flicker, Telegraph
from labrig_surrogates.tilemap import ArrayGeometry, Scheme

GEOMETRY = ArrayGeometry(rows=64, columns=64, conductance_min_s=2e-6, conductance_max_s=5e-5, voltage_max_v=0.4)
SPAN_S, K, Q = 4.8e-5, 1.380649e-23, 1.602176634e-19
BANDWIDTH_HZ = 1e6


def analog(layer: nn.Module, effect: OutputEffect, scheme: Scheme = "differential_pair") -> nn.Module:
    config = AnalogConfig(
        dac=Dac(bits=8, input_max=2.0),
        mapping=Mapping(scheme=scheme),
        output_effects=(effect,),
        draws=NoiseDraws(source="exact"),
        path="composed",
    )
    return to_analog(layer, config).double()


def linear(outputs: int = 3) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(40, outputs, bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(1.0 / layer.weight.abs().max())
    return layer


def codes(count: int) -> Tensor:
    """Inputs that an eight-bit DAC gives exactly."""
    return torch.randint(-127, 128, (count, 40), generator=torch.Generator().manual_seed(1)).double() * (2.0 / 127)


def cells(weight: Tensor) -> tuple[Tensor, Tensor]:
    return 2e-6 + SPAN_S * weight.clamp(min=0), 2e-6 + SPAN_S * (-weight).clamp(min=0)


UNIT_PER_A = 1.0 * 2.0 / (SPAN_S * 0.4)
"""Output, in the unit of the layer, of one ampere: largest weight and input over span and largest voltage."""


def noise_of(model: nn.Module, x: Tensor, count: int = 100_000) -> Tensor:
    with torch.no_grad():
        with noise_off(model):
            clean: Tensor = model(x)
        noisy: Tensor = model(x.expand(count, *x.shape[1:]))
    return noisy - clean


def test_thermal_noise_has_the_variance_of_the_lines_conductance() -> None:
    layer = linear()
    model = analog(layer, ThermalNoise(GEOMETRY, BANDWIDTH_HZ, temperature_k=350.0))
    noise = noise_of(model, codes(1))
    plus_s, minus_s = cells(layer.weight.detach())
    sigma_a = (4 * K * 350.0 * BANDWIDTH_HZ * (plus_s + minus_s).sum(dim=1)).sqrt()
    torch.testing.assert_close(noise.std(dim=0), UNIT_PER_A * sigma_a, rtol=0.02, atol=0.0)
    assert bool((noise.mean(dim=0).abs() < 5 * UNIT_PER_A * sigma_a / 200).all())


def test_shot_noise_adds_up_over_cells_whatever_their_sign() -> None:
    layer = linear()
    x = codes(1)
    noise = noise_of(analog(layer, ShotNoise(GEOMETRY, BANDWIDTH_HZ, fano=0.5)), x)
    plus_s, minus_s = cells(layer.weight.detach())
    through_a = (plus_s + minus_s) @ (0.2 * x[0]).abs()
    sigma_a = (0.5 * 2 * Q * BANDWIDTH_HZ * through_a).sqrt()
    torch.testing.assert_close(noise.std(dim=0), UNIT_PER_A * sigma_a, rtol=0.02, atol=0.0)
    kurtosis = (noise / noise.std(dim=0)).pow(4).mean(dim=0)
    assert bool(((kurtosis - 3.0).abs() < 0.15).all())


def offset_cells(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Conductances in S of the cells and of the one reference column in the middle of the range."""
    return 2e-6 + SPAN_S * 0.5 * (1.0 + weight), torch.full((40,), 2e-6 + 0.5 * SPAN_S, dtype=torch.float64)


@pytest.mark.parametrize("law", ["thermal", "shot"])
def test_outputs_of_an_offset_scheme_share_the_noise_of_their_reference(law: str) -> None:
    layer, x = linear(), codes(1)
    effect = ThermalNoise(GEOMETRY, BANDWIDTH_HZ) if law == "thermal" else ShotNoise(GEOMETRY, BANDWIDTH_HZ)
    noise = noise_of(analog(layer, effect, "offset_column"), x)
    own_s, reference_s = offset_cells(layer.weight.detach())
    size_v = (0.2 * x[0]).abs()

    def variance_a2(cells_s: Tensor) -> Tensor:
        return (
            4 * K * 300.0 * BANDWIDTH_HZ * cells_s.sum(-1)
            if law == "thermal"
            else 2 * Q * BANDWIDTH_HZ * cells_s @ size_v
        )

    # Half of the range stands for the largest weight: an ampere counts twice as much as with pairs.
    expected = torch.diag(variance_a2(own_s)) + variance_a2(reference_s)
    found = torch.cov(noise.T)
    torch.testing.assert_close(found, (2.0 * UNIT_PER_A) ** 2 * expected, rtol=0.04, atol=0.01 * float(found.max()))


def test_charges_of_a_layer_are_counted_where_they_are_few() -> None:
    layer, x = linear(), codes(1)
    bandwidth_hz = 4e12  # a few charges in an eighth of a picosecond
    noise = noise_of(analog(layer, ShotNoise(GEOMETRY, bandwidth_hz, law="poisson")), x, 100_000)
    plus_s, minus_s = cells(layer.weight.detach())
    voltage_v = 0.2 * x[0]
    per_a = 1 / (2 * bandwidth_hz * Q)
    coming = per_a * (plus_s @ voltage_v.clamp(min=0) + minus_s @ (-voltage_v).clamp(min=0))
    going = per_a * (minus_s @ voltage_v.clamp(min=0) + plus_s @ (-voltage_v).clamp(min=0))
    assert float((coming + going).max()) < 200
    charges = noise / UNIT_PER_A * per_a
    torch.testing.assert_close(charges.var(dim=0), coming + going, rtol=0.03, atol=0.0)
    assert bool((charges.mean(dim=0).abs() < 5 * ((coming + going) / 1e5).sqrt()).all())
    third = (charges - charges.mean(dim=0)).pow(3).mean(dim=0)
    error = 5 * (15 * (coming + going).pow(3) / 1e5).sqrt()
    assert bool(((third - (coming - going)).abs() < error).all())
    whole = charges + (coming - going)
    torch.testing.assert_close(whole, whole.round(), rtol=0.0, atol=1e-6)
    with pytest.raises(SurrogateError, match=r"fano = 0\.5: charges that are counted are independent"):
        ShotNoise(GEOMETRY, 1.0, fano=0.5, law="poisson")


def test_without_a_voltage_there_is_no_shot_noise_and_gradients_stay_finite() -> None:
    model = analog(linear(), ShotNoise(GEOMETRY, BANDWIDTH_HZ))
    x = torch.zeros(5, 40, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    assert float(model(x).detach().abs().max()) < 1e-6
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_a_convolution_gets_noise_of_its_own_at_each_position() -> None:
    torch.manual_seed(0)
    model = analog(nn.Conv2d(3, 4, 3, bias=False), ThermalNoise(GEOMETRY, BANDWIDTH_HZ))
    noise = noise_of(model, torch.zeros(1, 3, 9, 9, dtype=torch.float64), 2000)
    assert noise.shape == (2000, 4, 7, 7)
    each = noise.std(dim=(0, 2, 3))
    assert float((noise[:, 0, 0, 0] * noise[:, 0, 3, 3]).mean() / each[0] ** 2) == pytest.approx(0.0, abs=0.1)
    torch.testing.assert_close(noise[:, :, 2, 2].std(dim=0), each, rtol=0.1, atol=0.0)


def test_charges_that_are_counted_have_the_variance_of_shot_noise() -> None:
    # Sixteen charges on average.
    current_a, integration_s = torch.full((100_000,), -16 * Q / 1e-6, dtype=torch.float64), 1e-6
    counted = poisson_current(current_a, integration_s, torch.Generator().manual_seed(3))
    assert float(counted.mean()) == pytest.approx(float(current_a[0]), rel=0.005)
    expected = float(shot_variance_a2(current_a[:1], 1 / (2 * integration_s)))
    assert float(counted.var()) == pytest.approx(expected, rel=0.02)
    third = ((counted - counted.mean()) / counted.std()).pow(3).mean()
    assert float(third) == pytest.approx(-1 / math.sqrt(16), abs=0.03)
    one_ms = thermal_variance_a2(torch.tensor(1e-3, dtype=torch.float64), 1.0, 300.0)
    assert float(one_ms) == pytest.approx(1.6568e-23, rel=1e-4)


@pytest.mark.parametrize(
    ("conductance_us", "above", "below"), [(62.5, 0.8466, 1.2280), (110.0, 0.9665, 1.0258), (225.0, 0.9961, 1.0032)]
)
def test_milos_curve_at_spot_values(conductance_us: float, above: float, below: float) -> None:
    conductance_s = torch.tensor(conductance_us * 1e-6, dtype=torch.float64)
    for volt, ratio in ((0.5, above), (-0.5, below)):
        current_a = cell_current_a(MiloCurve(), conductance_s, torch.tensor(volt, dtype=torch.float64))
        assert float(current_a / (conductance_s * volt)) == pytest.approx(ratio, abs=6e-5)


POOLE_FRENKEL = PooleFrenkelCurve(GEOMETRY, ln_prefactor=(-1.5, -0.9), ln_thickness_permittivity=(-43.0, 0.3))


@pytest.mark.parametrize("scheme", ["differential_pair", "offset_column"])
@pytest.mark.parametrize("curve", [MiloCurve(), CubicCurve(0.7), POOLE_FRENKEL], ids=["Milo", "cubic", "Poole-Frenkel"])
def test_a_layer_of_curved_cells_is_the_sum_over_its_cells(curve: CellCurve, scheme: Scheme) -> None:
    layer = linear()
    x = codes(7)
    pairs = scheme == "differential_pair"
    plus_s, minus_s = cells(layer.weight.detach()) if pairs else offset_cells(layer.weight.detach())
    voltage_v = 0.2 * x[:, None, :]
    current_a = (cell_current_a(curve, plus_s, voltage_v) - cell_current_a(curve, minus_s, voltage_v)).sum(dim=-1)
    model = analog(layer, CellCurves(curve, GEOMETRY), scheme)
    unit = UNIT_PER_A if pairs else 2.0 * UNIT_PER_A
    torch.testing.assert_close(model(x), unit * current_a, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(model(x), layer(x), rtol=1e-2)
    torch.manual_seed(0)
    conv = nn.Conv1d(2, 3, 5, bias=False)
    positions = torch.rand(2, 2, 9, dtype=torch.float64)
    assert not torch.allclose(analog(conv, CellCurves(curve, GEOMETRY))(positions), conv.double()(positions), rtol=1e-3)


def test_poole_frenkel_emission_is_its_equation_and_has_a_slope_at_zero() -> None:
    voltage_v = torch.tensor([-0.4, 0.0, 0.25], dtype=torch.float64, requires_grad=True)
    prefactor_s, permittivity = torch.tensor(1e-5, dtype=torch.float64), torch.tensor(4e-18, dtype=torch.float64)
    current_a = poole_frenkel_current_a(voltage_v, prefactor_s, permittivity)
    expected = [
        1e-5 * v * math.exp(Q / (K * 293.15) * math.sqrt(Q * abs(v) / (math.pi * 4e-18))) for v in (-0.4, 0.0, 0.25)
    ]
    np.testing.assert_allclose(current_a.detach(), expected, rtol=1e-12)
    (slope,) = torch.autograd.grad(current_a.sum(), voltage_v)
    assert float(slope[1]) == pytest.approx(1e-5, rel=1e-6)


def test_the_series_of_poole_frenkel_emission_is_its_equation() -> None:
    conductance_s = torch.logspace(math.log10(2e-6), math.log10(5e-5), 30, dtype=torch.float64)
    voltage_v = torch.linspace(-0.4, 0.4, 41, dtype=torch.float64)[:, None]
    ln_ohm = -torch.log(conductance_s)
    expected = poole_frenkel_current_a(voltage_v, torch.exp(-1.5 - 0.9 * ln_ohm), torch.exp(-43.0 + 0.3 * ln_ohm))
    found = cell_current_a(POOLE_FRENKEL, conductance_s, voltage_v)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-18)
    assert 1.0 < POOLE_FRENKEL.largest_exponent < 6.0
    # Without the last term it is not: the number of terms is no accident.
    powers = POOLE_FRENKEL.powers(conductance_s)
    shorter = conductance_s * voltage_v + sum(one.coefficient * one.voltages(voltage_v) for one in powers[:-1])
    assert not torch.allclose(shorter, expected, rtol=1e-6, atol=1e-18)
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cell_current_a(POOLE_FRENKEL, conductance_s[:1], x).sum(), x)
    assert float(slope) == pytest.approx(math.exp(-1.5 - 0.9 * float(ln_ohm[0])), rel=1e-9)
    with pytest.raises(SurrogateError, match=r"the exponent reaches .* more than 12"):
        PooleFrenkelCurve(GEOMETRY, (-1.5, -0.9), (-50.0, 0.3))
    with pytest.raises(SurrogateError, match=r"temperature_k = 0 must be positive; .*an open cell has no resistance"):
        PooleFrenkelCurve(replace(GEOMETRY, conductance_min_s=0.0), (0.0, 0.0), (0.0, 0.0), temperature_k=0)


def test_laws_of_volts_need_a_dac() -> None:
    with pytest.raises(SurrogateError, match="ThermalNoise needs a dac"):
        AnalogConfig(output_effects=(ThermalNoise(GEOMETRY, 1.0),))
    with pytest.raises(SurrogateError, match="bandwidth_hz = 0 must be positive; temperature_k = -1 must be"):
        ThermalNoise(GEOMETRY, 0, temperature_k=-1)


def welch(trace: np.ndarray, rate_hz: float, pieces: int) -> tuple[np.ndarray, np.ndarray]:
    frequency, density = signal.welch(trace, rate_hz, nperseg=pieces, axis=0, detrend="constant")
    return frequency[2:-2], density[2:-2].mean(axis=1)


def test_flicker_has_its_spectrum_which_falls_as_one_over_f() -> None:
    law = Flicker.between(2.0, 1.0, 100.0, per_decade=3)
    generator = torch.Generator().manual_seed(0)
    state, values = law.start((64,), generator, torch.float64), []
    for _ in range(8192):
        values.append(law.value(state))
        state = law.step(state, 1e-3, generator)
    trace = torch.stack(values).numpy()
    assert float(trace.std()) == pytest.approx(2.0, rel=0.1)
    frequency, density = welch(trace, 1000.0, 2048)
    inside = (frequency > 2.0) & (frequency < 50.0)
    expected = law.spectrum(torch.from_numpy(frequency)).numpy()
    np.testing.assert_allclose(density[inside], expected[inside], rtol=0.25)
    slope = np.polyfit(np.log(frequency[inside]), np.log(density[inside]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.15)


def test_a_long_step_is_as_exact_as_many_short_ones() -> None:
    law, generator = Flicker(1.0, (0.5,)), torch.Generator().manual_seed(1)
    start = torch.full((1, 100_000), 2.0, dtype=torch.float64)
    once = law.step(start, 0.4, generator)
    often = start
    for _ in range(4):
        often = law.step(often, 0.1, generator)
    for state in (once, often):
        assert float(state.mean()) == pytest.approx(2.0 * math.exp(-0.8), abs=0.02)
        assert float(state.var()) == pytest.approx(1.0 - math.exp(-1.6), rel=0.02)


def test_telegraph_noise_keeps_its_shares_its_rates_and_its_spectrum() -> None:
    law, generator = Telegraph(0.3, up_hz=20.0, down_hz=60.0), torch.Generator().manual_seed(2)
    state, values = law.start((64,), generator), []
    for _ in range(8192):
        values.append(law.value(state))
        state = law.step(state, 1e-3, generator)
    trace = torch.stack(values).double().numpy()
    assert set(np.unique(trace).round(6)) == {0.0, 0.3}
    assert float(trace.mean()) == pytest.approx(0.3 * 0.25, rel=0.05)
    up, next_up = trace[:-1] > 0, trace[1:] > 0
    leaves = (up & ~next_up).sum() / up.sum()
    assert leaves == pytest.approx(0.75 * (1 - math.exp(-0.08)), rel=0.05)
    frequency, density = welch(trace, 1000.0, 1024)
    low = frequency < 60.0
    np.testing.assert_allclose(density[low], law.spectrum(torch.from_numpy(frequency)).numpy()[low], rtol=0.25)


def test_faults_of_traces_are_named() -> None:
    with pytest.raises(SurrogateError, match=r"sigma = -1 must not be negative; time 0\.0 s must be positive"):
        Flicker(-1, (0.0,))
    with pytest.raises(SurrogateError, match="there is no time"):
        Flicker(1.0, ())
    with pytest.raises(SurrogateError, match="must be positive and ascend"):
        Flicker.between(1.0, 10.0, 1.0)
    with pytest.raises(SurrogateError, match="up_hz = 0 must be positive; down_hz = -1"):
        Telegraph(1.0, 0, -1)
