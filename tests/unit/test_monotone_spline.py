"""The monotone curve against SciPy's, its inverse, its ends, and the averaging of noisy points."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator
from sklearn.isotonic import IsotonicRegression

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.monotone_spline import Extrapolation, MonotoneSpline, monotone_points


def points(seed: int, count: int, *, falling: bool = False, plateau: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    rises = rng.exponential(1.0, count - 1)
    if plateau:
        rises[rng.integers(0, count - 1)] = 0.0
    x = torch.tensor(np.cumsum(rng.uniform(0.1, 2.0, count)) - 3.0)
    y = torch.tensor(np.concatenate([[0.0], np.cumsum(rises)]) - 1.0)
    return x, -y if falling else y


@given(st.integers(0, 10_000), st.integers(2, 12), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_inside_it_is_scipys_pchip(seed: int, count: int, falling: bool, plateau: bool) -> None:
    x, y = points(seed, count, falling=falling, plateau=plateau)
    inside = torch.linspace(float(x[0]), float(x[-1]), 101, dtype=torch.float64).clamp(x[0], x[-1]).requires_grad_()
    value = MonotoneSpline(x, y)(inside)
    (slope,) = torch.autograd.grad(value.sum(), inside)
    peer = PchipInterpolator(x.numpy(), y.numpy())
    grid = inside.detach().numpy()
    np.testing.assert_allclose(value.detach().numpy(), peer(grid), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slope.numpy(), peer.derivative()(grid), rtol=1e-7, atol=1e-7)
    steps = torch.diff(value.detach())
    assert bool((steps <= 1e-12).all() if falling else (steps >= -1e-12).all())


@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_inverse_undoes_it(seed: int, count: int, falling: bool) -> None:
    x, y = points(seed, count, falling=falling)
    curve = MonotoneSpline(x, y)
    span = float(x[-1] - x[0])
    wanted = torch.linspace(float(x[0]), float(x[-1]), 41, dtype=torch.float64)
    if float(curve.slopes[0]) != 0 and float(curve.slopes[-1]) != 0:
        wanted = torch.linspace(float(x[0]) - span, float(x[-1]) + span, 41, dtype=torch.float64)
    values = curve(wanted)
    torch.testing.assert_close(curve(curve.inverse(values)), values, rtol=1e-9, atol=1e-9)


def test_gradients_of_curve_and_inverse_agree_with_finite_differences() -> None:
    x, y = points(4, 8)
    curve = MonotoneSpline(x, y)
    assert float(curve.slopes.abs().min()) > 0
    start = torch.linspace(float(x[0]) - 2.0, float(x[-1]) + 2.0, 15, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(curve, (start,))
    assert torch.autograd.gradgradcheck(curve, (start,))
    values = curve(start).detach().requires_grad_()
    assert torch.autograd.gradcheck(curve.inverse, (values,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extrapolation", ["linear", "flat"])
def test_far_outside_it_stays_finite_and_straight(dtype: torch.dtype, extrapolation: Extrapolation) -> None:
    x, y = points(5, 7)
    curve = MonotoneSpline(x.float(), y.float(), extrapolation)
    far = torch.tensor([-1e4, -100.0, 100.0, 1e4], dtype=dtype, requires_grad=True)
    value = curve(far)
    (slope,) = torch.autograd.grad(value.sum(), far)
    assert value.dtype == slope.dtype == dtype
    ends = [curve.slopes[0], curve.slopes[0], curve.slopes[-1], curve.slopes[-1]]
    expected = torch.stack(ends).to(dtype) if extrapolation == "linear" else torch.zeros(4, dtype=dtype)
    torch.testing.assert_close(slope, expected)
    assert torch.isfinite(value).all()
    assert torch.equal(value.argsort(), torch.arange(4)) or extrapolation == "flat"


def test_it_is_a_plain_module() -> None:
    x, y = points(1, 6)
    curve = MonotoneSpline(x.float(), y.float())
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(curve).state_dict(), buffer)
    buffer.seek(0)
    other = MonotoneSpline(torch.arange(6.0), torch.arange(6.0))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    at = torch.linspace(-5.0, 9.0, 20)
    assert torch.equal(other(at), curve(at))
    assert list(curve.parameters()) == []
    compiled = torch.compile(curve, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(at), curve(at))


@given(st.integers(0, 10_000), st.integers(2, 15), st.booleans())
@settings(deadline=None, max_examples=40)
def test_noisy_points_become_the_nearest_monotone_ones(seed: int, count: int, falling: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, 60)
    y = (-1.0 if falling else 1.0) * 2.0 * x + rng.normal(0, 0.4, 60)
    found_x, found_y = monotone_points(torch.tensor(x), torch.tensor(y), count)
    order = np.argsort(x)
    groups = list(zip(np.array_split(x[order], count), np.array_split(y[order], count), strict=True))
    means = np.array([[a.mean(), b.mean()] for a, b in groups])
    rising = bool(np.polyfit(means[:, 0], means[:, 1], 1)[0] >= 0)
    model = IsotonicRegression(increasing=rising)
    peer = model.fit(means[:, 0], means[:, 1], [len(a) for a, _ in groups]).predict(means[:, 0])
    np.testing.assert_allclose(found_x.numpy(), means[:, 0])
    np.testing.assert_allclose(found_y.numpy(), peer, rtol=1e-9, atol=1e-12)
    MonotoneSpline(found_x, found_y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([0.0], [1.0], "two points or more"),
        ([0.0, 1.0], [1.0, 2.0, 3.0], r"not \(2,\) and \(3,\)"),
        ([0.0, 1.0, 1.0], [0.0, 2.0, 1.0], "x does not rise after point 1.*y turns at point 1"),
        ([0.0, 1.0], [0.0, float("nan")], "not finite"),
    ],
)
def test_points_that_are_no_curve_are_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(SurrogateError, match=message):
        MonotoneSpline(torch.tensor(x), torch.tensor(y))


def test_a_plateau_has_no_inverse_and_empty_groups_are_refused() -> None:
    curve = MonotoneSpline(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0]))
    with pytest.raises(SurrogateError, match="flat between points 1 and 2"):
        curve.inverse(torch.tensor([0.5]))
    with pytest.raises(SurrogateError, match="5 groups of 3 measurements"):
        monotone_points(torch.zeros(3), torch.zeros(3), 5)
