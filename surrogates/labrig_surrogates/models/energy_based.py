"""Energy-based models whose chance comes from outside: Langevin and Gibbs sampling, and restricted Boltzmann machines.

Samplers take their normal numbers from a `NormalSource`: a generator, or the read noise of an array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.hardware_noise import NormalSource

_SQRT_HALF = 0.5**0.5
# 2^20 states of one layer, and their products with the other, still fit into memory.
_MOST_EXACT_UNITS = 20


def langevin(
    force: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    step: float,
    temperature: float,
    steps: int,
    source: NormalSource,
) -> Tensor:
    """Unadjusted Langevin sampling: x <- x + step / 2 * force(x) + sqrt(step * temperature) * normal.

    Args:
        force: Minus the gradient of the energy, `[chains, size]` to the same; what an array computes.
        start: First states, `[chains, size]`.
        step: Size of a step.
        temperature: Scale of the noise; 1 samples exp(-energy) as the step goes to zero.
        steps: How many.
        source: Of the noise.

    Returns:
        States after every step, `[steps, chains, size]`.
    """
    x, found = start, []
    chains, size = start.shape
    for _ in range(steps):
        noise = source.normal(chains, size).to(x.dtype)
        x = x + 0.5 * step * force(x) + (step * temperature) ** 0.5 * noise
        found.append(x)
    return torch.stack(found)


def stationary_covariance(transition: Tensor, injected: Tensor) -> Tensor:
    """Covariance of x <- M x + noise in the long run: the solution of the discrete Lyapunov equation S = M S M^T + Q.

    Args:
        transition: M, `[size, size]`, of spectral radius below one.
        injected: Q, the covariance of one step's noise, `[size, size]`.

    Raises:
        SurrogateError: M does not contract, so that there is no such covariance.
    """
    m, q = transition.double(), injected.double()
    if float(torch.linalg.eigvals(m).abs().max()) >= 1.0:
        raise SurrogateError("the transition does not contract: take a smaller step")
    size = m.shape[0]
    system = torch.eye(size * size, dtype=m.dtype) - torch.kron(m, m)
    solved: Tensor = torch.linalg.solve(system, q.reshape(-1))
    return solved.reshape(size, size)


@dataclass(frozen=True)
class Chain:
    """States of block Gibbs sampling, 0 or 1.

    Attributes:
        visible: `[chains, visible]`.
        hidden: `[chains, hidden]`.
    """

    visible: Tensor
    hidden: Tensor


class BoltzmannMachine(nn.Module):
    """A restricted Boltzmann machine: energy -(v W h + a v + b h) of binary units.

    Smolensky 1986; Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", 2002. Both products
    are linear layers of their own, so that each can be on an array: `up` computes W^T v and `down` W h. `tie` copies
    the weights of `up` into `down`.

    Args:
        visible: Visible units.
        hidden: Hidden units.
        generator: Source of the initial weights.
        scale: Standard deviation of the initial weights.
    """

    def __init__(self, visible: int, hidden: int, generator: torch.Generator, scale: float = 0.05) -> None:
        super().__init__()
        self.up: nn.Module = nn.Linear(visible, hidden)
        self.down: nn.Module = nn.Linear(hidden, visible)
        with torch.no_grad():
            self.weight.copy_(scale * torch.randn((hidden, visible), generator=generator))
            self.hidden_bias.zero_()
            self.visible_bias.zero_()
        self.tie()

    @property
    def weight(self) -> Tensor:
        """W^T, `[hidden, visible]`, as `up` holds it."""
        return self.up.get_parameter("weight")

    @property
    def hidden_bias(self) -> Tensor:
        """b, `[hidden]`."""
        return self.up.get_parameter("bias")

    @property
    def visible_bias(self) -> Tensor:
        """a, `[visible]`."""
        return self.down.get_parameter("bias")

    @torch.no_grad()
    def tie(self) -> None:
        """Gives `down` the transposed weights of `up`."""
        self.down.get_parameter("weight").copy_(self.weight.T)

    @torch.no_grad()
    def gibbs(self, chain: Chain, steps: int, source: NormalSource) -> Chain:
        """Alternates hidden and visible units `steps` times."""
        for _ in range(steps):
            hidden = _switched(self.up(chain.visible), source)
            chain = Chain(_switched(self.down(hidden), source), hidden)
        return chain

    @torch.no_grad()
    def gradient(self, data: Tensor, chain: Chain) -> dict[str, Tensor]:
        """Estimate of the log-likelihood's gradient: data minus chain, each with the mean of its hidden units.

        Args:
            data: Visible units, `[batch, visible]`.
            chain: States that the model itself visits (persistent contrastive divergence, Tieleman 2008).

        Returns:
            Gradients by the names `weight`, `hidden_bias` and `visible_bias`.
        """
        parts = []
        for visible in (data, chain.visible):
            hidden = torch.sigmoid(self.up(visible))
            count = visible.shape[0]
            parts.append((hidden.T @ visible / count, hidden.mean(dim=0), visible.mean(dim=0)))
        names = ("weight", "hidden_bias", "visible_bias")
        return {name: positive - negative for name, positive, negative in zip(names, *parts, strict=True)}

    @torch.no_grad()
    def ascend(self, gradient: dict[str, Tensor], rate: float, weight_limit: float | None = None) -> None:
        """One step along a gradient; weights are clipped to what conductances can express."""
        self.weight.add_(rate * gradient["weight"])
        self.hidden_bias.add_(rate * gradient["hidden_bias"])
        self.visible_bias.add_(rate * gradient["visible_bias"])
        if weight_limit is not None:
            self.weight.clamp_(-weight_limit, weight_limit)
        self.tie()

    def free_energy(self, visible: Tensor) -> Tensor:
        """-log of the sum over all hidden states of exp(-energy), `[batch]`, from the weights as they are stored."""
        field = visible @ self.weight.T + self.hidden_bias
        return -(visible @ self.visible_bias) - functional.softplus(field).sum(dim=1)

    def log_partition(self) -> Tensor:
        """Logarithm of the partition function, by counting all states of the smaller layer.

        Raises:
            SurrogateError: Both layers are too large to count.
        """
        hidden, visible = self.weight.shape
        if min(hidden, visible) > _MOST_EXACT_UNITS:
            raise SurrogateError(f"{visible} x {hidden} units have too many states to count")
        if visible <= hidden:
            return torch.logsumexp(-self.free_energy(all_states(visible, self.weight)), dim=0)
        states = all_states(hidden, self.weight)
        field = states @ self.weight + self.visible_bias
        return torch.logsumexp(states @ self.hidden_bias + functional.softplus(field).sum(dim=1), dim=0)

    def log_likelihood(self, visible: Tensor) -> Tensor:
        """Exact log-probability of each vector, `[batch]`; see `log_partition`."""
        return -self.free_energy(visible) - self.log_partition()


def divergence_from(model: BoltzmannMachine, probability: Tensor) -> float:
    """Kullback-Leibler divergence in nat of a model from a distribution over all its visible states.

    Args:
        model: The model, small enough to count.
        probability: Of each state in the order of `all_states`, `[2^visible]`.
    """
    with torch.no_grad():
        states = all_states(model.weight.shape[1], model.weight)
        modelled = model.log_likelihood(states).double()
    p = probability.detach().double()
    kept = p > 0
    return float((p[kept] * (p[kept].log() - modelled[kept])).sum())


def all_states(units: int, like: Tensor) -> Tensor:
    """Every state of binary units, `[2^units, units]`, the last unit fastest."""
    count = torch.arange(2**units, device=like.device)
    shifts = torch.arange(units - 1, -1, -1, device=like.device)
    return ((count[:, None] >> shifts) & 1).to(like.dtype)


def bars_and_stripes(side: int) -> Tensor:
    """The patterns of bars and stripes on a `side` x `side` grid, each once, `[2 * 2^side - 2, side^2]`."""
    lines = all_states(side, torch.empty(0))
    bars = lines[:, None, :].expand(-1, side, -1).reshape(-1, side * side)
    stripes = lines[:, :, None].expand(-1, -1, side).reshape(-1, side * side)
    # All off and all on are in both.
    return torch.cat([bars, stripes[1:-1]])


def _switched(field: Tensor, source: NormalSource) -> Tensor:
    """Units on with the probability sigmoid(field), decided by normal numbers: Phi(normal) is uniform."""
    uniform = 0.5 * torch.erfc(-source.normal(*field.shape).to(field.dtype) * _SQRT_HALF)
    return (uniform < torch.sigmoid(field)).to(field.dtype)
