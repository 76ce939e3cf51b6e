"""A copy of a network with its weights of now, for a pass that takes a while, or for weights that go their own way."""

from __future__ import annotations

import copy

from torch import nn

from labrig_surrogates.layers import weight_matrices


def snapshot(network: nn.Module) -> nn.Module:
    """A copy with the values of now, without gradients, and without the backends, which are not copied."""
    cores = [matrix.core for matrix in weight_matrices(network)]
    backends = [core.backend for core in cores]
    try:
        for core in cores:
            core.backend = None
        taken = copy.deepcopy(network)
        taken.zero_grad()  # a copy has the gradients of the last step, too
        return taken
    finally:
        for core, backend in zip(cores, backends, strict=True):
            core.backend = backend
