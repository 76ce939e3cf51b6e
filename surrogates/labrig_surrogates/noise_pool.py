"""A pool of normal numbers drawn once, read at random offsets: many times cheaper than drawing.

A pool of N numbers holds the N quantiles of the standard normal law in a random order, so that every number taken
from it has that law (mean 0, variance 1, kurtosis 3, to the resolution of N), whatever the offset. A draw of n numbers
is made of windows of the pool, each at a random offset and with a random sign; the sign makes the correlation of any
two draws zero on average. What remains of the pool is stated here and measured in the tests:

- the sum of n numbers of one window has the variance `n * (1 - n / N)`, and, over the offsets of one pool, that with a
  relative error of about `sqrt(2 n / N)`;
- no number is larger than the outermost quantile, 4.9 for N = 2**20;
- two draws whose windows overlap share values, at other places.

Where that matters, as for the tails of a Monte-Carlo study, use exact draws.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WINDOW = 2**17
"""Numbers that one offset and one sign serve; small enough that a window and its target stay in the cores' caches."""

_MASK = 2**64 - 1

GOLDEN = 0x9E3779B97F4A7C15
"""Step of the sequence that `mix` scrambles: 2**64 over the golden ratio."""


def mix(word: int) -> int:
    """64 well-mixed bits of a 64-bit word: the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    word = (word + GOLDEN) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def draw_key(seed: int, stream: int, counter: int) -> int:
    """One 64-bit key for the draw number `counter` of a stream."""
    return mix(_stream_key(seed, stream) ^ (counter & _MASK))


@lru_cache(maxsize=1024)
def _stream_key(seed: int, stream: int) -> int:
    return mix(mix(seed & _MASK) ^ (stream & _MASK))


def windows(key: int, count: int, pool_size: int) -> list[tuple[int, float]]:
    """Offset in the pool and sign of each window of a draw of `count` numbers; a pure function of the key.

    Window k serves the numbers from `k * WINDOW` on.
    """
    made = []
    for first in range(0, count, WINDOW):
        word = mix(key + first)
        made.append(((word >> 1) % (pool_size - min(WINDOW, count - first) + 1), 1.0 if word & 1 else -1.0))
    return made


@lru_cache(maxsize=8)
def normal_pool(size: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The pool of a size and seed: a constant, made at its first use.

    Args:
        size: How many numbers; at least `WINDOW`.
        seed: Decides their order.
        dtype: A floating type.
        device: Where they lie.
    """
    levels = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    return _shuffled(levels / levels.square().mean().sqrt(), seed).to(dtype).to(device)


@lru_cache(maxsize=8)
def uniform_pool(size: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same for uniform numbers in `[0, 1)`: the middles of `size` equal steps in a random order."""
    levels = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return _shuffled(levels, seed).to(dtype).to(device)


def _shuffled(levels: Tensor, seed: int) -> Tensor:
    order = torch.randperm(levels.numel(), generator=torch.Generator().manual_seed(seed))
    return levels[order]
