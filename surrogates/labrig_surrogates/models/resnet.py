"""Residual networks for small images: ResNet-20 and ResNet-18 in their CIFAR forms.

ResNet-20 is that of He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2; ResNet-18 has
the blocks of their ImageNet network behind a 3 x 3 stem without pooling, as is usual for CIFAR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig_surrogates.faults import refuse


@dataclass(frozen=True)
class ResNetShape:
    """What distinguishes networks of this class.

    Attributes:
        blocks: Residual blocks of each stage; every stage but the first halves the image.
        widths: Channels of each stage.
        classes: Outputs.
        inputs: Channels of the images.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int = 10
    inputs: int = 3

    def __post_init__(self) -> None:
        faults = []
        if len(self.blocks) != len(self.widths) or not self.blocks:
            faults.append(
                f"{len(self.blocks)} stages of blocks and {len(self.widths)} widths: one width for each stage"
            )
        counts = {f"blocks[{index}]": count for index, count in enumerate(self.blocks)}
        counts |= {f"widths[{index}]": count for index, count in enumerate(self.widths)}
        counts |= {"classes": self.classes, "inputs": self.inputs}
        faults += [f"{name} = {count} must be positive" for name, count in counts.items() if count < 1]
        refuse("shape of a residual network", faults)


def resnet20(
    classes: int = 10,
    generator: torch.Generator | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> ResNet:
    """ResNet-20 (0.27 million weights).

    Args:
        classes: Outputs.
        generator: Source of the initial weights; None takes torch's own.
        activation: Makes the nonlinearities.
    """
    return ResNet(ResNetShape((3, 3, 3), (16, 32, 64), classes), generator, activation)


def resnet18(
    classes: int = 10,
    generator: torch.Generator | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> ResNet:
    """ResNet-18 in its CIFAR form (11.2 million weights).

    Args:
        classes: Outputs.
        generator: Source of the initial weights; None takes torch's own.
        activation: Makes the nonlinearities.
    """
    return ResNet(ResNetShape((2, 2, 2, 2), (64, 128, 256, 512), classes), generator, activation)


class ResNet(nn.Module):
    """A residual network whose shortcuts are 1 x 1 convolutions where the shape changes.

    Args:
        shape: Stages and widths.
        generator: Source of the initial weights; None takes torch's own.
        activation: Makes the nonlinearities.
    """

    def __init__(
        self,
        shape: ResNetShape,
        generator: torch.Generator | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.shape = shape
        width = shape.widths[0]
        self.stem = nn.Conv2d(shape.inputs, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stem_activation = activation()
        stages: list[nn.Module] = []
        for stage, (count, after) in enumerate(zip(shape.blocks, shape.widths, strict=True)):
            for index in range(count):
                stride = 2 if stage and not index else 1
                stages.append(_Block(width, after, stride, activation))
                width = after
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, shape.classes)
        self._initialise(generator)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of normalised images `[N, inputs, height, width]`."""
        x = self.stem_activation(self.stem_norm(self.stem(images)))
        logits: Tensor = self.head(self.pool(self.blocks(x)).flatten(1))
        return logits

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.activation2 = activation()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(self.norm1(self.conv1(x)))
        z: Tensor = self.activation2(self.norm2(self.conv2(y)) + self.shortcut(x))
        return z
