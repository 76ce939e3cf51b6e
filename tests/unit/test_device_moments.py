"""Every law of devices, of reading and of faults has the moments of its published equation, on 1e5 draws each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import CellEffect, WeightEffect
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.device_curves import Polynomial
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_laws import PowerLawDrift, Programmed
from labrig_surrogates.device_presets import PRESETS
from labrig_surrogates.effect_settings import Dac, Mapping, NoiseDraws
from labrig_surrogates.mismatch import ColumnMismatch
from labrig_surrogates.noise_traces import Flicker, Telegraph
from labrig_surrogates.products import LinearProduct
from labrig_surrogates.residual_spreads import HardwareSpread
from labrig_surrogates.stochastic_residual import StochasticResidual
from labrig_surrogates.stuck_cells import StuckCells

US, COUNT, SIDE = 1e-6, 100_000, 320


def demand_normal(errors: Tensor, sigma: Tensor | float, slack: float = 0.0) -> None:
    """Errors over their standard deviation have the first four moments of the normal law.

    Args:
        errors: 1e5 or more.
        sigma: What the equation says, given to a relative precision of `slack`.
        slack: Zero where the equation itself is at hand.
    """
    z = (errors / sigma).double().flatten()
    assert z.numel() >= COUNT
    found = np.array([float(z.pow(power).mean()) for power in (1, 2, 3, 4)])
    allowed = 5.0 * np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / z.numel()) + np.array([0.0, 2.0, 0.0, 12.0]) * slack
    assert np.all(np.abs(found - [0.0, 1.0, 0.0, 3.0]) < allowed), found


def numbers(seed: int, count: int = COUNT) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("programming", "drift", "relaxation")
    return {name: torch.randn(count, generator=generator, dtype=torch.float64) for name in names}


# Standard deviations in microsiemens at conductances that the floor at zero does not reach, worked out from the
# published equations. Of SONOS they are cell currents at 0.1 V: 400 nA are 4 uS.
@pytest.mark.parametrize(
    ("preset", "spots"),
    [
        ("pcm-like", {6.25: 0.6814, 12.5: 0.9527, 25.0: 1.0554}),
        ("hermes", {5.175: 0.8888, 10.35: 0.9910, 20.7: 1.0927}),
        ("hermes-1", {5.175: 0.8653, 7.7625: 0.9748, 10.35: 1.0076}),
        ("reram-wan", {20.0: 2.023, 30.0: 1.533, 40.0: 1.103}),
        ("reram-wan-1s", {20.0: 2.362, 30.0: 1.819, 39.26: 1.681}),
        ("reram-cmo", {9.0: 0.01043, 40.0: 0.04356, 88.2: 0.09508}),
        ("pcm-joshi", {12.5: 0.9553, 20.0: 1.0885, 25.0: 1.0655}),
        ("reram-milo", {50.0: 4.327, 100.0: 3.872, 225.0: 2.733}),
        ("sonos", {4.0: 0.17829, 16.0: 0.19884}),
    ],
)
def test_programming_misses_by_the_published_spread(preset: str, spots: dict[float, float]) -> None:
    state = PRESETS[preset]().state
    for seed, (target_us, sigma_us) in enumerate(spots.items()):
        target_s = torch.full((COUNT,), target_us * US, dtype=torch.float64)
        errors_s = state.state_s(target_s, 0.0, numbers(seed).__getitem__) - target_s
        demand_normal(errors_s / US, sigma_us, slack=1e-3)


@pytest.mark.parametrize(
    ("preset", "mean", "sigma"),
    [("pcm-like", 0.0490, 0.0080), ("hermes", 0.0564, 0.0090), ("hermes-1", 0.0564, 0.0121)],
)
def test_exponents_of_drift_differ_by_the_published_spread(preset: str, mean: float, sigma: float) -> None:
    device, draw = PRESETS[preset](), numbers(11)
    law = device.state
    assert isinstance(law, PowerLawDrift)
    target_s = torch.full((COUNT,), 0.5 * device.conductance_max_s, dtype=torch.float64)
    fresh_s, day_s = (law.state_s(target_s, age_s, draw.__getitem__) for age_s in (0.0, 86_400.0))
    exponent = -torch.log(day_s / fresh_s) / math.log1p(86_400.0 / law.first_s)
    # The table of the equations has four digits.
    assert float(exponent.mean()) == pytest.approx(mean, abs=6e-5 + 5 * sigma / math.sqrt(COUNT))
    demand_normal(exponent - exponent.mean(), sigma, slack=0.006)


def layer_on(effect: WeightEffect | CellEffect) -> tuple[AnalogCore, Tensor]:
    """Cells of one weight of half the range, and the core that has them."""
    weight = torch.full((SIDE, SIDE), 0.5, dtype=torch.float64)
    config = AnalogConfig(weight_effects=(effect,), mapping=Mapping("fixed"), draws=NoiseDraws("exact"))
    core = AnalogCore(weight, LinearProduct(), config, name="a", seed=2, stream=0).double()
    core.set_ranges(weight_max=1.0)
    return core, weight


def accumulated(conductance_us: float, amplitude: float, time_s: float, read_s: float) -> float:
    return conductance_us * amplitude * math.sqrt(math.log((time_s + read_s) / (2 * read_s)))


PCM_US = accumulated(12.5, 0.0088 / 0.5**0.65, 3620.0, 250e-9)
HERMES_US = accumulated(10.35, 0.0123 + 0.0211 * 0.5 - 0.0280 * 0.25 + 0.0069 * 0.125, 3900.0, 512e-9)
CMO_GROWTH = 0.0277316483 * math.sqrt(math.log((3600.0 + 1e-6) / 2e-6))


@pytest.mark.parametrize(
    ("preset", "sigma_us", "span_us"),
    [
        ("pcm-like", PCM_US, 25.0),
        ("hermes", HERMES_US, 20.7),
        # Both cells of a pair are read: one at half of the range, one at its lower end.
        ("reram-cmo", CMO_GROWTH * math.hypot(math.log10(9.0 + 39.6), math.log10(9.0)), 79.2),
        ("sonos", 0.01 * 12.58037 * (1 - math.exp(-900.0 / 215.36557)), 18.0),
    ],
)
def test_reading_scatters_by_the_published_law(preset: str, sigma_us: float, span_us: float) -> None:
    # Without the error of programming and drift every cell stands at its target.
    exact = replace(PRESETS[preset](), state=Programmed(Polynomial((0.0,))))
    core, weight = layer_on(DeviceEffect(exact, read="read"))
    core.set_age(weight, 3600.0)
    (cells,) = core.realise(weight)
    demand_normal(cells.codes * cells.unit - weight, sigma_us / span_us)


def test_stuck_cells_are_as_frequent_as_asked_for() -> None:
    core, weight = layer_on(StuckCells(off=0.02, on=0.01, between=0.03, levels=(0.25,)))
    (array,) = core.realise(weight)
    assert array.cells is not None
    for cells, good in ((array.cells.of_weights, 0.5), (array.cells.of_references, 0.0)):
        shares = {level: float((cells - level).abs().lt(1e-9).double().mean()) for level in {good, 0.0, 1.0, 0.25}}
        expected = {0.0: 0.02, 1.0: 0.01, 0.25: 0.03}
        expected[good] = 0.94 + (0.02 if good == 0.0 else 0.0)
        for level, share in expected.items():
            assert shares[level] == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / cells.numel()))


def test_columns_differ_by_their_gains_and_offsets() -> None:
    effect = ColumnMismatch(gain=0.1, offset_products=0.5)
    config = AnalogConfig(dac=Dac(input_max=1.0), output_effects=(effect,), draws=NoiseDraws("exact"))
    weight = torch.ones((COUNT, 1), dtype=torch.float64)
    core = AnalogCore(weight, LinearProduct(), config, name="a", seed=3, stream=0).double()
    offset, driven = core(torch.tensor([[0.0], [1.0]], dtype=torch.float64), weight)
    demand_normal(offset, 0.5)
    demand_normal(driven - offset - 1.0, 0.1)
    assert abs(float(torch.corrcoef(torch.stack([offset, driven - offset]))[0, 1])) < 5 / math.sqrt(COUNT)


def test_traces_begin_in_equilibrium_stay_there_and_forget_with_their_times() -> None:
    generator = torch.Generator().manual_seed(4)
    flicker = Flicker(0.2, (0.1, 1.0, 10.0))
    before = flicker.start((COUNT,), generator, torch.float64)
    after = flicker.step(before, 0.7, generator)
    for state in (before, after):
        demand_normal(flicker.value(state), 0.2)
    kept = sum(math.exp(-0.7 / tau) for tau in (0.1, 1.0, 10.0)) / 3
    found = float((flicker.value(before) * flicker.value(after)).mean()) / 0.2**2
    assert found == pytest.approx(kept, abs=5 * math.sqrt((1 + kept**2) / COUNT))

    trap = Telegraph(0.3, up_hz=2.0, down_hz=6.0)
    full = trap.start((COUNT,), generator)
    later = trap.step(full, 0.1, generator)
    for state in (full, later):
        assert float(trap.value(state).mean()) == pytest.approx(0.3 * 0.25, abs=0.3 * 5 * math.sqrt(0.1875 / COUNT))
    left = float((full & ~later).double().sum() / full.double().sum())
    chance = 0.75 * (1 - math.exp(-0.8))
    assert left == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / (0.25 * COUNT)))


def test_a_stochastic_residual_scatters_by_its_spread() -> None:
    torch.manual_seed(0)
    mean = nn.Linear(6, 4)
    spread = HardwareSpread(amplifier=0.01, shot=0.02, conductance=0.03, lsb=0.1)
    layer = StochasticResidual(mean, spread, generator=torch.Generator().manual_seed(5), weight="weight").train()
    x = torch.randn(6)
    with torch.no_grad():
        errors = layer(x.expand(COUNT // 4, 6)) - mean(x)
        terms = x * mean.weight
        variance = 0.01 + 0.1**2 / 12 + 0.02 * terms.abs().sum(dim=1) + 0.03 * terms.square().sum(dim=1)
    demand_normal(errors, variance.sqrt())
