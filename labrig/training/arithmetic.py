"""How much a computer has to multiply for a network: what the account counts in place of seconds of some machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from labrig_surrogates.core import AnalogCore
from labrig_surrogates.layers import weight_matrices

GRADIENT = 3
"""Products of a gradient: forward, back to the inputs, and back to the weights."""


@torch.no_grad()
def flops_of_an_image(network: nn.Module, image: Tensor) -> float:
    """Floating-point operations of the network's products for one image, once: two for each weight used.

    Args:
        network: On analog layers, which count as the products that they stand for; it is as before afterwards.
        image: A batch of one image.
    """
    cores = [matrix.core for matrix in weight_matrices(network)]
    training, before = network.training, [(core.observer, core.backend) for core in cores]
    network.eval()
    try:
        for core in cores:
            core.observer, core.backend = _nothing, None  # so that the plain product is computed
        with FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        network.train(training)
        for core, (observer, backend) in zip(cores, before, strict=True):
            core.observer, core.backend = observer, backend
    return float(counter.get_total_flops())


def _nothing(core: AnalogCore, inputs: Tensor, weight: Tensor) -> None:
    del core, inputs, weight
