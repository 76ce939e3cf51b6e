"""What a design cannot tell apart, in words: near-null directions of its Fisher information. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.cell_information import LAW, LINES, line_scales
from labrig_calibration.dataset import Converters
from labrig_calibration.information import BORDER, VARIANCES, border_scales
from labrig_calibration.predictions import Analysis, law_scales, noise_scales, variance_information
from labrig_calibration.stimulus import MvmDesign

FloatArray = NDArray[np.float64]

# Part of a unit vector from which on a parameter counts as involved in a direction.
_INVOLVED = 0.2
# Correlation from which on two parameters are said to trade off.
_TRADE_OFF = 0.95
# Part of the cells that a fault has to concern before it is told.
_TELL = 0.1


@dataclass(frozen=True)
class Confusion:
    """Parameters that a design cannot tell apart, or hardly.

    Attributes:
        parameters: Their names.
        fatal: Whether nothing is known about them one by one; else their errors merely hang together.
        because: Why, in words.
        remedy: What to measure instead.
    """

    parameters: tuple[str, ...]
    fatal: bool
    because: str
    remedy: str

    def __str__(self) -> str:
        verb = "cannot be told apart" if self.fatal else "trade off"
        named = " and ".join(self.parameters) if len(self.parameters) < 3 else ", ".join(self.parameters)
        if self.fatal and len(self.parameters) == 1:
            verb = "cannot be known"
        return f"{named} {verb}: {self.because}; {self.remedy}"


# What resolves a direction, by the first parameter in this order that it involves.
_REMEDIES = {
    "drift": "read the same write over a longer time (a slower sweep, or the plan retention)",
    "offset": "add zero vectors, and vectors of both signs",
    "evenness": "add zero vectors and a ladder of amplitudes with both signs",
    "compression": "add an amplitude ladder and vectors with many rows driven, up to the ADC's full scale; until then "
    "a bent curve looks like wires that take current away",
    "amplifier_noise": "add zero vectors, which only the amplifier's noise reaches",
    "line_noise": "drive outputs far into the bend of the curve; until then it is counted as the amplifier's",
    "shot_noise": "add a ladder of amplitudes: one term grows with the current, the other with its square",
    "conductance_noise": "add one-hot vectors at the highest amplitude, where it is largest",
}


def confusions(analysis: Analysis, converters: Converters, chip: AssumedChip) -> list[Confusion]:
    """Everything that a design cannot tell apart, worst first.

    A direction counts as unknown where a change of its parameters by a large amount (a fiftieth of full scale, the
    compression itself, the highest conductance, all of the noise) is less than one standard error.

    Args:
        analysis: What `analyse` made of the design.
        converters: Ranges and resolutions.
        chip: What the chip is taken to be.
    """
    found = [
        *_driven_rows(analysis, converters),
        *_shared(analysis, converters, chip),
        *_noise(analysis, converters, chip),
        *_writes(analysis, chip),
        *_lines(analysis, chip),
    ]
    return sorted(dict.fromkeys(found), key=lambda one: not one.fatal)


def demands(design: MvmDesign) -> list[str]:
    """What a fit will refuse about a recording of this design, in words; empty where it will not refuse.

    The same rules as those of `labrig_calibration.fit`.
    """
    faults = []
    targets = np.stack([write.target_conductance_s for write in design.writes])
    if len(design.writes) < 2 or not np.ptp(targets, axis=0).max() > 0:
        faults.append("at least two different programmed patterns are needed to tell gains from conductances")
    zeros = False
    for number, write in enumerate(design.writes):
        mvms = sum(len(block.voltage_v) for block in write.blocks)
        rows = write.target_conductance_s.shape[0]
        if mvms < 2 * (rows + 3):
            faults.append(f"write {number} has {mvms} MVMs, at least {2 * (rows + 3)} are needed for {rows} rows")
        zeros = zeros or any((np.abs(block.voltage_v).max(axis=1) == 0.0).any() for block in write.blocks)
    if not zeros:
        faults.append("no zero input vector, so offsets cannot be told from leakage")
    return faults


def _driven_rows(analysis: Analysis, converters: Converters) -> list[Confusion]:
    """Conductances that no vector, or only a sum of rows, shows."""
    missing: set[int] = set()
    for kind in analysis.kinds:
        values, vectors = np.linalg.eigh(kind.gram[0] * converters.conductance_max_s**2)
        missing |= set(np.flatnonzero(np.abs(vectors[:, values < 1.0]).max(axis=1, initial=0.0) > _INVOLVED).tolist())
        # A direction may be spread over so many rows that none stands out.
        if (values < 1.0).any() and not missing:
            missing = set(range(kind.rows))
    if not missing:
        return []
    rows = ", ".join(map(str, sorted(missing)[:8])) + (" ..." if len(missing) > 8 else "")
    because = f"the vectors of a write show {len(missing)} of {analysis.kinds[0].rows} rows ({rows}) only in sum or not"
    return [Confusion(("conductance",), True, because, "add one-hot or Hadamard vectors")]


def _shared(analysis: Analysis, converters: Converters, chip: AssumedChip) -> list[Confusion]:
    """Offset, compression, drift and even part, with all conductances unknown."""
    scale = border_scales(converters, chip)
    schur = analysis.columns.schur.mean(axis=0) * np.outer(scale, scale)
    known = analysis.columns.known.mean(axis=0) * np.outer(scale, scale)
    found = []
    # First without the even part, as the fit has it.
    for size in (3, 4):
        values, vectors = np.linalg.eigh(schur[:size, :size])
        for value, vector in zip(values, vectors.T, strict=True):
            names = _involved(vector, BORDER)
            if value >= 1.0 or (size == 4 and "evenness" not in names):
                continue
            absorbed = float(vector @ known[:size, :size] @ vector) >= 1.0
            named = (*names, "conductance") if absorbed else names
            because = (
                "a change of one is made up for by the others in every vector"
                if len(named) > 1
                else "no vector depends on it"
            )
            found.append(Confusion(named, True, because, _remedy(names)))
        if found:
            return found
    correlation = _correlation(analysis.columns.border.mean(axis=0))
    for one in range(3):
        for other in range(one):
            if abs(correlation[one, other]) > _TRADE_OFF:
                pair = (BORDER[other], BORDER[one])
                because = f"their errors have a correlation of {correlation[one, other]:.2f}"
                found.append(Confusion(pair, False, because, _remedy(pair)))
    return found


def _noise(analysis: Analysis, converters: Converters, chip: AssumedChip) -> list[Confusion]:
    """The terms of the noise law, what stands beside them, and the step of the ADC."""
    information = variance_information(analysis.kinds, analysis.times).mean(axis=0)
    scale = noise_scales(converters, chip)
    scale = np.append(scale, scale[0])
    scaled = information * np.outer(scale, scale)
    found = []
    values, vectors = np.linalg.eigh(scaled[:3, :3])
    for value, vector in zip(values, vectors.T, strict=True):
        if value < 1.0:
            names = _involved(vector, VARIANCES)
            because = "all residuals together say less about this mix than its whole size"
            found.append(Confusion(names, True, because, _remedy(names)))
    # Beside the law: what a fit without this term takes on trust.
    trusted = {
        3: (
            ("amplifier_noise", "line_noise"),
            "no output is bent enough to show on which side of the curve noise arises",
            _REMEDIES["line_noise"],
        ),
        4: (
            ("noise", "misfit"),
            "no vector is measured again, so what the model leaves out looks like noise",
            "measure a few vectors again and again (repeats)",
        ),
    }
    for index, (names, because, remedy) in trusted.items():
        chosen = [0, 1, 2, index]
        if np.linalg.eigvalsh(scaled[np.ix_(chosen, chosen)])[0] < min(1.0, 0.1 * values[0]):
            found.append(Confusion(names, True, because, remedy))
    step_a = float(np.median(converters.adc_lsb_a))
    if chip.amplifier_noise_a2 < (0.5 * step_a) ** 2:
        ratio = np.sqrt(chip.amplifier_noise_a2) / step_a
        because = f"noise of {ratio:.2g} steps lets the same vector give the same code again and again"
        remedy = "lower the ADC's full scale, or add dither; different vectors help, repeats of one do not"
        found.append(Confusion(("amplifier_noise", "the ADC's step"), ratio < 0.15, because, remedy))
    return found


def _writes(analysis: Analysis, chip: AssumedChip) -> list[Confusion]:
    """What only more, or other, programmed patterns tell."""
    found = []
    target_s = analysis.cells.target_s
    writes = len(target_s)
    if writes < 2 or not np.ptp(target_s, axis=0).max() > 0:
        because = (
            "one pattern only: a column's gain and its cells' conductances scale together"
            if writes < 2
            else "all writes have the same target: a column's gain and its cells' conductances scale together"
        )
        remedy = "program at least two different patterns"
        found.append(Confusion(("gain", "conductance"), True, because, remedy))
    elif np.linalg.eigvalsh(analysis.law * np.outer(law_scales(chip), law_scales(chip)))[0] < 1.0:
        because = "the writes are too few, or their targets too much alike, for its whole polynomial"
        found.append(Confusion(LAW[:3], True, because, "program more patterns, each target anew"))
    if writes < 2:
        because = "what sets each cell apart, and what one programming adds, are seen in sum only"
        found.append(Confusion(("mismatch", "programming"), True, because, "program each array twice or more"))
    # A cell that sits still looks like one whose targets never moved it.
    sigma_s = np.hypot(analysis.cells.programming_s(chip), analysis.cells.read_error_s(analysis.columns, chip))
    moved = np.ptp(target_s, axis=0) / sigma_s.mean(axis=0)
    still = float((moved < 5.0).mean())
    if still > _TELL:
        because = f"in {still:.0%} of the cells the targets of all writes lie within five of its errors"
        remedy = "program each pattern's complement, or more patterns"
        found.append(Confusion(("stuck cells", "cell slopes"), still > 0.5, because, remedy))
    return found


def _lines(analysis: Analysis, chip: AssumedChip) -> list[Confusion]:
    """Wire resistance and crosstalk, which show in how a cell's conductance depends on other cells' targets."""
    scale = line_scales(analysis.cells, chip)
    found = []
    covariance = analysis.gains.lines * np.outer(1.0 / scale, 1.0 / scale)
    unknown = [name for name, error in zip(LINES, np.sqrt(np.diagonal(covariance)), strict=True) if error > 1.0]
    if unknown:
        because = "what the lines take away looks like lower gains and slopes of the cells"
        remedy = "program patterns in which whole rows and columns are high or low"
        found.append(Confusion((*unknown, "gain"), True, because, remedy))
    correlation = _correlation(covariance)
    if abs(correlation[0, 1]) > _TRADE_OFF:
        because = f"their errors have a correlation of {correlation[0, 1]:.2f}"
        remedy = "only their sum acts as long as rows and columns are loaded alike"
        found.append(Confusion(LINES[:2], False, because, remedy))
    return found


def _involved(vector: FloatArray, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, part in zip(names, vector, strict=False) if abs(part) > _INVOLVED)


def _remedy(names: Sequence[str]) -> str:
    return next((text for name, text in _REMEDIES.items() if name in names), "measure more kinds of vectors")


def _correlation(covariance: FloatArray) -> FloatArray:
    error = np.sqrt(np.diagonal(covariance))
    return np.asarray(covariance / np.outer(error, error))
