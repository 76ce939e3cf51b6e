"""What is stored is lost by the stretched exponential, device by device, and faster where it is hot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.device_curves import Polynomial
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_laws import Programmed, Retention
from labrig_surrogates.device_presets import Device
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.model_tools import new_write, set_age

US = 1e-6
EXACT = Programmed(Polynomial((0.0,)))
LAW = Retention(EXACT, time_s=1e6, end_s=2.0 * US, beta=0.6, ln_sigma=0.5)
YEAR_S = 3.156e7


def numbers_of(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(count, generator=generator, dtype=torch.float64) for name in ("programming", "retention")}


@pytest.mark.parametrize("age_s", [1e3, 1e6, YEAR_S])
def test_the_loss_is_the_equation_for_each_device_with_the_moments_of_its_time(age_s: float) -> None:
    count = 100_000
    numbers, target_s = numbers_of(count), torch.full((count,), 20.0 * US, dtype=torch.float64)
    kept = (LAW.state_s(target_s, age_s, numbers.__getitem__) - 2.0 * US) / (18.0 * US)
    tau_s = 1e6 * torch.exp(0.5 * numbers["retention"])
    torch.testing.assert_close(kept, torch.exp(-((age_s / tau_s) ** 0.6)))
    possible = kept > 1e-280  # beyond, nothing is left of the logarithm
    ln_time = torch.log(-torch.log(kept[possible])) / 0.6
    if bool(possible.all()):
        # Mean and spread of ln(t / tau) over the devices, within four standard errors.
        assert abs(float(ln_time.mean()) - math.log(age_s / 1e6)) < 4 * 0.5 / count**0.5
        assert abs(float(ln_time.std()) - 0.5) < 4 * 0.5 / (2 * count) ** 0.5


def test_nothing_is_lost_at_once_and_all_but_the_end_for_ever() -> None:
    target_s = torch.tensor([0.0, 2.0, 30.0], dtype=torch.float64) * US
    numbers = numbers_of(3).__getitem__
    assert torch.equal(LAW.state_s(target_s, 0.0, numbers), target_s)
    torch.testing.assert_close(LAW.state_s(target_s, 1e30, numbers), torch.full_like(target_s, 2.0 * US))
    half = Retention(EXACT, time_s=1.0).state_s(target_s.requires_grad_(), math.log(2.0), numbers)
    torch.testing.assert_close(half, 0.5 * target_s)
    (slope,) = torch.autograd.grad(half.sum(), target_s)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5))


def test_a_bake_predicts_the_time_at_room_temperature() -> None:
    target_s, numbers = torch.tensor([20.0 * US], dtype=torch.float64), numbers_of(1).__getitem__
    baked = Retention(EXACT, time_s=3600.0, activation_ev=1.1, rated_k=473.15, temperature_k=473.15)
    stored = Retention(EXACT, time_s=3600.0, activation_ev=1.1, rated_k=473.15, temperature_k=298.15)
    # k = 8.617333e-5 eV/K
    factor = math.exp(1.1 / 8.617333262e-5 * (1 / 298.15 - 1 / 473.15))
    assert 1e6 < factor < 1e8
    torch.testing.assert_close(
        stored.state_s(target_s, 1800.0 * factor, numbers),
        baked.state_s(target_s, 1800.0, numbers),
        rtol=1e-6,
        atol=0.0,
    )


def test_a_layer_forgets_and_a_new_write_is_fresh() -> None:
    torch.manual_seed(0)
    device = Device("forgetful", "made up for this test", 0.0, 25.0 * US, Retention(EXACT, time_s=100.0))
    layer = to_analog(nn.Linear(30, 20, bias=False), AnalogConfig(weight_effects=(DeviceEffect(device),)))
    x = torch.randn(4, 30)
    fresh = layer(x)
    set_age(layer, 100.0)
    torch.testing.assert_close(layer(x), fresh * math.exp(-1.0))
    new_write(layer)
    torch.testing.assert_close(layer(x), fresh)


def test_every_fault_is_named() -> None:
    with pytest.raises(
        SurrogateError, match=r"beta = inf is not finite.*time_s = 0.0 must be.*end_s = -1.0 is negative"
    ):
        Retention(EXACT, time_s=0.0, end_s=-1.0, beta=math.inf)
