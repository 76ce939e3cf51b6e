"""Training: the physical gradient, the ledger, policies, and negative controls on the in-process chip."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from labrig.placement import place
from labrig.plans.mvm import MvmCalibrationPlan
from labrig.portal import LoopPortal
from labrig.portal_board import PortalBoard
from labrig.testing.in_memory import measure_dataset
from labrig.training.assembly import generator_of
from labrig.training.batches import Batch
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import load_digits, load_images
from labrig.training.evaluate import AccuracyTable, evaluate_on
from labrig.training.ledger import Ledger, total
from labrig.training.models import accuracy
from labrig.training.optimisation import Optimisation, Stepper
from labrig.training.physical import PhysicalBackend
from labrig.training.plan import Plan, PolicyPlan
from labrig.training.recipe import Recipe
from labrig.training.trainings import digital_baseline, in_loop_trained, physical_backend, surrogate_trained
from labrig_calibration.fit import chip_parameters, fit
from labrig_drivers.errors import ConfigError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.layers import analog_layers, set_backend

RECIPE = Recipe(
    hidden=16, digital_steps=500, surrogate_steps=300, in_loop=Plan(steps=36, policy=PolicyPlan(surrogate_steps=5))
)


class Bench:
    """A chip, its board for blocking code, and its calibration."""

    def __init__(self, portal: LoopPortal, settings: ChipSettings) -> None:
        # Just as large as the network needs.
        self.board = MockBoard(replace(settings, columns=2 * RECIPE.hidden))
        portal.call(self.board.open())
        self.blocking = PortalBoard(portal, self.board)
        datasets = portal.call(measure_dataset(self.board, MvmCalibrationPlan(writes=2)))
        fits = [fit(dataset, rng=np.random.default_rng(0)) for dataset in datasets.values()]
        self.chip = ChipModel.of(chip_parameters(fits, {}))


@pytest.fixture(scope="module")
def portal() -> Iterator[LoopPortal]:
    with LoopPortal() as running:
        yield running


@pytest.fixture(scope="module")
def bench(portal: LoopPortal) -> Bench:
    return Bench(portal, ChipSettings(seed=2))


@pytest.fixture(scope="module")
def digital() -> nn.Module:
    return digital_baseline(load_digits(), RECIPE, 0, lambda *_: None)


def nothing(*_: object) -> None:
    """A listener that does not care."""


def test_the_split_of_the_digits_is_fixed_and_stratified() -> None:
    first, second = load_digits(), load_digits()
    assert torch.equal(first.test_x, second.test_x)
    assert first.train_x.shape == (1347, 64)
    assert first.test_x.shape == (450, 64)
    assert torch.bincount(first.test_y).min() >= 43
    assert 0.0 <= first.train_x.min() <= first.train_x.max() <= 1.0
    with pytest.raises(ConfigError, match="'cifar99' is not known"):
        load_images("cifar99")


def test_a_physical_pass_has_measured_values_and_the_surrogates_gradient(bench: Bench, digital: nn.Module) -> None:
    network = bench.chip.deployed(digital, load_digits())
    physical = physical_backend(network, bench.chip, bench.blocking, 0)
    surrogate = bench.chip.backend(network, generator_of(0, 2))
    layer = analog_layers(network)[0]
    target_s = layer.target_conductances()["hidden/0"].detach().requires_grad_()
    voltage_v = (0.2 * torch.rand((5, 64))).requires_grad_()
    seed = torch.randn((5, bench.board.info.columns))
    measured = physical.currents("hidden/0", target_s, voltage_v)
    physical_gradients = torch.autograd.grad((measured * seed).sum(), (target_s, voltage_v))
    mean = surrogate.mean_currents("hidden/0", target_s, voltage_v)
    mean_gradients = torch.autograd.grad((mean * seed).sum(), (target_s, voltage_v))
    for a, b in zip(physical_gradients, mean_gradients, strict=True):
        assert torch.equal(a, b)
    lsb_a = torch.as_tensor(bench.board.info.adc_lsb_a, dtype=torch.float32)
    torch.testing.assert_close(measured / lsb_a, (measured / lsb_a).round(), rtol=0.0, atol=1e-2)
    assert not torch.allclose(measured, mean, rtol=0.0, atol=1e-8)


def test_arrays_are_programmed_only_when_their_target_changed(bench: Bench, digital: nn.Module) -> None:
    data = load_digits()
    network = bench.chip.deployed(digital, data)
    physical = physical_backend(network, bench.chip, bench.blocking, 0)
    set_backend(network, physical)
    with torch.no_grad():
        network(data.test_x[:10])
        network(data.test_x[:20])
    assert (physical.ledger.writes, physical.ledger.mvms) == (2, 60)
    physical.new_write()
    with torch.no_grad():
        network(data.test_x[:10])
        analog_layers(network)[1].weight.mul_(0.9)
        network(data.test_x[:10])
    assert physical.ledger.writes == 5


def test_tiles_that_share_an_array_are_programmed_in_turn(bench: Bench, digital: nn.Module) -> None:
    data = load_digits()
    network = bench.chip.deployed(digital, data)
    one_array = place(["hidden/0", "output/0"], [1])
    ledger = Ledger()
    shared = PhysicalBackend(bench.blocking, bench.chip.backend(network, generator_of(0, 2)), one_array, ledger)
    set_backend(network, shared)
    with torch.no_grad():
        for _ in range(3):
            network(data.test_x[:5])
    assert ledger.writes == 6
    capacity = training_capacity(one_array, [PlannedPasses(passes=3, images=5, writes=1)], 2)
    assert (capacity[1].writes, capacity[1].rows, capacity[1].blocks) == (6, 30, 6)


def test_training_recovers_what_deployment_loses_and_the_surrogate_predicts_the_loss(
    bench: Bench, digital: nn.Module
) -> None:
    data = load_digits()
    deployed = bench.chip.deployed(digital, data)
    on_chip = evaluate_on(deployed, physical_backend(deployed, bench.chip, bench.blocking, 0), data, 3)
    foretold = evaluate_on(deployed, bench.chip.backend(deployed, generator_of(0, 9)), data, 3)
    assert np.mean(foretold) == pytest.approx(np.mean(on_chip), abs=0.06)
    surrogate, _ = surrogate_trained(deployed, bench.chip, data, RECIPE, 0, nothing)
    in_loop, ledger = in_loop_trained(surrogate, bench.chip, bench.blocking, data, RECIPE, 0, nothing, lambda: None)
    after = evaluate_on(in_loop, physical_backend(in_loop, bench.chip, bench.blocking, 0), data, 3)
    baseline = accuracy(digital, data.test_x, data.test_y)
    assert np.mean(after) > baseline - 0.03
    assert np.mean(after) > np.mean(on_chip) + 0.05
    assert (ledger.passes, ledger.writes, ledger.mvms, ledger.surrogate_steps) == (6, 12, 6 * 2 * 128, 30)
    assert ledger.joules is None


def test_negative_control_shuffled_labels_stay_at_chance(bench: Bench) -> None:
    data = load_digits().shuffled_labels(torch.Generator().manual_seed(0))
    network = digital_baseline(data, replace(RECIPE, digital_steps=200), 0, nothing)
    deployed = bench.chip.deployed(network, data)
    trained, _ = surrogate_trained(deployed, bench.chip, data, replace(RECIPE, surrogate_steps=200), 0, nothing)
    scores = evaluate_on(trained, physical_backend(trained, bench.chip, bench.blocking, 0), data, 2)
    assert max(scores) < 0.25


def test_negative_control_the_surrogate_of_another_chip_helps_less(
    portal: LoopPortal, bench: Bench, digital: nn.Module
) -> None:
    data = load_digits()
    other = MockBoard(replace(bench.board.settings, seed=7))
    portal.call(other.open())
    deployed = bench.chip.deployed(digital, data)
    trained, _ = surrogate_trained(deployed, bench.chip, data, RECIPE, 0, nothing)
    gains = {}
    for name, board in (("own", bench.blocking), ("other", PortalBoard(portal, other))):
        before, after = (
            float(np.mean(evaluate_on(one, physical_backend(one, bench.chip, board, 0), data, 3)))
            for one in (deployed, trained)
        )
        gains[name] = after - before
    assert gains["own"] > gains["other"] + 0.02


def test_ledgers_and_errors_add_up() -> None:
    first, second = Ledger(1, 10, 2, 5, 1.0, 0.5, 7), Ledger(2, 20, 3, 6, 2.0, 0.25, 1)
    assert total([first, second]) == Ledger(3, 30, 5, 11, 3.0, 0.75, 8)
    assert total([first, Ledger()]).joules is None
    table = AccuracyTable(((0.9, 0.8), (0.7, 0.8)), images=100)
    assert table.mean == pytest.approx(0.8)
    assert table.spread_seeds == pytest.approx(np.std([0.85, 0.75], ddof=1))
    assert table.spread_writes == pytest.approx(np.sqrt(0.005))
    assert table.binomial == pytest.approx(0.04)
    assert table.error == pytest.approx(np.hypot(table.spread_seeds / np.sqrt(2), 0.04))


def test_the_schedule_ends_at_a_tenth_of_the_rate() -> None:
    rates = Optimisation(batch=16, learning_rate=0.1)
    assert Recipe().in_loop.optimisation.learning_rate < Recipe().optimisation.learning_rate
    assert [rates.rate(step, 10) for step in (0, 5, 10, 11)] == pytest.approx([0.1, 0.055, 0.01, 0.01])
    network = nn.Linear(3, 2)
    stepper = Stepper(network, rates, steps=10)
    batch = Batch(torch.ones((4, 3)), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    for _ in range(10):
        stepper.step(batch)
    assert stepper.rate == pytest.approx(0.01)
    # Adam's moments go through a state and back.
    other = Stepper(network, rates, steps=10)
    other.load_state(stepper.state(), stepper.step_number)
    assert all(torch.equal(one, other.state()[name]) for name, one in stepper.state().items())
