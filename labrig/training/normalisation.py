"""Batch-norm statistics of one chip: what makes a network fit a chip, or an age, that it never met."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Normalisation = nn.BatchNorm1d | nn.BatchNorm2d


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there is anything to re-estimate."""
    return bool(_with_statistics(network))


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, x: Tensor, batch: int) -> int:
    """Replaces running means and variances by those of some images on the present backend; no classes are needed.

    The cumulative average over all batches (Joshi et al., Nature Communications 11, 2473, 2020, update them likewise).

    Args:
        network: Its layers have their backends.
        x: Images.
        batch: Images in a pass.

    Returns:
        Passes that it took; zero where there is no batch normalisation.
    """
    layers = _with_statistics(network)
    if not layers:
        return 0
    training, momenta = network.training, [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        parts = torch.split(x, batch)
        for part in parts:
            network(part)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        network.train(training)
    return len(parts)


def _with_statistics(network: nn.Module) -> list[Normalisation]:
    return [one for one in network.modules() if isinstance(one, Normalisation) and one.track_running_stats]
