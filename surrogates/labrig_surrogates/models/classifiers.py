"""The analog-native models as classifiers of images, for training files.

One is named there as `model = "labrig_surrogates.models.classifiers:equilibrium"`. Each function takes the shape of an
image and the number of classes, and returns a digital network. All of its linear layers go onto arrays; training
methods, policies and backends treat it like any other network.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.energy_based import BoltzmannMachine
from labrig_surrogates.models.equilibrium import Equilibrium, Iteration, bound_spectral_norm
from labrig_surrogates.models.equilibrium_propagation import EquilibriumPropagation, Relaxation
from labrig_surrogates.models.recurrent import PhysicalRecurrence, scale_spectral_radius

_STATES = 24
_NORM = 0.9
# Output units lie in 0 ... 1; times this they are logits.
_SHARPNESS = 5.0


class EquilibriumClassifier(nn.Module):
    """Reads the fixed point of a recurrence out; while training, its spectral norm is kept below 0.9.

    Args:
        core: The recurrence, from images to states.
        readout: From states to classes.
    """

    def __init__(self, core: Equilibrium, readout: nn.Module) -> None:
        super().__init__()
        self.core = core
        self.readout = readout

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, classes]` of images `[batch, ...]`."""
        if self.training:
            bound_spectral_norm(self.core.recurrence.get_parameter("weight"), _NORM)
        logits: Tensor = self.readout(self.core(x.flatten(1)))
        return logits


class SettlingClassifier(nn.Module):
    """Output units of a network that settles, as logits; trained through its settling, each direction for itself.

    Args:
        network: What settles.
    """

    def __init__(self, network: EquilibriumPropagation) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, classes]` of images `[batch, ...]` with pixels from 0 to 1."""
        outputs: Tensor = self.network(x.flatten(1))
        return _SHARPNESS * outputs


class MachineClassifier(nn.Module):
    """A Boltzmann machine of pixels and classes, trained to name the class.

    The logarithm of p(class | image) is, but for a constant, minus the free energy of the image beside the class
    (Larochelle and Bengio, "Classification using Discriminative Restricted Boltzmann Machines", ICML 2008).

    No unit is ever drawn, so that of the machine's two layers only the way up is there.

    Args:
        machine: Its visible units are the pixels, then the classes; its weights are shared.
        classes: How many.
    """

    def __init__(self, machine: BoltzmannMachine, classes: int) -> None:
        super().__init__()
        self.up = machine.up
        self.class_bias = nn.Parameter(machine.visible_bias[-classes:].detach().clone())
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, classes]` of images `[batch, ...]` with pixels from 0 to 1."""
        images = x.flatten(1)
        named = torch.eye(self.classes, dtype=x.dtype, device=x.device).repeat(len(x), 1)
        field = self.up(torch.cat([images.repeat_interleave(self.classes, dim=0), named], dim=1))
        sums: Tensor = functional.softplus(field).sum(dim=1).reshape(len(x), self.classes)
        return sums + self.class_bias


class RowClassifier(nn.Module):
    """A recurrence that is shown an image row by row, and asked for its class at the end.

    Args:
        network: The recurrence, with a readout of classes.
        row: Pixels of a row.
    """

    def __init__(self, network: PhysicalRecurrence, row: int) -> None:
        super().__init__()
        self.network = network
        self.row = row

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[batch, classes]` of images `[batch, ...]`."""
        states = self.network.states(x.reshape(len(x), -1, self.row))
        logits: Tensor = self.network.readout(states[:, -1])
        return logits


def equilibrium(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A deep equilibrium network of 24 states."""
    recurrence = nn.Linear(_STATES, _STATES, bias=False)
    core = Equilibrium(recurrence, nn.Linear(prod(input_shape), _STATES), iteration=Iteration(12, backward_steps=12))
    return EquilibriumClassifier(core, nn.Linear(_STATES, classes))


def settling(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A layered network that settles in 15 steps, with 24 hidden units."""
    relaxation = Relaxation(free_steps=15)
    return SettlingClassifier(EquilibriumPropagation((prod(input_shape), _STATES, classes), _drawn(), relaxation))


def boltzmann(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A Boltzmann machine of pixels and classes with 24 hidden units."""
    return MachineClassifier(BoltzmannMachine(prod(input_shape) + classes, _STATES, _drawn()), classes)


def recurrent(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A recurrence of 24 states that is shown square images row by row.

    Raises:
        SurrogateError: The images are not square.
    """
    pixels = prod(input_shape)
    row = round(pixels**0.5)
    if row * row != pixels:
        raise SurrogateError(f"images of {pixels} pixels are not square: they have no rows to show one after another")
    recurrence, injection = nn.Linear(_STATES, _STATES, bias=False), nn.Linear(row, _STATES)
    scale_spectral_radius(recurrence.weight, _NORM)
    return RowClassifier(PhysicalRecurrence(recurrence, injection, nn.Linear(_STATES, classes)), row)


def _drawn() -> torch.Generator:
    """A generator of weights that is seeded by torch's own, as the layers of torch draw theirs."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
