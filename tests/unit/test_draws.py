"""Random numbers: the pool is as good as drawing where it says so, streams are independent, seeds decide everything."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from labrig_surrogates.draws import DrawStream, Source
from labrig_surrogates.noise_pool import WINDOW, draw_key, normal_pool, uniform_pool

LIKE = torch.zeros(1)
POOL = 2**20


def stream(source: Source = "pool", seed: int = 1, number: int = 0) -> DrawStream:
    return DrawStream(source, POOL, seed=seed, stream=number)


def numbers(source: DrawStream, *shape: int) -> Tensor:
    return source.normal(shape, LIKE).tensor()


def test_the_pool_has_the_law_that_it_stands_for() -> None:
    pool = normal_pool(POOL, 0, torch.float64, LIKE.device)
    assert pool.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert pool.square().mean().item() == pytest.approx(1.0, abs=1e-9)
    assert pool.pow(3).mean().item() == pytest.approx(0.0, abs=1e-9)
    assert pool.pow(4).mean().item() == pytest.approx(3.0, abs=1e-3)
    assert scipy.stats.kstest(pool.numpy(), "norm").statistic < 1e-5
    # The order is random: no correlation with itself at any of the first lags.
    lags = [float((pool[lag:] * pool[:-lag]).mean()) for lag in (1, 2, 7, 64, 512)]
    assert np.abs(lags).max() < 5.0 / POOL**0.5
    level = uniform_pool(POOL, 0, torch.float64, LIKE.device)
    assert scipy.stats.kstest(level.numpy(), "uniform").statistic < 1e-5
    assert 0.0 < level.min() < level.max() < 1.0


@pytest.mark.parametrize("source", ["pool", "exact"])
def test_draws_are_standard_normal_and_uncorrelated_from_call_to_call_and_layer_to_layer(source: Source) -> None:
    count, calls = 100_000, 30
    one, other = stream(source), stream(source, number=1)
    draws = torch.stack([numbers(one, count) for _ in range(calls)]).double()
    moments = [float(draws.pow(power).mean()) for power in (1, 2, 3, 4)]
    errors = np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / draws.numel())
    if source == "pool":
        # Windows of a pool repeat its numbers, so that fewer of them are independent.
        errors = np.maximum(errors, np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / POOL)) * 2.0
    assert np.all(np.abs(np.array(moments) - [0.0, 1.0, 0.0, 3.0]) < 5.0 * errors)
    correlations = (draws[1:] * draws[:-1]).mean(dim=1)
    assert correlations.abs().max() < 6.0 / count**0.5
    assert correlations.mean().abs() < 5.0 / (count * calls) ** 0.5
    across = torch.stack([(draw * numbers(other, count)).mean() for draw in draws])
    assert across.abs().max() < 6.0 / count**0.5


def test_what_the_sum_of_a_window_varies_by_is_what_the_module_says() -> None:
    # 4,000 sums of 512 numbers: the pool's own error, sqrt(2 * 512 / 2**20), and that of 4,000 samples, sqrt(2 / 4000).
    source = stream()
    sums = torch.stack([numbers(source, 512).sum() for _ in range(4000)]).double()
    error = np.sqrt(2.0 * 512 / POOL + 2.0 / 4000)
    assert sums.var().item() / 512 == pytest.approx(1.0, abs=4.0 * error)
    assert sums.mean().abs() < 4.0 * np.sqrt(512 / 4000)


def test_a_draw_longer_than_a_window_is_made_of_several() -> None:
    draw = numbers(stream(), 3 * WINDOW)
    parts = draw.view(3, WINDOW)
    overlap = torch.corrcoef(parts.double())
    assert (overlap - torch.eye(3)).abs().max() < 6.0 / WINDOW**0.5
    assert not torch.equal(parts[0], parts[1])


@pytest.mark.parametrize("source", ["pool", "exact"])
def test_adding_a_draw_is_adding_its_numbers_wherever_one_begins(source: Source) -> None:
    first, second = stream(source), stream(source)
    shape = (5, WINDOW // 2)
    whole = first.normal(shape, LIKE).tensor()
    draw = second.normal(shape, LIKE)
    target = torch.ones(shape)
    for row in (slice(0, 2), slice(2, 3), slice(3, 5)):
        draw.add_to(target[row], 0.5, first=row.start * shape[1])
    torch.testing.assert_close(target, 1.0 + 0.5 * whole)
    by_tensor = torch.zeros(shape)
    draw.add_to(by_tensor, torch.tensor(2.0))
    torch.testing.assert_close(by_tensor, 2.0 * whole)
    for scale in (2.0, torch.tensor(2.0)):
        torch.testing.assert_close(draw.added_to(target, scale), target + 2.0 * whole)
    assert (draw.whole() is None) == (source == "pool")  # a pool's draw of several windows lies nowhere in one piece
    small = first.normal((3, 4), LIKE)
    found = small.whole()
    assert found is not None
    torch.testing.assert_close(found[0] * found[1], small.tensor(), rtol=0.0, atol=0.0)
    nothing = first.normal((0, 4), LIKE)
    assert nothing.added_to(torch.zeros(0, 4)).shape == nothing.tensor().shape == (0, 4)


@pytest.mark.parametrize("source", ["pool", "exact"])
def test_a_seed_decides_every_draw_on_any_number_of_threads(source: Source) -> None:
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            one = stream(source, seed=7)
            drawn.append([numbers(one, 100_000), one.uniform((9,), LIKE).tensor(), numbers(one, 3, 4)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    again = stream(source, seed=7)
    numbers(again, 5)
    again.restart(7, 0)
    assert torch.equal(numbers(again, 100_000), drawn[0][0])
    assert not torch.equal(numbers(stream(source, seed=8), 100_000), drawn[0][0])


@pytest.mark.parametrize("source", ["pool", "exact"])
def test_a_copy_goes_on_alike_and_by_itself(source: Source) -> None:
    one = stream(source)
    numbers(one, 4)
    other = copy.deepcopy(one)
    assert torch.equal(numbers(one, 100), numbers(other, 100))
    numbers(one, 4)
    assert not torch.equal(numbers(one, 100), numbers(other, 100))
    assert (other.seed, other.stream) == (1, 0)


@pytest.mark.parametrize("source", ["pool", "exact"])
def test_a_compiled_region_draws_the_same_and_anew_at_each_call(source: Source) -> None:
    eager, traced = stream(source), stream(source)

    def draw(x: Tensor) -> Tensor:
        return x + traced.normal((3, 5), x).tensor() + traced.uniform((5,), x).tensor()

    compiled = torch.compile(draw, backend="eager", fullgraph=True)
    for _ in range(2):
        expected = eager.normal((3, 5), LIKE).tensor() + eager.uniform((5,), LIKE).tensor()
        torch.testing.assert_close(compiled(torch.zeros(3, 5)), expected)


def test_keys_differ_in_every_part() -> None:
    keys = {draw_key(seed, number, counter) for seed in range(20) for number in range(20) for counter in range(20)}
    assert len(keys) == 8000
