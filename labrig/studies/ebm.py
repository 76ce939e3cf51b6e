"""`labrig study ebm`: sampling whose chance is the read noise of a chip.

Normal numbers are differences of two reads of one product, whitened (`labrig_surrogates.models.hardware_noise`). They
drive Langevin sampling of a 5-dimensional normal distribution, whose covariance has a closed form for every size of
step, and a restricted Boltzmann machine that is small enough for its likelihood to be counted out. Whether noise in the
products regularises is asked of a machine that learns 8 x 8 digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from labrig.studies.chip import StudyChip, on_each_chip
from labrig.studies.intervals import exactly, of_difference, of_mean
from labrig.studies.reads import NoisyProduct
from labrig.studies.result import Control, Finding, Interval, StudyResult, Table, at_least, at_most
from labrig.studies.running import Found, Report, StudySettings, finished
from labrig.training.datasets import load_digits
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.energy_based import (
    BoltzmannMachine,
    Chain,
    all_states,
    bars_and_stripes,
    divergence_from,
    langevin,
    stationary_covariance,
)
from labrig_surrogates.models.hardware_noise import NormalSource, PseudoNormal, ReadNoise, judge_randomness

QUESTION = "Is a chip's own read noise good enough to sample with, and does noise regularise an energy-based model?"

_DIMENSIONS = 5
_STEP = 0.2
_SIDE, _HIDDEN = 3, 12
_CHAINS = 100
_DIGITS_HIDDEN = 12
# Noise of a product over its root mean square in the machine that learns digits.
_LEVELS = (0.0, 0.05, 0.2, 0.5)
_SEEDS_OF_REGULARISATION = 10


@dataclass(frozen=True)
class _Size:
    chains: int
    steps: int
    updates: int
    digit_updates: int
    randomness: int


@dataclass(frozen=True)
class _Run:
    """What one seed gives."""

    smallest_p: float
    smallest_p_single: float
    covariance_error: float
    covariance_error_digital: float
    covariance_error_shrunk: float
    divergence: float
    divergence_digital: float
    divergence_silent: float
    noise_in_steps: float
    mvms: int
    coarse_refused: bool
    silent_refused: bool


@dataclass(frozen=True)
class _Likelihoods:
    """Mean log-likelihoods of a digit in nat."""

    train: float
    test: float


class _CountedReads:
    """Reads one product of an array again and again, `[count, columns]` in A."""

    def __init__(self, chip: StudyChip, generator: torch.Generator) -> None:
        info = chip.info
        self._chip = chip
        self.mvms = 0
        span_s = info.conductance_max_s - info.conductance_min_s
        drawn = torch.rand((info.rows, info.columns), generator=generator, dtype=torch.float64).numpy()
        chip.program(0, info.conductance_min_s + span_s * drawn)
        # Every line at a third of the range, up and down in turn: currents stay small, the noise of the cells does not.
        signs = np.where(np.arange(info.rows) % 2 == 0, 1.0, -1.0)
        self._voltage_v = signs * info.voltage_max_v / 3.0
        self.lsb_a = torch.tensor(info.adc_full_scale_a, dtype=torch.float64) / 2 ** (info.adc_bits - 1)

    def __call__(self, count: int) -> Tensor:
        self.mvms += count
        found = []
        for first in range(0, count, 4096):
            batch = np.tile(self._voltage_v, (min(4096, count - first), 1))
            found.append(torch.as_tensor(self._chip.mvm(0, batch).current_a))
        return torch.cat(found)


class _Scaled:
    """The numbers of another source, all too small or too large."""

    def __init__(self, source: NormalSource, scale: float) -> None:
        self._source = source
        self._scale = scale

    def normal(self, count: int, size: int) -> Tensor:
        return self._scale * self._source.normal(count, size)


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How.
        report: Progress.

    Raises:
        LabrigError: The rig failed.
        SurrogateError: The steps of the chip's ADC exceed its noise.
    """
    started_s = time.monotonic()
    size = _Size(100, 60, 100, 40, 2_000) if settings.quick else _Size(500, 400, 6_000, 2_000, 20_000)
    # Cells that keep what was written: it is read a hundred thousand times.
    chip_settings = ChipSettings(arrays=1, adc_bits=12, drift_exponent=0.0, drift_exponent_sigma=0.0)
    runs, chip_name = on_each_chip(
        settings,
        report,
        lambda seed: replace(chip_settings, seed=seed + 1),
        lambda seed, chip: _one_seed(seed, size, chip),
    )
    count = 1 if settings.quick else _SEEDS_OF_REGULARISATION
    learnt: dict[float, list[_Likelihoods]] = {level: [] for level in _LEVELS}
    for number in range(count):
        report("digits with noise", number, count)
        for level in _LEVELS:
            learnt[level].append(_learn_digits(settings.seed + number, level, size))
    report("digits with noise", count, count)
    return finished("ebm", QUESTION, settings, _found(runs, learnt, size, chip_name), started_s)


def _one_seed(seed: int, size: _Size, chip: StudyChip) -> _Run:
    generator = torch.Generator().manual_seed(seed)
    reads = _CountedReads(chip, generator)
    source = ReadNoise(reads, reads.lsb_a)
    columns = chip.info.columns
    sample = reads(2_048)
    differences = (sample[0::2] - sample[1::2]) * 0.5**0.5
    tested = judge_randomness(source.normal(size.randomness // columns + 100, columns))
    # Without differences and whitening: every read against its column's mean and deviation.
    single = reads(size.randomness // columns + 100)
    single_p = judge_randomness((single - single.mean()) / single.std()).smallest_p
    return _Run(
        smallest_p=tested.smallest_p,
        smallest_p_single=single_p,
        covariance_error=_covariance_error(seed, size, source),
        covariance_error_digital=_covariance_error(seed, size, _pseudo(seed)),
        covariance_error_shrunk=_covariance_error(seed, size, _Scaled(source, 0.9)),
        divergence=_learn_patterns(seed, size, source),
        divergence_digital=_learn_patterns(seed, size, _pseudo(seed)),
        divergence_silent=_learn_patterns(seed, size, _Scaled(source, 0.0)),
        noise_in_steps=float((differences.std(dim=0) / reads.lsb_a).median()),
        mvms=reads.mvms,
        coarse_refused=_refuses(seed, ChipSettings(seed=seed + 1, arrays=1, adc_bits=6)),
        silent_refused=_refuses(
            seed,
            ChipSettings(seed=seed + 1, arrays=1, amplifier_noise_a=0.0, shot_noise_a=0.0, conductance_noise=0.0),
        ),
    )


def _refuses(seed: int, settings: ChipSettings) -> bool:
    """Whether a chip is refused as a source of chance."""
    with StudyChip(None, settings) as chip:
        reads = _CountedReads(chip, torch.Generator().manual_seed(seed))
        try:
            ReadNoise(reads, reads.lsb_a, characterise=512)
        except SurrogateError:
            return True
    return False


def _covariance_error(seed: int, size: _Size, source: NormalSource) -> float:
    """Relative Frobenius distance of the sampled covariance from the solution of the discrete Lyapunov equation."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((_DIMENSIONS, _DIMENSIONS), generator=generator, dtype=torch.float64)
    precision = drawn @ drawn.T / _DIMENSIONS + torch.eye(_DIMENSIONS, dtype=torch.float64)
    start = torch.zeros((size.chains, _DIMENSIONS), dtype=torch.float64)
    states = langevin(
        lambda x: -x @ precision, start, step=_STEP, temperature=1.0, steps=size.steps + _BURN_IN, source=source
    )
    kept = states[_BURN_IN:].reshape(-1, _DIMENSIONS)
    identity = torch.eye(_DIMENSIONS, dtype=torch.float64)
    exact = stationary_covariance(identity - 0.5 * _STEP * precision, _STEP * identity)
    sampled = kept.T @ kept / len(kept)
    return float(torch.linalg.matrix_norm(sampled - exact) / torch.linalg.matrix_norm(exact))


# Steps after which a chain that began at zero has forgotten it: the slowest mode shrinks by 0.9 in each.
_BURN_IN = 60


def _learn_patterns(seed: int, size: _Size, source: NormalSource) -> float:
    """Divergence in nat of a machine that learnt bars and stripes by persistent contrastive divergence."""
    generator = torch.Generator().manual_seed(seed)
    patterns = bars_and_stripes(_SIDE)
    model = BoltzmannMachine(_SIDE**2, _HIDDEN, generator)
    start = torch.randint(0, 2, (_CHAINS, _SIDE**2), generator=generator).float()
    chain = Chain(start, torch.zeros((_CHAINS, _HIDDEN)))
    for update in range(size.updates):
        chain = model.gibbs(chain, 2, source)
        # The rate falls to a hundredth, so that the end is not the noise of the last steps.
        model.ascend(model.gradient(patterns, chain), 0.2 * 0.01 ** (update / size.updates), weight_limit=4.0)
    states = all_states(_SIDE**2, patterns)
    # Every pattern alike, all else never.
    places = (states[:, None, :] == patterns[None, :, :]).all(dim=2).any(dim=1)
    return divergence_from(model, places.double() / places.sum())


def _learn_digits(seed: int, level: float, size: _Size) -> _Likelihoods:
    """Likelihoods of a machine that learnt binary digits, its products noisy while it learns and exact when judged."""
    generator = torch.Generator().manual_seed(seed)
    data = load_digits()
    train, test = ((x > 0.5).float() for x in (data.train_x[:_FEW_DIGITS], data.test_x))
    model = BoltzmannMachine(64, _DIGITS_HIDDEN, generator)
    up, down = model.up, model.down
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    source = _pseudo(seed)
    if level:
        model.up, model.down = NoisyProduct(up, level, source), NoisyProduct(down, level, source)
    chain = Chain(train[torch.randint(len(train), (_CHAINS,), generator=generator)], torch.empty(0))
    for update in range(size.digit_updates):
        batch = train[torch.randint(len(train), (_CHAINS,), generator=generator)]
        chain = model.gibbs(chain, 1, source)
        model.ascend(model.gradient(batch, chain), 0.1 * 0.05 ** (update / size.digit_updates), weight_limit=4.0)
    model.up, model.down = up, down
    with torch.no_grad():
        return _Likelihoods(*(float(model.log_likelihood(part).mean()) for part in (train, test)))


# So few that a machine can learn them by heart.
_FEW_DIGITS = 200


def _pseudo(seed: int) -> PseudoNormal:
    return PseudoNormal(torch.Generator().manual_seed(seed + 7_919))


def _found(runs: list[_Run], learnt: dict[float, list[_Likelihoods]], size: _Size, chip_name: str) -> Found:
    def mean(of: Callable[[_Run], float], unit: str = "") -> Interval:
        return of_mean([of(one) for one in runs], unit, "seeds")

    worst_p = min(one.smallest_p for one in runs) * len(runs)
    random_enough = exactly(worst_p, "", f"smallest of {len(runs)} seeds, times their number")
    best_single = max(one.smallest_p_single for one in runs)
    single = exactly(best_single, "", f"largest of {len(runs)} seeds")
    refused = sum(one.coarse_refused and one.silent_refused for one in runs) / len(runs)
    gaps = {level: [one.train - one.test for one in values] for level, values in learnt.items()}
    tests = {level: [one.test for one in values] for level, values in learnt.items()}
    shrunk = mean(lambda one: 100.0 * one.covariance_error_shrunk, "%")
    silent = mean(lambda one: one.divergence_silent, "nat")
    findings = [
        at_least("No test of randomness rejects whitened read noise at 1 %", random_enough, 0.01),
        at_most(
            "The sampled covariance is within 5 % of the discrete Lyapunov equation's",
            mean(lambda one: 100.0 * one.covariance_error, "%"),
            5.0,
        ),
        at_most(
            "Bars and stripes: with read noise at most 0.05 nat further from the data than with digital chance",
            of_difference([one.divergence for one in runs], [one.divergence_digital for one in runs], "nat", "seeds"),
            0.05,
        ),
    ]
    findings += [_regularises(level, gaps, tests) for level in _LEVELS[1:]]
    return Found(
        findings=tuple(findings),
        controls=(
            Control("single reads in place of whitened differences", "are rejected at 1 %", single, best_single < 0.01),
            Control("numbers a tenth too small", "covariance is off by more than 5 %", shrunk, shrunk.value > 5.0),
            Control("noise off in the machine", "it does not learn (above 0.5 nat)", silent, silent.value > 0.5),
            Control(
                "a 6-bit ADC, and a chip without noise",
                "both are refused",
                exactly(refused, "", f"part of {len(runs)} seeds"),
                refused == 1.0,
            ),
        ),
        tables=(
            Table(
                "Chance of the chip and of a generator",
                ("", "read noise", "generator"),
                (
                    (
                        "covariance, distance from the exact one (%)",
                        str(mean(lambda one: 100.0 * one.covariance_error)),
                        str(mean(lambda one: 100.0 * one.covariance_error_digital)),
                    ),
                    (
                        "bars and stripes, divergence (nat)",
                        str(mean(lambda one: one.divergence)),
                        str(mean(lambda one: one.divergence_digital)),
                    ),
                    ("read noise in steps of the ADC, median column", str(mean(lambda one: one.noise_in_steps)), ""),
                    ("MVMs of a seed", float(runs[0].mvms), ""),
                ),
            ),
            Table(
                f"Digits: mean log-likelihood in nat after learning {_FEW_DIGITS} of them",
                ("noise / product", "train", "test", "gap"),
                tuple(
                    (
                        f"{100 * level:g} %",
                        str(of_mean([one.train for one in values], "", "seeds")),
                        str(of_mean(tests[level], "", "seeds")),
                        str(of_mean(gaps[level], "", "seeds")),
                    )
                    for level, values in learnt.items()
                ),
            ),
        ),
        plots=(),
        conditions={
            "normal distribution": f"{_DIMENSIONS}-d, step {_STEP:g}, {size.chains} chains, {size.steps} steps",
            "machine": f"{_SIDE} x {_SIDE} bars and stripes, {_HIDDEN} hidden units, |w| <= 4, {_CHAINS} chains, "
            f"{size.updates} updates",
            "digits": f"64 x {_DIGITS_HIDDEN} units, {_FEW_DIGITS} to train on, {size.digit_updates} updates at every "
            "level, noise of a generator",
            "chip": chip_name,
        },
    )


def _regularises(level: float, gaps: dict[float, list[float]], tests: dict[float, list[float]]) -> Finding:
    """Whether noise makes unseen digits likelier; that the gap closes alone may be worse learning."""
    better = of_difference(tests[level], tests[0.0], "nat", "seeds")
    closer = of_difference(gaps[0.0], gaps[level], "nat", "seeds").value
    claim = f"Noise of {100 * level:g} % regularises: unseen digits are likelier (the gap closes by {closer:.2g} nat)"
    return at_least(claim, better, 0.0)
