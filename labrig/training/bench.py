"""What every method works with: the network, its backends, the optimiser and the account."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from labrig.training.arithmetic import GRADIENT
from labrig.training.backends import Backends
from labrig.training.batches import Batch
from labrig.training.datasets import ImageSet
from labrig.training.ledger import Ledger
from labrig.training.optimisation import Stepper
from labrig.training.physical import PhysicalBackend
from labrig.training.pipelining import PassResult, accumulate
from labrig.training.ranks import ALONE, Ranks
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.backend import Backend, MeanBackend, SurrogateBackend, TileName
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.schedules import Constant, Schedule


@dataclass(frozen=True)
class NoisySteps:
    """How steps on the surrogate meet noise.

    Attributes:
        schedule: Multiple of the chip's own noise over the steps.
        draws: Programmings that each step meets: the batch is split, and every part gets its own.
        population: Chips that steps are shared between, drawn from the errors of the calibration; empty for the one
            fitted chip.
    """

    schedule: Schedule = field(default_factory=lambda: Constant(1.0))
    draws: int = 1
    population: tuple[dict[int, ArraySurrogate], ...] = ()


@dataclass
class TrainingBench:
    """Everything that a method needs.

    Attributes:
        backends: Switches the layers of the network.
        stepper: The optimiser, with the network.
        surrogate: The fitted chip, with noise.
        fitted: Its arrays, as last fitted.
        physical: The chip; None where there is none.
        data: The task.
        ledger: Account of the training.
        generator: Source of every draw of the method; the noise of the surrogate has its own.
        noisy: How steps on the surrogate meet noise.
        chunks: Parts of a batch that are in flight together.
        ranks: Which of several processes this is, where surrogate steps are shared between some.
        flops_of_an_image: Floating-point operations of the network's products for one image, once.
    """

    backends: Backends
    stepper: Stepper
    surrogate: SurrogateBackend
    fitted: dict[int, ArraySurrogate]
    physical: PhysicalBackend | None
    data: ImageSet
    ledger: Ledger
    generator: torch.Generator
    noisy: NoisySteps = field(default_factory=NoisySteps)
    chunks: int = 1
    ranks: Ranks = ALONE
    flops_of_an_image: float = 0.0

    @property
    def chip(self) -> PhysicalBackend:
        """The chip, by a method that cannot do without."""
        assert self.physical is not None, "a physical step without a chip"
        return self.physical

    @property
    def mean_surrogate(self) -> Backend:
        """The fitted chip without noise, as a backend."""
        return MeanOf(self.surrogate)

    def computed(self, images: int, products: int = GRADIENT) -> None:
        """Adds to the account what the computer multiplied for some images, so many times."""
        self.ledger.digital_flops += products * images * self.flops_of_an_image

    def surrogate_gradient(self, batch: Batch) -> float:
        """Leaves the gradient of a step on the noisy surrogate; returns its loss."""
        surrogate, noisy = self.surrogate, self.noisy
        self.stepper.zero_grad()
        surrogate.noise_level = noisy.schedule.level(self.stepper.step_number)
        if noisy.population:
            chosen = int(torch.randint(len(noisy.population), (), generator=self.generator))
            surrogate.use(noisy.population[chosen])
        self.backends.use("surrogate")
        whole = 0.0
        mine = self.ranks.part(batch)
        self.computed(len(mine))
        for part in mine.split(noisy.draws):
            surrogate.new_write()
            whole += self._add_gradient(part, len(part) / len(batch))
        if noisy.population:
            surrogate.use(self.fitted)
        return self.ranks.add_up(list(self.stepper.parameters.values()), whole)

    def physical_gradient(self, batch: Batch) -> PassResult:
        """Leaves the gradient of a pass through the chip."""
        self.stepper.zero_grad()
        self.backends.use("physical")
        result = accumulate(self.stepper.network, self.stepper.loss, batch, self.chunks)
        self.ledger.passes += 1
        self.computed(len(batch))
        return result

    def gradient_through(self, model: MeanBackend, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the weights on arrays of the noiseless model on a batch; those of the stepper stay."""
        self.computed(len(batch))
        parameters = list(analog_weights(self).values())
        with self.backends.using(MeanOf(model)):
            loss = self.stepper.loss(self.stepper.network(batch.x), batch)
            found = torch.autograd.grad(loss, parameters)
        return dict(zip(analog_weights(self), found, strict=True))

    def _add_gradient(self, part: Batch, share: float) -> float:
        loss = share * self.stepper.loss(self.stepper.network(part.x), part)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


class MeanOf:
    """The mean of a model as a backend.

    Args:
        model: The model.
    """

    def __init__(self, model: MeanBackend) -> None:
        self._model = model

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """See `Backend.currents`."""
        return self._model.mean_currents(tile, target_s, voltage_v)


def analog_weights(bench: TrainingBench) -> dict[str, Tensor]:
    """The trained weights that lie on arrays, by the name of their core."""
    trained = {id(one) for one in bench.stepper.parameters.values()}
    return {
        matrix.core.name: matrix.weight
        for matrix in weight_matrices(bench.stepper.network)
        if id(matrix.weight) in trained
    }


def gradient_cosine(bench: TrainingBench, other: dict[str, Tensor]) -> float:
    """Cosine between the gradients that the stepper holds and others, over all weights on arrays."""
    mine, theirs = [], []
    for name, weight in analog_weights(bench).items():
        if weight.grad is not None:
            mine.append(weight.grad.flatten())
            theirs.append(other[name].flatten())
    return float(torch.nn.functional.cosine_similarity(torch.cat(mine), torch.cat(theirs), dim=0))
