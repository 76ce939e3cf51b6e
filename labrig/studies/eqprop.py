"""`labrig study eqprop`: learning from two settled states on one array, and the read noise at which it breaks.

Equations: `labrig_surrogates.models.equilibrium_propagation`. The network 64 - 64 - 10 learns 8 x 8 digits three ways:
with exact products; with products that read noise was added to; and, with what it learnt exactly, on a chip that it
goes on learning on. The chip's way down is either the same cells read from their other side, or a block of cells that
was programmed apart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from labrig.studies.cache import Numbers
from labrig.studies.chip import StudyChip, open_chip, without_drift
from labrig.studies.intervals import half_width, mean, of_difference, of_mean
from labrig.studies.parts import Configuration
from labrig.studies.reads import NoisyProduct, response
from labrig.studies.repeats import Repeats, repeat, rig_of, seed_of
from labrig.studies.result import Control, Curve, Interval, Plot, StudyResult, Table, at_least
from labrig.studies.reversed_reads import ReversedReads
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.training.datasets import ImageSet, load_digits
from labrig.training.physical import PhysicalBackend
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
# Seeds of chips that nothing is learnt on.
_OTHERS = 500_000
_BLOCKS, _TWO_SIDED = "blocks programmed apart", "the same cells both ways"


@dataclass(frozen=True)
class _Size:
    epochs: int
    noisy_epochs: int
    chip_epochs: int


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
    kinds: list[dict[str, object]] = [{"part": "chip"}]
    kinds += [{"part": "noise", "noise": noise} for noise in _noises(quick=settings.quick)]
    repeats = repeat("eqprop", settings, compute, report, kinds)
    with open_chip(settings.rig, _chip(settings.seed)) as chip:
        name = chip.name
    found = _found(repeats, settings.quick, name)
    return finished("eqprop", QUESTION, settings, repeats.noted(found), started_s)


def compute(part: Configuration) -> Numbers:
    """Accuracies in % of one seed: with one level of read noise while it learns, or without noise and on the chip."""
    seed = seed_of(part)
    size, data = _sized(quick=bool(part["quick"]))
    if part["part"] == "noise":
        noise = cast(float, part["noise"])
        return {
            _named(nudge, reads): _accuracy_with_noise(seed, data, size, (noise, nudge, reads))
            for nudge, reads in _SETTINGS
        }
    generator = torch.Generator().manual_seed(seed)
    network = _network(generator, _RELAXATION)
    cosine = _cosine_with_settled_loss(network, data)
    _train(network, data, size.epochs, generator)
    shuffled = _network(generator, _RELAXATION)
    _train(shuffled, data.shuffled_labels(generator), max(size.epochs // 4, 2), generator)
    found = {"clean": _accuracy(network, data), "shuffled": _accuracy(shuffled, data), "cosine": cosine}
    with open_chip(rig_of(part), _chip(seed)) as chip:
        for form in (_BLOCKS, _TWO_SIDED) if chip.two_sided else (_BLOCKS,):
            found |= {
                f"{form}: {key}": value
                for key, value in _learn_on_chip(seed, data, size.chip_epochs, chip, network, form).items()
            }
    return found


def _noises(*, quick: bool) -> tuple[float, ...]:
    return (_NOISES[0], _JUDGED_NOISE) if quick else _NOISES


def _sized(*, quick: bool) -> tuple[_Size, ImageSet]:
    if quick:
        return _Size(epochs=2, noisy_epochs=1, chip_epochs=1), load_digits().first(200, 100)
    return _Size(epochs=30, noisy_epochs=6, chip_epochs=2), load_digits()


def _chip(seed: int) -> ChipSettings:
    """Cells that keep what was written: a relaxation takes thousands of reads, and ages nothing by itself."""
    return without_drift(ChipSettings(seed=seed + 1, arrays=7))


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


@torch.no_grad()
def _write(network: EquilibriumPropagation) -> None:
    """Has a chip take the new weights: before anything comes down through cells, they have to hold them."""
    for layer in network.layers:
        if isinstance(layer, SymmetricWeights) and isinstance(layer.down, ReversedReads):
            layer.up(torch.zeros((1, layer.weight.shape[1])))


@torch.no_grad()
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


def _carried(
    chip: StudyChip, digital: EquilibriumPropagation, data: ImageSet, form: str
) -> tuple[EquilibriumPropagation, PhysicalBackend]:
    """Puts a network on a chip, with its way down of one form, and writes its weights."""
    carried, backend = chip.carry(digital, data.train_x[:64])
    assert isinstance(carried, EquilibriumPropagation)
    carried.relaxation = _CHIP_RELAXATION
    for matrix in weight_matrices(carried):
        matrix.core.set_ranges(weight_max=_WEIGHT_LIMIT, input_max=1.0)
    if form == _TWO_SIDED:
        for layer in _layers(carried)[1:]:
            assert isinstance(layer.up, AnalogLinear)
            layer.down = ReversedReads(layer.up, chip.board, backend.placement, 1.0)
    _write(carried)
    return carried, backend


def _learn_on_chip(
    seed: int, data: ImageSet, epochs: int, chip: StudyChip, digital: EquilibriumPropagation, form: str
) -> Numbers:
    """Deploys what was learnt with exact products, goes on learning, and takes what was learnt to another chip."""
    carried, backend = _carried(chip, digital, data, form)
    deployed = _accuracy(carried, data)
    _train(carried, data, epochs, torch.Generator().manual_seed(seed))
    layers = _layers(carried)
    up, down = (response(way, amplitude=1.0, reads=16) for way in (layers[1].up, layers[1].down))
    reversed_mvms = sum(layer.down.mvms for layer in layers if isinstance(layer.down, ReversedReads))
    found = {
        "deployed": deployed,
        "accuracy": _accuracy(carried, data),
        "asymmetry": asymmetry(up, down),
        "mvms": float(backend.ledger.mvms + reversed_mvms),
        "writes": float(backend.ledger.writes),
        "read noise": _read_noise(layers[0].up, data.test_x),
    }
    learnt = _network(torch.Generator(), _RELAXATION)
    with torch.no_grad():
        for here, there in zip(layers, _layers(learnt), strict=True):
            there.weight.copy_(here.weight)
            there.bias.copy_(here.bias)
            there.tie()
    with open_chip(None, _chip(seed + _OTHERS)) as other:
        found["another"] = _accuracy(_carried(other, learnt, data, form)[0], data)
    return found


def _layers(network: EquilibriumPropagation) -> list[SymmetricWeights]:
    return [layer for layer in network.layers if isinstance(layer, SymmetricWeights)]


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


def _found(repeats: Repeats, quick: bool, chip_name: str) -> Found:
    size, data = _sized(quick=quick)
    runs = repeats.of(part="chip")
    noises = _noises(quick=quick)
    noisy = {noise: repeats.of(part="noise", noise=noise) for noise in noises}
    forms = [form for form in (_BLOCKS, _TWO_SIDED) if f"{form}: accuracy" in runs[0]]
    best = forms[-1]

    def every(form: str, key: str) -> list[float]:
        return [one[f"{form}: {key}"] for one in runs]

    def points(first: list[float], second: list[float]) -> Interval:
        return of_difference(first, second, "points", "seeds")

    def at_judged(nudge: float) -> list[float]:
        return [one[_named(nudge, 1)] for one in noisy[_JUDGED_NOISE]]

    findings = [
        at_least(
            "With exact products it reads 8 x 8 digits with 95 % or more",
            of_mean([one["clean"] for one in runs], "%", "seeds"),
            95.0,
        ),
        at_least(
            f"At {100 * _JUDGED_NOISE:g} % read noise the nudge {_NUDGES[1]:g} learns no worse than {_NUDGES[0]:g}",
            points(at_judged(_NUDGES[1]), at_judged(_NUDGES[0])),
            0.0,
        ),
        at_least(
            "Learning on the chip gains 20 points over weights that were deployed",
            points(every(best, "accuracy"), every(best, "deployed")),
            20.0,
        ),
    ]
    if best == _TWO_SIDED:
        fairer = of_difference(every(_BLOCKS, "asymmetry"), every(_TWO_SIDED, "asymmetry"), "", "seeds")
        findings.append(at_least("Both ways through the same cells are nearer to each other than blocks", fairer, 0.0))
    cosine = of_mean([one["cosine"] for one in runs], "", "seeds")
    shuffled = of_mean([one["shuffled"] for one in runs], "%", "seeds")
    elsewhere = points(every(best, "accuracy"), every(best, "another"))
    return Found(
        findings=tuple(findings),
        controls=(
            Control("small nudge, settled: estimate and gradient", "cosine above 0.95", cosine, cosine.value > 0.95),
            Control("labels shuffled", "chance, 10 %", shuffled, shuffled.value < 20.0),
            Control(
                "wrong chip: what was learnt on one, written to another",
                "loses 10 points or more",
                elsewhere,
                elsewhere.value > 10.0,
            ),
        ),
        tables=(
            Table(
                "Accuracy in % with read noise while learning and reading, mean of seeds",
                ("read noise / product", *(_named(*one) for one in _SETTINGS)),
                tuple(
                    (
                        f"{100 * noise:g} %",
                        *(mean([one[_named(*setting)] for one in noisy[noise]]) for setting in _SETTINGS),
                    )
                    for noise in noises
                ),
            ),
            Table(
                "On the chip, mean of seeds",
                ("", *forms),
                tuple(
                    (name, *(str(of_mean(every(form, key), "", "seeds")) for form in forms))
                    for name, key in (
                        ("deployed (%)", "deployed"),
                        ("after learning on the chip (%)", "accuracy"),
                        ("the same weights on another chip (%)", "another"),
                        ("asymmetry |W - V^T| / |W|", "asymmetry"),
                    )
                )
                + tuple(
                    (f"{name} of a seed", *(every(form, key)[0] for form in forms))
                    for name, key in (("MVMs", "mvms"), ("writes", "writes"))
                ),
            ),
        ),
        plots=(
            Plot(
                "Where read noise breaks it",
                "read noise over the product (%)",
                "accuracy (%)",
                tuple(
                    _curve(_named(*one), {noise: [run[_named(*one)] for run in noisy[noise]] for noise in noises})
                    for one in _SETTINGS
                ),
            ),
        ),
        conditions={
            "data": f"digits, {len(data.train_y)} to train on, {len(data.test_y)} to judge by",
            "network": " - ".join(map(str, _SIZES)) + f", weights within {_WEIGHT_LIMIT:g}",
            "training": f"batches of {_BATCH}; {size.epochs} epochs exact, {size.noisy_epochs} with noise, "
            f"{size.chip_epochs} on the chip",
            "chip": chip_name,
            "read noise of the chip": f"{100 * mean(every(best, 'read noise')):.2g} % of a product",
        },
    )


def _named(nudge: float, reads: int) -> str:
    return f"nudge {nudge:g}, {reads} read{'s' if reads > 1 else ''}"


def _curve(name: str, values: Mapping[float, Sequence[float]]) -> Curve:
    return Curve(
        name,
        tuple(100 * noise for noise in values),
        tuple(mean(found) for found in values.values()),
        tuple(half_width(found) for found in values.values()),
    )
