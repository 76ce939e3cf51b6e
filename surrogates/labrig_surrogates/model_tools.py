"""What one does to all analog layers of a model at once: noise, programming, clipping of weights, replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from labrig_surrogates.core import RangeObserver
from labrig_surrogates.layers import weight_matrices


@contextmanager
def noise_off(model: nn.Module) -> Iterator[None]:
    """Switches all noise off for a while; stochastic rounding becomes rounding to the nearest.

    Noise is otherwise on in training and in evaluation alike, as on a chip.

    Args:
        model: With analog layers.
    """
    cores = [matrix.core for matrix in weight_matrices(model)]
    before = [core.noise for core in cores]
    for core in cores:
        core.noise = False
    try:
        yield
    finally:
        for core, noise in zip(cores, before, strict=True):
            core.noise = noise


@contextmanager
def observed(model: nn.Module, observe: RangeObserver) -> Iterator[None]:
    """Shows every product's inputs and weights to a function; meanwhile the model evaluates as its digital twin does.

    Args:
        model: With analog layers.
        observe: Gets the core, its inputs and its weights; what it returns is multiplied in the inputs' place.
    """
    cores = [matrix.core for matrix in weight_matrices(model)]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with noise_off(model):
            for core in cores:
                core.observer = observe
            yield
    finally:
        for core in cores:
            core.observer = None
        for module, mode in training.items():
            module.training = mode


def seed_noise(model: nn.Module, seed: int) -> None:
    """Begins the noise of all layers anew: two models seeded alike draw alike. Programming errors are drawn anew.

    In a data-parallel training give every process a seed of its own.

    Args:
        model: With analog layers.
        seed: Seed of every draw.
    """
    for stream, matrix in enumerate(weight_matrices(model)):
        matrix.core.stream.restart(seed, stream)
        matrix.core.new_write(matrix.weight)


def new_write(model: nn.Module) -> None:
    """Draws all errors of programming (`timing="program"`) anew, as writing the chip again does.

    Args:
        model: With analog layers.
    """
    for matrix in weight_matrices(model):
        matrix.core.new_write(matrix.weight)


def new_chip(model: nn.Module) -> None:
    """Puts another chip of the same kind in place: what belongs to a chip, such as its stuck cells, is drawn anew.

    Args:
        model: With analog layers.
    """
    for matrix in weight_matrices(model):
        matrix.core.new_chip(matrix.weight)


def set_age(model: nn.Module, age_s: float) -> None:
    """Lets the arrays be as old as that since they were programmed, for drift and relaxation of their devices.

    The devices stay the same ones: an age of zero brings back what was programmed, and `new_write` starts at zero.

    Args:
        model: With analog layers.
        age_s: Time in s since programming.

    Raises:
        SurrogateError: The age is negative.
    """
    for matrix in weight_matrices(model):
        matrix.core.set_age(matrix.weight, age_s)


def program(model: nn.Module) -> None:
    """Programs the arrays: in evaluation the weights stay what they are now, and only noise of reading is added.

    That is what a chip does, and it saves quantising the weights at every pass. Training goes on with the layers'
    own weights; `erase` undoes it, and so does loading a checkpoint.

    Args:
        model: With analog layers.
    """
    for matrix in weight_matrices(model):
        matrix.core.program(matrix.weight)


def erase(model: nn.Module) -> None:
    """Undoes `program`.

    Args:
        model: With analog layers.
    """
    for matrix in weight_matrices(model):
        matrix.core.erase()


def clip_weights(model: nn.Module) -> None:
    """Clips all weights to what the conductances can express; call it after each optimiser step.

    Only mappings with a range of their own (`fixed`, `sigma`) clip anything. Without it weights beyond the range stay
    there without a gradient.

    Args:
        model: With analog layers.
    """
    for matrix in weight_matrices(model):
        matrix.core.clip(matrix.weight)


def replace_modules(model: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """The model with some of its modules replaced wherever they occur, by the `id` of the old one."""
    if id(model) in made:
        return made[id(model)]
    for module in list(model.modules()):
        # `named_children` leaves out a second name of the same module.
        for name, child in list(module._modules.items()):
            if child is not None and id(child) in made:
                setattr(module, name, made[id(child)])
    return model
