"""Normal numbers for a module: reproducible, and usable inside a compiled graph.

A `torch.Generator` used in a compiled region breaks the graph. Here the draw is a registered operator, opaque to the
compiler, which makes each tensor of numbers from a key and a count: equal keys and counts give equal numbers, whatever
else was drawn in between and on any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labrig_surrogates.noise_pool import GOLDEN, mix


def _seed(key: int, count: int) -> int:
    """Number `count` of the SplitMix64 sequence of a key: neighbouring counts give unrelated seeds."""
    return mix(key + count * GOLDEN)


@torch.library.custom_op("labrig_surrogates::normal", mutates_args=("state",))
def _normal(like: Tensor, state: Tensor) -> Tensor:
    key, count = state.tolist()
    state[1] += 1
    generator = torch.Generator(like.device).manual_seed(_seed(key, count))
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32)


@_normal.register_fake
def _(like: Tensor, state: Tensor) -> Tensor:
    del state
    return torch.empty(like.shape, device=like.device, dtype=torch.float32)


class NormalStream:
    """A sequence of tensors of standard normal numbers, float32.

    A deep copy continues the same sequence: give a copy that is to differ, and each process of a distributed training,
    a stream of its own. The numbers of a CPU and a GPU differ.

    Args:
        generator: What the key is drawn from; one number is taken.

    Attributes:
        state: Key and count, int64 `[2]`, on the CPU; store it to continue a training bit for bit.
    """

    def __init__(self, generator: torch.Generator) -> None:
        key = torch.randint(2**62, (1,), generator=generator, device=generator.device).cpu()
        self.state = torch.cat([key, torch.zeros_like(key)])

    def normal(self, like: Tensor) -> Tensor:
        """The next numbers, with the shape and on the device of `like`."""
        numbers: Tensor = _normal(like.detach(), self.state)
        return numbers
