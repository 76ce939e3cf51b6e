"""Products as they are read: with noise of a chosen size, and what a layer does to each single input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labrig_surrogates.models.hardware_noise import NormalSource


class NoisyProduct(nn.Module):
    """A linear layer whose products carry fresh noise, in proportion to their root mean square in the batch.

    Args:
        layer: The layer; its weights and bias are shared.
        relative: Standard deviation of the noise over that root mean square.
        source: Of the noise.
    """

    def __init__(self, layer: nn.Linear, relative: float, source: NormalSource) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self._relative = relative
        self._source = source

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `[batch, outputs]` of inputs `[batch, inputs]`; the bias is exact."""
        product = x @ self.weight.T
        noise = self._source.normal(*product.shape).to(product.dtype)
        read = product + self._relative * product.square().mean().sqrt() * noise
        return read if self.bias is None else read + self.bias


@torch.no_grad()
def response(layer: nn.Module, *, amplitude: float, reads: int) -> Tensor:
    """The weights as a layer has them, `[outputs, inputs]`, from its answers to each single input; the bias falls out.

    Args:
        layer: A linear layer, digital or analog, with its weights as the parameter `weight`.
        amplitude: Of the input.
        reads: Answers that are averaged.
    """
    inputs = layer.get_parameter("weight").shape[1]
    probe = torch.cat([amplitude * torch.eye(inputs), torch.zeros((1, inputs))])
    mean: Tensor = layer(probe.repeat(reads, 1)).unflatten(0, (reads, inputs + 1)).mean(dim=0)
    return (mean[:-1] - mean[-1]).T / amplitude
