"""Diffusion with a denoiser on arrays, and a sampler that counts the array's own noise towards what it has to add.

Noise levels, preconditioning and the weighting of the loss are those of Karras, Aittala, Aila and Laine, "Elucidating
the Design Space of Diffusion-Based Generative Models" (NeurIPS 2022).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig_surrogates.faults import refuse
from labrig_surrogates.models.hardware_noise import NormalSource

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy data `[batch, size]` and its noise level `[batch]` to the expected clean data."""


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of training and sampling.

    Attributes:
        data_std: Standard deviation of the data.
        low: Smallest level.
        high: Largest level, far above the data.
        curvature: Exponent rho of the sampler's levels; the more, the more steps lie at small noise.
        log_mean: Mean of the logarithm of the levels of training.
        log_std: Its standard deviation.

    Raises:
        SurrogateError: Levels that are not positive and rising.
    """

    data_std: float = 0.5
    low: float = 0.01
    high: float = 10.0
    curvature: float = 7.0
    log_mean: float = -1.2
    log_std: float = 1.2

    def __post_init__(self) -> None:
        faults = []
        if not 0.0 < self.low < self.high:
            faults.append(f"low = {self.low:g} and high = {self.high:g} have to be positive and rising")
        rest = {"data_std": self.data_std, "curvature": self.curvature, "log_std": self.log_std}
        faults += [f"{name} = {value:g} must be positive" for name, value in rest.items() if not value > 0.0]
        refuse("noise levels of a diffusion model", faults)

    def ladder(self, steps: int) -> Tensor:
        """Levels of a sampler from `high` down to `low`, then zero, `[steps + 1]` (Karras et al., eq. 5)."""
        ramp = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
        high, low = self.high ** (1.0 / self.curvature), self.low ** (1.0 / self.curvature)
        return torch.cat([(high + ramp * (low - high)) ** self.curvature, torch.zeros(1, dtype=torch.float64)])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Levels of a training batch, `[count]`, log-normal."""
        return torch.exp(self.log_mean + self.log_std * torch.randn(count, generator=generator))


class DenoisingNetwork(nn.Module):
    """Linear layers with a skip and scales around them, so that every level looks alike to them (eq. 7 and table 1).

    Args:
        size: Components of the data.
        hidden: Width of the hidden layers.
        depth: Number of hidden layers.
        levels: The noise levels.
        generator: Source of the initial weights.
        frequencies: Fourier features of the level, each as a sine and a cosine.
    """

    def __init__(
        self,
        size: int,
        hidden: int,
        depth: int,
        levels: NoiseLevels,
        generator: torch.Generator,
        frequencies: int = 4,
    ) -> None:
        super().__init__()
        self.levels = levels
        widths = [size + 2 * frequencies, *[hidden] * depth]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden, size))
        self.register_buffer("frequency", 2.0 ** torch.arange(frequencies) / 2.0)
        with torch.no_grad():
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.zero_()

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Expected clean data `[batch, size]` of noisy data at the levels `[batch]`."""
        sigma = level.to(noisy.dtype).reshape(-1, 1)
        data2 = self.levels.data_std**2
        total2 = sigma**2 + data2
        phase = 0.25 * torch.log(sigma) * self.get_buffer("frequency")
        features = torch.cat([noisy / torch.sqrt(total2), torch.sin(phase), torch.cos(phase)], dim=1)
        correction: Tensor = self.net(features)
        denoised: Tensor = data2 / total2 * noisy + sigma * data2**0.5 / torch.sqrt(total2) * correction
        return denoised


def denoising_loss(network: DenoisingNetwork, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Weighted squared error of one batch at random levels (table 1: every level counts alike at the start)."""
    levels = network.levels
    sigma = levels.draw(clean.shape[0], generator)
    noise = torch.randn(clean.shape, generator=generator)
    found: Tensor = network(clean + sigma[:, None] * noise, sigma)
    weight = (sigma**2 + levels.data_std**2) / (sigma * levels.data_std) ** 2
    return (weight[:, None] * (found - clean) ** 2).mean()


@dataclass(frozen=True)
class Budget:
    """Where the noise of a sampler came from.

    Attributes:
        required: Variance of the noise of each step, `[steps]`.
        hardware: Variance that the array's own noise brought, `[steps]`.
        injected: Variance that the sampler added, `[steps]`.
    """

    required: Tensor
    hardware: Tensor
    injected: Tensor

    @property
    def overspent(self) -> int:
        """Steps in which the array alone brought more than was wanted."""
        return int((self.hardware > self.required * (1.0 + 1e-9)).sum())


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    start: Tensor,
    levels: Tensor,
    source: NormalSource,
    *,
    hardware_variance: Callable[[float], float] | None = None,
) -> tuple[Tensor, Budget]:
    """Ancestral sampling: each step denoises, then adds the noise of the next level back.

    From level s to t, with the denoiser's D: x <- (t/s)^2 x + (1 - (t/s)^2) D + sqrt(t^2 - t^4 / s^2) * normal, the
    posterior of the step (Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, eq. 7, in the
    variance-exploding form). Noise of D with the variance h enters as (1 - (t/s)^2)^2 h; where `hardware_variance`
    gives h, that much less is added.

    Args:
        denoiser: D.
        start: Data at the first level, `[batch, size]`.
        levels: Falling levels, the last one zero, `[steps + 1]`.
        source: Of the noise that is added.
        hardware_variance: Variance of the denoiser's output at a level, of each component; None counts none.

    Returns:
        Samples `[batch, size]`, and where their noise came from.
    """
    x = start
    required, hardware, injected = [], [], []
    for high, low in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        kept = (low / high) ** 2
        wanted = low**2 * (1.0 - kept)
        brought = 0.0 if hardware_variance is None else (1.0 - kept) ** 2 * hardware_variance(high)
        added = max(0.0, wanted - brought)
        clean = denoiser(x, x.new_full((x.shape[0],), high))
        x = kept * x + (1.0 - kept) * clean
        if added:
            x = x + added**0.5 * source.normal(*x.shape).to(x.dtype)
        required.append(wanted)
        hardware.append(brought)
        injected.append(added)
    return x, Budget(*(torch.tensor(part, dtype=torch.float64) for part in (required, hardware, injected)))


def gaussian_denoiser(mean: Tensor, std: float) -> Denoiser:
    """The exact denoiser of data that are normal around `mean[size]` with the standard deviation `std`."""

    def denoise(noisy: Tensor, level: Tensor) -> Tensor:
        share = std**2 / (std**2 + level[:, None] ** 2)
        return mean + share * (noisy - mean)

    return denoise


def sliced_wasserstein2(a: Tensor, b: Tensor, generator: torch.Generator, directions: int = 128) -> float:
    """Squared 2-Wasserstein distance of two samples, averaged over random directions (Rabin et al., SSVM 2011).

    Args:
        a: `[n, size]`.
        b: `[m, size]`.
        generator: Source of the directions.
        directions: How many.
    """
    aim = torch.randn((a.shape[1], directions), generator=generator, dtype=a.dtype)
    aim = aim / aim.norm(dim=0)
    count = max(len(a), len(b))
    sorted_along = []
    for part in (a, b.to(a.dtype)):
        index = (torch.arange(count) * len(part)) // count
        sorted_along.append((part @ aim).sort(dim=0).values[index])
    return float(((sorted_along[0] - sorted_along[1]) ** 2).mean())
