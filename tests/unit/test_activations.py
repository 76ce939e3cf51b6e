"""The asymmetric activations: formulas, extremes, gradients, modules, and fits to measured curves."""

import copy
import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labrig_surrogates.activation_fit import fit_asymmetric
from labrig_surrogates.activations import (
    AsymmetricActivation,
    FittedActivation,
    Orientation,
    StretchedExponential,
    log_saturation,
    stretched_exponential,
)
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.monotone_spline import MonotoneSpline, monotone_points

EXTREME = [-1e4, -88.0, -1e-4, 0.0, 1e-4, 88.0, 1e4]
CURVE = MonotoneSpline(torch.tensor([-2.0, -1.0, 0.5, 3.0]), torch.tensor([-1.2, -0.8, 0.2, 1.2]))


Activation = AsymmetricActivation | StretchedExponential | FittedActivation


def activations(channels: int = 1, orientation: Orientation = 1) -> list[Activation]:
    return [
        AsymmetricActivation(channels, a=0.7, gain=1.3, offset=0.2, width=0.8, orientation=orientation),
        StretchedExponential(channels, beta=0.6, gain=1.3, offset=0.2, width=0.8, orientation=orientation),
        FittedActivation(CURVE, channels, gain=1.3, offset=0.2, width=0.8, orientation=orientation),
    ]


@given(st.floats(-30, 30), st.floats(1e-6, 1e6))
def test_it_is_the_formula_of_the_specification(x: float, a: float) -> None:
    expected = -math.log1p(a * math.exp(-x))
    found = log_saturation(torch.tensor(x, dtype=torch.float64), torch.tensor(math.log(a), dtype=torch.float64))
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("a", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("orientation", [1, -1])
def test_extremes_have_no_nan_in_value_gradient_or_curvature(
    dtype: torch.dtype, a: float, orientation: Orientation
) -> None:
    module = AsymmetricActivation(a=a, orientation=orientation)
    x = torch.tensor(EXTREME, dtype=dtype, requires_grad=True)
    y = module(x)
    assert y.dtype == dtype
    gradients = torch.autograd.grad(y.float().sum(), (x, *module.parameters()), create_graph=True)
    curvature = torch.autograd.grad(gradients[0].float().sum(), x)
    assert all(torch.isfinite(tensor).all() for tensor in (y, *gradients, *curvature))
    assert bool((orientation * y <= 0).all())
    # Slope one on one side, zero on the other, nothing in between overshoots.
    assert bool(((gradients[0] >= 0) & (gradients[0] <= 1)).all())
    wide = x.detach().double()
    torch.testing.assert_close(
        y.detach().double(),
        orientation * -torch.logaddexp(torch.zeros(()).double(), math.log(a) - orientation * wide),
        rtol=2.0 * torch.finfo(dtype).eps,
        atol=1e-3,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_the_stretched_exponential_is_finite_everywhere(dtype: torch.dtype, beta: float) -> None:
    module = StretchedExponential(beta=beta)
    x = torch.tensor(EXTREME, dtype=dtype, requires_grad=True)
    y = module(x)
    gradients = torch.autograd.grad(y.float().sum(), (x, *module.parameters()))
    assert y.dtype == dtype
    assert all(torch.isfinite(tensor).all() for tensor in (y, *gradients))
    assert bool(((y >= 0) & (y <= 1)).all())


@given(st.floats(0.1, 3.0), st.floats(0.011, 20.0))
def test_the_stretched_exponential_is_its_formula(beta: float, u: float) -> None:
    exact = math.exp(-(u**beta))
    arguments = torch.tensor([u, beta], dtype=torch.float64)
    found = stretched_exponential(arguments[0], arguments[1], 1e-2)
    assert float(found) == pytest.approx(exact, rel=1e-9, abs=1e-300)
    rising = StretchedExponential(beta=beta, width=2.0)(torch.tensor(2 * u))
    assert rising.item() == pytest.approx(1 - exact, abs=1e-6)


def test_the_chord_at_zero_has_a_finite_slope_and_meets_the_curve() -> None:
    beta, knee = torch.tensor(0.5).double(), 1e-2
    u = torch.tensor([0.0, 0.5 * knee, knee, knee * (1 + 1e-9)], dtype=torch.float64, requires_grad=True)
    y = stretched_exponential(u, beta, knee)
    (slope,) = torch.autograd.grad(y.sum(), u)
    assert y.detach()[0].item() == 1.0
    assert y.detach()[2].item() == pytest.approx(math.exp(-(knee**0.5)), rel=1e-12)
    assert float((y[3] - y[2]).detach().abs()) < 1e-8
    assert float(slope.abs().max()) <= knee**-0.5
    assert float(slope[1]) == pytest.approx(-(1 - math.exp(-(knee**0.5))) / knee)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.sampled_from([1, -1]))
@settings(deadline=None, max_examples=12)
def test_gradients_agree_with_finite_differences(
    batch: int, channels: int, width: int, orientation: Orientation
) -> None:
    shape = (batch, channels, *[2] * width)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(batch), dtype=torch.float64) + 0.37
    for module in activations(channels, orientation):
        double = module.double()
        parameters = tuple(double.parameters())

        def outputs(inputs: torch.Tensor, *_: torch.Tensor, module: nn.Module = double) -> torch.Tensor:
            y: torch.Tensor = module(inputs)
            return y

        assert torch.autograd.gradcheck(outputs, (x.clone().requires_grad_(), *parameters), atol=1e-6)


@pytest.mark.parametrize("kind", range(3))
def test_channels_have_parameters_of_their_own(kind: int) -> None:
    module = activations(3)[kind]
    with torch.no_grad():
        module.place.gain.copy_(torch.tensor([1.0, 2.0, -3.0]))
        module.place.offset.zero_()
    x = torch.full((2, 3, 4, 4), 0.3)
    y = module(x)
    torch.testing.assert_close(y[:, 1], 2.0 * y[:, 0])
    torch.testing.assert_close(y[:, 2], -3.0 * y[:, 0])
    last = copy.deepcopy(module)
    last.place.channel_dim = -1
    torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), y)


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("orientation", [1, -1])
def test_a_standardised_activation_keeps_the_spread_of_its_inputs(kind: int, orientation: Orientation) -> None:
    module = activations(2, orientation)[kind]
    sign = float(torch.sign(module.place.gain.detach()[0]))
    module.standardise_(mean=0.5)
    x = torch.randn((200_000, 2), generator=torch.Generator().manual_seed(0))
    y = module(x)
    torch.testing.assert_close(y.std(dim=0), torch.ones(2), rtol=1e-2, atol=0.0)
    torch.testing.assert_close(y.mean(dim=0), torch.full((2,), 0.5), rtol=0.0, atol=1e-2)
    assert float(torch.sign(module.place.gain.detach()[0])) == sign


@pytest.mark.parametrize("kind", range(3))
def test_they_are_plain_modules(kind: int) -> None:
    module = activations(3)[kind]
    x = torch.randn((4, 3, 5), generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    assert not torch.equal(copied(x), module(x))
    copied.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(copied(x), module(x))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), module(x), rtol=2e-2, atol=2e-2)
    # What a distributed training would have to keep equal on all processes is constant.
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    module(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.named_buffers())


def test_a_measured_curve_is_followed_and_inverted() -> None:
    x = torch.linspace(-2.0, 3.0, 50)
    module = FittedActivation(CURVE)
    torch.testing.assert_close(module(CURVE.knots), CURVE.values)
    scaled = FittedActivation(CURVE, gain=-2.0, offset=0.3, width=0.5, orientation=-1)
    torch.testing.assert_close(scaled(x), -2.0 * -CURVE(-x / 0.5) + 0.3)
    torch.testing.assert_close(scaled.inverse(scaled(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("orientation", [1, -1])
@pytest.mark.parametrize("a", [1e-3, 1.0, 50.0])
def test_the_fit_finds_the_curve_that_made_the_data(orientation: Orientation, a: float) -> None:
    truth = AsymmetricActivation(a=a, gain=-2.5, offset=0.7, width=0.3, orientation=orientation)
    centre = orientation * 0.3 * math.log(a)
    x = torch.linspace(centre - 2.0, centre + 2.0, 200, dtype=torch.float64)
    y = truth.double()(x).detach()
    fit = fit_asymmetric(x, y)
    assert fit.r_squared > 1 - 1e-8
    torch.testing.assert_close(fit.activation.double()(x).detach(), y, rtol=0.0, atol=1e-4)
    rng = torch.Generator().manual_seed(0)
    noisy = y + 0.05 * torch.randn(y.shape, generator=rng, dtype=torch.float64)
    assert fit_asymmetric(x, noisy).rms_error == pytest.approx(0.05, rel=0.15)


def test_measured_curves_of_a_memristor_are_fitted(data_dir: Path) -> None:
    text = (data_dir / "measured" / "readc_memristor" / "iv_sweeps.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    sweep = [(float(row["V_set_50uA"]), float(row["I_set_50uA"])) for row in rows if row["V_set_50uA"]]
    turn = int(np.argmax([voltage for voltage, _ in sweep]))
    voltage_v, current_ua = (torch.tensor(column) for column in zip(*sweep[turn:], strict=True))
    fit = fit_asymmetric(voltage_v, current_ua)
    assert fit.r_squared >= 0.99
    curve = MonotoneSpline(*monotone_points(voltage_v, current_ua, 24))
    spline_error = float((curve(voltage_v) - current_ua).square().mean().sqrt())
    assert spline_error < 0.5 * fit.rms_error
    module = FittedActivation(curve).standardise_()
    assert torch.isfinite(module(torch.linspace(-1e4, 1e4, 101))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": 0.0}, "a is 0.0: it is finite and positive"),
        (
            {"channels": 0, "width": 0.0, "orientation": 2, "gain": math.inf, "channel_dim": 0},
            "0 channels.*gain is inf",
        ),
        ({"width": -1.0, "orientation": 0}, r"width is -1.0.*orientation is 0"),
    ],
)
def test_impossible_activations_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(SurrogateError, match=message):
        AsymmetricActivation(**arguments)  # type: ignore[arg-type]


def test_other_misuse_is_refused() -> None:
    with pytest.raises(SurrogateError, match=r"beta is -1.*knee is 1.5"):
        StretchedExponential(beta=-1, knee=1.5)
    with pytest.raises(SurrogateError, match="constant under"):
        FittedActivation(MonotoneSpline(torch.tensor([0.0, 1.0]), torch.ones(2))).standardise_()
    with pytest.raises(SurrogateError, match="five or more"):
        fit_asymmetric(torch.zeros(3), torch.zeros(3))
    with pytest.raises(SurrogateError, match="there is no curve"):
        fit_asymmetric(torch.arange(6.0), torch.ones(6))
    with pytest.raises(SurrogateError, match="not finite"):
        fit_asymmetric(torch.arange(6.0), torch.tensor([0, 1, 2, 3, 4, math.nan]))
