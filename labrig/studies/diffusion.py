"""`labrig study diffusion`: a sampler that counts the array's noise towards what it has to add.

Equations: `labrig_surrogates.models.diffusion`. A denoiser is trained without a chip, then fine-tuned in the loop so
that gains and errors of cells are taken up by its weights; what is left of the chip is its read noise. Ancestral
sampling has to add noise in every step anyway: with matching, what the denoiser brought is not added a second time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from labrig.studies.cache import Numbers
from labrig.studies.chip import StudyChip, open_chip, without_drift
from labrig.studies.intervals import half_width, mean, of_difference, of_mean
from labrig.studies.parts import Configuration
from labrig.studies.repeats import repeat, rig_of, seed_of
from labrig.studies.result import Control, Curve, Plot, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.training.datasets import load_digits
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.models.diffusion import (
    Denoiser,
    DenoisingNetwork,
    NoiseLevels,
    denoising_loss,
    sample,
    sliced_wasserstein2,
)
from labrig_surrogates.models.hardware_noise import PseudoNormal

QUESTION = "Can a diffusion sampler use the noise of the array that its denoiser is on?"

# Read noise of the simulated chip, as a multiple of what it usually has.
_NOISIER = (1.0, 3.0, 8.0)
_DIGITAL, _UNMATCHED, _MATCHED, _WRONG = "digital", "chip, as it is", "chip, matched", "chip, matched to ten times"


@dataclass(frozen=True)
class _Task:
    """What is to be sampled.

    Attributes:
        name: For the reader.
        draw: Clean data, `[count, size]`.
        size: Components.
        hidden: Width of the denoiser's two hidden layers.
        arrays: Arrays of 64 x 64 that it takes.
        levels: Noise levels.
    """

    name: str
    draw: Callable[[int, torch.Generator], Tensor]
    size: int
    hidden: int
    arrays: int
    levels: NoiseLevels


@dataclass(frozen=True)
class _Size:
    """How large it is: updates without a chip, on it, and of what is digital alone; samples, and steps of each."""

    updates: int
    chip_updates: int
    digital_updates: int
    batch: int
    samples: int
    steps: int


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
    tasks = list(_tasks())[:1] if settings.quick else list(_tasks())
    noisier = _NOISIER[-1:] if settings.quick or settings.rig is not None else _NOISIER
    kinds = [{"task": name, "noisier": noisier} for name in tasks]
    repeats = repeat("diffusion", settings, compute, report, kinds)
    with open_chip(settings.rig, _noisy_chip(settings.seed, _tasks()[tasks[-1]], noisier[0])) as chip:
        name = chip.name
    runs = {
        (task, times): [_of_chip(one, times) for one in repeats.of(task=task)] for task in tasks for times in noisier
    }
    found = _found(runs, _sized(quick=settings.quick), name)
    return finished("diffusion", QUESTION, settings, repeats.noted(found), started_s)


def compute(part: Configuration) -> Numbers:
    """The numbers of one seed and task on all its chips, their noise in front of each name."""
    seed, task, size = seed_of(part), _tasks()[str(part["task"])], _sized(quick=bool(part["quick"]))
    digital, found = _trained(task, size, seed), Numbers()
    for times in cast(Sequence[float], part["noisier"]):
        with open_chip(rig_of(part), _noisy_chip(seed, task, times)) as chip:
            one = _one(seed, task, size, digital, chip)
        found |= {f"{times:g} {name}": value for name, value in one.items()}
    return found


def _of_chip(numbers: Numbers, times: float) -> Numbers:
    """What is of the chip with so much noise."""
    mine = f"{times:g} "
    return {name.removeprefix(mine): value for name, value in numbers.items() if name.startswith(mine)}


def _sized(*, quick: bool) -> _Size:
    if quick:
        return _Size(updates=200, chip_updates=4, digital_updates=4, batch=128, samples=500, steps=8)
    return _Size(updates=4_000, chip_updates=80, digital_updates=200, batch=128, samples=1_000, steps=16)


def _tasks() -> dict[str, _Task]:
    plane = NoiseLevels(data_std=0.7, low=0.02, high=10.0)
    tasks = (
        _Task("eight normals", _eight_normals, 2, 32, 5, plane),
        _Task("two rings", _two_rings, 2, 32, 5, plane),
        _Task("digits", _digits, 64, 64, 10, NoiseLevels(data_std=0.35, low=0.05, high=5.0)),
    )
    return {task.name: task for task in tasks}


def _noisy_chip(seed: int, task: _Task, times: float) -> ChipSettings:
    """A chip that was written with care, so that what samples suffer from is its noise."""
    usual = without_drift(ChipSettings(seed=seed + 1, arrays=task.arrays, adc_bits=12))
    return replace(
        usual,
        programming_scale=0.1 * usual.programming_scale,
        mismatch_sigma=0.1 * usual.mismatch_sigma,
        stuck_fraction=0.0,
        amplifier_noise_a=times * usual.amplifier_noise_a,
        conductance_noise=min(times, 4.0) * usual.conductance_noise,
    )


def _eight_normals(count: int, generator: torch.Generator) -> Tensor:
    """Eight narrow normal distributions on a circle of radius one (Grathwohl et al., ICLR 2019)."""
    turn = 2.0 * torch.pi * torch.randint(8, (count,), generator=generator) / 8.0
    centre = torch.stack([torch.cos(turn), torch.sin(turn)], dim=1)
    return centre + 0.05 * torch.randn((count, 2), generator=generator)


def _two_rings(count: int, generator: torch.Generator) -> Tensor:
    """Two thin rings around each other, with as many points each."""
    turn = 2.0 * torch.pi * torch.rand(count, generator=generator)
    radius = torch.where(torch.rand(count, generator=generator) < 0.5, 0.5, 1.2)
    point = radius[:, None] * torch.stack([torch.cos(turn), torch.sin(turn)], dim=1)
    return point + 0.05 * torch.randn((count, 2), generator=generator)


def _digits(count: int, generator: torch.Generator) -> Tensor:
    """Training images of 8 x 8 digits, from -0.5 to 0.5, with a little noise between their 17 levels."""
    images = load_digits().train_x
    chosen = images[torch.randint(len(images), (count,), generator=generator)]
    return chosen - 0.5 + 0.02 * torch.randn(chosen.shape, generator=generator)


def _trained(task: _Task, size: _Size, seed: int) -> DenoisingNetwork:
    generator = torch.Generator().manual_seed(seed)
    network = DenoisingNetwork(task.size, task.hidden, 2, task.levels, generator)
    _train(network, task, size.updates, size.batch, 2e-3, generator)
    return network


def _train(
    network: DenoisingNetwork, task: _Task, updates: int, batch: int, rate: float, generator: torch.Generator
) -> None:
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates, eta_min=0.02 * rate)
    for _ in range(updates):
        optimiser.zero_grad()
        torch.autograd.backward(denoising_loss(network, task.draw(batch, generator), generator))
        optimiser.step()
        schedule.step()


def _one(seed: int, task: _Task, size: _Size, digital: DenoisingNetwork, chip: StudyChip) -> Numbers:
    """Squared sliced distances from fresh data, by kind of sampler; and what the chip brings, and costs."""
    generator = torch.Generator().manual_seed(seed + 1_000)
    carried = copy.deepcopy(digital)
    on_arrays, backend = chip.carry(digital.net, _features(digital, task, generator))
    assert isinstance(on_arrays, nn.Sequential)
    carried.net = on_arrays
    _train(carried, task, size.chip_updates, size.batch, 1e-3, generator)
    # What the last write was off by cannot be learnt while writing: the rest is done by what is digital.
    for matrix in weight_matrices(carried):
        matrix.weight.requires_grad = False
    _train(carried, task, size.digital_updates, size.batch, 1e-3, generator)
    ladder = task.levels.ladder(size.steps)
    with torch.no_grad():
        measured = _measured_variance(carried, task, ladder[:-1].tolist(), generator)

    def many_times(level: float) -> float:
        return 10.0 * measured[level]

    fresh = task.draw(size.samples, generator)
    start = task.levels.high * torch.randn((size.samples, task.size), generator=generator)
    distance, share, overspent = {}, 0.0, 0
    kinds: tuple[tuple[str, Denoiser, Callable[[float], float] | None], ...] = (
        (_DIGITAL, digital, None),
        (_UNMATCHED, carried, None),
        (_MATCHED, carried, measured.__getitem__),
        (_WRONG, carried, many_times),
    )
    for kind, denoiser, variance in kinds:
        # The same start and the same draws for all: what differs is the sampler.
        source = PseudoNormal(torch.Generator().manual_seed(seed + 2_000))
        found, budget = sample(denoiser, start, ladder, source, hardware_variance=variance)
        distance[kind] = _distance(found, fresh, seed)
        if kind == _MATCHED:
            wanted = budget.required > 0
            share = float((budget.hardware[wanted] / budget.required[wanted]).max())
            overspent = int((budget.hardware[wanted] > budget.required[wanted]).sum())
    columns = [fresh[torch.randperm(len(fresh), generator=generator), i] for i in range(task.size)]
    middle = float(ladder[size.steps // 2])
    return {
        **distance,
        "fresh": _distance(task.draw(size.samples, generator), fresh, seed),
        "shuffled": _distance(torch.stack(columns, dim=1), fresh, seed),
        "share": share,
        "overspent": float(overspent),
        "noise": measured[middle] ** 0.5 / middle,
        "mvms": float(backend.ledger.mvms),
        "writes": float(backend.ledger.writes),
    }


@torch.no_grad()
def _features(network: DenoisingNetwork, task: _Task, generator: torch.Generator) -> Tensor:
    """What the linear layers are given at the levels of training, `[count, features]`."""
    seen: list[Tensor] = []
    hook = network.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        denoising_loss(network, task.draw(512, generator), generator)
    finally:
        hook.remove()
    return seen[0]


def _distance(samples: Tensor, data: Tensor, seed: int) -> float:
    return sliced_wasserstein2(samples, data, torch.Generator().manual_seed(seed + 3_000))


def _measured_variance(
    denoiser: Denoiser, task: _Task, levels: Sequence[float], generator: torch.Generator
) -> dict[float, float]:
    """Variance of a component of the denoised data from read to read, at each level: half that of a difference."""
    found = {}
    for level in levels:
        clean = task.draw(128, generator)
        noisy = clean + level * torch.randn(clean.shape, generator=generator)
        at = noisy.new_full((len(noisy),), level)
        found[level] = float((denoiser(noisy, at) - denoiser(noisy, at)).square().mean() / 2.0)
    return found


def _found(runs: dict[tuple[str, float], list[Numbers]], size: _Size, chip_name: str) -> Found:
    levels = sorted({times for _, times in runs})
    quietest, noisiest = levels[0], levels[-1]
    findings, controls, plots = [], [], []
    for name in dict.fromkeys(task for task, _ in runs):
        for times in levels[-2:]:
            noisy = runs[name, times]
            saved = of_difference(_all(noisy, _UNMATCHED), _all(noisy, _MATCHED), "", "seeds")
            findings.append(at_least(f"{name}: matching brings samples nearer, {times:g} times noisier", saved, 0.0))
        quiet = runs[name, quietest]
        ratio = of_mean([one[_MATCHED] / one[_DIGITAL] for one in quiet], "", "seeds")
        findings.append(at_most(f"{name}: on the chip, matched, at most twice as far as digital", ratio, 2.0))
        shuffled = of_mean([one["shuffled"] / one["fresh"] for one in quiet], "", "seeds")
        controls.append(
            Control(
                f"{name}: components shuffled among samples",
                "further from the data than fresh data",
                shuffled,
                shuffled.value > 1.0,
            )
        )
        worse = of_difference(_all(runs[name, noisiest], _WRONG), _all(runs[name, noisiest], _MATCHED), "", "seeds")
        controls.append(
            Control(
                f"{name}: matched to ten times the noise",
                "further from the data than matched",
                worse,
                worse.value > 0.0,
            )
        )
        plots.append(
            Plot(
                f"{name}: distance from the data over the noise of the chip",
                "read noise of the chip, multiples of the usual one",
                "squared sliced Wasserstein distance",
                tuple(
                    Curve(
                        kind,
                        tuple(levels),
                        tuple(mean(_all(runs[name, times], kind)) for times in levels),
                        tuple(half_width(_all(runs[name, times], kind)) for times in levels),
                    )
                    for kind in (_DIGITAL, _UNMATCHED, _MATCHED)
                ),
                log_x=True,
                log_y=True,
            )
        )
    kinds = ("fresh", _DIGITAL, _UNMATCHED, _MATCHED, _WRONG)
    brings = ("noise", "share", "overspent")
    return Found(
        findings=tuple(findings),
        controls=tuple(controls),
        tables=(
            Table(
                "Squared sliced Wasserstein distance from fresh data, mean of seeds",
                ("data, noise of the chip", "fresh data", *kinds[1:]),
                tuple(
                    (f"{name}, {times:g} times", *(mean(_all(found, kind)) for kind in kinds))
                    for (name, times), found in runs.items()
                ),
            ),
            Table(
                "What the chip brings",
                (
                    "data, noise of the chip",
                    "noise of the denoised data over the level",
                    "largest part of a step's noise",
                    "steps with more than wanted",
                    "MVMs of a seed",
                    "writes of a seed",
                ),
                tuple(
                    (
                        f"{name}, {times:g} times",
                        *(mean(_all(found, key)) for key in brings),
                        found[0]["mvms"],
                        found[0]["writes"],
                    )
                    for (name, times), found in runs.items()
                ),
            ),
        ),
        plots=tuple(plots),
        conditions={
            "sampler": f"ancestral, {size.steps} steps, {size.samples} samples, the same start and draws for all",
            "training": f"{size.updates} updates of {size.batch} without the chip, {size.chip_updates} in the loop, "
            f"{size.digital_updates} of what is digital alone",
            "chip": f"{chip_name}; programming and mismatch a tenth of the usual, no stuck cells, no drift",
        },
    )


def _all(runs: list[Numbers], kind: str) -> list[float]:
    return [one[kind] for one in runs]
