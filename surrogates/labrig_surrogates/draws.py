"""Where the randomness of a layer comes from: a `DrawStream` with a seed of its own, and the draws that it hands out.

A stream is a seed, a number and a counter; draw number k of a stream is the same on any number of threads and
whatever other layers do. In eager mode a draw of pooled noise is not even copied: it is added to its target window by
window. Inside a region compiled by `torch.compile` the same draws come from two registered operators, because a
`torch.Generator` there would break the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Literal

import torch
from torch import Tensor

from labrig_surrogates.noise_pool import WINDOW, draw_key, normal_pool, uniform_pool, windows
from labrig_surrogates.passes import flat

Law = Literal["normal", "uniform"]
Source = Literal["pool", "exact"]


class PooledDraw:
    """A draw that is read from a pool where it is needed."""

    def __init__(self, pool: Tensor, key: int, shape: Sequence[int], *, signed: bool) -> None:
        self._pool = pool
        self.shape = tuple(shape)
        self._signed = signed
        self._windows = windows(key, prod(shape), pool.numel())

    def tensor(self) -> Tensor:
        """All numbers, in the draw's shape."""
        made = self._pool.new_empty(prod(self.shape))
        for (part, factor), here in zip(self._parts(0, made.numel()), _at_windows(made, 0), strict=True):
            torch.mul(part, factor, out=here)
        return made.view(self.shape)

    def add_to(self, target: Tensor, scale: float | Tensor = 1.0, first: int = 0) -> None:
        """Adds `scale` times the numbers from `first` on to a dense tensor, in place and in the order of its memory.

        Args:
            target: Of the type and device of the pool.
            scale: A number, or a tensor of one element.
            first: Which number of the draw meets the first element of `target`.
        """
        place = flat(target)
        for (part, factor), here in zip(self._parts(first, place.numel()), _at_windows(place, first), strict=True):
            if isinstance(scale, Tensor):
                here.addcmul_(part, scale, value=factor)
            else:
                here.add_(part, alpha=factor * scale)

    def added_to(self, base: Tensor, scale: float | Tensor = 1.0, first: int = 0) -> Tensor:
        """A new tensor, `base` plus `scale` times the numbers from `first` on, in one pass; see `add_to`."""
        made = torch.empty_like(base)
        old_parts, new_parts = (_at_windows(flat(one), first) for one in (base, made))
        for (part, factor), old, new in zip(self._parts(first, made.numel()), old_parts, new_parts, strict=True):
            if isinstance(scale, Tensor):
                torch.addcmul(old, part, scale, value=factor, out=new)
            else:
                torch.add(old, part, alpha=factor * scale, out=new)
        return made

    def whole(self) -> tuple[Tensor, float] | None:
        """All numbers in one piece of the pool, in the draw's shape, and what they are to be multiplied with."""
        if len(self._windows) != 1:
            return None
        offset, sign = self._windows[0]
        strides = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return torch.as_strided(self._pool, self.shape, strides, offset), sign if self._signed else 1.0

    def _parts(self, first: int, count: int) -> Iterator[tuple[Tensor, float]]:
        """The parts of the pool that hold `count` numbers from `first` on, and what each is multiplied with."""
        last = first + count
        while first < last:
            number, inside = divmod(first, WINDOW)
            size = min(WINDOW - inside, last - first)
            offset, sign = self._windows[number]
            # Like `narrow`, in a third of its time.
            part = torch.as_strided(self._pool, (size,), (1,), offset + inside)
            yield part, sign if self._signed else 1.0
            first += size


class TensorDraw:
    """A draw whose numbers are at hand."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers
        self.shape = tuple(numbers.shape)

    def tensor(self) -> Tensor:
        """All numbers, in the draw's shape."""
        return self._numbers

    def add_to(self, target: Tensor, scale: float | Tensor = 1.0, first: int = 0) -> None:
        """Adds `scale` times the numbers from `first` on to a dense tensor, in place; see `PooledDraw.add_to`."""
        place = flat(target)
        part = self._numbers.reshape(-1).narrow(0, first, place.numel())
        if isinstance(scale, Tensor):
            place.addcmul_(part, scale)
        else:
            place.add_(part, alpha=scale)

    def whole(self) -> tuple[Tensor, float]:
        """All numbers, and one; see `PooledDraw.whole`."""
        return self._numbers, 1.0

    def added_to(self, base: Tensor, scale: float | Tensor = 1.0, first: int = 0) -> Tensor:
        """A new tensor, `base` plus `scale` times the numbers from `first` on; see `PooledDraw.added_to`."""
        made = base.clone()
        self.add_to(made, scale, first)
        return made


Draw = PooledDraw | TensorDraw


def _at_windows(place: Tensor, first: int) -> Sequence[Tensor]:
    """A vector that begins at the number `first` of a draw, cut where the draw's windows begin."""
    count, inside = place.numel(), first % WINDOW
    if inside + count <= WINDOW:
        return (place,) if count else ()
    if not inside:
        return torch.split(place, WINDOW)
    begun = WINDOW - inside
    return (place.narrow(0, 0, begun), *torch.split(place.narrow(0, begun, count - begun), WINDOW))


class DrawStream:
    """One layer's source of random numbers.

    Args:
        source: `pool` reads a pool drawn once (`labrig_surrogates.noise_pool`), `exact` draws every number.
        pool_size: Numbers in the pool.
        seed: Shared by the layers of a model.
        stream: Number of this layer; equal seeds with different streams are independent.
    """

    def __init__(self, source: Source, pool_size: int, *, seed: int, stream: int) -> None:
        self.source: Source = source
        self.pool_size = pool_size
        # Tensors, so that a compiled region can count on in them; on the CPU wherever the layer lives, and no buffers,
        # because DistributedDataParallel would give every process the draws of the first one.
        self._position = torch.tensor([seed, stream, 0], dtype=torch.int64)
        self._generator_state = _start_of(seed, stream)

    def __deepcopy__(self, memo: dict[int, object]) -> DrawStream:
        copied = DrawStream(self.source, self.pool_size, seed=0, stream=0)
        copied._position.copy_(self._position)
        copied._generator_state.copy_(self._generator_state)
        memo[id(self)] = copied
        return copied

    @property
    def seed(self) -> int:
        """The seed that the layers of a model share."""
        return int(self._position[0])

    @property
    def stream(self) -> int:
        """Number of this layer."""
        return int(self._position[1])

    def restart(self, seed: int, stream: int) -> None:
        """Begins anew: the draws after equal restarts are equal."""
        self._position.copy_(torch.tensor([seed, stream, 0], dtype=torch.int64))
        self._generator_state.copy_(_start_of(seed, stream))

    def normal(self, shape: Sequence[int], like: Tensor) -> Draw:
        """Standard normal numbers, of the type and on the device of `like`."""
        return self._draw("normal", shape, like)

    def uniform(self, shape: Sequence[int], like: Tensor) -> Draw:
        """Uniform numbers in `[0, 1)`, of the type and on the device of `like`."""
        return self._draw("uniform", shape, like)

    def poisson(self, means: Tensor) -> Tensor:
        """Poisson numbers with these means, each drawn; the gradient of the means passes."""
        draw = _poisson if torch.compiler.is_compiling() else _poisson_numbers
        counted = draw(self._position, self._generator_state, means.detach())
        return means + (counted - means).detach()

    def _draw(self, law: Law, shape: Sequence[int], like: Tensor) -> Draw:
        if self.source == "exact":
            draw = _exact if torch.compiler.is_compiling() else _exact_numbers
            return TensorDraw(draw(self._position, self._generator_state, law, list(shape), like))
        if torch.compiler.is_compiling():
            return TensorDraw(_pooled(self._position, law, list(shape), self.pool_size, like))
        return _pooled_draw(self._position, law, shape, self.pool_size, like)


def _start_of(seed: int, stream: int) -> Tensor:
    return torch.Generator().manual_seed(draw_key(seed, stream, 0) >> 1).get_state()


def _next_key(position: Tensor) -> tuple[int, int]:
    """Seed, and the key of the next draw."""
    words = position.numpy()  # shares the memory of the tensor, and reads and writes one word faster than it does
    seed, stream, counter = words.tolist()
    words[2] = counter + 1
    return seed, draw_key(seed, stream, counter)


def _pooled_draw(position: Tensor, law: str, shape: Sequence[int], pool_size: int, like: Tensor) -> PooledDraw:
    signed = law == "normal"
    seed, key = _next_key(position)
    make = normal_pool if signed else uniform_pool
    return PooledDraw(make(pool_size, seed, like.dtype, like.device), key, shape, signed=signed)


@contextmanager
def _generator_of(position: Tensor, generator_state: Tensor, device: torch.device) -> Iterator[torch.Generator]:
    """A generator for one draw."""
    generator = torch.Generator(device)
    if device.type != "cpu":
        generator.manual_seed(_next_key(position)[1] >> 1)
        yield generator
        return
    # One sequence that goes on: the generator of the CPU has only 2**32 beginnings, too few for one each draw.
    generator.set_state(generator_state)
    yield generator
    generator_state.copy_(generator.get_state())


def _exact_numbers(position: Tensor, generator_state: Tensor, law: str, shape: Sequence[int], like: Tensor) -> Tensor:
    make = torch.randn if law == "normal" else torch.rand
    with _generator_of(position, generator_state, like.device) as generator:
        return make(tuple(shape), generator=generator, dtype=like.dtype, device=like.device)


def _poisson_numbers(position: Tensor, generator_state: Tensor, means: Tensor) -> Tensor:
    with _generator_of(position, generator_state, means.device) as generator:
        return torch.poisson(means, generator=generator)


# The schemas are written out: torch 2.6 does not read `list[int]` out of an annotation.
@torch.library.custom_op(
    "labrig_surrogates::pooled_draw",
    mutates_args=("position",),
    schema="(Tensor(a0!) position, str law, SymInt[] shape, SymInt pool_size, Tensor like) -> Tensor",
)
def _pooled(position: Tensor, law: str, shape: list[int], pool_size: int, like: Tensor) -> Tensor:
    return _pooled_draw(position, law, shape, pool_size, like).tensor()


@torch.library.custom_op(
    "labrig_surrogates::exact_draw",
    mutates_args=("position", "generator_state"),
    schema="(Tensor(a0!) position, Tensor(a1!) generator_state, str law, SymInt[] shape, Tensor like) -> Tensor",
)
def _exact(position: Tensor, generator_state: Tensor, law: str, shape: list[int], like: Tensor) -> Tensor:
    return _exact_numbers(position, generator_state, law, shape, like)


@torch.library.custom_op("labrig_surrogates::poisson_draw", mutates_args=("position", "generator_state"))
def _poisson(position: Tensor, generator_state: Tensor, means: Tensor) -> Tensor:
    return _poisson_numbers(position, generator_state, means)


@_pooled.register_fake
def _(position: Tensor, law: str, shape: list[int], pool_size: int, like: Tensor) -> Tensor:
    del position, law, pool_size
    return like.new_empty(shape)


@_poisson.register_fake
def _(position: Tensor, generator_state: Tensor, means: Tensor) -> Tensor:
    del position, generator_state
    return torch.empty_like(means)


@_exact.register_fake
def _(position: Tensor, generator_state: Tensor, law: str, shape: list[int], like: Tensor) -> Tensor:
    del position, generator_state, law
    return like.new_empty(shape)
