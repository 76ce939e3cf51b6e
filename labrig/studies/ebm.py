"""`labrig study ebm`: sampling whose chance is the read noise of a chip.

Normal numbers are differences of two reads of one product, whitened (`labrig_surrogates.models.hardware_noise`). They
drive Langevin sampling of a 5-dimensional normal distribution, whose covariance has a closed form for every size of
step, with exact forces and with forces that are read on the chip; block Gibbs sampling of an Ising square; and
restricted Boltzmann machines that are small enough for their likelihood to be counted out, with exact products and with
every product read on the chip. Whether noise in products regularises is asked of a machine that learns 8 x 8 digits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from labrig.studies.cache import Numbers
from labrig.studies.chip import StudyChip, open_chip, without_drift, without_noise
from labrig.studies.ebm_findings import Parts, Shape, ebm_found
from labrig.studies.machines import (
    SIDE,
    Ascent,
    MachineOnChip,
    exact_divergence,
    few_digits,
    learn_digits,
    learn_patterns,
    sampled_divergence,
)
from labrig.studies.parts import Configuration
from labrig.studies.reads import response
from labrig.studies.repeats import repeat, rig_of, seed_of
from labrig.studies.result import StudyResult
from labrig.studies.running import Report, StudySettings, finished
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.models.energy_based import (
    BoltzmannMachine,
    Chain,
    bars_and_stripes,
    langevin,
    stationary_covariance,
)
from labrig_surrogates.models.hardware_noise import NormalSource, PseudoNormal, ReadNoise, judge_randomness
from labrig_surrogates.models.ising import exact_ising_energy, ising_energy, ising_machine

QUESTION = "Is a chip's own read noise good enough to sample with, and does noise regularise an energy-based model?"

_DIMENSIONS = 5
_STEP = 0.2
# Steps after which a chain that began at zero has forgotten it: the slowest mode shrinks by 0.9 in each.
_BURN_IN = 60
_SQUARE, _COUPLING = 8, 0.3
# Noise of a product over its root mean square in the machine that learns digits.
_LEVELS = (0.0, 0.05, 0.2, 0.5)
_SEEDS_OF_REGULARISATION = 10
# Seeds of chips that no number is drawn on.
_OTHERS = 500_000


@dataclass(frozen=True)
class _Size:
    chains: int
    steps: int
    updates: int
    chip_updates: int
    digit_updates: int
    sweeps: int
    randomness: int


_QUICK = _Size(chains=100, steps=60, updates=100, chip_updates=5, digit_updates=40, sweeps=20, randomness=2_000)
_USUAL = _Size(
    chains=500, steps=400, updates=6_000, chip_updates=600, digit_updates=2_000, sweeps=400, randomness=20_000
)


class _CountedReads:
    """Reads one product of a chip's last array again and again, `[count, columns]` in A."""

    def __init__(self, chip: StudyChip, generator: torch.Generator) -> None:
        info = chip.info
        self._board, self._array = chip.board, info.arrays - 1
        self.mvms = 0
        span_s = info.conductance_max_s - info.conductance_min_s
        drawn = torch.rand((info.rows, info.columns), generator=generator, dtype=torch.float64).numpy()
        chip.board.program(self._array, info.conductance_min_s + span_s * drawn)
        # Every line at a third of the range, up and down in turn: currents stay small, the noise of the cells does not.
        signs = np.where(np.arange(info.rows) % 2 == 0, 1.0, -1.0)
        self._voltage_v = signs * info.voltage_max_v / 3.0
        self.lsb_a = torch.tensor(info.adc_full_scale_a, dtype=torch.float64) / 2 ** (info.adc_bits - 1)

    def __call__(self, count: int) -> Tensor:
        self.mvms += count
        found = []
        for first in range(0, count, 4096):
            batch = np.tile(self._voltage_v, (min(4096, count - first), 1))
            found.append(torch.as_tensor(self._board.mvm(self._array, batch).current_a))
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
        StorageError: The folder of finished parts cannot be written.
        SurrogateError: The steps of the chip's ADC exceed its noise.
    """
    started_s = time.monotonic()
    size = _QUICK if settings.quick else _USUAL
    # A chip of a rig is as it is; a simulated one can be written with more care.
    cares = (False,) if settings.rig is not None else (False, True)
    kinds: list[dict[str, object]] = [{"part": "noise"}]
    kinds += [{"part": "machines", "care": care} for care in cares]
    count = 1 if settings.quick else _SEEDS_OF_REGULARISATION
    levels = [{"part": "regularisation", "level": level} for level in _LEVELS]
    # The chip comes last: what a rig measured is forgotten once its parts are done.
    learnt = repeat("ebm", replace(settings, seeds=count, rig=None), compute, report, levels)
    on_chip = repeat("ebm", settings, compute, report, kinds)
    with open_chip(settings.rig, _machine_chip(settings.seed, care=False)) as chip:
        name = chip.name
    parts = Parts(
        noise=on_chip.of(part="noise"),
        machines={care: on_chip.of(part="machines", care=care) for care in cares},
        regularisation={level: learnt.of(part="regularisation", level=level) for level in _LEVELS},
    )
    shape = Shape(
        _DIMENSIONS,
        _STEP,
        size.chains,
        size.steps,
        _SQUARE,
        _COUPLING,
        size.updates,
        size.chip_updates,
        size.digit_updates,
    )
    found = learnt.noted(on_chip.noted(ebm_found(parts, shape, name)))
    return finished("ebm", QUESTION, settings, found, started_s)


def compute(part: Configuration) -> Numbers:
    """The numbers of one seed: of noise as a source of chance, of machines on a chip, or of one level of noise."""
    seed, size = seed_of(part), _QUICK if part["quick"] else _USUAL
    if part["part"] == "regularisation":
        machine, digits = learn_digits(seed, cast(float, part["level"]), size.digit_updates, _pseudo(seed))
        return _likelihoods("", machine, digits.train, digits.test)
    if part["part"] == "machines":
        with open_chip(rig_of(part), _machine_chip(seed, care=bool(part["care"]))) as chip:
            return _machines(seed, size, chip)
    # Cells that keep what was written: they are read a hundred thousand times.
    with open_chip(rig_of(part), _noise_chip(seed)) as chip:
        return _noise(seed, size, chip)


def _noise_chip(seed: int) -> ChipSettings:
    return without_drift(ChipSettings(seed=seed + 1, arrays=2, adc_bits=12))


def _machine_chip(seed: int, *, care: bool) -> ChipSettings:
    """Columns for one machine, beside an array for chance; with care: a tenth of the errors of cells, none stuck."""
    usual = without_drift(ChipSettings(seed=seed + 1, arrays=2, columns=24, adc_bits=12))
    if not care:
        return usual
    return replace(
        usual,
        programming_scale=0.1 * usual.programming_scale,
        mismatch_sigma=0.1 * usual.mismatch_sigma,
        stuck_fraction=0.0,
    )


def _noise(seed: int, size: _Size, chip: StudyChip) -> Numbers:
    generator = torch.Generator().manual_seed(seed)
    reads = _CountedReads(chip, generator)
    source = ReadNoise(reads, reads.lsb_a)
    columns = chip.info.columns
    rows = size.randomness // columns + 100
    tested = judge_randomness(source.normal(rows, columns))
    with open_chip(None, _noise_chip(seed + _OTHERS)) as other:
        elsewhere = _CountedReads(other, torch.Generator().manual_seed(seed + 1))
        covariance = ReadNoise(elsewhere, elsewhere.lsb_a).covariance
    wrong = ReadNoise(reads, reads.lsb_a, covariance=covariance)
    exact, digital = exact_ising_energy(_SQUARE, _COUPLING), _pseudo(seed)
    return {
        "p": tested.smallest_p,
        "autocorrelation z": abs(tested.worst_autocorrelation_z),
        "kurtosis z": abs(tested.kurtosis_z),
        "ks p": tested.ks_p,
        "p another": judge_randomness(wrong.normal(rows, columns)).smallest_p,
        "covariance": _covariance_error(seed, size, source),
        "covariance digital": _covariance_error(seed, size, digital),
        "covariance shrunk": _covariance_error(seed, size, _Scaled(source, 0.9)),
        **_forces_on_chip(seed, size, chip, source),
        "ising": _ising(seed, size, source) / exact - 1.0,
        "ising digital": _ising(seed, size, digital) / exact - 1.0,
        "ising shrunk": _ising(seed, size, _Scaled(source, 0.5)) / exact - 1.0,
        "divergence": exact_divergence(learn_patterns(seed, size.updates, source)[0]),
        "divergence digital": exact_divergence(learn_patterns(seed, size.updates, _pseudo(seed))[0]),
        "divergence silent": exact_divergence(learn_patterns(seed, size.updates, _Scaled(source, 0.0))[0]),
        "noise in steps": float((source.covariance.diagonal().sqrt() / reads.lsb_a).median()),
        "mvms": float(reads.mvms),
        "coarse refused": float(_refuses(seed, ChipSettings(seed=seed + 1, arrays=1, adc_bits=6))),
        "silent refused": float(_refuses(seed, without_noise(ChipSettings(seed=seed + 1, arrays=1)))),
    }


def _refuses(seed: int, settings: ChipSettings) -> bool:
    """Whether a chip is refused as a source of chance."""
    with open_chip(None, settings) as chip:
        reads = _CountedReads(chip, torch.Generator().manual_seed(seed))
        try:
            ReadNoise(reads, reads.lsb_a, characterise=512)
        except SurrogateError:
            return True
    return False


def _precision(seed: int) -> Tensor:
    """Inverse covariance of the distribution that is to be sampled."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((_DIMENSIONS, _DIMENSIONS), generator=generator, dtype=torch.float64)
    return drawn @ drawn.T / _DIMENSIONS + torch.eye(_DIMENSIONS, dtype=torch.float64)


def _covariance_error(seed: int, size: _Size, source: NormalSource) -> float:
    """Distance of the sampled covariance from the solution of the discrete Lyapunov equation, with exact forces."""
    precision = _precision(seed)
    start = torch.zeros((size.chains, _DIMENSIONS), dtype=torch.float64)
    states = langevin(
        lambda x: -x @ precision, start, step=_STEP, temperature=1.0, steps=size.steps + _BURN_IN, source=source
    )
    identity = torch.eye(_DIMENSIONS, dtype=torch.float64)
    exact = stationary_covariance(identity - 0.5 * _STEP * precision, _STEP * identity)
    return _apart(_covariance(states), exact)


@torch.no_grad()
def _forces_on_chip(seed: int, size: _Size, chip: StudyChip, source: NormalSource) -> Numbers:
    """The same with forces that are read on the chip: against the equation of its measured cells and their noise."""
    precision = _precision(seed)
    layer = nn.Linear(_DIMENSIONS, _DIMENSIONS, bias=False)
    layer.weight.copy_(precision)
    # States are seldom further than this from zero.
    carried, _ = chip.carry(layer, torch.full((1, _DIMENSIONS), 5.0))
    cells = response(carried, amplitude=1.0, reads=256).double()
    centre = carried(torch.zeros((256, _DIMENSIONS))).mean(dim=0)

    def force(x: Tensor) -> Tensor:
        found: Tensor = centre - carried(x)
        return found

    start = torch.zeros((size.chains, _DIMENSIONS))
    states = langevin(force, start, step=_STEP, temperature=1.0, steps=size.steps + _BURN_IN, source=source).double()
    seen = states[-20:].flatten(0, 1).float()
    apart = (force(seen) - force(seen)).double()
    identity = torch.eye(_DIMENSIONS, dtype=torch.float64)
    injected = _STEP * identity + (0.5 * _STEP) ** 2 * apart.T @ apart / (2.0 * len(apart))
    sampled = _covariance(states)
    return {
        "chip covariance": _apart(sampled, stationary_covariance(identity - 0.5 * _STEP * cells, injected)),
        "chip covariance as meant": _apart(
            sampled, stationary_covariance(identity - 0.5 * _STEP * precision, _STEP * identity)
        ),
    }


def _covariance(states: Tensor) -> Tensor:
    kept = states[_BURN_IN:].reshape(-1, _DIMENSIONS)
    centred = kept - kept.mean(dim=0)
    return centred.T @ centred / len(kept)


def _apart(sampled: Tensor, exact: Tensor) -> float:
    """Relative Frobenius distance."""
    return float(torch.linalg.matrix_norm(sampled - exact) / torch.linalg.matrix_norm(exact))


def _ising(seed: int, size: _Size, source: NormalSource) -> float:
    """Mean energy of an Ising square, by two-colour Gibbs sampling."""
    machine, half = ising_machine(_SQUARE, _COUPLING), _SQUARE**2 // 2
    start = torch.randint(0, 2, (200, half), generator=torch.Generator().manual_seed(seed)).float()
    chain = machine.gibbs(Chain(start, torch.zeros((200, half))), size.sweeps // 4, source)
    energies = []
    for _ in range(size.sweeps):
        chain = machine.gibbs(chain, 1, source)
        energies.append(ising_energy(chain, _SQUARE, _COUPLING).mean())
    return float(torch.stack(energies).mean())


def _machines(seed: int, size: _Size, chip: StudyChip) -> Numbers:
    """Machines that learnt exactly, on a chip as deployed and after learning there; all chance is the chip's."""
    reads = _CountedReads(chip, torch.Generator().manual_seed(seed))
    source = ReadNoise(reads, reads.lsb_a)
    machine, chain = learn_patterns(seed, size.updates, _pseudo(seed))
    found = {"divergence digital": sampled_divergence(machine, chain, size.sweeps, _pseudo(seed + 1))}
    on_chip = MachineOnChip(chip, machine)
    found["divergence deployed"] = sampled_divergence(on_chip.machine, chain, size.sweeps, source)
    patterns = bars_and_stripes(SIDE)
    chain = on_chip.learn(lambda: patterns, chain, Ascent(size.chip_updates, 0.05, 0.05, sweeps=2), source)
    found["divergence learnt"] = sampled_divergence(on_chip.machine, chain, size.sweeps, source)
    found |= {"patterns mvms": float(on_chip.mvms), "patterns writes": float(on_chip.writes)}
    machine, digits = learn_digits(seed, 0.0, size.digit_updates, _pseudo(seed))
    found |= _likelihoods("digital ", machine, digits.train, digits.test)
    on_chip = MachineOnChip(chip, machine)
    found |= _likelihoods("deployed ", on_chip.measured(), digits.train, digits.test)
    batch = few_digits(torch.Generator().manual_seed(seed + 1)).draw
    on_chip.learn(batch, Chain(batch(), torch.empty(0)), Ascent(size.chip_updates // 2, 0.02, 0.05), source)
    found |= _likelihoods("learnt ", on_chip.measured(), digits.train, digits.test)
    return found | {"digits mvms": float(on_chip.mvms), "chance mvms": float(reads.mvms)}


@torch.no_grad()
def _likelihoods(prefix: str, machine: BoltzmannMachine, train: Tensor, test: Tensor) -> Numbers:
    """Mean log-likelihoods of a digit in nat."""
    return {
        f"{prefix}{name}": float(machine.log_likelihood(part).mean())
        for name, part in (("train", train), ("test", test))
    }


def _pseudo(seed: int) -> PseudoNormal:
    return PseudoNormal(torch.Generator().manual_seed(seed + 7_919))
