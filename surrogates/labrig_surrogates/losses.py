"""The physics-informed loss: task + lambda KL(q(W) || p(W)) + gamma alpha distance of activation statistics.

The specification averages the KL term over the noise eps. Nothing in it depends on eps, so that average is left out.
gamma and alpha are redundant (only their product acts); both keys are kept, and both different from one is warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from labrig_surrogates.activation_statistics import (
    Distance,
    LayerStatistics,
    RecordedStatistics,
    statistics_distance,
)
from labrig_surrogates.faults import refuse
from labrig_surrogates.layers import AnalogLayer
from labrig_surrogates.quantization import wide
from labrig_surrogates.schedules import Constant, Schedule

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets to a scalar, such as `torch.nn.functional.cross_entropy`."""


@runtime_checkable
class HasWeightSpread(Protocol):
    """A layer whose weights are a distribution q(W) = N(weight, spread**2), and which knows what its chip makes of it.

    Layers implement it by having these names; nothing is inherited.
    """

    @property
    def weight(self) -> Tensor:
        """The means mu: the weights that are commanded."""
        ...

    @property
    def log_weight_spread(self) -> Tensor | None:
        """Logarithm ln s of the spread, broadcast against `weight`; `None` where the layer has none."""
        ...

    def weight_prior(self) -> tuple[Tensor, Tensor]:
        """Mean m and spread sigma_p of p(W), both broadcast against `weight`.

        m is the nearest programmable level to mu and sigma_p what programming scatters there, sigma_hw(mu). A mean of
        zero with a small spread would only shrink the weights.
        """
        ...


@runtime_checkable
class HasKlTerm(Protocol):
    """A module with a Kullback-Leibler term of its own, such as `TiedSpread`."""

    def kl_divergence(self) -> Tensor:
        """The divergence in nat, a scalar."""
        ...


def gaussian_kl(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """KL(q || p) in nat of diagonal Gaussians, summed over all elements; in float32 or better.

    `sum 1/2 [s**2 / sigma_p**2 + (mu - m)**2 / sigma_p**2 - 1 - ln(s**2 / sigma_p**2)]`

    Args:
        mean: mu of q.
        log_std: ln s of q, broadcast against `mean`.
        prior_mean: m of p, broadcast against `mean`.
        prior_std: sigma_p of p, positive, broadcast against `mean`.
    """
    mean, log_std, prior_mean, prior_std = (wide(tensor) for tensor in (mean, log_std, prior_mean, prior_std))
    log_ratio = log_std - torch.log(prior_std)
    distance = (mean - prior_mean) / prior_std
    # expm1 keeps the term exact where q and p are nearly equal.
    return 0.5 * torch.sum(torch.expm1(2.0 * log_ratio) - 2.0 * log_ratio + distance * distance)


def weight_kl(model: nn.Module) -> Tensor | None:
    """The sum of all Kullback-Leibler terms of a model in nat, of every matrix on arrays; `None` if it has none.

    The prior is what the chip does, not something to be learned: no gradient passes through m and sigma_p, so that mu
    is drawn to the level it is programmed to and the spread to what programming scatters.
    """
    terms = []
    for module in model.modules():
        if isinstance(module, AnalogLayer):
            for matrix in module.matrices():
                if matrix.log_spread is not None:
                    prior = matrix.prior()
                    terms.append(gaussian_kl(matrix.weight, matrix.log_spread, prior.mean.detach(), prior.std.detach()))
        elif isinstance(module, HasWeightSpread) and module.log_weight_spread is not None:
            prior_mean, prior_std = module.weight_prior()
            terms.append(gaussian_kl(module.weight, module.log_weight_spread, prior_mean.detach(), prior_std.detach()))
        if isinstance(module, HasKlTerm):
            terms.append(module.kl_divergence())
    return torch.stack(terms).sum() if terms else None


class LossTerms(NamedTuple):
    """The loss and its parts, each a scalar tensor and already multiplied with its weight: they add up to `total`.

    Attributes:
        total: What is minimised.
        task: The task loss.
        kl: lambda KL / train_size.
        activations: gamma alpha times the distance of the activation statistics.
    """

    total: Tensor
    task: Tensor
    kl: Tensor
    activations: Tensor


class PhysicsInformedLoss(nn.Module):
    """`task + lambda KL / train_size + gamma alpha sum over layers of the distance of statistics`.

    Args:
        task: Loss of outputs and targets.
        kl_weight: lambda, a number or a schedule (a warm-up from zero keeps the first steps to the task).
        train_size: Number of training samples: the KL term is one for the whole set, the task loss one for a sample
            (the evidence lower bound of a mean task loss).
        gamma: Weight of the statistics.
        alpha: The same once more.
        distance: Which statistics are compared; see `statistics_distance`.
        projections: Directions for `sliced_wasserstein` by layer name; see `draw_projections`.

    Raises:
        SurrogateError: A weight is negative or not finite, or there are no samples; every fault is named.
    """

    def __init__(
        self,
        task: TaskLoss,
        *,
        kl_weight: float | Schedule,
        train_size: int,
        gamma: float = 1.0,
        alpha: float = 1.0,
        distance: Distance = "mean",
        projections: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        numbers = {"gamma": gamma, "alpha": alpha}
        faults = [
            f"{name} is {value}: finite and not negative"
            for name, value in numbers.items()
            if not 0 <= value < float("inf")
        ]
        if train_size < 1:
            faults.append(f"train_size is {train_size}: the number of training samples, one or more")
        if (distance == "sliced_wasserstein") != (projections is not None):
            faults.append("projections and the distance sliced_wasserstein need each other")
        refuse("physics-informed loss", faults)
        if gamma != 1 and alpha != 1 and gamma * alpha != 0:
            warnings.warn(
                f"gamma = {gamma:g} and alpha = {alpha:g}: only their product {gamma * alpha:g} acts; leave one at 1",
                UserWarning,
                stacklevel=2,
            )
        self.task = task
        self.kl_weight: Schedule = Constant(kl_weight) if isinstance(kl_weight, (int, float)) else kl_weight
        self.train_size = train_size
        self.statistics_weight = gamma * alpha
        self.distance: Distance = distance
        self.projections = projections

    def forward(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        model: nn.Module,
        network: Mapping[str, LayerStatistics] | None = None,
        hardware: RecordedStatistics | None = None,
        step: int = 0,
    ) -> LossTerms:
        """The loss of one batch.

        Args:
            outputs: Outputs of the model.
            targets: Targets.
            model: Where the KL terms are looked for.
            network: Statistics of the model's layers in this forward pass; see `record_statistics`.
            hardware: Statistics of the chip at the same inputs, or the last ones that were recorded.
            step: The step, for a schedule of lambda.

        Raises:
            SurrogateError: A term has a weight and nothing to act on.
        """
        task = self.task(outputs, targets)
        zero = torch.zeros((), dtype=task.dtype, device=task.device)
        kl = self._kl(model, step)
        activations = self._activations(network, hardware)
        parts = (task, zero if kl is None else kl, zero if activations is None else activations)
        return LossTerms(sum(parts, start=zero), *parts)

    def _kl(self, model: nn.Module, step: int) -> Tensor | None:
        if isinstance(self.kl_weight, Constant) and self.kl_weight.value == 0:
            return None
        divergence = weight_kl(model)
        fault = "lambda has a value, but no layer of the model has a weight spread: set one up, or kl_weight=0"
        refuse("KL term", [fault] if divergence is None else [])
        assert divergence is not None
        return divergence * (self.kl_weight.level(step) / self.train_size)

    def _activations(
        self, network: Mapping[str, LayerStatistics] | None, hardware: RecordedStatistics | None
    ) -> Tensor | None:
        if self.statistics_weight == 0:
            return None
        faults = []
        if not network:
            faults.append("no statistics of the network: run it under record_statistics")
        if hardware is None:
            faults.append("no statistics of the hardware: record them, load the last ones, or set gamma=0")
        refuse("activation term", faults)
        assert network is not None
        assert hardware is not None
        distance = statistics_distance(network, hardware.layers, self.distance, self.projections)
        return self.statistics_weight * distance
