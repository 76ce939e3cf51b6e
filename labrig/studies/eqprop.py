"""`labrig study eqprop`: learning from two settled states on one array, and the read noise at which it breaks.

Equations: `labrig_surrogates.models.equilibrium_propagation`. The network 64 - 64 - 10 learns 8 x 8 digits three ways:
with exact products; with products that read noise was added to; and, with what it learnt exactly, on a chip that it
goes on learning on. The chip's way down is either the same cells read from their other side, or a block of cells that
was programmed apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labrig.studies.chip import StudyChip, on_each_chip
from labrig.studies.intervals import of_difference, of_mean
from labrig.studies.reads import NoisyProduct, response
from labrig.studies.result import Control, Curve, Plot, StudyResult, Table, at_least
from labrig.studies.reversed_reads import ReversedReads
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.training.datasets import ImageSet, load_digits
from labrig_drivers.capabilities import TRANSPOSED_MVM
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.layers import AnalogLinear, weight_matrices
from labrig_surrogates.models.equilibrium_propagation import (
    EquilibriumPropagation,
    Relaxation,
    SymmetricWeights,
    asymmetry,
)
from labrig_surrogates.models.hardware_noise import PseudoNormal

QUESTION = "Does an array learn from its own settled states, and at which read noise does that break?"

_SIZES = (64, 64, 10)
_RATES = (0.1, 0.04)
# With the usual initial weights the two layers excite each other until most units are at a bound and learn nothing.
_INITIAL_SCALE = 0.5
_WEIGHT_LIMIT = 0.5
_BATCH = 16
# Standard deviation of the read noise over the root mean square of a product.
_NOISES = (0.0, 0.03, 0.1, 0.3, 1.0)
_NUDGES = (0.1, 0.3, 1.0)
_JUDGED_NOISE = 0.1
_RELAXATION = Relaxation(free_steps=30, nudged_steps=8)
# Where the estimate is the gradient: a small nudge and all the time to settle.
_LIMIT = Relaxation(free_steps=400, nudged_steps=400, nudge=0.01)
_CHIP_RELAXATION = Relaxation(free_steps=15, nudged_steps=6)
_BLOCKS, _TWO_SIDED = "blocks programmed apart", "the same cells both ways"


@dataclass(frozen=True)
class _Size:
    epochs: int
    noisy_epochs: int
    chip_epochs: int


@dataclass(frozen=True)
class _OnChip:
    deployed: float
    accuracy: float
    asymmetry: float
    mvms: int
    writes: int


@dataclass(frozen=True)
class _Run:
    """What one seed gives; accuracies in %."""

    clean: float
    shuffled: float
    cosine: float
    noisy: dict[tuple[float, float, int], float]
    chip: dict[str, _OnChip]
    chip_noise: float


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How.
        report: Progress.

    Raises:
        LabrigError: The rig failed.
    """
    started_s = time.monotonic()
    size = _Size(2, 1, 1) if settings.quick else _Size(30, 6, 2)
    data = load_digits().first(200, 100) if settings.quick else load_digits()
    runs, chip_name = on_each_chip(
        settings, report, _chip, lambda seed, chip: _one_seed(seed, data, size, chip, quick=settings.quick)
    )
    return finished("eqprop", QUESTION, settings, _found(runs, data, size, chip_name), started_s)


def _chip(seed: int) -> ChipSettings:
    """Cells that keep what was written: a relaxation takes thousands of reads, and ages nothing by itself."""
    return ChipSettings(seed=seed + 1, arrays=7, drift_exponent=0.0, drift_exponent_sigma=0.0)


def _one_seed(seed: int, data: ImageSet, size: _Size, chip: StudyChip, *, quick: bool) -> _Run:
    generator = torch.Generator().manual_seed(seed)
    network = _network(generator, _RELAXATION)
    cosine = _cosine_with_settled_loss(network, data)
    _train(network, data, size.epochs, generator)
    shuffled = _network(generator, _RELAXATION)
    _train(shuffled, data.shuffled_labels(generator), max(size.epochs // 4, 2), generator)
    noisy = {}
    for noise in (_NOISES[0], _JUDGED_NOISE) if quick else _NOISES:
        for nudge, reads in _SETTINGS:
            noisy[noise, nudge, reads] = _accuracy_with_noise(seed, data, size, (noise, nudge, reads))
    on_chip, levels = {}, []
    for form in (_BLOCKS, _TWO_SIDED) if TRANSPOSED_MVM in chip.info.capabilities else (_BLOCKS,):
        on_chip[form], level = _learn_on_chip(seed, data, size.chip_epochs, chip, network, form)
        levels.append(level)
    return _Run(
        clean=_accuracy(network, data),
        shuffled=_accuracy(shuffled, data),
        cosine=cosine,
        noisy=noisy,
        chip=on_chip,
        chip_noise=levels[-1],
    )


# Nudge and reads of each nudged phase, as they are compared.
_SETTINGS = (*((nudge, 1) for nudge in _NUDGES), (0.1, 4))


def _network(generator: torch.Generator, relaxation: Relaxation) -> EquilibriumPropagation:
    network = EquilibriumPropagation(_SIZES, generator, relaxation)
    with torch.no_grad():
        for layer in network.layers:
            assert isinstance(layer, SymmetricWeights)
            layer.weight.mul_(_INITIAL_SCALE)
            layer.tie()
    return network


def _train(
    network: EquilibriumPropagation, data: ImageSet, epochs: int, generator: torch.Generator, *, reads: int = 1
) -> None:
    targets = torch.nn.functional.one_hot(data.train_y, 10).float()
    for epoch in range(epochs):
        # A linear fall of the rate, to a tenth.
        share = 1.0 - 0.9 * epoch / max(epochs - 1, 1)
        for chosen in torch.split(torch.randperm(len(targets), generator=generator), _BATCH):
            gradients = network.gradients(data.train_x[chosen], targets[chosen], reads=reads)
            network.descend(gradients, [share * rate for rate in _RATES], _WEIGHT_LIMIT)
            _write(network)


def _write(network: EquilibriumPropagation) -> None:
    """Has a chip take the new weights: before anything comes down through cells, they have to hold them."""
    for layer in network.layers:
        if isinstance(layer, SymmetricWeights) and isinstance(layer.down, ReversedReads):
            layer.up(torch.zeros((1, layer.weight.shape[1])))


def _accuracy(network: EquilibriumPropagation, data: ImageSet) -> float:
    return 100.0 * float((network(data.test_x).argmax(dim=1) == data.test_y).float().mean())


def _accuracy_with_noise(seed: int, data: ImageSet, size: _Size, setting: tuple[float, float, int]) -> float:
    noise, nudge, reads = setting
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    network = _network(generator, replace(_RELAXATION, nudge=nudge))
    source = PseudoNormal(generator)
    for layer in network.layers:
        assert isinstance(layer, SymmetricWeights)
        for name in ("up", "down"):
            way = getattr(layer, name)
            if isinstance(way, nn.Linear):
                setattr(layer, name, NoisyProduct(way, noise, source))
    _train(network, data, size.noisy_epochs, generator, reads=reads)
    return _accuracy(network, data)


def _learn_on_chip(
    seed: int, data: ImageSet, epochs: int, chip: StudyChip, digital: EquilibriumPropagation, form: str
) -> tuple[_OnChip, float]:
    """Deploys what was learnt with exact products, and goes on learning; also the chip's noise over a product."""
    carried, backend = chip.carry(digital, data.train_x[:64])
    assert isinstance(carried, EquilibriumPropagation)
    carried.relaxation = _CHIP_RELAXATION
    for matrix in weight_matrices(carried):
        matrix.core.set_ranges(weight_max=_WEIGHT_LIMIT, input_max=1.0)
    layers = [layer for layer in carried.layers if isinstance(layer, SymmetricWeights)]
    if form == _TWO_SIDED:
        for layer in layers[1:]:
            assert isinstance(layer.up, AnalogLinear)
            layer.down = ReversedReads(layer.up, chip, backend.placement, 1.0)
    _write(carried)
    deployed = _accuracy(carried, data)
    _train(carried, data, epochs, torch.Generator().manual_seed(seed))
    up, down = (response(way, amplitude=1.0, reads=16) for way in (layers[1].up, layers[1].down))
    reversed_mvms = sum(layer.down.mvms for layer in layers if isinstance(layer.down, ReversedReads))
    found = _OnChip(
        deployed=deployed,
        accuracy=_accuracy(carried, data),
        asymmetry=asymmetry(up, down),
        mvms=backend.ledger.mvms + reversed_mvms,
        writes=backend.ledger.writes,
    )
    return found, _read_noise(layers[0].up, data.test_x)


@torch.no_grad()
def _read_noise(way: nn.Module, x: Tensor) -> float:
    """Standard deviation of a read over the root mean square of the product."""
    first, second = way(x), way(x)
    return float((first - second).std() * 0.5**0.5 / first.square().mean().sqrt())


def _cosine_with_settled_loss(network: EquilibriumPropagation, data: ImageSet) -> float:
    """Cosine of the estimate with the gradient of the settled loss, by automatic differentiation through settling."""
    x, target = data.train_x[:64], torch.nn.functional.one_hot(data.train_y[:64], 10).float()
    usual, network.relaxation = network.relaxation, _LIMIT
    estimate = network.gradients(x, target)
    network.relaxation = usual
    parameters = {name: p.detach().clone().requires_grad_() for name, p in _upward(network).items()}
    units = [x.new_zeros((64, size)) for size in _SIZES[1:]]
    step = network.relaxation.step
    for _ in range(_LIMIT.free_steps):
        below = [x, *units[:-1]]
        fields = [
            below[i] @ parameters[f"layers.{i}.up.weight"].T + parameters[f"layers.{i}.up.bias"]
            for i in range(len(units))
        ]
        fields[0] = fields[0] + units[1] @ parameters["layers.1.up.weight"]
        units = [(u + step * (f - u)).clamp(0.0, 1.0) for u, f in zip(units, fields, strict=True)]
    loss = 0.5 * (units[-1] - target).square().sum(dim=1).mean()
    exact = torch.autograd.grad(loss, list(parameters.values()))
    a = torch.cat([part.flatten() for part in exact])
    b = torch.cat([estimate[name].flatten() for name in parameters])
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def _upward(network: EquilibriumPropagation) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if ".up." in name}


def _found(runs: list[_Run], data: ImageSet, size: _Size, chip_name: str) -> Found:
    clean = of_mean([one.clean for one in runs], "%", "seeds")
    on_chip = {form: of_mean([one.chip[form].accuracy for one in runs], "%", "seeds") for form in runs[0].chip}
    unequal = {form: [one.chip[form].asymmetry for one in runs] for form in runs[0].chip}
    nudged = of_difference(
        [one.noisy[_JUDGED_NOISE, _NUDGES[1], 1] for one in runs],
        [one.noisy[_JUDGED_NOISE, _NUDGES[0], 1] for one in runs],
        "points",
        "seeds",
    )
    best = _TWO_SIDED if _TWO_SIDED in on_chip else _BLOCKS
    gained = of_difference(
        [one.chip[best].accuracy for one in runs], [one.chip[best].deployed for one in runs], "points", "seeds"
    )
    cosine = of_mean([one.cosine for one in runs], "", "seeds")
    shuffled = of_mean([one.shuffled for one in runs], "%", "seeds")
    noises = sorted({noise for noise, _, _ in runs[0].noisy})
    settings = {key[1:] for key in runs[0].noisy}
    named = {one: f"nudge {one[0]:g}, {one[1]} read{'s' if one[1] > 1 else ''}" for one in _SETTINGS if one in settings}
    series = {one: [[run.noisy[noise, *one] for run in runs] for noise in noises] for one in named}
    findings = [
        at_least("With exact products it reads 8 x 8 digits with 95 % or more", clean, 95.0),
        at_least(
            f"At {100 * _JUDGED_NOISE:g} % read noise the nudge {_NUDGES[1]:g} learns no worse than {_NUDGES[0]:g}",
            nudged,
            0.0,
        ),
        at_least("Learning on the chip gains 20 points over weights that were deployed", gained, 20.0),
    ]
    if best == _TWO_SIDED:
        fairer = of_difference(unequal[_BLOCKS], unequal[_TWO_SIDED], "", "seeds")
        findings.append(at_least("Both ways through the same cells are nearer to each other than blocks", fairer, 0.0))
    return Found(
        findings=tuple(findings),
        controls=(
            Control("small nudge, settled: estimate and gradient", "cosine above 0.95", cosine, cosine.value > 0.95),
            Control("labels shuffled", "chance, 10 %", shuffled, shuffled.value < 20.0),
        ),
        tables=(
            Table(
                "Accuracy in % with read noise while learning and reading, mean of seeds",
                ("read noise / product", *named.values()),
                tuple(
                    (f"{100 * noise:g} %", *(of_mean(series[one][i], "", "").value for one in named))
                    for i, noise in enumerate(noises)
                ),
            ),
            Table(
                "On the chip, mean of seeds",
                ("", *on_chip),
                (
                    (
                        "deployed (%)",
                        *(str(of_mean([one.chip[form].deployed for one in runs], "", "seeds")) for form in on_chip),
                    ),
                    ("after learning on the chip (%)", *(str(interval) for interval in on_chip.values())),
                    ("asymmetry |W - V^T| / |W|", *(str(of_mean(one, "", "seeds")) for one in unequal.values())),
                    ("MVMs of a seed", *(float(one.mvms) for one in runs[0].chip.values())),
                    ("writes of a seed", *(float(one.writes) for one in runs[0].chip.values())),
                ),
            ),
        ),
        plots=(
            Plot(
                "Where read noise breaks it",
                "read noise over the product (%)",
                "accuracy (%)",
                tuple(
                    Curve(
                        named[one],
                        tuple(100 * noise for noise in noises),
                        tuple(of_mean(values, "", "").value for values in series[one]),
                    )
                    for one in named
                ),
            ),
        ),
        conditions={
            "data": f"digits, {len(data.train_y)} to train on, {len(data.test_y)} to judge by",
            "network": " - ".join(map(str, _SIZES)) + f", weights within {_WEIGHT_LIMIT:g}",
            "training": f"batches of {_BATCH}; {size.epochs} epochs exact, {size.noisy_epochs} with noise, "
            f"{size.chip_epochs} on the chip",
            "chip": chip_name,
            "read noise of the chip": f"{100 * sum(one.chip_noise for one in runs) / len(runs):.2g} % of a product",
        },
    )
