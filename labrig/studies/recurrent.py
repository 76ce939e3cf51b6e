"""`labrig study recurrent`: a recurrence on an array, with only its readout fitted or trained through time on the chip.

Equations: `labrig_surrogates.models.recurrent`. Tasks: NARMA-10 (Atiya and Parlos, IEEE Trans. Neural Networks 11,
2000), one step of the Mackey-Glass series (Science 197, 1977), and 8 x 8 digits row by row. Both kinds start from the
same random recurrence on the same chip, and both readouts are the ridge regression of what was measured there.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from labrig.studies.cache import Numbers
from labrig.studies.chip import StudyChip, open_chip, without_drift
from labrig.studies.growth_findings import growth_found
from labrig.studies.intervals import mean, of_difference, of_mean
from labrig.studies.parts import Configuration
from labrig.studies.repeats import Repeats, repeat, rig_of, seed_of
from labrig.studies.result import Control, Interval, StudyResult, Table, at_least
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.studies.sequences import WASH_OUT, Amount, Sequences, digit_rows, mackey_glass, narma10
from labrig.studies.state_noise import corrected, orthogonal_weights, state_noise, written
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.layers import weight_matrices
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


_QUICK = _Size(Amount(8, 60, 64), 3, 40)
_USUAL = _Size(Amount(32, 120, 512), 60, 400)
# Seeds of chips that no measurement is of.
_OTHERS = 500_000


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
    kinds = [{"task": name} for name in _TASKS] + [{"radius": radius} for radius in _GROWTH_RADII]
    repeats = repeat("recurrent", settings, compute, report, kinds)
    with open_chip(settings.rig, _chip(settings.seed)) as chip:
        name = chip.name
    size = _QUICK if settings.quick else _USUAL
    return finished("recurrent", QUESTION, settings, repeats.noted(_found(repeats, size, name)), started_s)


def compute(part: Configuration) -> Numbers:
    """The numbers of one task or one radius, for one seed."""
    seed, size = seed_of(part), _QUICK if part["quick"] else _USUAL
    with open_chip(rig_of(part), _chip(seed)) as chip:
        if "task" in part:
            task = _TASKS[str(part["task"])](size.amount, torch.Generator().manual_seed(seed + 500))
            return _one(seed, task, size, chip)
        with open_chip(None, _chip(seed + _OTHERS)) as other:
            return _growth(seed, cast(float, part["radius"]), size.growth_steps, chip, other)


def _chip(seed: int) -> ChipSettings:
    # Fine converters, so that the noise of a state is noise and not rounding; cells that keep what was written.
    return without_drift(ChipSettings(seed=seed + 1, arrays=2, adc_bits=14, dac_bits=14))


_TASKS: dict[str, Callable[[Amount, torch.Generator], Sequences]] = {
    "NARMA-10": narma10,
    "Mackey-Glass": mackey_glass,
    "digits by rows": digit_rows,
}


def _one(seed: int, task: Sequences, size: _Size, chip: StudyChip) -> Numbers:
    """Errors on one task: normalised root mean square errors, or wrong answers in %; and what they cost."""
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
    return {
        "readout": readout,
        "trained": _fitted_error(network, task),
        "digital": _fitted_error(digital, task),
        "shuffled": shuffled,
        "passes": float(passes),
        "mvms": float(backend.ledger.mvms),
    }


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


def _growth(seed: int, radius: float, steps: int, chip: StudyChip, other: StudyChip) -> Numbers:
    """Noise of states on cells as they were written, and on corrected ones; nothing of cells that do not contract."""
    weight = orthogonal_weights(_STATES, radius, torch.Generator().manual_seed(seed + 9_000))
    cells, found = written(weight, chip), dict[str, float]()
    if cells.radius < 1.0:
        noise = state_noise(cells.layer, _STATES, steps)
        wrong = written(weight, other)
        found = {
            "measured": noise.measured,
            "solved": noise.foretold(cells.matrix),
            "gain": noise_growth(cells.gain),
            "radius": noise_growth(cells.radius),
            "wrong": noise.foretold(wrong.matrix) if wrong.radius < 1.0 else math.inf,
        }
    cells = corrected(cells, weight)
    if cells.radius < 1.0:
        found["corrected"] = state_noise(cells.layer, _STATES, steps).measured
    return found


def _found(repeats: Repeats, size: _Size, chip_name: str) -> Found:
    runs = {name: repeats.of(task=name) for name in _TASKS}
    growth = growth_found({radius: repeats.of(radius=radius) for radius in _GROWTH_RADII})
    findings, controls = [], []
    for name, found in runs.items():
        better = of_difference([one["readout"] for one in found], [one["trained"] for one in found], "", "seeds")
        relative = _scaled(better, 100.0 / mean([one["readout"] for one in found]))
        findings.append(at_least(f"{name}: trained through time it errs less than readout only", relative, 0.0))
        shuffled = of_mean([one["shuffled"] for one in found], "", "seeds")
        chance = 80.0 if name.startswith("digits") else 0.9
        controls.append(
            Control(f"{name}: answers of other sequences", "nothing is learnt", shuffled, shuffled.value > chance)
        )
    return Found(
        findings=(*findings, *growth.findings),
        controls=(*controls, *growth.controls),
        tables=(
            Table(
                "Error on test sequences: NRMSE, for digits wrong answers in %",
                ("task", "readout only, chip", "trained on the chip", "readout only, no chip", "passes"),
                tuple(
                    (
                        name,
                        *(
                            str(of_mean([one[kind] for one in found], "", "seeds"))
                            for kind in ("readout", "trained", "digital")
                        ),
                        found[0]["passes"],
                    )
                    for name, found in runs.items()
                ),
            ),
            *growth.tables,
        ),
        plots=growth.plots,
        conditions={
            "recurrence": f"{_STATES} states, tanh, spectral radius {_RADIUS:g} at first",
            "series": f"{size.amount.series} to train on, as many to judge by, {size.amount.length} values of each",
            "training": f"{size.updates} updates through time, Adam; readout by ridge regression of measured states",
            "chip": chip_name,
            **growth.conditions,
        },
    )


def _scaled(interval: Interval, factor: float) -> Interval:
    """A difference in % of what it is a difference from."""
    return replace(
        interval, value=factor * interval.value, low=factor * interval.low, high=factor * interval.high, unit="%"
    )
