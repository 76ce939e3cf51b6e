"""Every analog-native model is trained by the trainer: on the surrogate, and in the loop with a chip."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from labrig.studies.structured_chip import StructuredBoard, StructuredChip
from labrig.training.assembly import assemble
from labrig.training.batches import Batch, Sampler
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet, load_digits
from labrig.training.deployment import analog_copy, observed_inputs, set_quantile_ranges
from labrig.training.models import accuracy, build_model
from labrig.training.optimisation import Optimisation, Stepper
from labrig.training.plan import MethodName, Plan
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.models.classifiers import EquilibriumClassifier, recurrent
from labrig_surrogates.models.diffusion import DenoisingNetwork, NoiseLevels

CHIP = StructuredChip(1, "columns", 0.2, arrays=10, columns=64)
METHODS: tuple[MethodName, ...] = ("surrogate", "in-loop")


@cache
def digits() -> ImageSet:
    return load_digits().first(300, 100)


def on_arrays(digital: nn.Module, x: Tensor) -> nn.Module:
    analog = analog_copy(digital, ChipModel.of(CHIP.calibration()).geometry)
    set_quantile_ranges(analog, observed_inputs(analog, x), 1.0, 1.0)
    return analog


def trained(analog: nn.Module, data: ImageSet, method: MethodName, optimisation: Optimisation) -> list[float]:
    """Losses of a few steps by a method of the trainer; what moves and what is asked of the chip is looked at."""
    before = [matrix.weight.detach().clone() for matrix in weight_matrices(analog)]
    board = StructuredBoard(CHIP) if method == "in-loop" else None
    plan = Plan(method=method, steps=6, optimisation=optimisation)
    losses: list[float] = []
    session = assemble(analog, ChipModel.of(CHIP.calibration()), data, plan, 3, board=board)
    session.run(lambda line: losses.append(float(str(line["loss"]))))
    moved = [not torch.equal(a, matrix.weight) for a, matrix in zip(before, weight_matrices(analog), strict=True)]
    assert all(moved)
    assert (session.bench.ledger.passes > 0) == (method == "in-loop")
    assert (session.bench.ledger.writes > 0) == (method == "in-loop")
    return losses


@pytest.mark.parametrize("name", ["equilibrium", "settling", "boltzmann", "recurrent"])
def test_a_classifier_learns_on_the_surrogate_and_in_the_loop(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    network = build_model(f"labrig_surrogates.models.classifiers:{name}", digits(), 0, generator)
    stepper, sampler = Stepper(network, Optimisation(64, 2e-2), 60), Sampler(digits(), 64, generator)
    for _ in range(60):
        stepper.step(sampler.next())
    assert accuracy(network, digits().test_x, digits().test_y) > 0.5  # chance is 0.1
    analog = on_arrays(network, digits().train_x)
    for method in METHODS:
        losses = trained(analog, digits(), method, Optimisation(64, 2e-3))
        assert max(losses) < math.log(10.0)  # what knowing nothing costs


class DenoisingErrors(nn.Module):
    """Weighted errors of a denoiser for clean data: what the trainer's loss squares."""

    def __init__(self, network: DenoisingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, clean: Tensor) -> Tensor:
        level = torch.full((len(clean),), 0.5)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(len(clean)))
        denoised: Tensor = self.network(clean + 0.5 * noise, level)
        return denoised - clean


def mean_square(outputs: Tensor, batch: Batch) -> Tensor:
    del batch
    return outputs.square().mean()


def test_a_denoiser_learns_on_the_surrogate_and_in_the_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    network = DenoisingErrors(DenoisingNetwork(64, 24, 1, NoiseLevels(0.35, 0.05, 5.0), generator))
    optimisation = Optimisation(64, 1e-2, loss=mean_square)
    stepper, sampler = Stepper(network, optimisation, 60), Sampler(digits(), 64, generator)
    first = stepper.step(sampler.next())
    assert min(stepper.step(sampler.next()) for _ in range(60)) < 0.7 * first
    analog = on_arrays(network, digits().train_x)
    for method in METHODS:
        assert max(trained(analog, digits(), method, Optimisation(64, 2e-3, loss=mean_square))) < first


def test_the_equilibrium_stays_a_contraction_while_it_is_trained() -> None:
    network = build_model(
        "labrig_surrogates.models.classifiers:equilibrium", digits(), 0, torch.Generator().manual_seed(1)
    )
    assert isinstance(network, EquilibriumClassifier)
    weight = network.core.recurrence.get_parameter("weight")
    with torch.no_grad():
        weight.mul_(20.0)
    network.eval()(digits().test_x[:2])
    assert torch.linalg.matrix_norm(weight, 2) > 1.0
    network.train()(digits().test_x[:2])
    assert torch.linalg.matrix_norm(weight, 2) < 0.9001


def test_images_without_rows_are_refused() -> None:
    with pytest.raises(SurrogateError, match="60 pixels are not square"):
        recurrent((60,), 10)
