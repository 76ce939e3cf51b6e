"""The physics-informed loss: its Kullback-Leibler term, its statistics, its hooks."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from labrig_surrogates.activation_statistics import (
    Distance,
    LayerStatistics,
    draw_projections,
    record_statistics,
    sliced_wasserstein,
    statistics_distance,
)
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import WeightNoise, WeightSpread
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.losses import HasWeightSpread, PhysicsInformedLoss, gaussian_kl, weight_kl
from labrig_surrogates.residual_spreads import HardwareSpread, TiedSpread
from labrig_surrogates.schedules import Linear


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class SpreadLinear(nn.Linear):
    """A layer that keeps the protocol: levels of 0.1, a programming spread that grows with the weight."""

    def __init__(self, inputs: int, outputs: int, *, spread: float | None = 0.05) -> None:
        super().__init__(inputs, outputs)
        self.log_weight_spread = (
            None if spread is None else nn.Parameter(torch.full((outputs, inputs), math.log(spread)))
        )

    def weight_prior(self) -> tuple[Tensor, Tensor]:
        return torch.round(self.weight / 0.1) * 0.1, 0.02 + 0.1 * self.weight.abs()


@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(0, 1000))
@settings(deadline=None)
def test_the_closed_form_is_torchs(shape: tuple[int, int], seed: int) -> None:
    mean, log_std, prior_mean = (normal(*shape, seed=seed + k) for k in range(3))
    prior_std = torch.exp(normal(1, shape[1], seed=seed + 3))
    peer = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(prior_mean, prior_std.expand(shape))
    ).sum()
    torch.testing.assert_close(gaussian_kl(mean, log_std, prior_mean, prior_std), peer)
    inputs = tuple(tensor.requires_grad_() for tensor in (mean, log_std, prior_mean, prior_std))
    assert torch.autograd.gradcheck(gaussian_kl, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_closed_form_is_exact_near_zero_and_finite_at_extremes(dtype: torch.dtype) -> None:
    mean = torch.zeros((), dtype=dtype)
    nearly = gaussian_kl(mean, torch.tensor(1e-4), mean, torch.ones(()))
    assert nearly.item() == pytest.approx(1e-8, rel=1e-2)
    for log_std in (-80.0, 0.0, 40.0):
        leaf = torch.tensor(log_std, dtype=dtype, requires_grad=True)
        far = torch.tensor(1e4, dtype=dtype, requires_grad=True)
        divergence = gaussian_kl(far, leaf, mean, torch.ones(()))
        gradients = torch.autograd.grad(divergence, (far, leaf))
        assert all(torch.isfinite(tensor).all() for tensor in (divergence, *gradients))
        assert divergence.dtype == torch.float32


def test_the_kl_term_draws_weights_to_levels_and_spreads_to_the_chip() -> None:
    layer = SpreadLinear(6, 4)
    assert isinstance(layer, HasWeightSpread)
    assert not isinstance(nn.Linear(2, 2), HasWeightSpread)
    optimiser = torch.optim.Adam(layer.parameters(), lr=5e-3)
    before = layer.weight.detach().clone()
    for _ in range(600):
        divergence = weight_kl(layer)
        assert divergence is not None
        optimiser.zero_grad()
        torch.autograd.backward(divergence)
        optimiser.step()
    levels, sigma = layer.weight_prior()
    torch.testing.assert_close(layer.weight, levels, rtol=0.0, atol=2e-3)
    assert layer.log_weight_spread is not None
    torch.testing.assert_close(layer.log_weight_spread.exp(), sigma, rtol=0.05, atol=0.0)
    # Weights go to their nearest level, and are not shrunk to zero.
    assert (layer.weight - before).abs().max().item() <= 0.052
    assert weight_kl(nn.Linear(2, 2)) is None
    assert weight_kl(SpreadLinear(2, 2, spread=None)) is None


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3), nn.LSTM(3, 4), nn.GRU(3, 4), nn.MultiheadAttention(8, 2)], ids=repr
)
def test_every_matrix_on_arrays_has_its_part(layer: nn.Module) -> None:
    config = AnalogConfig(spread=WeightSpread(0.05), weight_noise=WeightNoise(0.03))
    model = to_analog(nn.Sequential(layer), config)
    matrices = weight_matrices(model)
    parts = [gaussian_kl(one.weight, one.log_spread, *one.prior()) for one in matrices if one.log_spread is not None]
    assert len(parts) == len(matrices) >= 1
    divergence = weight_kl(model)
    assert divergence is not None
    torch.testing.assert_close(divergence, torch.stack(parts).sum())
    torch.autograd.backward(divergence)
    assert all(one.core.log_spread.grad is not None for one in matrices if one.core.log_spread is not None)


def test_the_terms_add_up_and_carry_their_weights() -> None:
    layers = (SpreadLinear(3, 4), SpreadLinear(4, 2))
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    tied = TiedSpread(HardwareSpread(amplifier=1.0), gain=1.5)
    with torch.no_grad():
        tied.log_excess.fill_(0.3)
    model.append(nn.Identity())
    model[3].spread = tied
    x, targets = normal(8, 3).float(), torch.arange(8) % 2
    with torch.no_grad(), record_statistics(model, ["0", "2"]) as chip:
        model(x + 0.1)
    hardware = chip.recorded(at_s=5.0)
    loss = PhysicsInformedLoss(
        nn.functional.cross_entropy, kl_weight=Linear(0.0, 0.4, 10), train_size=100, gamma=2.0, distance="mean"
    )
    with record_statistics(model, ["0", "2"]) as own:
        outputs = model(x)
    terms = loss(outputs, targets, model=model, network=own.layers, hardware=hardware, step=5)
    task = nn.functional.cross_entropy(outputs, targets)
    parts = [
        gaussian_kl(m.weight, m.log_weight_spread, *m.weight_prior()) for m in layers if m.log_weight_spread is not None
    ]
    divergence = sum(parts) + tied.kl_divergence()
    expected = sum(
        (((own.layers[name].mean - hardware.layers[name].mean) ** 2) / hardware.layers[name].variance).sum()
        for name in ("0", "2")
    )
    torch.testing.assert_close(terms.task, task)
    torch.testing.assert_close(terms.kl, 0.2 * divergence / 100)
    torch.testing.assert_close(terms.activations, 2.0 * torch.as_tensor(expected))
    torch.testing.assert_close(terms.total, terms.task + terms.kl + terms.activations)
    terms.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_terms_without_weight_are_not_computed() -> None:
    loss = PhysicsInformedLoss(nn.functional.mse_loss, kl_weight=0.0, train_size=1, gamma=0.0)
    x = normal(3, 2)
    terms = loss(x, torch.zeros_like(x), model=nn.Linear(2, 2))
    assert terms.kl.item() == terms.activations.item() == 0.0
    torch.testing.assert_close(terms.total, nn.functional.mse_loss(x, torch.zeros_like(x)))


def test_statistics_are_those_of_each_channel_and_several_passes_merge() -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU())
    batches = [normal(n, 2, 6, 6, seed=n).float() for n in (1, 4, 2)]
    with record_statistics(model, ["0", "1"], keep=10) as recorder:
        outputs = torch.cat([model(batch) for batch in batches])
    found = recorder.layers["1"]
    torch.testing.assert_close(found.mean, outputs.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found.variance, outputs.var(dim=(0, 2, 3), correction=0))
    assert found.count == 7 * 16
    assert found.values is not None
    assert found.values.shape == (30, 5)
    assert found.mean.requires_grad
    assert not recorder.recorded(0.0).layers["1"].mean.requires_grad
    last = LayerStatistics.of(outputs.movedim(1, -1), channel_dim=-1)
    torch.testing.assert_close(last.mean, found.mean)
    half = LayerStatistics.of(outputs.bfloat16())
    assert half.mean.dtype == torch.float32


def test_hooks_are_removed_also_after_an_error_and_one_does_not_see_the_other() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))
    with record_statistics(model, ["0"]) as outer:
        with record_statistics(model, ["0"]) as inner:
            model[0](torch.ones(2, 2))
        model[0](torch.ones(4, 2))
    assert (inner.layers["0"].count, outer.layers["0"].count) == (2, 6)
    with pytest.raises(SurrogateError, match="layer '1' gives a tuple"), record_statistics(model, ["0", "1"]):
        model(torch.ones(2, 2))
    with (
        pytest.raises(SurrogateError, match="no layer '7'; the model has no layer 'x'"),
        record_statistics(model, "7x"),
    ):
        pass
    assert all(not module._forward_hooks for module in model.modules())


def statistics(values: Tensor) -> dict[str, LayerStatistics]:
    return {"layer": LayerStatistics.of(values, keep=values.shape[0])}


def test_the_mean_distance_is_blind_to_noise_and_the_others_are_not() -> None:
    clean = normal(4_000, 6)
    clean = clean - clean.mean(dim=0)
    noisy = clean + torch.where(torch.arange(4_000) % 2 == 0, 1.0, -1.0).unsqueeze(1)
    noisy = noisy - noisy.mean(dim=0)
    directions = {"layer": draw_projections(6, 50, torch.Generator().manual_seed(0)).double()}

    def gap(first: Tensor, second: Tensor, distance: Distance) -> float:
        projections = directions if distance == "sliced_wasserstein" else None
        return float(statistics_distance(statistics(first), statistics(second), distance, projections))

    assert gap(noisy, clean, "mean") < 1e-9
    assert gap(noisy, clean, "mean_variance") > 3.0
    assert gap(noisy, clean, "sliced_wasserstein") > 0.3
    for distance in ("mean", "mean_variance", "sliced_wasserstein"):
        assert gap(clean, clean, distance) < 1e-12
    # A shift of one standard deviation in one channel of six.
    shifted = clean + torch.tensor([1.0, 0, 0, 0, 0, 0]) * clean.std(dim=0, correction=0)
    assert gap(shifted, clean, "mean") == pytest.approx(1.0)
    assert gap(shifted, clean, "sliced_wasserstein") == pytest.approx(1.0, rel=0.3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_the_sliced_distance_bounds_scipys_and_is_exact_for_equal_sizes(n: int, m: int, seed: int) -> None:
    first, second = normal(n, 1, seed=seed), normal(m, 1, seed=seed + 1) + 0.5
    found = float(sliced_wasserstein(first, second, torch.ones(1, 1).double()))
    if n == m:
        exact = float(((first.sort(0).values - second.sort(0).values) ** 2).mean())
        assert found == pytest.approx(exact)
        # The first Wasserstein distance is the smaller one (Jensen).
        assert wasserstein_distance(first[:, 0].numpy(), second[:, 0].numpy()) <= np.sqrt(found) + 1e-9
    assert found >= 0


def test_large_samples_of_unequal_size_agree_with_the_distance_of_gaussians() -> None:
    first, second = normal(20_000, 1), 2.0 * normal(5_000, 1, seed=1) + 1.0
    # W2**2 of two normal distributions: difference of means and of deviations, squared.
    assert float(sliced_wasserstein(first, second, torch.ones(1, 1).double())) == pytest.approx(2.0, rel=0.1)


def test_no_gradient_reaches_the_hardware_and_silent_channels_do_not_divide_by_zero() -> None:
    theirs = (normal(9, 2) * torch.tensor([1.0, 0.0])).requires_grad_()
    ours = normal(9, 2, seed=1).requires_grad_()
    for distance in ("mean", "mean_variance"):
        term = statistics_distance(statistics(ours), statistics(theirs), distance)
        ours_gradient, theirs_gradient = torch.autograd.grad(term, (ours, theirs), allow_unused=True)
        assert theirs_gradient is None
        assert torch.isfinite(term)
        assert torch.isfinite(ours_gradient).all()
    dead = torch.zeros(9, 2)
    assert torch.isfinite(statistics_distance(statistics(normal(9, 2).float()), statistics(dead), "mean_variance"))


def test_recorded_statistics_say_their_age() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with record_statistics(model, ["0"]) as recorder:
        model(torch.ones(4, 2))
    recorded = recorder.recorded(at_s=10.0)
    assert recorded.age_s(25.0) == 15.0
    assert recorded.describe(25.0) == "hardware statistics of 1 layer (4 to 4 values each), 15 s old"


def test_a_step_of_training_brings_the_statistics_closer() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    chip = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in chip[0].parameters():
            parameter.add_(0.3)
    x = normal(64, 3).float()
    loss = PhysicsInformedLoss(lambda outputs, _: outputs.sum() * 0.0, kl_weight=0.0, train_size=64)
    with torch.no_grad(), record_statistics(chip, ["0"]) as theirs:
        chip(x)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    gaps = []
    for _ in range(60):
        with record_statistics(model, ["0"]) as ours:
            outputs = model(x)
        terms = loss(outputs, x, model=model, network=ours.layers, hardware=theirs.recorded(0.0))
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        gaps.append(terms.activations.item())
    assert gaps[-1] < 0.02 * gaps[0]


def test_redundant_weights_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="only their product 0.06 acts"):
        PhysicsInformedLoss(nn.functional.mse_loss, kl_weight=0.0, train_size=1, gamma=0.2, alpha=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PhysicsInformedLoss(nn.functional.mse_loss, kl_weight=0.0, train_size=1, gamma=0.2)


def test_misuse_is_refused_with_every_fault() -> None:
    with pytest.raises(SurrogateError, match=r"gamma is -1.*alpha is nan.*train_size is 0.*need each other"):
        PhysicsInformedLoss(
            nn.functional.mse_loss, kl_weight=0.0, train_size=0, gamma=-1, alpha=math.nan, distance="sliced_wasserstein"
        )
    x, model = torch.ones(2, 2), nn.Linear(2, 2)
    loss = PhysicsInformedLoss(nn.functional.mse_loss, kl_weight=1.0, train_size=1, gamma=0.0)
    with pytest.raises(SurrogateError, match="no layer of the model has a weight spread"):
        loss(x, x, model=model)
    loss = PhysicsInformedLoss(nn.functional.mse_loss, kl_weight=0.0, train_size=1)
    with pytest.raises(SurrogateError, match=r"no statistics of the network.*no statistics of the hardware"):
        loss(x, x, model=model)
    ours = {"a": LayerStatistics.of(normal(4, 2)), "b": LayerStatistics.of(normal(4, 2))}
    theirs = {"a": LayerStatistics.of(normal(4, 3))}
    faults = (
        r"'a' has 2 channels, on the hardware 3.*'a' were kept on the network's.*hardware's.*no directions.*layer 'b'"
    )
    with pytest.raises(SurrogateError, match=faults):
        statistics_distance(ours, theirs, "sliced_wasserstein")
    with pytest.raises(SurrogateError, match="no layer was recorded"):
        statistics_distance({}, {})


@pytest.mark.parametrize(("rows", "keep"), [(199, 100), (100, 100), (30, 100), (1000, 7), (5, 1)])
def test_values_are_kept_evenly_over_the_batch(rows: int, keep: int) -> None:
    kept = LayerStatistics.of(torch.arange(rows, dtype=torch.float64)[:, None], keep=keep).values
    assert kept is not None
    assert len(kept) == min(rows, keep)
    if min(rows, keep) > 1:
        assert kept[[0, -1], 0].tolist() == [0.0, rows - 1.0]
        assert kept[:, 0].diff().max() - kept[:, 0].diff().min() <= 1.0
