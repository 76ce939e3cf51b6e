"""Quantisers: levels, unbiased rounding, gradients against their definition, exact bit slices, nonlinear converters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labrig_surrogates.bit_slicing import join_slices, slice_codes, slice_count, slice_weights, slices_of
from labrig_surrogates.converters import Nonlinearity, saturate
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.quantization import (
    largest,
    learned_step_start,
    quantize,
    quantize_affine,
    quantize_learned,
    quantize_symmetric,
    round_codes,
    sigma_bound,
    symmetric_levels,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_quantiser_has_its_levels_and_is_the_nearest(bits: int) -> None:
    levels = symmetric_levels(bits)
    x = torch.linspace(-1.3, 1.3, 4001, dtype=torch.float64)
    y = quantize_symmetric(x, bits, 1.0)
    grid = torch.arange(-levels, levels + 1, dtype=torch.float64) / levels
    assert torch.unique(y).numel() == 2**bits - 1
    nearest = (x[:, None] - grid).abs().min(dim=1).values
    torch.testing.assert_close((x - y).abs(), nearest, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("bits", range(2, 9))
def test_affine_quantiser_covers_its_range_and_holds_zero(bits: int) -> None:
    x = torch.linspace(-0.37, 1.1, 3001, dtype=torch.float64)
    y = quantize_affine(x, bits, -0.37, 1.1)
    step = 1.47 / (2**bits - 1)
    assert torch.unique(y).numel() == 2**bits
    assert (torch.unique(y) == 0.0).any()
    assert (x - y).abs().max() <= step + 1e-12  # half a step, and half a step by which zero moves the range
    assert quantize_affine(torch.zeros(1), bits, 0.2, 0.9).item() == 0.0


def test_bits_out_of_range_are_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(SurrogateError, match=f"bits = {bits}: a quantiser here has 2 to 8 bits"):
            quantize_symmetric(torch.ones(1), bits, 1.0)


def test_stochastic_rounding_is_unbiased_and_nearest_is_not() -> None:
    codes = torch.full((200_000,), 0.3, dtype=torch.float64)
    uniform = torch.rand(codes.shape, generator=generator(), dtype=torch.float64)
    rounded = round_codes(codes, uniform)
    assert set(rounded.tolist()) == {0.0, 1.0}
    # The standard error of the mean of a Bernoulli variable with p = 0.3 is 1.02e-3.
    assert rounded.mean().item() == pytest.approx(0.3, abs=4.1e-3)
    assert round_codes(codes).mean().item() == 0.0
    whole = torch.arange(-5.0, 6.0)
    assert torch.equal(round_codes(whole, torch.rand(11, generator=generator())), whole)


def test_ranges_of_tensor_and_columns() -> None:
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    assert largest(x).item() == 3.0
    assert largest(x, per_column=True).tolist() == [[3.0], [0.5]]
    wide = normal(4, 5000)
    spread = wide.std(dim=1, correction=0, keepdim=True)
    torch.testing.assert_close(sigma_bound(wide, 2.0, per_column=True), 2.0 * spread)
    assert sigma_bound(wide, 100.0).item() == largest(wide).item()


def definition_of_lsq(x: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    """Slope of the quantised value in the step, equation 3 of Esser et al."""
    v = x / step
    return torch.where(v <= lowest, float(lowest), torch.where(v >= highest, float(highest), v.round() - v))


@given(bits=st.integers(2, 8), signed=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_learned_step_has_the_gradients_of_its_paper(bits: int, signed: bool, seed: int) -> None:
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    x = normal(6, 7, seed=seed).requires_grad_()
    step = learned_step_start(x, highest).requires_grad_()
    grad = normal(6, 7, seed=seed + 1000)
    y = quantize_learned(x, step, lowest, highest, 42)
    grad_x, grad_step = torch.autograd.grad(y, (x, step), grad)
    v = (x / step).detach()
    torch.testing.assert_close(y.detach(), v.clamp(lowest, highest).round() * step.detach())
    assert torch.equal(grad_x, grad * ((v > lowest) & (v < highest)))
    expected = (grad * definition_of_lsq(x.detach(), step.detach(), lowest, highest)).sum() / (42 * highest) ** 0.5
    torch.testing.assert_close(grad_step, expected)


def test_a_step_for_each_column_has_a_gradient_for_each() -> None:
    x, steps = normal(3, 50), torch.full((3, 1), 0.2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(quantize_learned(x, steps, -7, 7, 50).sum(), steps)
    for row in range(3):
        one = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        (alone,) = torch.autograd.grad(quantize_learned(x[row], one, -7, 7, 50).sum(), one)
        torch.testing.assert_close(grad[row, 0], alone)


def test_learning_the_step_lowers_the_error() -> None:
    x = normal(4000, seed=3)
    step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([step], lr=0.5)
    errors = []
    for _ in range(60):
        optimiser.zero_grad()
        error = (quantize_learned(x, step, -7, 7, 1) - x).square().mean()
        torch.autograd.backward(error)
        optimiser.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]
    # The best uniform quantiser of 15 levels for a normal variable has steps of 0.3 (Max, 1960: 16 levels, 0.335).
    assert 0.25 < step.item() < 0.42


def test_quantisers_stay_in_single_precision_under_autocast() -> None:
    x = torch.randn((64, 64), generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantize_symmetric(x, 8, 3.0)
        from_half = quantize_symmetric(x.bfloat16(), 8, 3.0)
    assert inside.dtype is from_half.dtype is torch.float32
    assert torch.equal(inside, quantize_symmetric(x, 8, 3.0))


def test_quantisers_are_the_same_in_a_compiled_region() -> None:
    def both(x: Tensor, step: Tensor, uniform: Tensor) -> Tensor:
        return quantize(x, 0.25, -1.0, 1.0, uniform) + quantize_learned(x, step, -7, 7, 24)

    def gradients(function: object) -> tuple[Tensor, ...]:
        x, step = normal(4, 6).requires_grad_(), torch.tensor(0.15, dtype=torch.float64, requires_grad=True)
        uniform = torch.rand((4, 6), generator=generator(), dtype=torch.float64)
        y = function(x, step, uniform)  # type: ignore[operator]
        return (y, *torch.autograd.grad(y.square().sum(), (x, step)))

    compiled = torch.compile(both, backend="eager", fullgraph=True)
    for mine, theirs in zip(gradients(both), gradients(compiled), strict=True):
        torch.testing.assert_close(mine, theirs)


@given(bits=st.integers(1, 8), per_slice=st.integers(1, 8), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_slices_add_up_to_the_code_exactly(bits: int, per_slice: int, seed: int) -> None:
    codes = torch.randint(-(2**bits) + 1, 2**bits, (40,), generator=generator(seed)).float()
    slices = slice_codes(codes, bits, per_slice)
    assert slices.shape[0] == slice_count(bits, per_slice)
    assert slices.abs().max() <= 2**per_slice - 1
    assert torch.equal(join_slices(slices, per_slice), codes)


def test_slices_pass_the_whole_gradient() -> None:
    codes = torch.tensor([5.0, -7.0, 0.0], requires_grad=True)
    parts = slices_of(codes, 3, 1)
    total = sum(part * weight for part, weight in zip(parts, slice_weights(3, 1), strict=True))
    assert isinstance(total, Tensor)
    assert torch.equal(total.detach(), codes.detach())
    (grad,) = torch.autograd.grad(total.sum(), codes)
    torch.testing.assert_close(grad, torch.ones(3))
    with pytest.raises(SurrogateError, match="cannot cut 3 bits into slices of 0"):
        slice_count(3, 0)


def test_nonlinearity_is_interpolated_from_its_table() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(0.0, 0.4, (3, 15))
    nonlinear = Nonlinearity(table_lsb=tuple(tuple(row) for row in table.tolist()))
    x = torch.as_tensor(rng.uniform(-9.0, 9.0, (20, 3)))
    found = nonlinear.at(x, -7, 7, axis=-1)
    expected = np.stack([np.interp(x[:, k], np.arange(-7, 8), table[k]) for k in range(3)], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    images = torch.as_tensor(rng.uniform(-9.0, 9.0, (2, 3, 4, 4)))
    maps = nonlinear.at(images, -7, 7, axis=1)
    torch.testing.assert_close(
        maps[:, 1], nonlinear.at(images[:, 1, :, :, None].expand(-1, -1, -1, 3), -7, 7, -1)[..., 1]
    )


def test_nonlinearity_of_a_polynomial_and_its_faults() -> None:
    bow = Nonlinearity(polynomial_lsb=(0.0, 0.0, 1.5))
    assert bow.at(torch.tensor([-7.0, 0.0, 3.5, 100.0]), -7, 7, -1).tolist() == [1.5, 0.0, 0.375, 1.5]
    assert [*Nonlinearity().faults("adc", 255)] == ["adc needs either polynomial_lsb or table_lsb"]
    (fault,) = Nonlinearity(table_lsb=((0.0,) * 3,)).faults("adc", 255)
    assert "rows of [3] values; the converter has 255 codes" in fault


def test_integrators_saturate() -> None:
    x, limit = torch.tensor([-5.0, 0.01, 5.0]), torch.tensor(2.0)
    assert saturate(x, limit, "clip").tolist() == [-2.0, pytest.approx(0.01), 2.0]
    smooth = saturate(x, limit, "tanh")
    torch.testing.assert_close(smooth, limit * torch.tanh(x / limit))
