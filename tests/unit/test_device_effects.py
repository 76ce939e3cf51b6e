"""Layers on devices that drift and get stuck: what each cell does, over writes, ages and chips."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_presets import Device, pcm_joshi, pcm_like, reram_milo
from labrig_surrogates.drift_compensation import compensate_drift, note_response
from labrig_surrogates.effect_settings import Mapping, NoiseDraws, OutputNoise
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear
from labrig_surrogates.model_tools import erase, new_chip, new_write, noise_off, program, set_age
from labrig_surrogates.stuck_cells import StuckCells
from labrig_surrogates.tilemap import ArrayGeometry, Scheme

EXACT = NoiseDraws(source="exact")
DAY_S = 86_400.0


def layer(*effects: DeviceEffect | StuckCells, scheme: Scheme = "differential_pair", size: int = 200) -> AnalogLinear:
    """A layer with weights -1 to 1 in double precision."""
    config = AnalogConfig(
        mapping=Mapping(weight_range="fixed", scheme=scheme),
        weight_effects=effects,
        draws=EXACT,
        geometry=ArrayGeometry.relative(rows=size, columns=65) if scheme == "offset_column" else None,
    )
    made = AnalogLinear(size, size, bias=False, config=config, generator=torch.Generator().manual_seed(0))
    made = made.double()
    with torch.no_grad():
        made.weight.copy_(torch.linspace(-1.0, 1.0, size, dtype=torch.float64).expand(size, size))
    made.core.set_ranges(weight_max=1.0)
    new_chip(made)
    return made


def read(analog: AnalogLinear) -> Tensor:
    """The weights as the arrays have them now, read with one-hot vectors, `[outputs, inputs]`."""
    with torch.no_grad():
        found: Tensor = analog(torch.eye(analog.weight.shape[1], dtype=analog.weight.dtype))
    return found.T


def above_zero(mean: float, sigma: float) -> tuple[float, float]:
    """Mean and variance of a Gaussian whose negative values are zero."""
    bell, share = (
        math.exp(-0.5 * (mean / sigma) ** 2) / math.sqrt(2 * math.pi),
        0.5 * math.erfc(-mean / sigma / math.sqrt(2)),
    )
    first = mean * share + sigma * bell
    return first, (mean**2 + sigma**2) * share + mean * sigma * bell - first**2


def test_each_cell_of_a_pair_misses_its_target_by_the_law_of_its_device() -> None:
    device = pcm_joshi()
    analog = layer(DeviceEffect(device), size=400)
    error = read(analog) - analog.weight.detach()
    low_us, high_us = 1e6 * device.conductance_min_s, 1e6 * device.conductance_max_s
    for column, weight in ((0, 1.0), (399, 1.0), (199, 0.0)):
        targets_us = (low_us + weight * (high_us - low_us), low_us)
        # Idle cells cannot fall below zero: the floor takes part of their spread away and moves their mean.
        laws = [above_zero(g, -0.00178767 * g**2 + 0.07585724 * g + 0.28638599) for g in targets_us]
        sigma = math.sqrt(sum(variance for _, variance in laws)) / (high_us - low_us)
        shift = (laws[0][0] - targets_us[0] - laws[1][0] + targets_us[1]) / (high_us - low_us)
        sign = -1.0 if column == 0 else 1.0
        # Of 400 cells: five standard errors.
        assert float(error[:, column].std()) == pytest.approx(sigma, rel=5 / math.sqrt(800))
        assert sign * float(error[:, column].mean()) == pytest.approx(shift, abs=5 * sigma / math.sqrt(400))


def test_a_write_is_kept_and_the_next_one_is_another() -> None:
    analog = layer(DeviceEffect(pcm_like()))
    first = read(analog)
    assert torch.equal(first, read(analog))
    new_write(analog)
    assert not torch.allclose(first, read(analog))
    with noise_off(analog):
        torch.testing.assert_close(read(analog), analog.weight.detach(), rtol=0.0, atol=1e-12)


def test_age_lets_the_same_devices_drift_and_a_new_write_is_young() -> None:
    analog = layer(DeviceEffect(pcm_like()))
    fresh = read(analog)
    set_age(analog, DAY_S)
    later = read(analog)
    set_age(analog, 0.0)
    assert torch.equal(fresh, read(analog))
    shrunk = later[:, -1].mean() / fresh[:, -1].mean()
    assert float(shrunk) == pytest.approx((1 + DAY_S / 20.0) ** -0.049, rel=0.02)
    set_age(analog, DAY_S)
    new_write(analog)
    assert float(read(analog)[:, -1].mean()) == pytest.approx(float(fresh[:, -1].mean()), rel=0.02)
    with pytest.raises(SurrogateError, match="before programming"):
        set_age(analog, -1.0)


@pytest.mark.parametrize("timing", ["program", "read"])
def test_read_noise_has_the_width_and_the_timing_that_were_asked_for(timing: str) -> None:
    device = pcm_like()
    analog = layer(DeviceEffect(device, read="program" if timing == "program" else "read"))
    set_age(analog, 3600.0)
    first, second = read(analog), read(analog)
    if timing == "program":
        assert torch.equal(first, second)
        program(analog)
        return
    # Two readings differ by twice the variance; the largest weights stand at 25 uS.
    difference = (second - first)[:, -1]
    drifted = (1.0 + 3600.0 / 20.0) ** -0.049
    sigma = 0.0088 * 4.765 * drifted
    idle = 0.02  # the idle cell of the pair, at most
    assert 0.8 * sigma < float(difference.std()) / math.sqrt(2.0) < math.hypot(1.2 * sigma, idle)
    with pytest.raises(SurrogateError, match="DeviceEffect draws new numbers at every reading"):
        program(analog)


def test_a_device_without_a_law_of_read_noise_cannot_be_asked_for_it() -> None:
    with pytest.raises(SurrogateError, match="has no read noise"):
        DeviceEffect(reram_milo(), read="read")


def test_the_reference_column_of_an_offset_scheme_is_shared_by_its_block() -> None:
    analog = layer(DeviceEffect(pcm_joshi()), scheme="offset_column", size=128)
    with torch.no_grad():
        analog.weight.zero_()
    error = read(analog)
    # 64 outputs share one reference: the part that all of a block have in common is its error.
    blocks = [error[first : first + 64].mean(dim=0) for first in (0, 64)]
    sigma_us = -0.00178767 * 12.625**2 + 0.07585724 * 12.625 + 0.28638599
    for block in blocks:
        assert float(block.std()) == pytest.approx(2.0 * sigma_us / 24.75 * math.sqrt(1 + 1 / 64), rel=0.25)
    assert abs(float(torch.corrcoef(torch.stack(blocks))[0, 1])) < 0.3


def test_gradients_go_through_devices() -> None:
    analog = layer(DeviceEffect(pcm_like(), read="program"), size=6)
    set_age(analog, 100.0)
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        analog.weight.mul_(0.9)

    def loss(weight: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(analog, {"weight": weight}, (x,))
        return found.square().sum()

    assert torch.autograd.gradcheck(
        loss, analog.weight.detach().clone().requires_grad_(), eps=1e-7, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("scheme", ["differential_pair", "offset_column"])
def test_stuck_cells_are_as_many_as_asked_for_where_they_were(scheme: Scheme) -> None:
    analog = layer(StuckCells(off=0.05, on=0.03), scheme=scheme)
    target = analog.weight.detach()
    first = read(analog)
    changed = (first - target).abs() > 1e-9
    if scheme == "differential_pair":
        # Stuck on moves any pair that is not at its end there; stuck off only cells that carry something.
        expected = 1.0 - (1.0 - 0.05 - 0.03) * (1.0 - 0.03)
        assert float(changed.double().mean()) == pytest.approx(expected, abs=0.01)
        assert set(first[changed].round(decimals=9).tolist()) <= set(
            torch.cat([target[0] - 1, target[0] + 1, torch.zeros(1), target[0].sign(), -target[0].sign()])
            .round(decimals=9)
            .tolist()
        ) | {0.0}
    new_write(analog)
    assert torch.equal(first, read(analog))
    new_chip(analog)
    assert not torch.equal(first, read(analog))


def test_stuck_levels_are_those_that_were_measured() -> None:
    analog = layer(StuckCells(between=1.0, levels=(0.25, 0.75)), scheme="offset_column")
    # A cell at 0.25 or 0.75 minus a reference at 0.25 or 0.75, twice as a weight.
    assert sorted(set(read(analog).flatten().tolist())) == [-1.0, 0.0, 1.0]
    everywhere = read(layer(StuckCells(between=1.0)))
    # The difference of two uniform numbers.
    assert float(everywhere.std()) == pytest.approx(math.sqrt(1.0 / 6.0), rel=0.02)


def test_stuck_cells_stay_when_noise_is_off_and_read_noise_acts_on_them() -> None:
    analog = layer(StuckCells(off=0.1), DeviceEffect(pcm_like(), read="read"))
    with noise_off(analog):
        quiet = read(analog)
        assert torch.equal(quiet, read(analog))
    stuck = (quiet[:, -1].abs() < 1e-9).nonzero()[:, 0]
    assert 5 < len(stuck) < 40
    noisy = read(analog)[stuck, -1]
    assert bool((noisy != 0.0).any())


def test_stuck_cells_name_every_fault() -> None:
    with pytest.raises(SurrogateError, match=r"off = 1\.5 .*; on = -0\.1 .*; level 2\.0 .*; levels need"):
        StuckCells(off=1.5, on=-0.1, levels=(2.0,))
    with pytest.raises(SurrogateError, match="of all cells are stuck"):
        StuckCells(off=0.7, on=0.7)


class Net(nn.Sequential):
    """Two layers with a bias."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 5))


def drifting(device: Device, **others: OutputNoise) -> nn.Module:
    torch.manual_seed(0)
    config = replace(AnalogConfig(weight_effects=(DeviceEffect(device),), draws=EXACT), **others)  # type: ignore[arg-type]
    return to_analog(Net(), config)


@pytest.mark.parametrize("per", ["layer", "column"])
def test_compensation_gives_back_what_drift_took_on_average(per: str) -> None:
    model = drifting(pcm_like())
    new_write(model)
    reference = note_response(model, per="column" if per == "column" else "layer")
    x = torch.randn(64, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        fresh = model(x)
        set_age(model, 30 * DAY_S)
        drifted = model(x)
        factors = compensate_drift(model, reference)
        corrected = model(x)
    expected = (1.0 + 30 * DAY_S / 20.0) ** 0.05
    for factor in factors.values():
        assert factor.dim() == (1 if per == "column" else 0)
        assert float(factor.mean()) == pytest.approx(expected, rel=0.05)
    lost, left = (float((one - fresh).square().mean().sqrt()) for one in (drifted, corrected))
    assert left < 0.5 * lost
    new_write(model)
    with torch.no_grad():
        assert float((model(x) - fresh).square().mean().sqrt()) < lost


def test_compensation_scales_outputs_and_leaves_the_bias_alone() -> None:
    model = drifting(pcm_like())
    new_write(model)
    reference = {name: 2.0 * value for name, value in note_response(model).items()}
    first = next(model.children())
    assert isinstance(first, AnalogLinear)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = first(x)
        compensate_drift(model, reference)
        torch.testing.assert_close(first(x) - first.bias, 2.0 * (before - first.bias), rtol=1e-5, atol=1e-6)
        other = copy.deepcopy(model)
        assert torch.equal(other(x), model(x))
    with pytest.raises(SurrogateError, match="of another model"):
        compensate_drift(model, {"nobody": torch.ones(())})


def test_programmed_arrays_drift_too() -> None:
    model = drifting(pcm_like()).eval()
    new_write(model)
    program(model)
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        fresh = model(x)
        set_age(model, DAY_S)
        later = model(x)
        assert not torch.allclose(fresh, later)
        set_age(model, 0.0)
        torch.testing.assert_close(model(x), fresh)
    erase(model)
