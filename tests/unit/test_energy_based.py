"""Energy-based models: samplers against exact distributions, gradients against exact ones, noise against its tests."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.energy_based import (
    BoltzmannMachine,
    Chain,
    all_states,
    bars_and_stripes,
    divergence_from,
    langevin,
    stationary_covariance,
)
from labrig_surrogates.models.hardware_noise import PseudoNormal, ReadNoise, judge_randomness


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def machine(visible: int = 4, hidden: int = 3, scale: float = 1.0) -> BoltzmannMachine:
    made = BoltzmannMachine(visible, hidden, seeded(1), scale).double()
    with torch.no_grad():
        made.hidden_bias.copy_(torch.linspace(-0.5, 0.7, hidden))
        made.visible_bias.copy_(torch.linspace(0.4, -0.6, visible))
    made.tie()
    return made


def brute_force_log_likelihood(model: BoltzmannMachine) -> Tensor:
    """Every state of both layers, one energy at a time."""
    hidden, visible = model.weight.shape
    weights = {}
    for v in itertools.product((0.0, 1.0), repeat=visible):
        total = 0.0
        for h in itertools.product((0.0, 1.0), repeat=hidden):
            energy = 0.0
            for i, j in itertools.product(range(visible), range(hidden)):
                energy -= v[i] * h[j] * float(model.weight[j, i].detach())
            energy -= sum(v[i] * float(model.visible_bias[i].detach()) for i in range(visible))
            energy -= sum(h[j] * float(model.hidden_bias[j].detach()) for j in range(hidden))
            total += math.exp(-energy)
        weights[v] = total
    z = sum(weights.values())
    return torch.tensor([math.log(weight / z) for weight in weights.values()], dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(4, 3), (3, 4)])
def test_likelihoods_are_exact(sizes: tuple[int, int]) -> None:
    model = machine(*sizes)
    found = model.log_likelihood(all_states(sizes[0], model.weight))
    torch.testing.assert_close(found.detach(), brute_force_log_likelihood(model), rtol=1e-10, atol=1e-10)
    assert divergence_from(model, found.exp()) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(SurrogateError, match="too many states"):
        BoltzmannMachine(25, 30, seeded()).log_partition()


def test_gibbs_sampling_visits_states_as_often_as_it_should() -> None:
    model = machine()
    source = PseudoNormal(seeded(2), torch.float64)
    chain = Chain(torch.zeros((4000, 4), dtype=torch.float64), torch.zeros((4000, 3), dtype=torch.float64))
    chain = model.gibbs(chain, 60, source)
    index = (chain.visible @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    expected = 4000 * model.log_likelihood(all_states(4, model.weight)).exp().detach()
    assert stats.chisquare(torch.bincount(index, minlength=16).numpy(), expected.numpy()).pvalue > 1e-3


def test_the_gradient_is_that_of_the_likelihood_when_the_chain_is_the_model() -> None:
    model = machine()
    data = all_states(4, model.weight)[[3, 5, 5, 12]]
    likelihood = model.log_likelihood(data).mean()
    exact = torch.autograd.grad(likelihood, [model.weight, model.hidden_bias, model.visible_bias])
    chain = Chain(torch.zeros((60_000, 4), dtype=torch.float64), torch.zeros((60_000, 3), dtype=torch.float64))
    chain = model.gibbs(chain, 50, PseudoNormal(seeded(3), torch.float64))
    for (_, found), true in zip(model.gradient(data, chain).items(), exact, strict=True):
        torch.testing.assert_close(found, true, rtol=0.0, atol=0.012)


def test_training_lowers_the_divergence() -> None:
    patterns = bars_and_stripes(2)
    assert patterns.shape == (6, 4)
    assert {tuple(row) for row in bars_and_stripes(3).tolist()} >= {(1.0,) * 9, (0.0,) * 9}
    assert len({tuple(row) for row in bars_and_stripes(3).tolist()}) == len(bars_and_stripes(3)) == 14
    model = BoltzmannMachine(4, 6, seeded(4), 0.1)
    states = all_states(4, model.weight)
    target = torch.tensor([float((patterns == state).all(dim=1).any()) for state in states])
    target = target / target.sum()
    before = divergence_from(model, target)
    source = PseudoNormal(seeded(5))
    chain = Chain(torch.zeros((200, 4)), torch.zeros((200, 6)))
    for _ in range(1500):
        chain = model.gibbs(chain, 2, source)
        model.ascend(model.gradient(patterns, chain), 0.3, weight_limit=4.0)
    assert divergence_from(model, target) < 0.4 < 0.9 < before
    assert float(model.weight.detach().abs().max()) <= 4.0


def test_langevin_reaches_the_covariance_of_the_lyapunov_equation() -> None:
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    step = 0.4
    transition = torch.eye(2, dtype=torch.float64) - 0.5 * step * a
    expected = stationary_covariance(transition, step * torch.eye(2, dtype=torch.float64))
    other = linalg.solve_discrete_lyapunov(transition.numpy(), step * torch.eye(2).numpy())
    torch.testing.assert_close(expected, torch.as_tensor(other))
    path = langevin(
        lambda x: -x @ a,
        torch.zeros((4000, 2), dtype=torch.float64),
        step=step,
        temperature=1.0,
        steps=120,
        source=PseudoNormal(seeded(6), torch.float64),
    )
    last = path[60::12].reshape(-1, 2)
    found = last.T @ last / last.shape[0]
    assert float((found - expected).norm() / expected.norm()) < 0.05
    # The sampler's own covariance, not the target's inverse: the step is not small.
    assert float((found - torch.linalg.inv(a)).norm() / expected.norm()) > 0.05
    with pytest.raises(SurrogateError, match="smaller step"):
        stationary_covariance(torch.eye(2), torch.eye(2))


def correlated_reads(seed: int = 7, lsb: float = 0.01, *, covariance: Tensor | None = None) -> ReadNoise:
    generator = seeded(seed)
    mixing = torch.tensor([[0.2, 0.0, 0.0], [0.1, 0.3, 0.0], [-0.1, 0.05, 0.15]], dtype=torch.float64)
    mean = torch.tensor([5.0, -2.0, 0.3], dtype=torch.float64)

    def read(count: int) -> Tensor:
        drawn = mean + torch.randn((count, 3), generator=generator, dtype=torch.float64) @ mixing.T
        return torch.round(drawn / lsb) * lsb

    return ReadNoise(read, lsb, characterise=200_000, covariance=covariance)


def test_differences_of_reads_become_independent_normal_numbers() -> None:
    source = correlated_reads()
    report = judge_randomness(source.normal(20_000, 3))
    assert report.smallest_p > 1e-3, report
    assert not torch.equal(source.normal(4, 3), source.normal(4, 3))


def test_a_covariance_that_was_calibrated_serves_and_that_of_another_chip_does_not() -> None:
    measured = correlated_reads(seed=8).covariance
    assert judge_randomness(correlated_reads(covariance=measured).normal(20_000, 3)).smallest_p > 1e-3
    wrong = torch.diag(measured.diagonal())
    assert judge_randomness(correlated_reads(covariance=wrong).normal(20_000, 3)).smallest_p < 1e-3


def test_few_reads_to_characterise_by_make_no_number_too_wide() -> None:
    """The inverse of a covariance that is estimated from 200 reads of 40 columns is a quarter too large."""
    generator, found = seeded(4), []
    for _ in range(20):
        source = ReadNoise(
            lambda count: torch.randn((count, 40), generator=generator, dtype=torch.float64), 0.01, characterise=200
        )
        found.append(source.normal(400, 40).square().mean())
    assert float(torch.stack(found).mean()) == pytest.approx(1.0, abs=0.03)


def test_numbers_are_the_same_whatever_is_read_at_a_time() -> None:
    drawn = torch.randn((4_000, 2), generator=seeded(3), dtype=torch.float64)

    def source(block: int) -> ReadNoise:
        rows = iter(drawn)
        return ReadNoise(
            lambda count: torch.stack([next(rows) for _ in range(count)]), 0.01, characterise=500, block=block
        )

    one, many = source(1), source(100)
    for count in (5, 7, 90):
        torch.testing.assert_close(one.normal(count, 3), many.normal(count, 3))


@pytest.mark.parametrize("flaw", ["slow", "doubled", "heavy", "wide", "shifted", "shared"])
def test_what_is_not_random_is_found(flaw: str) -> None:
    x = torch.randn((5000, 4), generator=seeded(8), dtype=torch.float64)
    assert judge_randomness(x).smallest_p > 1e-3
    if flaw == "slow":
        x[1:] = 0.9**0.5 * x[1:] + 0.1**0.5 * x[:-1]
        x = x / x.std()
    elif flaw == "doubled":
        x[1::2] = x[0::2]
    elif flaw == "heavy":
        x = x * torch.where(torch.rand(x.shape, generator=seeded(9)) < 0.1, 2.0, 0.8)
        x = x / x.std()
    elif flaw == "wide":
        x = 1.05 * x
    elif flaw == "shifted":
        x = x + 0.04
    else:
        x[:, 1] = (x[:, 1] + 0.2 * x[:, 0]) / 1.04**0.5
    assert judge_randomness(x).smallest_p < 1e-3
    with pytest.raises(SurrogateError, match="too few"):
        judge_randomness(x[:50])


def test_rounding_is_not_taken_for_noise() -> None:
    with pytest.raises(SurrogateError, match=r"1 of 3 columns \(2\) have less read noise than one step"):
        correlated_reads(lsb=0.19)


def test_the_tail_of_kolmogorov_is_scipys() -> None:
    x = torch.randn((400, 1), generator=seeded(10), dtype=torch.float64)
    report = judge_randomness(x)
    reference = stats.kstest(x.flatten().numpy(), "norm", method="asymp")
    assert report.ks_statistic == pytest.approx(reference.statistic)
    assert report.ks_p == pytest.approx(reference.pvalue, rel=1e-3)
