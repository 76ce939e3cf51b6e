"""May this fit be used: one of three words, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from labrig_calibration.battery import Check, Judgement
from labrig_calibration.diagnostics import Diagnostics

# The held-out error of a complete model is at most this multiple of the noise floor.
_GOOD_ERROR, _USABLE_ERROR = 1.05, 1.25
# Intervals of 90 % of a complete model hold this much of the held-out outputs.
_GOOD_COVERAGE, _USABLE_COVERAGE = (0.88, 0.92), (0.80, 0.96)
_MANY_SATURATED, _MANY_FLAGGED, _MANY_STUCK = 0.05, 0.01, 0.10
# Effects of the checks of `battery` from which on they matter; below, they are sure but small. Others always matter.
_MATTERS = {
    "bias": 0.1,
    "curve": 0.01,
    "drift": 0.01,
    "covariates": 0.01,
    "noise law": 0.1,
    "memory": 0.05,
    "slow noise": 0.05,
    "hum": 0.05,
    "shape": 0.02,
    "between columns": 0.05,
}
_SPREAD_MATTERS = 0.05
# Of these, the effect on the mean of all columns is that many times smaller in each of them.
_DILUTED = frozenset({"curve", "drift", "covariates", "memory", "slow noise", "hum"})
# Standard errors of a measured quality that are given to it before it is called worse than demanded.
_DOUBT = 2.0


class Level(IntEnum):
    """How far a fit may be used; the larger, the worse."""

    GOOD = 0
    USABLE = 1
    UNUSABLE = 2

    @property
    def words(self) -> str:
        """In words."""
        return ("good", "usable", "do not use")[self]


@dataclass(frozen=True)
class Verdict:
    """What a fit is worth.

    Attributes:
        level: The word.
        sentence: What speaks for it or against it, in one sentence.
        reasons: Everything that made it worse than good, worst first.
        remarks: What tests of the residuals found beyond doubt, but too small to matter.
    """

    level: Level
    sentence: str
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """What a verdict counts beside the quality of the predictions.

    Attributes:
        saturated: Share of the outputs at an end of the ADC.
        flagged: Share of the MVMs that were left out as glitches.
        stuck: Share of the cells that do not follow their targets.
        dead: Columns that answer nothing.
    """

    saturated: float
    flagged: float
    stuck: float
    dead: int = 0


def judge_fit(diagnostics: Diagnostics, counts: Counts, judgement: Judgement | None) -> Verdict:
    """Gives the verdict on one array.

    Args:
        diagnostics: How well held-out MVMs are predicted.
        counts: What was left out.
        judgement: What the tests of the residuals found, where they could be made.
    """
    outputs = max(diagnostics.heldout * diagnostics.residual_rms_a.size, 1)
    error, coverage = diagnostics.error_over_noise, diagnostics.coverage_90
    error_doubt = _DOUBT * error / np.sqrt(2.0 * outputs)
    coverage_doubt = _DOUBT * np.sqrt(0.09 / outputs)
    reasons: list[tuple[Level, str]] = []
    remarks: list[str] = []
    if not np.isfinite(error) or error > _GOOD_ERROR + error_doubt:
        level = Level.USABLE if error <= _USABLE_ERROR + error_doubt else Level.UNUSABLE
        reasons.append(
            (level, f"unseen outputs are missed by {error:.2f} times the noise floor (at most {_GOOD_ERROR})")
        )
    if not _inside(coverage, _GOOD_COVERAGE, coverage_doubt):
        level = Level.USABLE if _inside(coverage, _USABLE_COVERAGE, coverage_doubt) else Level.UNUSABLE
        text = "too narrow" if coverage < 0.9 else "too wide"
        reasons.append((level, f"90 % intervals hold {100 * coverage:.1f} % of the unseen outputs: they are {text}"))
    if counts.dead:
        columns = "1 column is" if counts.dead == 1 else f"{counts.dead} columns are"
        reasons.append((Level.USABLE, f"{columns} dead: whatever goes in, the output is the same"))
    for share, limit, text in (
        (counts.saturated, _MANY_SATURATED, "of the outputs are at an end of the ADC: lower the read voltage"),
        (counts.flagged, _MANY_FLAGGED, "of the MVMs were left out as glitches: look at cables and supply"),
        (counts.stuck, _MANY_STUCK, "of the cells do not follow their targets"),
    ):
        if share > limit:
            reasons.append((Level.USABLE, f"{100 * share:.1f} % {text}"))
    if judgement is not None:
        for check in judgement.findings:
            if _matters(check):
                reasons.append((Level.USABLE, check.sentence()))
            else:
                remarks.append(check.sentence())
    level = max((one for one, _ in reasons), default=Level.GOOD)
    told = (
        f"unseen outputs are predicted to {error:.3f} times the noise floor, 90 % intervals hold {100 * coverage:.1f} %"
    )
    sentence = {
        Level.GOOD: f"Good: {told}.",
        Level.USABLE: f"Usable, with care: {told}.",
        Level.UNUSABLE: f"Do not use this fit: {told}.",
    }[level]
    ordered = sorted(reasons, key=lambda pair: -pair[0])
    return Verdict(level, sentence, tuple(text for _, text in ordered), tuple(remarks))


def worst(verdicts: Sequence[Verdict]) -> Level:
    """The level of a whole chip: that of its worst array."""
    return max(verdict.level for verdict in verdicts)


def _inside(value: float, limits: tuple[float, float], doubt: float) -> bool:
    return limits[0] - doubt <= value <= limits[1] + doubt


def _matters(check: Check) -> bool:
    together = check.together_effect / (check.effect.size if check.name in _DILUTED else 1)
    effects = np.append(check.effect, together)
    chances = np.append(check.p_value * check.p_value.size, check.together_p_value)
    sure = effects[np.isfinite(effects) & (chances < 0.01)]
    if check.name == "spread":
        return bool((np.abs(sure - 1.0) > _SPREAD_MATTERS).any())
    return bool((np.abs(sure) > _MATTERS.get(check.name, 0.0)).any())
