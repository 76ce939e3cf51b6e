"""Updates by pulses: closed forms against one pulse after the other, and a measured device against its own trains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.pulse_update import (
    ExponentialPulses,
    MeasuredPulses,
    PulseResponse,
    measured_pulses,
    pulsed_update,
    symmetry_point,
)


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def linear_table() -> MeasuredPulses:
    grid = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    return MeasuredPulses(grid, 0.02 * (1.1 - grid), -0.02 * (1.1 + grid), 0 * grid, 0 * grid)


@given(up=st.floats(1.0, 1e3), down=st.floats(1.0, 1e3), start=st.floats(-1.0, 1.0), pulses=st.integers(1, 40))
def test_the_closed_form_is_that_many_pulses(up: float, down: float, start: float, pulses: int) -> None:
    device = ExponentialPulses(up, down, pulses=32)
    for sign in (1.0, -1.0):
        state = one(start)
        for _ in range(pulses):
            state = device.after(state, one(sign))
        torch.testing.assert_close(device.after(one(start), one(sign * pulses)), state, rtol=0.0, atol=1e-9)


def test_the_curve_is_the_published_one_and_ends_where_it_should() -> None:
    device = ExponentialPulses(10.0, 20.0, pulses=32)
    scale = 2.0 / (1.0 - math.exp(-3.2))
    for pulses in (0, 1, 7, 32):
        expected = scale * (1.0 - math.exp(-pulses / 10.0)) - 1.0
        assert float(device.after(one(-1.0), one(pulses))) == pytest.approx(expected, abs=1e-12)
    assert float(device.after(one(1.0), one(-32.0))) == pytest.approx(-1.0, abs=1e-12)
    assert float(device.after(one(0.9), one(100.0))) == 1.0
    nearly_linear = ExponentialPulses(1e5, 1e5, pulses=100)
    assert float(nearly_linear.step(one(0.3), up=True)) == pytest.approx(0.02, rel=1e-2)


def test_a_table_of_linear_steps_follows_their_differential_equation() -> None:
    device = linear_table()
    # ds/dp = 0.02 (1.1 - s)
    expected = 1.1 - 1.1 * math.exp(-0.02 * 30)
    assert float(device.after(one(0.0), one(30.0))) == pytest.approx(expected, rel=2e-3)
    assert float(device.after(one(0.0), one(-30.0))) == pytest.approx(-expected, rel=2e-3)
    there_and_on = device.after(device.after(one(-0.5), one(10.0)), one(15.0))
    torch.testing.assert_close(there_and_on, device.after(one(-0.5), one(25.0)), rtol=1e-9, atol=1e-9)
    assert float(device.after(one(0.3), one(0.0))) == 0.3


@pytest.mark.parametrize("device", [ExponentialPulses(12.0, 20.0), linear_table()], ids=["exponential", "table"])
def test_alternating_pulses_lead_to_the_symmetry_point(device: PulseResponse) -> None:
    point = symmetry_point(device, -0.95, 0.95)
    state = torch.tensor([-0.9, 0.9], dtype=torch.float64)
    for _ in range(2000):
        state = device.after(device.after(state, torch.ones(2)), -torch.ones(2))
    # Where down follows up, the pair ends half a step above or below.
    assert float((state - point).abs().max()) < abs(float(device.step(one(point), up=True)))


def test_no_symmetry_point_is_said() -> None:
    with pytest.raises(SurrogateError, match="do not cancel"):
        symmetry_point(ExponentialPulses(12.0, 12.0), 0.5, 0.9)


def test_roundings_and_spreads_leave_the_mean_alone_on_a_linear_device() -> None:
    device = ExponentialPulses(1e6, 1e6, pulses=200, cycle_sigma=0.001)
    state, wanted = torch.zeros(200_000, dtype=torch.float64), torch.full((200_000,), 0.0237, dtype=torch.float64)
    after, pulses = pulsed_update(device, state, wanted, torch.Generator().manual_seed(0))
    assert set(pulses.tolist()) == {2.0, 3.0}
    assert float(after.mean()) == pytest.approx(0.0237, rel=0.003)
    rounding = 0.01**2 * 0.37 * 0.63
    assert float(after.var()) == pytest.approx(rounding + 2.37 * 0.002**2, rel=0.02)
    same, _ = pulsed_update(device, state, wanted, torch.Generator().manual_seed(0))
    assert torch.equal(after, same)
    _, most = pulsed_update(device, state[:5], wanted[:5] * 1e3, torch.Generator(), most_pulses=7)
    assert most.tolist() == 5 * [7.0]


def test_a_measured_device_gets_as_many_pulses_whatever_its_states_are_counted_in() -> None:
    up, down = torch.tensor([0.08, 0.02, 0.01]), -torch.tensor([0.01, 0.02, 0.08])
    found = []
    for low, scale in ((-1.0, 2.0), (0.0, 1.0), (3e-6, 1e-6)):
        sigma, grid = torch.zeros(3), low + scale * torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        device = MeasuredPulses(grid, scale * up, scale * down, sigma, sigma)
        state = torch.full((50_000,), device.middle, dtype=torch.float64)
        _, pulses = pulsed_update(device, state, torch.full_like(state, 0.03 * scale), torch.Generator().manual_seed(0))
        found.append(float(pulses.mean()))
    assert found == pytest.approx([1.5, 1.5, 1.5], abs=0.02)


def test_on_an_asymmetric_device_zero_mean_updates_drift_to_the_symmetry_point() -> None:
    device = ExponentialPulses(8.0, 16.0, pulses=64)
    point = symmetry_point(device, -0.99, 0.99)
    generator = torch.Generator().manual_seed(1)
    state = torch.full((4000,), 0.8 if point < 0 else -0.8, dtype=torch.float64)
    for _ in range(400):
        wanted = 0.02 * torch.randn(4000, generator=generator, dtype=torch.float64)
        state, _ = pulsed_update(device, state, wanted, generator)
    assert float(state.mean()) == pytest.approx(point, abs=0.05)


def test_gradients_pass_through_the_state() -> None:
    state = torch.linspace(-0.713, 0.687, 9, dtype=torch.float64, requires_grad=True)
    pulses = torch.linspace(-6.0, 6.0, 9, dtype=torch.float64)
    for device in (ExponentialPulses(12.0, 20.0), linear_table()):
        assert torch.autograd.gradcheck(lambda s, of=device: of.after(s, pulses), state)


def test_faults_are_all_named() -> None:
    with pytest.raises(
        SurrogateError, match=r"up_curvature = 0\.0 must be positive; pulses = -1 must be positive; cycle"
    ):
        ExponentialPulses(0.0, 1.0, pulses=-1, cycle_sigma=-1.0)
    grid = torch.linspace(-1, 1, 3)
    with pytest.raises(SurrogateError, match=r"up steps must be positive: 3 of 3 are not; down steps .* 3 of 3"):
        MeasuredPulses(grid, -grid.abs() - 1, grid.abs() + 1, 0 * grid, 0 * grid)


def test_a_real_device_is_followed_over_a_thousand_pulses(data_dir: Path) -> None:
    path = data_dir / "measured" / "aihwkit_gong" / "gong_et_al.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    up, down = np.loadtxt(path, delimiter=",").T
    device = measured_pulses(up, down)
    errors = []
    for train, sign in ((up, 1.0), (down, -1.0)):
        counts = torch.arange(0.0, 1000.0, 50.0, dtype=torch.float64)
        modelled = device.after(torch.full_like(counts, float(np.median(train[:5]))), sign * counts)
        smooth = np.array([np.median(train[max(0, int(at) - 10) : int(at) + 11]) for at in counts])
        errors.append(float(np.sqrt(np.mean((modelled.numpy() - smooth) ** 2))))
    span = float(np.ptp(np.concatenate([up, down])))
    print(
        f"rms distance from the measured trains: {errors[0] / span:.3f} up, {errors[1] / span:.3f} down, of the range"
    )
    assert max(errors) < 0.1 * span
    low, high = float(device.states[1]), float(device.states[-2])
    assert low < symmetry_point(device, low, high) < high
