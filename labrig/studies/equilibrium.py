"""`labrig study equilibrium`: does a recurrence on an array bear weight errors better than the same work unrolled?

Equations and bounds: `labrig_surrogates.models.equilibrium`. Both networks have as many products of a 48 x 48 matrix,
are trained alike without noise, and then meet the same weight errors, drawn once for each chip.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig.studies.cache import Numbers
from labrig.studies.chip import StudyChip, open_chip, without_drift, without_noise
from labrig.studies.intervals import exactly, half_width, mean, of_difference, of_mean
from labrig.studies.parts import Configuration
from labrig.studies.repeats import repeat, rig_of, seed_of
from labrig.studies.result import Control, Curve, Interval, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.settled_states import measured_cells, settle_on_chip
from labrig.training.datasets import ImageSet, load_digits
from labrig.training.physical import PhysicalBackend
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
# Seeds of chips that no measurement is of.
_OTHERS = 500_000


@dataclass(frozen=True)
class _Size:
    """How large it is; `settled` are the images whose fixed points are compared with what the chip's cells foretell."""

    epochs: int
    chips: int
    settled: int


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


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How.
        report: Progress.

    Raises:
        LabrigError: The rig failed.
        StorageError: The folder of finished parts cannot be written.
    """
    started_s = time.monotonic()
    repeats = repeat("equilibrium", settings, compute, report)
    with open_chip(settings.rig, _chip(settings.seed)) as chip:
        name = chip.name
    size, data = _sized(quick=settings.quick)
    found = _found(list(repeats.numbers), data, size, name)
    return finished("equilibrium", QUESTION, settings, repeats.noted(found), started_s)


def compute(part: Configuration) -> Numbers:
    """The numbers of one seed; accuracies in %."""
    seed = seed_of(part)
    size, data = _sized(quick=bool(part["quick"]))
    generator = torch.Generator().manual_seed(seed)
    iteration = Iteration(steps=_STEPS, averaged=1, backward_steps=_STEPS)
    equilibrium = _EquilibriumNetwork(generator, iteration)
    unrolled = _Unrolled(generator)
    for network in (equilibrium, unrolled):
        _train(network, data, size.epochs, generator)
    shuffled = _EquilibriumNetwork(generator, iteration)
    _train(shuffled, data.shuffled_labels(generator), max(size.epochs // 4, 2), generator)
    bounded, unamplified = _bound_ratios(equilibrium, data, seed, size.chips)
    found = {
        "bound": bounded,
        "unamplified": unamplified,
        "shuffled": 100.0 * _accuracy(shuffled, data),
        **{
            f"{name} {level:g}": mean(
                [_accuracy_with_errors(network, data, level, _chip_generator(seed, c)) for c in range(size.chips)]
            )
            for name, network in (("equilibrium", equilibrium), ("unrolled", unrolled))
            for level in _LEVELS
        },
    }
    with open_chip(rig_of(part), _chip(seed)) as chip:
        carried, backend = _carried(chip, equilibrium, data)
        for averaged in (1, _AVERAGED):
            carried.iteration = Iteration(steps=_CHIP_STEPS, averaged=averaged, drive_reads=averaged)
            with torch.no_grad():
                reads = [carried(data.test_x) for _ in range(2)]
                right = equilibrium.readout(reads[0]).argmax(1) == data.test_y
            found[f"on chip {averaged}"] = 100.0 * float(right.float().mean())
            found[f"spread {averaged}"] = float((reads[0] - reads[1]).std() * 0.5**0.5)
        x = data.test_x[: size.settled]
        cells = measured_cells(carried, x)
        settled = settle_on_chip(carried, equilibrium.core, cells, x)
        found |= {"mvms": float(backend.ledger.mvms), **settled.numbers}
    with open_chip(None, _chip(seed + _OTHERS)) as other:
        elsewhere, _ = _carried(other, equilibrium, data)
        found["foretold by another"] = settled.distance_from(measured_cells(elsewhere, x))
    with open_chip(None, without_noise(_chip(seed))) as silent:
        quiet, _ = _carried(silent, equilibrium, data)
        quiet.iteration = Iteration(steps=_CHIP_STEPS)
        with torch.no_grad():
            found["spread without noise"] = float((quiet(x) - quiet(x)).std() * 0.5**0.5)
    return found


def _sized(*, quick: bool) -> tuple[_Size, ImageSet]:
    if quick:
        return _Size(epochs=3, chips=2, settled=10), load_digits().first(400, 100)
    return _Size(epochs=40, chips=10, settled=100), load_digits()


def _chip(seed: int) -> ChipSettings:
    """Cells that keep what was written: what is averaged over many reads should be noise, and not drift."""
    return without_drift(ChipSettings(seed=seed + 1, arrays=4))


def _carried(chip: StudyChip, network: _EquilibriumNetwork, data: ImageSet) -> tuple[Equilibrium, PhysicalBackend]:
    carried, backend = chip.carry(network.core, data.train_x[:256])
    assert isinstance(carried, Equilibrium)
    return carried, backend


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


def _found(runs: list[Numbers], data: ImageSet, size: _Size, chip_name: str) -> Found:
    def mean_of(key: str, unit: str = "", scale: float = 1.0) -> Interval:
        return of_mean([scale * one[key] for one in runs], unit, "seeds")

    def largest(key: str, of: str) -> Interval:
        return exactly(max(one[key] for one in runs), "", f"largest of {of}")

    def lost(network: str) -> list[float]:
        return [one[f"{network} 0"] - one[f"{network} {_JUDGED:g}"] for one in runs]

    def ratio(key: str, to: str) -> Interval:
        return of_mean([one[key] / one[to] for one in runs], "", "seeds")

    points = f"{len(runs) * size.chips * len(data.test_y)} points"
    unamplified, shuffled = mean_of("unamplified"), mean_of("shuffled", "%")
    another, silent = ratio("foretold by another", "chip distance"), ratio("spread without noise", "spread 1")
    return Found(
        findings=(
            at_least(
                "The equilibrium network reads 8 x 8 digits with 96 % or more", mean_of("equilibrium 0", "%"), 96.0
            ),
            at_most(
                "No fixed point moves further than |E z| / (1 - |W + E|) under a frozen error E",
                largest("bound", points),
                1.0,
            ),
            at_most(
                "On the chip none settles further off than the errors of cells and columns, over 1 - |programmed W|",
                largest("chip bound", f"{len(runs) * size.settled} points"),
                1.0,
            ),
            at_most(
                "On the chip the measured cells foretell where it settles: within a tenth of the way it is off",
                ratio("foretold", "chip distance"),
                0.1,
            ),
            at_most(
                "On the chip fresh noise spreads a state by no more than sigma sqrt(states / (1 - |programmed W|^2))",
                largest("chip noise", f"{len(runs)} chips"),
                1.0,
            ),
            at_least(
                f"At {100 * _JUDGED:g} % weight error it loses no more than the unrolled network",
                of_difference(lost("unrolled"), lost("equilibrium"), "points", "seeds"),
                0.0,
            ),
            at_most(
                "On the chip, averaging states and injections makes a state at least a third quieter",
                ratio(f"spread {_AVERAGED}", "spread 1"),
                2.0 / 3.0,
            ),
        ),
        controls=(
            Control(
                "the first bound without what the recurrence amplifies, |E z|",
                "is exceeded",
                unamplified,
                unamplified.value > 1.0,
            ),
            Control(
                "wrong chip: where another one's cells would settle, over how far it is off",
                "foretells nothing, above 0.5",
                another,
                another.value > 0.5,
            ),
            Control("noise of the chip off: spread of a state", "is gone, below 0.01", silent, silent.value < 0.01),
            Control("labels shuffled", "chance, 10 %", shuffled, shuffled.value < 20.0),
        ),
        tables=(
            Table(
                "Accuracy in %, mean ± deviation over seeds",
                ("weight error", *_NETWORKS),
                tuple(
                    (f"{100 * level:g} %", *(_cell([one[f"{name} {level:g}"] for one in runs]) for name in _NETWORKS))
                    for level in _LEVELS
                ),
            ),
            Table(
                "On the chip, as deployed",
                ("", "last state", f"mean of {_AVERAGED} states"),
                tuple(
                    (name, *(_cell([one[f"{key} {averaged}"] for one in runs]) for averaged in (1, _AVERAGED)))
                    for name, key in (("accuracy (%)", "on chip"), ("spread of a state", "spread"))
                ),
            ),
            Table(
                "Where it settles on the chip",
                ("", "mean ± deviation over seeds"),
                tuple((name, _cell([one[key] for one in runs])) for name, key in _SETTLES),
            ),
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
                        tuple(mean([one[f"{name} {level:g}"] for one in runs]) for level in _LEVELS),
                        tuple(half_width([one[f"{name} {level:g}"] for one in runs]) for level in _LEVELS),
                    )
                    for name in _NETWORKS
                ),
            ),
        ),
        conditions={
            "data": f"digits, {len(data.train_y)} to train on, {len(data.test_y)} to judge by",
            "networks": f"64 - {_STATES} - 10, {_STEPS} products of {_STATES} x {_STATES}, tanh; bound {_LIMIT:g}",
            "training": f"Adam, {size.epochs} epochs, without noise",
            "weight error": f"Gaussian, of the largest weight of each matrix, once for each of {size.chips} chips",
            "chip": f"{chip_name}; a simulated one without drift",
        },
    )


_NETWORKS = ("equilibrium", "unrolled")
_SETTLES = (
    ("distance from the point that was meant", "chip distance"),
    ("distance from the point of the measured cells", "foretold"),
    ("distance from the point of another chip's cells", "foretold by another"),
    ("spectral norm of the programmed weights", "chip norm"),
    ("MVMs of a seed", "mvms"),
)


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


def _cell(values: list[float]) -> str:
    spread = float(torch.tensor(values).std()) if len(values) > 1 else float("nan")
    return f"{mean(values):.4g} ± {spread:.2g}"
