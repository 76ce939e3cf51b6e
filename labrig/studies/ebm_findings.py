"""What the parts of the study `ebm` amount to: claims, controls, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labrig.studies.cache import Numbers
from labrig.studies.intervals import exactly, half_width, mean, of_difference, of_mean
from labrig.studies.machines import CHAINS, FEW_DIGITS, HIDDEN, SIDE, WEIGHT_LIMIT
from labrig.studies.result import Control, Curve, Finding, Interval, Plot, Table, at_least, at_most
from labrig.studies.running import Found

_STAGES = ("deployed", "learnt")
_CARE = {False: "usual chip", True: "chip written with care"}


@dataclass(frozen=True)
class Parts:
    """The numbers of all parts.

    Attributes:
        noise: Of read noise as a source of chance, by seeds.
        machines: Of machines on a chip, by whether it was written with care, by seeds.
        regularisation: Likelihoods `train` and `test` by the noise of products, by seeds.
    """

    noise: Sequence[Numbers]
    machines: Mapping[bool, Sequence[Numbers]]
    regularisation: Mapping[float, Sequence[Numbers]]


@dataclass(frozen=True)
class Shape:
    """How large everything was, for the conditions.

    Attributes:
        dimensions: Of the normal distribution.
        step: Of Langevin sampling.
        chains: Of it.
        steps: Of each chain.
        square: Spins along an edge.
        coupling: Of neighbours.
        updates: Of the machine that learns patterns.
        chip_updates: Of it on the chip, with weights, and as many of the biases alone.
        digit_updates: Of the machine that learns digits; on the chip half of `chip_updates`.
    """

    dimensions: int
    step: float
    chains: int
    steps: int
    square: int
    coupling: float
    updates: int
    chip_updates: int
    digit_updates: int


def ebm_found(parts: Parts, shape: Shape, chip_name: str) -> Found:
    """Puts together what the study found.

    Args:
        parts: Its numbers.
        shape: How large everything was.
        chip_name: For the conditions.
    """
    return Found(
        findings=(*_chance(parts.noise), *_on_chip(parts.machines), *_regularisation(parts.regularisation)),
        controls=_controls(parts.noise, parts.machines),
        tables=(
            _chance_table(parts.noise),
            _machine_table(parts.machines),
            Table(
                f"Digits: mean log-likelihood in nat after learning {FEW_DIGITS} of them",
                ("noise / product", "train", "test", "gap"),
                tuple(
                    (f"{100 * level:g} %", *_likelihoods(found, "")) for level, found in parts.regularisation.items()
                ),
            ),
        ),
        plots=(
            Plot(
                "Does noise regularise?",
                "noise of a product while learning (% of it)",
                "mean log-likelihood of a digit (nat)",
                tuple(
                    Curve(
                        name,
                        tuple(100 * level for level in parts.regularisation),
                        tuple(mean([one[name] for one in found]) for found in parts.regularisation.values()),
                        tuple(half_width([one[name] for one in found]) for found in parts.regularisation.values()),
                    )
                    for name in ("train", "test")
                ),
            ),
            _machine_plot(parts.machines, 2.0 * shape.chip_updates),
        ),
        conditions={
            "normal distribution": f"{shape.dimensions}-d, {shape.chains} chains of {shape.steps}, step {shape.step:g}",
            "Ising square": f"{shape.square} x {shape.square}, free edges, J / kT = {shape.coupling:g}, 200 chains",
            "machine": f"{SIDE} x {SIDE} bars and stripes, {HIDDEN} hidden units, |w| <= {WEIGHT_LIMIT:g}, "
            f"{CHAINS} chains, {shape.updates} updates; on the chip {shape.chip_updates} more, as many of biases",
            "digits": f"64 x {HIDDEN} units, {FEW_DIGITS} to train on, {shape.digit_updates} updates at every level, "
            f"noise of a generator; on the chip {shape.chip_updates // 2} more, and as many of the biases",
            "written with care": "programming and mismatch a tenth of the usual, no stuck cells",
            "chip": chip_name,
        },
    )


def _mean(runs: Sequence[Numbers], key: str, unit: str = "", scale: float = 1.0) -> Interval:
    return of_mean([scale * one[key] for one in runs], unit, "seeds")


def _further(runs: Sequence[Numbers], key: str, than: str) -> Interval:
    return of_difference([one[key] for one in runs], [one[than] for one in runs], "nat", "seeds")


def _chance(noise: Sequence[Numbers]) -> tuple[Finding, ...]:
    worst = min(one["p"] for one in noise) * len(noise)
    ising = exactly(100.0 * max(abs(one["ising"]) for one in noise), "%", f"largest of {len(noise)} seeds")
    return (
        at_least(
            "No test of randomness rejects whitened read noise at 1 %",
            exactly(worst, "", f"smallest of {len(noise)} seeds, times their number"),
            0.01,
        ),
        at_most(
            "The sampled covariance is within 5 % of the discrete Lyapunov equation's",
            _mean(noise, "covariance", "%", 100.0),
            5.0,
        ),
        at_most(
            "With forces read on the chip, too: of the equation's for its measured cells",
            _mean(noise, "chip covariance", "%", 100.0),
            5.0,
        ),
        at_most("Two-colour Gibbs sampling: the energy of an Ising square is within 1 % of the exact one", ising, 1.0),
        at_most(
            "Bars and stripes: with read noise at most 0.05 nat further from the data than with digital chance",
            _further(noise, "divergence", "divergence digital"),
            0.05,
        ),
    )


def _on_chip(machines: Mapping[bool, Sequence[Numbers]]) -> list[Finding]:
    findings = []
    for care, runs in machines.items():
        findings += [
            at_most(
                f"Bars and stripes, products and chance on the chip ({_CARE[care]}): at most 0.05 nat further",
                _further(runs, "divergence learnt", "divergence digital"),
                0.05,
            ),
            at_least(
                f"Digits, products and chance on the chip ({_CARE[care]}): learning there makes unseen ones likelier",
                _further(runs, "learnt test", "deployed test"),
                0.0,
            ),
        ]
    return findings


def _regularisation(learnt: Mapping[float, Sequence[Numbers]]) -> list[Finding]:
    """Whether noise makes unseen digits likelier; that the gap closes alone may be worse learning."""
    findings = []
    gaps = {level: [one["train"] - one["test"] for one in found] for level, found in learnt.items()}
    for level in [level for level in learnt if level > 0.0]:
        closer = of_difference(gaps[0.0], gaps[level], "nat", "seeds").value
        better = of_difference(
            [one["test"] for one in learnt[level]], [one["test"] for one in learnt[0.0]], "nat", "seeds"
        )
        claim = f"Noise of {100 * level:g} % regularises: unseen digits are likelier"
        findings.append(at_least(f"{claim} (the gap closes by {closer:.2g} nat)", better, 0.0))
    return findings


def _controls(noise: Sequence[Numbers], machines: Mapping[bool, Sequence[Numbers]]) -> tuple[Control, ...]:
    seeds = f"{len(noise)} seeds"
    another = exactly(max(one["p another"] for one in noise), "", f"largest of {seeds}")
    shrunk = _mean(noise, "covariance shrunk", "%", 100.0)
    meant = _mean(noise, "chip covariance as meant", "%", 100.0)
    halved = _mean(noise, "ising shrunk", "%", 100.0)
    silent = _mean(noise, "divergence silent", "nat")
    refused = sum(one["coarse refused"] * one["silent refused"] for one in noise) / len(noise)
    unlearnt = _further(machines[False], "divergence deployed", "divergence digital")
    return (
        Control("wrong chip: whitened by another's covariance", "is rejected at 1 %", another, another.value < 0.01),
        Control("numbers a tenth too small", "covariance is off by more than 5 %", shrunk, shrunk.value > 5.0),
        Control(
            "forces on the chip, against the equation of the cells that were meant",
            "covariance is off by more than 5 %",
            meant,
            meant.value > 5.0,
        ),
        Control(
            "Ising square, numbers half as large", "energy is off by more than 1 %", halved, abs(halved.value) > 1.0
        ),
        Control("noise off in the machine", "it does not learn (above 0.5 nat)", silent, silent.value > 0.5),
        Control("not learnt on the chip, only deployed", "more than 0.05 nat further", unlearnt, unlearnt.value > 0.05),
        Control(
            "a 6-bit ADC, and a chip without noise",
            "both are refused",
            exactly(refused, "", f"part of {seeds}"),
            refused == 1.0,
        ),
    )


def _chance_table(noise: Sequence[Numbers]) -> Table:
    return Table(
        "Chance of the chip and of a generator",
        ("", "read noise", "generator"),
        (
            *(
                (name, str(_mean(noise, key, "", scale)), str(_mean(noise, f"{key} digital", "", scale)))
                for name, key, scale in (
                    ("covariance, distance from the exact one (%)", "covariance", 100.0),
                    ("energy of an Ising square, off by (%)", "ising", 100.0),
                    ("bars and stripes, exact products, divergence (nat)", "divergence", 1.0),
                )
            ),
            *(
                (name, str(_mean(noise, key)), "")
                for name, key in (
                    ("largest autocorrelation of 20 lags (standard errors)", "autocorrelation z"),
                    ("excess kurtosis (standard errors)", "kurtosis z"),
                    ("Kolmogorov-Smirnov p", "ks p"),
                    ("read noise in steps of the ADC, median column", "noise in steps"),
                )
            ),
            ("MVMs of a seed", noise[0]["mvms"], ""),
        ),
    )


def _machine_table(machines: Mapping[bool, Sequence[Numbers]]) -> Table:
    rows: list[tuple[str | float, ...]] = []
    for care, runs in machines.items():
        for stage in ("digital", "deployed", "learnt"):
            name = "exact products, chance of a generator" if stage == "digital" else f"{_CARE[care]}, {stage}"
            if stage != "digital" or not care:
                rows.append((name, str(_mean(runs, f"divergence {stage}")), *_likelihoods(runs, f"{stage} ")))
        costs = ("patterns mvms", "digits mvms", "chance mvms", "patterns writes")
        rows.append((f"{_CARE[care]}, MVMs for patterns, digits, chance; writes", *(runs[0][key] for key in costs)))
    return Table(
        "Machines with every product and all chance on the chip (digits: likelihoods of the measured cells)",
        ("", "bars and stripes, divergence (nat)", "digits, train (nat)", "digits, test (nat)", "gap (nat)"),
        tuple(rows),
    )


def _machine_plot(machines: Mapping[bool, Sequence[Numbers]], updates: float) -> Plot:
    curves = [
        Curve(
            _CARE[care],
            (0.0, updates),
            tuple(mean([one[f"divergence {stage}"] for one in runs]) for stage in _STAGES),
            tuple(half_width([one[f"divergence {stage}"] for one in runs]) for stage in _STAGES),
        )
        for care, runs in machines.items()
    ]
    exact = mean([one["divergence digital"] for one in machines[False]])
    return Plot(
        "Bars and stripes, every product and all chance on the chip",
        "updates on the chip",
        "divergence from the data (nat)",
        (*curves, Curve("exact products, chance of a generator", (0.0, updates), (exact, exact))),
    )


def _likelihoods(runs: Sequence[Numbers], prefix: str) -> tuple[str, str, str]:
    gap = of_mean([one[f"{prefix}train"] - one[f"{prefix}test"] for one in runs], "", "seeds")
    return str(_mean(runs, f"{prefix}train")), str(_mean(runs, f"{prefix}test")), str(gap)
