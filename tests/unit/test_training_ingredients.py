"""Distillation, batch-norm statistics of a chip, average of the weights: in closed form, and what they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.assembly import assemble
from labrig.training.averaging import MovingAverage
from labrig.training.batches import Batch
from labrig.training.bench import MeanOf
from labrig.training.chip_model import ChipModel
from labrig.training.column_fit import calibrate_columns
from labrig.training.datasets import ImageSet
from labrig.training.deployment import analog_copy, observed_inputs, set_quantile_ranges
from labrig.training.models import accuracy, digital_network
from labrig.training.normalisation import reestimate_batch_norm
from labrig.training.optimisation import Optimisation
from labrig.training.plan import Plan
from labrig.training.task_loss import TaskLoss
from labrig.training.trainings import physical_backend
from labrig_surrogates.layers import set_backend


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corners(count: int = 96) -> ImageSet:
    """Three classes around three corners of the unit cube."""
    y = torch.arange(2 * count) % 3
    x = (0.2 + 0.6 * torch.eye(3)[y] + 0.1 * torch.randn((2 * count, 3), generator=generator(4))).clamp(0.0, 1.0)
    return ImageSet("corners", x[:count], y[:count], x[count:], y[count:], 3)


DATA = corners()


def batch_with(teacher: Tensor | None) -> Batch:
    y = torch.tensor([0, 2, 1, 1])
    return Batch(torch.zeros((4, 2)), y, torch.arange(4), teacher)


def test_distillation_is_what_it_is_said_to_be() -> None:
    outputs, teacher = (torch.randn((4, 3), generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    batch, b, t = batch_with(teacher), 0.7, 4.0
    p, q = torch.softmax(teacher / t, dim=1), torch.softmax(outputs / t, dim=1)
    apart = (p * (p.log() - q.log())).sum(dim=1).mean()
    classes = -torch.log_softmax(outputs, dim=1)[torch.arange(4), batch.y].mean()
    loss = TaskLoss(label_smoothing=0.0, distillation=b, temperature=t)
    torch.testing.assert_close(loss(outputs, batch), (1.0 - b) * classes + b * t**2 * apart)
    # The gradient of the part that follows the teacher, T (q - p) for each image.
    student = outputs.clone().requires_grad_()
    replace(loss, distillation=1.0)(student, batch).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(student.grad, t * (q - p) / 4)


def test_without_a_teacher_the_classes_are_all_there_is() -> None:
    outputs = torch.randn((4, 3), generator=generator(1))
    plain = TaskLoss()(outputs, batch_with(None))
    assert torch.equal(TaskLoss(distillation=0.7)(outputs, batch_with(None)), plain)
    # One that agrees with its teacher has nothing to learn from it.
    agreed = TaskLoss(distillation=0.7)(outputs, batch_with(outputs))
    torch.testing.assert_close(agreed, 0.3 * plain)


@pytest.mark.parametrize(("part", "learns"), [(1.0, True), (0.0, False)])
def test_a_student_of_a_teacher_learns_even_where_the_classes_are_shuffled(part: float, *, learns: bool) -> None:
    chip = KnownChip(noise=0.02)
    model = ChipModel.of(chip.calibration())
    shuffled = DATA.shuffled_labels(generator(7))
    fresh = analog_copy(digital_network(3, 8, 3, generator(3)), model.geometry)
    set_quantile_ranges(fresh, observed_inputs(fresh, DATA.train_x), 1.0, 1.0)
    plan = Plan(
        method="surrogate", steps=60, optimisation=Optimisation(48, 3e-2, TaskLoss(distillation=part, temperature=1.0))
    )
    teacher = 6.0 * torch.eye(3)[DATA.train_y]
    assemble(fresh, model, shuffled, plan, 0, teacher=teacher).run(lambda _: None)
    found = accuracy(fresh, DATA.test_x, DATA.test_y)
    assert found > 0.9 if learns else found < 0.7


def normalised(seed: int = 0) -> nn.Sequential:
    layers = digital_network(3, 8, 3, generator(seed))
    assert isinstance(layers, nn.Sequential)
    return nn.Sequential(layers[0], nn.BatchNorm1d(8), *list(layers)[1:])


def test_batch_norm_takes_the_statistics_of_all_images_and_nothing_else_changes() -> None:
    network = normalised().eval()
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.momentum = 0.3
    before = {name: one.clone() for name, one in network.named_parameters()}
    assert reestimate_batch_norm(network, DATA.train_x, 32) == 3
    with torch.no_grad():
        hidden = network[0](DATA.train_x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, hidden.mean(dim=0))
    variances = torch.stack([part.var(dim=0) for part in torch.split(hidden, 32)])
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))
    assert (norm.momentum, network.training, norm.training) == (0.3, False, False)
    assert all(torch.equal(before[name], one) for name, one in network.named_parameters())
    assert reestimate_batch_norm(digital_network(3, 8, 3, generator()), DATA.train_x, 32) == 0


def test_statistics_of_the_chip_give_back_what_its_errors_took() -> None:
    digital = normalised(1).train()
    optimiser = torch.optim.Adam(digital.parameters(), lr=3e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(digital(DATA.train_x), DATA.train_y))
        optimiser.step()
    assert accuracy(digital, DATA.test_x, DATA.test_y) > 0.9
    found = []
    for seed in range(4):
        chip = KnownChip(seed=seed, gain_sigma=0.5, offset_sigma=1.0)
        model = ChipModel.of(chip.nominal())
        analog = analog_copy(digital, model.geometry)
        set_quantile_ranges(analog, observed_inputs(analog, DATA.train_x), 1.0, 1.0)
        # Its last layer is in float: nothing after it could take back what it gets wrong.
        backend = physical_backend(analog, model, KnownBoard(chip), 0)
        assert isinstance(analog, nn.Sequential)
        set_backend(analog[0], backend)
        as_it_is = accuracy(analog, DATA.test_x, DATA.test_y)
        reestimate_batch_norm(analog, DATA.train_x, 32)
        found.append((as_it_is, accuracy(analog, DATA.test_x, DATA.test_y)))
    before, after = (sum(column) / len(found) for column in zip(*found, strict=True))
    assert after > before + 0.05
    assert after > 0.9


def test_the_average_of_the_weights_begins_late_and_forgets_as_it_should() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = MovingAverage(0.8, start=0.5)
    values = [1.0, 2.0, 4.0, 8.0]
    for step, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, value)
        average.update(dict(network.named_parameters()), step, 4)
    # Steps 2, 3 and 4 count: the second begins it.
    assert float(average.shadow["weight"]) == pytest.approx(0.8 * (0.8 * 2.0 + 0.2 * 4.0) + 0.2 * 8.0)
    average.put(network, dict(network.named_parameters()))
    assert network.weight.item() == pytest.approx(3.52)
    untouched = MovingAverage(0.0)
    untouched.update(dict(network.named_parameters()), 4, 4)
    assert not untouched.shadow


def test_columns_are_fitted_to_what_the_network_was_trained_on() -> None:
    """Weights that made up for a chip's errors must not be brought back to exact products."""
    chip = KnownChip(gain_sigma=0.2, offset_sigma=0.3, cell_sigma=0.2)
    model = ChipModel.of(chip.calibration())
    found = {}
    for name in ("surrogate", "exact"):
        analog = analog_copy(digital_network(3, 8, 3, generator(1)), model.geometry)
        set_quantile_ranges(analog, observed_inputs(analog, DATA.train_x), 1.0, 1.0)
        backend = physical_backend(analog, model, KnownBoard(chip), 0)
        reference = MeanOf(model.backend(analog, generator())) if name == "surrogate" else None
        before = {key: one.clone() for key, one in analog.named_parameters()}
        assert calibrate_columns(analog, backend, DATA.train_x, reference) == 2
        found[name] = max((one - before[key]).abs().max().item() for key, one in analog.named_parameters())
    assert found["surrogate"] < 1e-3 < 0.05 < found["exact"]
