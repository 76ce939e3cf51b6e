"""`labrig study equilibrium`: does a recurrence on an array bear weight errors better than the same work unrolled?

Equations and bounds: `labrig_surrogates.models.equilibrium`. Both networks have as many products of a 48 x 48 matrix,
are trained alike without noise, and then meet the same weight errors, drawn once for each chip.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig.studies.chip import StudyChip, on_each_chip
from labrig.studies.intervals import exactly, mean, of_difference, of_mean
from labrig.studies.result import Control, Curve, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.training.datasets import ImageSet, load_digits
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.models.equilibrium import Equilibrium, Iteration, bound_spectral_norm, frozen_error_bound

QUESTION = "Does a recurrence on an array bear errors of its weights better than the same work unrolled into layers?"

_STATES = 48
_LIMIT = 0.9
_STEPS = 12
# On the chip, where nothing ever settles, it runs on so that there is something to average.
_CHIP_STEPS, _AVERAGED = 40, 30
_LEVELS = (0.0, 0.025, 0.05, 0.1, 0.2)
_JUDGED = 0.1


@dataclass(frozen=True)
class _Size:
    epochs: int
    chips: int


class _EquilibriumNetwork(nn.Module):
    def __init__(self, generator: torch.Generator, iteration: Iteration) -> None:
        super().__init__()
        recurrence = nn.Linear(_STATES, _STATES, bias=False)
        self.core = Equilibrium(recurrence, nn.Linear(64, _STATES), iteration=iteration)
        self.readout = nn.Linear(_STATES, 10)
        _initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.core(x))
        return logits


class _Unrolled(nn.Module):
    """As many products, each with weights of its own; the input enters once, as it does in a feed-forward network."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.injection = nn.Linear(64, _STATES)
        self.layers = nn.ModuleList([nn.Linear(_STATES, _STATES) for _ in range(_STEPS)])
        self.readout = nn.Linear(_STATES, 10)
        _initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.injection(x))
        for layer in self.layers:
            h = torch.tanh(layer(h))
        logits: Tensor = self.readout(h)
        return logits


@dataclass(frozen=True)
class _Run:
    """What one seed gives; accuracies in %, by noise level."""

    equilibrium: list[float]
    unrolled: list[float]
    worst_ratio: float
    unamplified_ratio: float
    on_chip: float
    on_chip_averaged: float
    state_spread: float
    state_spread_averaged: float
    shuffled: float
    mvms: int


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How.
        report: Progress.

    Raises:
        LabrigError: The rig failed.
    """
    started_s = time.monotonic()
    size = _Size(epochs=3, chips=2) if settings.quick else _Size(epochs=40, chips=10)
    data = load_digits().first(400, 100) if settings.quick else load_digits()
    runs, chip_name = on_each_chip(
        settings,
        report,
        lambda seed: ChipSettings(seed=seed + 1, arrays=4),
        lambda seed, chip: _one_seed(seed, data, size, chip),
    )
    return finished("equilibrium", QUESTION, settings, _found(runs, data, size, chip_name), started_s)


def _one_seed(seed: int, data: ImageSet, size: _Size, chip: StudyChip) -> _Run:
    generator = torch.Generator().manual_seed(seed)
    iteration = Iteration(steps=_STEPS, averaged=1, backward_steps=_STEPS)
    equilibrium = _EquilibriumNetwork(generator, iteration)
    unrolled = _Unrolled(generator)
    for network in (equilibrium, unrolled):
        _train(network, data, size.epochs, generator)
    shuffled = _EquilibriumNetwork(generator, iteration)
    _train(shuffled, data.shuffled_labels(generator), max(size.epochs // 4, 2), generator)
    accuracies = {
        name: [
            mean([_accuracy_with_errors(network, data, level, _chip_generator(seed, c)) for c in range(size.chips)])
            for level in _LEVELS
        ]
        for name, network in (("equilibrium", equilibrium), ("unrolled", unrolled))
    }
    ratios = _bound_ratios(equilibrium, data, seed, size.chips)
    carried, backend = chip.carry(equilibrium.core, data.train_x[:256])
    assert isinstance(carried, Equilibrium)
    on_chip, spreads = {}, {}
    for averaged in (1, _AVERAGED):
        carried.iteration = Iteration(steps=_CHIP_STEPS, averaged=averaged, drive_reads=averaged)
        with torch.no_grad():
            reads = [carried(data.test_x) for _ in range(2)]
            on_chip[averaged] = 100.0 * float((equilibrium.readout(reads[0]).argmax(1) == data.test_y).float().mean())
        spreads[averaged] = float((reads[0] - reads[1]).std() * 0.5**0.5)
    return _Run(
        equilibrium=accuracies["equilibrium"],
        unrolled=accuracies["unrolled"],
        worst_ratio=ratios[0],
        unamplified_ratio=ratios[1],
        on_chip=on_chip[1],
        on_chip_averaged=on_chip[_AVERAGED],
        state_spread=spreads[1],
        state_spread_averaged=spreads[_AVERAGED],
        shuffled=100.0 * _accuracy(shuffled, data),
        mvms=backend.ledger.mvms,
    )


def _train(network: nn.Module, data: ImageSet, epochs: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3, weight_decay=1e-4)
    count = data.train_y.shape[0]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, eta_min=2e-4)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(count, generator=generator), 64):
            optimiser.zero_grad()
            torch.autograd.backward(loss_of(network(data.train_x[chosen]), data.train_y[chosen]))
            optimiser.step()
            if isinstance(network, _EquilibriumNetwork):
                bound_spectral_norm(_recurrence(network), _LIMIT)
        schedule.step()


@torch.no_grad()
def _accuracy(network: nn.Module, data: ImageSet) -> float:
    return float((network(data.test_x).argmax(dim=1) == data.test_y).float().mean())


def _accuracy_with_errors(network: nn.Module, data: ImageSet, level: float, generator: torch.Generator) -> float:
    """Accuracy in % with every matrix on arrays off by `level` of its largest weight, drawn once."""
    matrices = [p for name, p in network.named_parameters() if p.dim() == 2 and not name.startswith("readout")]
    clean = [matrix.detach().clone() for matrix in matrices]
    with torch.no_grad():
        for matrix, weight in zip(matrices, clean, strict=True):
            matrix.add_(level * weight.abs().max() * torch.randn(weight.shape, generator=generator))
        found = 100.0 * _accuracy(network, data)
        for matrix, weight in zip(matrices, clean, strict=True):
            matrix.copy_(weight)
    return found


def _bound_ratios(network: _EquilibriumNetwork, data: ImageSet, seed: int, chips: int) -> tuple[float, float]:
    """Largest distance that a fixed point moved, over its bound, and over that bound without the amplification.

    Errors of the recurrence alone, small enough that the programmed matrix still contracts.
    """
    core, weight = network.core, _recurrence(network)
    usual, core.iteration = core.iteration, Iteration(steps=400)
    bounded, unamplified = 0.0, 0.0
    with torch.no_grad():
        z, clean = core(data.test_x), weight.clone()
        for chip in range(chips):
            drawn = torch.randn(clean.shape, generator=_chip_generator(seed, chip))
            error = 0.01 * clean.abs().max() * drawn
            weight.copy_(clean + error)
            moved = torch.linalg.vector_norm((core(data.test_x) - z).double(), dim=1)
            bounded = max(bounded, float((moved / frozen_error_bound(error, clean, z)).max()))
            kick = torch.linalg.vector_norm(z.double() @ error.double().T, dim=1)
            unamplified = max(unamplified, float((moved / kick).max()))
        weight.copy_(clean)
    core.iteration = usual
    return bounded, unamplified


def _found(runs: list[_Run], data: ImageSet, size: _Size, chip_name: str) -> Found:
    judged = _LEVELS.index(_JUDGED)
    clean = of_mean([one.equilibrium[0] for one in runs], "%", "seeds")
    less = of_difference(
        [one.unrolled[0] - one.unrolled[judged] for one in runs],
        [one.equilibrium[0] - one.equilibrium[judged] for one in runs],
        "points",
        "seeds",
    )
    worst = max(one.worst_ratio for one in runs)
    ratio = exactly(worst, "", f"largest of {len(runs) * size.chips * len(data.test_y)} points")
    quieter = of_mean([one.state_spread_averaged / one.state_spread for one in runs], "", "seeds")
    alone = of_mean([one.unamplified_ratio for one in runs], "", "seeds")
    shuffled = of_mean([one.shuffled for one in runs], "%", "seeds")
    rows = tuple(
        (f"{100 * level:g} %", *(_cell([pick(one)[index] for one in runs]) for _, pick in _BOTH))
        for index, level in enumerate(_LEVELS)
    )
    chip_rows = (
        ("accuracy (%)", _cell([one.on_chip for one in runs]), _cell([one.on_chip_averaged for one in runs])),
        ("spread of a state", *(_cell(spread) for spread in _spreads(runs))),
        ("MVMs of a seed", float(runs[0].mvms), ""),
    )
    return Found(
        findings=(
            at_least("The equilibrium network reads 8 x 8 digits with 96 % or more", clean, 96.0),
            at_most("No fixed point moves further than |E z| / (1 - |W + E|) under a frozen error E", ratio, 1.0),
            at_least(f"At {100 * _JUDGED:g} % weight error it loses no more than the unrolled network", less, 0.0),
            at_most(
                "On the chip, averaging states and injections makes a state at least a third quieter",
                quieter,
                2.0 / 3.0,
            ),
        ),
        controls=(
            Control("that bound without what the recurrence amplifies, |E z|", "is exceeded", alone, alone.value > 1.0),
            Control("labels shuffled", "chance, 10 %", shuffled, shuffled.value < 20.0),
        ),
        tables=(
            Table("Accuracy in %, mean ± deviation over seeds", ("weight error", *(name for name, _ in _BOTH)), rows),
            Table("On the chip, as deployed", ("", "last state", f"mean of {_AVERAGED} states"), chip_rows),
        ),
        plots=(
            Plot(
                "Accuracy over the error of the weights",
                "standard deviation of the error (% of the largest weight)",
                "accuracy (%)",
                tuple(
                    Curve(
                        name,
                        tuple(100 * level for level in _LEVELS),
                        tuple(mean([pick(one)[i] for one in runs]) for i in range(len(_LEVELS))),
                        tuple(_half_width([pick(one)[i] for one in runs]) for i in range(len(_LEVELS))),
                    )
                    for name, pick in _BOTH
                ),
            ),
        ),
        conditions={
            "data": f"digits, {len(data.train_y)} to train on, {len(data.test_y)} to judge by",
            "networks": f"64 - {_STATES} - 10, {_STEPS} products of {_STATES} x {_STATES}, tanh; bound {_LIMIT:g}",
            "training": f"Adam, {size.epochs} epochs, without noise",
            "weight error": f"Gaussian, of the largest weight of each matrix, once for each of {size.chips} chips",
            "chip": chip_name,
        },
    )


_BOTH: tuple[tuple[str, Callable[[_Run], list[float]]], ...] = (
    ("equilibrium", lambda one: one.equilibrium),
    ("unrolled", lambda one: one.unrolled),
)


def _spreads(runs: list[_Run]) -> tuple[list[float], list[float]]:
    return [one.state_spread for one in runs], [one.state_spread_averaged for one in runs]


def _recurrence(network: _EquilibriumNetwork) -> Tensor:
    return network.core.recurrence.get_parameter("weight")


def _chip_generator(seed: int, chip: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + chip)


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                bound = (3.0 / module.in_features) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        if isinstance(network, _EquilibriumNetwork):
            bound_spectral_norm(_recurrence(network), _LIMIT)


def _half_width(values: list[float]) -> float:
    interval = of_mean(values, "", "")
    return interval.high - interval.value if len(values) > 1 else 0.0


def _cell(values: list[float]) -> str:
    spread = float(torch.tensor(values).std()) if len(values) > 1 else float("nan")
    return f"{mean(values):.4g} ± {spread:.2g}"
