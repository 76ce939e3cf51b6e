"""A small, fast network for 32 x 32 images, of the class of Keller Jordan's airbench94.

Architecture and initialisation follow the description in Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
(arXiv:2404.00498): a whitening convolution, three blocks of two 3 x 3 convolutions, and a linear head. Unlike there
the whitening is shared between filters of equal length, which an array can hold, and a digital normalisation behind
them: filters that also bring the variances to one differ a hundredfold, and the noise of an array follows the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse

_CHANNELS = 3
# The paper's: directions of patches whose variance is below this are not blown up to full size.
_WHITENING_FLOOR = 5e-4
_HEAD_SCALE = 1.0 / 9.0


@dataclass(frozen=True)
class AirbenchShape:
    """What distinguishes networks of this class.

    Attributes:
        classes: Outputs.
        widths: Channels of the three blocks; the published network has 64, 256 and 256 (1.97 million weights).
        whitening_kernel: Side of the patches that the first convolution whitens.
        batch_norm_momentum: Weight of a new batch in the running statistics.
    """

    classes: int = 10
    widths: tuple[int, int, int] = (64, 256, 256)
    whitening_kernel: int = 2
    batch_norm_momentum: float = 0.4

    def __post_init__(self) -> None:
        counts = {"classes": self.classes, "whitening_kernel": self.whitening_kernel}
        counts |= {f"widths[{index}]": width for index, width in enumerate(self.widths)}
        faults = [f"{name} = {count} must be positive" for name, count in counts.items() if count < 1]
        if not 0 < self.batch_norm_momentum <= 1:
            faults.append(f"batch_norm_momentum = {self.batch_norm_momentum:g} must lie above 0 and not above 1")
        refuse("shape of an airbench network", faults)

    @property
    def whitened(self) -> int:
        """Channels behind the whitening convolution: each direction of a patch with both signs."""
        return 2 * _CHANNELS * self.whitening_kernel**2


class Airbench(nn.Module):
    """The network. Call `whiten` once with training images, before the first step.

    Args:
        shape: Its size.
        generator: Source of the initial weights; None takes torch's own.
        activation: Makes the nonlinearity behind each normalisation.
    """

    def __init__(
        self,
        shape: AirbenchShape | None = None,
        generator: torch.Generator | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.shape = shape or AirbenchShape()
        self.whitening = nn.Conv2d(_CHANNELS, self.shape.whitened, self.shape.whitening_kernel, bias=False)
        self.whitening.weight.requires_grad = False
        self.first_norm = nn.BatchNorm2d(
            self.shape.whitened, eps=_WHITENING_FLOOR, momentum=self.shape.batch_norm_momentum, affine=False
        )
        self.first_activation = activation()
        inputs = (self.shape.whitened, *self.shape.widths[:-1])
        self.blocks = nn.Sequential(
            *(
                _Block(before, after, self.shape.batch_norm_momentum, activation)
                for before, after in zip(inputs, self.shape.widths, strict=True)
            )
        )
        self.pool = nn.MaxPool2d(3)
        self.head = nn.Linear(self.shape.widths[-1], self.shape.classes, bias=False)
        self._initialise(generator)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of normalised images `[N, 3, 32, 32]`."""
        x = self.first_activation(self.first_norm(self.whitening(images)))
        x = self.pool(self.blocks(x)).flatten(1)
        logits: Tensor = self.head(x)
        return logits * _HEAD_SCALE

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Sets the first convolution to the directions in which patches of `images[N, 3, height, width]` vary."""
        self.whitening.weight.copy_(principal_filters(images, self.shape.whitening_kernel))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                bound = fan_in**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            # As many filters as there are inputs begin by handing their input on.
            if isinstance(module, nn.Conv2d) and module is not self.whitening:
                nn.init.dirac_(module.weight[: module.in_channels])


class _Block(nn.Module):
    """Two convolutions; the first halves the image."""

    def __init__(self, inputs: int, outputs: int, momentum: float, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _norm(outputs, momentum)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
        self.norm2 = _norm(outputs, momentum)
        self.activation2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation1(self.norm1(self.pool(self.conv1(x))))
        y: Tensor = self.activation2(self.norm2(self.conv2(x)))
        return y


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    norm.weight.requires_grad = False
    return norm


def principal_filters(images: Tensor, kernel: int) -> Tensor:
    """Filters along the principal directions of the patches of images, each of length one and with both signs.

    What they give is uncorrelated; a batch norm behind them brings it to unit variance, which makes it white.

    Args:
        images: Normalised images, `[N, channels, height, width]`.
        kernel: Side of the patches.

    Returns:
        `[2 * channels * kernel**2, channels, kernel, kernel]`, the direction of the largest variance first.

    Raises:
        SurrogateError: The images are smaller than a patch.
    """
    if images.ndim != 4 or min(images.shape[2:]) < kernel:
        raise SurrogateError(f"images of shape {list(images.shape)} have no patches of {kernel} x {kernel}")
    channels = images.shape[1]
    patches = images.unfold(2, kernel, 1).unfold(3, kernel, 1)
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * kernel**2).double()
    directions = torch.linalg.eigh(flat.T @ flat / flat.shape[0]).eigenvectors.T.flip(0)
    filters = directions.reshape(-1, channels, kernel, kernel)
    return torch.cat([filters, -filters]).to(images.dtype)
