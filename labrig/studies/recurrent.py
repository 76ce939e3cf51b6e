"""`labrig study recurrent`: a recurrence on an array, with only its readout fitted or trained through time on the chip.

Equations: `labrig_surrogates.models.recurrent`. Tasks: NARMA-10 (Atiya and Parlos, IEEE Trans. Neural Networks 11,
2000), one step of the Mackey-Glass series (Science 197, 1977), and 8 x 8 digits row by row. Both kinds start from the
same random recurrence on the same chip, and both readouts are the ridge regression of what was measured there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labrig.studies.chip import StudyChip
from labrig.studies.intervals import exactly, mean, of_difference, of_mean
from labrig.studies.reads import response
from labrig.studies.result import Control, Curve, Interval, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.sequences import WASH_OUT, Amount, Sequences, digit_rows, mackey_glass, narma10
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.models.energy_based import stationary_covariance
from labrig_surrogates.models.recurrent import PhysicalRecurrence, noise_growth, scale_spectral_radius

QUESTION = "Does training a recurrence through time on the chip beat fitting its readout, and how does its noise grow?"

_STATES = 32
_RADIUS = 0.9
_RIDGE = 1e-4
_GROWTH_RADII = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class _Size:
    amount: Amount
    updates: int
    growth_steps: int


@dataclass(frozen=True)
class _Kept:
    """Errors of one seed on one task: normalised root mean square errors, or wrong answers in %."""

    readout: float
    trained: float
    digital: float
    shuffled: float
    passes: int
    mvms: int


@dataclass(frozen=True)
class _Growth:
    """Variance of a state over that of one step's noise: measured, solved for the measured cells, and by the law."""

    measured: float
    solved: float
    law: float


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How.
        report: Progress.

    Raises:
        LabrigError: The rig failed.
    """
    started_s = time.monotonic()
    size = _Size(Amount(8, 60, 64), 3, 40) if settings.quick else _Size(Amount(32, 120, 512), 60, 200)
    runs: dict[str, list[_Kept]] = {}
    grown: dict[float, list[_Growth]] = {radius: [] for radius in _GROWTH_RADII}
    chip_name, done, total = "", 0, settings.seeds * (len(_TASKS) + len(_GROWTH_RADII))
    for seed in settings.all_seeds:
        for make in _TASKS:
            report("seeds and tasks", done, total)
            with StudyChip(settings.rig, _chip(seed)) as chip:
                chip_name = chip.name
                task = make(size.amount, torch.Generator().manual_seed(seed + 500))
                runs.setdefault(task.name, []).append(_one(seed, task, size, chip))
            done += 1
        for radius in _GROWTH_RADII:
            report("seeds and tasks", done, total)
            with StudyChip(settings.rig, _chip(seed)) as chip:
                grown[radius].append(_growth(seed, radius, size, chip))
            done += 1
    report("seeds and tasks", done, total)
    return finished("recurrent", QUESTION, settings, _found(runs, grown, size, chip_name), started_s)


def _chip(seed: int) -> ChipSettings:
    # Fine converters, so that the noise of a state is noise and not rounding; cells that keep what was written.
    usual = ChipSettings(seed=seed + 1, arrays=2, adc_bits=14, dac_bits=14)
    return replace(usual, drift_exponent=0.0, drift_exponent_sigma=0.0)


_TASKS: tuple[Callable[[Amount, torch.Generator], Sequences], ...] = (narma10, mackey_glass, digit_rows)


def _one(seed: int, task: Sequences, size: _Size, chip: StudyChip) -> _Kept:
    generator = torch.Generator().manual_seed(seed)
    digital = _network(task, generator)
    carried, backend = chip.carry(_Steps(digital.recurrence, digital.injection), _example(digital, task))
    assert isinstance(carried, _Steps)
    # The readout stays digital, as on most rigs.
    network = PhysicalRecurrence(carried.recurrence, carried.injection, copy.deepcopy(digital.readout))
    readout = _fitted_error(network, task)
    unlearnt = copy.deepcopy(digital)
    shuffled = _fitted_error(unlearnt, _shuffled(task, generator))
    passes = _train(network, task, size.updates, generator)
    return _Kept(
        readout=readout,
        trained=_fitted_error(network, task),
        digital=_fitted_error(digital, task),
        shuffled=shuffled,
        passes=passes,
        mvms=backend.ledger.mvms,
    )


class _Steps(nn.Module):
    """One step of a recurrence, so that whoever puts it on arrays sees what its products are given."""

    def __init__(self, recurrence: nn.Module, injection: nn.Module) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.injection = injection

    def forward(self, states_and_inputs: Tensor) -> Tensor:
        """The fields of states beside inputs, `[batch, states + inputs]`."""
        state, inputs = states_and_inputs[:, :_STATES], states_and_inputs[:, _STATES:]
        field: Tensor = self.recurrence(state) + self.injection(inputs)
        return field


def _network(task: Sequences, generator: torch.Generator) -> PhysicalRecurrence:
    inputs, outputs = task.train_x.shape[2], task.train_y.shape[2]
    recurrence = nn.Linear(_STATES, _STATES, bias=False)
    injection = nn.Linear(inputs, _STATES)
    with torch.no_grad():
        recurrence.weight.normal_(generator=generator)
        scale_spectral_radius(recurrence.weight, _RADIUS)
        injection.weight.uniform_(-0.4, 0.4, generator=generator)
        injection.bias.uniform_(-0.2, 0.2, generator=generator)
    return PhysicalRecurrence(recurrence, injection, nn.Linear(_STATES, outputs))


@torch.no_grad()
def _example(network: PhysicalRecurrence, task: Sequences) -> Tensor:
    states = network.states(task.train_x).flatten(0, 1)
    return torch.cat([states, task.train_x.flatten(0, 1)], dim=1)[:2_000]


@torch.no_grad()
def _fitted_error(network: PhysicalRecurrence, task: Sequences) -> float:
    """Error on the test part with the readout fitted to what the training part gives."""
    trained = _judged(network, task.train_x, task)
    network.fit_readout(trained, _targets(task.train_y, task), _RIDGE)
    answer = network.readout(_judged(network, task.test_x, task))
    target = _targets(task.test_y, task)
    if task.classified:
        return 100.0 * float((answer.argmax(dim=-1) != target.argmax(dim=-1)).float().mean())
    return float(((answer - target).square().mean() / target.var()).sqrt())


def _judged(network: PhysicalRecurrence, x: Tensor, task: Sequences) -> Tensor:
    """The states that count: the last ones, or all after the beginning is washed out."""
    states = network.states(x)
    return states[:, -1:] if task.classified else states[:, WASH_OUT:]


def _targets(y: Tensor, task: Sequences) -> Tensor:
    return y if task.classified else y[:, WASH_OUT:]


def _shuffled(task: Sequences, generator: torch.Generator) -> Sequences:
    """Every sequence with the answers of another."""
    return replace(task, train_y=task.train_y[torch.randperm(len(task.train_y), generator=generator)])


def _train(network: PhysicalRecurrence, task: Sequences, updates: int, generator: torch.Generator) -> int:
    """Trains all of it through time: values as measured, gradients of ideal arrays at those values."""
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates, eta_min=2e-4)
    batch = 64 if task.classified else 16
    for _ in range(updates):
        chosen = torch.randperm(len(task.train_x), generator=generator)[:batch]
        answer = network.readout(_judged(network, task.train_x[chosen], task))
        target = _targets(task.train_y[chosen], task)
        if task.classified:
            loss = nn.functional.cross_entropy(4.0 * answer.flatten(0, 1), target.flatten(0, 1))
        else:
            loss = (answer - target).square().mean() / target.var()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        for matrix in weight_matrices(network):
            matrix.core.clip(matrix.weight)
    return updates * min(batch, len(task.train_x))


@torch.no_grad()
def _growth(seed: int, radius: float, size: _Size, chip: StudyChip) -> _Growth:
    """Runs a linear recurrence of one radius from many equal states, and looks how far they come apart."""
    generator = torch.Generator().manual_seed(seed + 9_000)
    turned, _ = torch.linalg.qr(torch.randn((_STATES, _STATES), generator=generator))
    layer = nn.Linear(_STATES, _STATES, bias=False)
    layer.weight.copy_(radius * turned)
    # As wide as noise makes a state in the end, several times over, so that none is clipped.
    carried, _ = chip.carry(layer, torch.full((1, _STATES), 1.0))
    cells = response(carried, amplitude=0.5, reads=64)
    chains = 256
    state = torch.zeros((chains, _STATES))
    steps = carried(state.repeat(16, 1))
    centre = steps.mean(dim=0)
    one = torch.cov((steps - centre).T.double())
    kept = []
    for step in range(size.growth_steps):
        # The offset of each column is known and taken off, or it would carry the states away.
        state = carried(state) - centre
        if step >= size.growth_steps // 2:
            kept.append(state.double())
    spread = torch.stack(kept)
    measured = float((spread - spread.mean(dim=1, keepdim=True)).square().mean() * chains / (chains - 1))
    solved = float(stationary_covariance(cells.double(), one).diagonal().mean())
    alone = float(one.diagonal().mean())
    return _Growth(measured / alone, solved / alone, noise_growth(radius))


def _found(runs: dict[str, list[_Kept]], grown: dict[float, list[_Growth]], size: _Size, chip_name: str) -> Found:
    findings, controls = [], []
    for name, found in runs.items():
        better = of_difference([one.readout for one in found], [one.trained for one in found], "", "seeds")
        relative = _scaled(better, 100.0 / mean([one.readout for one in found]))
        findings.append(at_least(f"{name}: trained through time it errs less than readout only", relative, 0.0))
        shuffled = of_mean([one.shuffled for one in found], "", "seeds")
        chance = 80.0 if name.startswith("digits") else 0.9
        controls.append(
            Control(f"{name}: answers of other sequences", "nothing is learnt", shuffled, shuffled.value > chance)
        )
    off = [abs(one.measured / one.solved - 1.0) for values in grown.values() for one in values]
    worst = 100.0 * max(off)
    exact = exactly(worst, "%", f"largest of {len(off)} chips and radii")
    findings.append(
        at_most("A state is as noisy as the measured cells make one step's noise, within 10 %", exact, 10.0)
    )
    by_law = [100.0 * abs(mean([one.measured / one.law for one in grown[radius]]) - 1.0) for radius in _GROWTH_RADII]
    law = exactly(max(by_law), "%", f"largest of {len(by_law)} radii, mean of seeds")
    findings.append(at_most("It grows as 1 / (1 - radius^2) of the weights as they were meant, within 25 %", law, 25.0))
    ends = (_GROWTH_RADII[-1], _GROWTH_RADII[0])
    ratio = of_mean([a.measured / b.measured for a, b in zip(*(grown[r] for r in ends), strict=True)], "", "seeds")
    controls.append(Control("a recurrence that forgets sooner", "is at least twice as quiet", ratio, ratio.value > 2.0))
    return Found(
        findings=tuple(findings),
        controls=tuple(controls),
        tables=(
            Table(
                "Error on test sequences: NRMSE, for digits wrong answers in %",
                (
                    "task",
                    "readout only, chip",
                    "trained on the chip",
                    "readout only, no chip",
                    "passes",
                ),
                tuple(
                    (
                        name,
                        str(of_mean([one.readout for one in found], "", "seeds")),
                        str(of_mean([one.trained for one in found], "", "seeds")),
                        str(of_mean([one.digital for one in found], "", "seeds")),
                        float(found[0].passes),
                    )
                    for name, found in runs.items()
                ),
            ),
            Table(
                "Variance of a state over that of one step's noise, mean of seeds",
                ("radius", "measured", "of the measured cells", "1 / (1 - radius^2)"),
                tuple(
                    (
                        f"{radius:g}",
                        mean([one.measured for one in values]),
                        mean([one.solved for one in values]),
                        values[0].law,
                    )
                    for radius, values in grown.items()
                ),
            ),
        ),
        plots=(
            Plot(
                "How noise grows",
                "spectral radius",
                "variance of a state over that of one step's noise",
                tuple(
                    Curve(kind, _GROWTH_RADII, tuple(mean([pick(one) for one in grown[r]]) for r in _GROWTH_RADII))
                    for kind, pick in _PICKS
                ),
                log_y=True,
            ),
        ),
        conditions={
            "recurrence": f"{_STATES} states, tanh, spectral radius {_RADIUS:g} at first",
            "series": f"{size.amount.series} to train on, as many to judge by, {size.amount.length} values of each",
            "training": f"{size.updates} updates through time, Adam; readout by ridge regression of measured states",
            "chip": chip_name,
        },
    )


_PICKS: tuple[tuple[str, Callable[[_Growth], float]], ...] = (
    ("measured", lambda one: one.measured),
    ("of the measured cells", lambda one: one.solved),
    ("1 / (1 - radius^2)", lambda one: one.law),
)


def _scaled(interval: Interval, factor: float) -> Interval:
    """A difference in % of what it is a difference from."""
    return replace(
        interval, value=factor * interval.value, low=factor * interval.low, high=factor * interval.high, unit="%"
    )
