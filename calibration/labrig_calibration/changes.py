"""What changed between two calibrations of one chip, with one false-alarm rate for everything that is looked at.

Every parameter has a standard error in both, so its change in units of the two errors together is standard normal
where nothing changed. A chip of 128 columns and 16,384 cells gives tens of thousands of such numbers; the chance that
any of them is called a change although nothing changed is held at a stated rate: families of parameters share it
equally (Bonferroni), and so do the questions asked of each: did all move together, did they scatter, did one stand out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, Estimate

FloatArray = NDArray[np.float64]

FALSE_ALARM_RATE = 0.01

# Intervals of 90 % of a fit hold 85 to 95 % of the truths, so errors are believed to 15 % and no further:
# ndtri(0.95) / ndtri(0.925) = 1.14.
_ERROR_ALLOWANCE = 1.15
# Errors of these hang together or are three numbers only, so that they are asked one by one and never as a crowd.
_ONE_BY_ONE = frozenset({"programming", "wire_ohm"})
# What all cells have in common is their columns' response, which is asked already.
_NO_COMMON_SHIFT = frozenset({"cell_response"})
# Parts of a model that change what other families mean: where only one fit has them, those cannot be compared.
_DEPENDS = {
    "skew": ("compression",),
    "line_noise": ("amplifier_noise", "shot_noise", "conductance_noise"),
    "output_shot_noise": ("amplifier_noise", "shot_noise", "conductance_noise"),
    "output_relative_noise": ("amplifier_noise", "shot_noise", "conductance_noise"),
    "drift_spread": ("conductance_noise",),
}
# Evidence in nats (odds of 100 to 1) from which on two calibrations are taken to be of different chips.
_OTHER_CHIP_EVIDENCE = float(np.log(100.0))
_WORST = 10


class ComparisonError(ValueError):
    """Two calibrations cannot be compared; the message lists every reason."""


@dataclass(frozen=True)
class Place:
    """One parameter that changed.

    Attributes:
        index: Where: column, or row and column; empty for a single number.
        old: Its value before.
        new: Its value now.
        z: Change in standard errors of the difference.
    """

    index: tuple[int, ...]
    old: float
    new: float
    z: float


@dataclass(frozen=True)
class FamilyChange:
    """What became of one family of parameters of an array.

    Attributes:
        name: Its name, as in `ArrayParameters.estimates`, or `response` and `cell_response`, which see.
        unit: SI unit of the values.
        compared: Parameters with finite errors in both calibrations.
        old_median: Median before.
        new_median: Median now.
        shift: Mean change of all, weighted by the errors.
        shift_error: Its standard error.
        scatter: Root mean square of the changes in standard errors; 1 where nothing changed.
        z: Every change in standard errors, in the shape of the family; NaN where there is no error.
        worst: The largest changes, largest first.
        adjusted: For each question the chance that any question of the whole comparison gives so sure an answer where
            nothing changed, at most 1: `shift`, `scatter`, `worst`.
    """

    name: str
    unit: str
    compared: int
    old_median: float
    new_median: float
    shift: float
    shift_error: float
    scatter: float
    z: FloatArray
    worst: tuple[Place, ...]
    adjusted: Mapping[str, float]

    @property
    def surest(self) -> float:
        """Smallest of the adjusted chances."""
        return min(self.adjusted.values(), default=1.0)


@dataclass(frozen=True)
class ArrayChange:
    """What changed on one array.

    Attributes:
        array: Which array.
        families: Every family that both calibrations have.
        left_out: Families that cannot be compared, with the reason.
        newly_stuck: Cells `(row, column)` that followed their targets before and do not now.
        recovered: Cells that did not and do now.
        other_chip_evidence: Log odds in nats that the patterns of cells and columns belong to different chips; NaN
            where they could not tell.
    """

    array: int
    families: tuple[FamilyChange, ...]
    left_out: Mapping[str, str]
    newly_stuck: tuple[tuple[int, int], ...]
    recovered: tuple[tuple[int, int], ...]
    other_chip_evidence: float

    @property
    def looks_like_another_chip(self) -> bool:
        """Whether fixed patterns say that this is not the chip that was calibrated before."""
        return self.other_chip_evidence > _OTHER_CHIP_EVIDENCE


@dataclass(frozen=True)
class ChipChange:
    """What changed on a chip.

    Attributes:
        chip_id: Which chip.
        arrays: Arrays that both calibrations have.
        only_old: Arrays that only the earlier one has.
        only_new: Arrays that only the later one has.
        false_alarm_rate: Chance that any parameter is called changed although nothing changed. Stuck cells, which have
            no standard error, are listed and come on top.
    """

    chip_id: str
    arrays: tuple[ArrayChange, ...]
    only_old: tuple[int, ...]
    only_new: tuple[int, ...]
    false_alarm_rate: float

    def significant(self, array: ArrayChange) -> list[FamilyChange]:
        """Families of one array that changed, surest first."""
        found = [one for one in array.families if one.surest < self.false_alarm_rate]
        return sorted(found, key=lambda one: one.surest)

    @property
    def changed(self) -> bool:
        """Whether anything changed."""
        return any(self.significant(one) or one.newly_stuck or one.recovered for one in self.arrays)

    @property
    def looks_like_another_chip(self) -> bool:
        """Whether any array looks like one of another chip."""
        return any(one.looks_like_another_chip for one in self.arrays)


def compare_chips(
    new: ChipParameters, old: ChipParameters, *, false_alarm_rate: float = FALSE_ALARM_RATE
) -> ChipChange:
    """Compares two calibrations of one chip.

    Args:
        new: The later calibration.
        old: The earlier one.
        false_alarm_rate: Chance that anything is called changed although nothing changed.

    Raises:
        ComparisonError: The chips have different names, no array in common, or arrays of different sizes.
    """
    shared = sorted(set(new.arrays) & set(old.arrays))
    faults = []
    if new.chip_id != old.chip_id:
        faults.append(f"one is of chip {new.chip_id}, the other of chip {old.chip_id}")
    elif not shared:
        faults.append(f"arrays {sorted(new.arrays)} and {sorted(old.arrays)} have none in common")
    for index in shared:
        sizes = [(one.arrays[index].rows, one.arrays[index].columns) for one in (new, old)]
        if sizes[0] != sizes[1]:
            faults.append(f"array {index} is {sizes[0][0]} x {sizes[0][1]} and was {sizes[1][0]} x {sizes[1][1]}")
    if faults:
        raise ComparisonError("the calibrations cannot be compared: " + "; ".join(faults))
    pairs = {index: _paired(new.arrays[index], old.arrays[index]) for index in shared}
    questions = sum(_questions(name, new_one) for pair, _ in pairs.values() for name, (new_one, _) in pair.items())
    return ChipChange(
        new.chip_id,
        tuple(_array_change(new.arrays[index], old.arrays[index], *pairs[index], questions) for index in shared),
        tuple(sorted(set(old.arrays) - set(new.arrays))),
        tuple(sorted(set(new.arrays) - set(old.arrays))),
        false_alarm_rate,
    )


def _paired(new: ArrayParameters, old: ArrayParameters) -> tuple[dict[str, tuple[Estimate, Estimate]], dict[str, str]]:
    """The families that can be compared, with errors that hold for a comparison, and those that cannot, with why."""
    ours, theirs = new.estimates(), old.estimates()
    left_out: dict[str, str] = {}
    for part in sorted(set(ours) ^ set(theirs)):
        for name in (part, *_DEPENDS.get(part, ())):
            left_out[name] = f"only one of the two models has {part}"
    for name in sorted(set(ours) & set(theirs)):
        if ours[name].value.shape != theirs[name].value.shape:
            left_out[name] = "the two models differ in its shape"
        elif bool(ours[name].value.any()) != bool(theirs[name].value.any()):
            left_out[name] = "only one of the two models has it"
    if new.residual is not None or old.residual is not None:
        # It takes over a part of these, each time another one.
        left_out |= dict.fromkeys(("offset", "compression", "drift"), "a residual network shares in them")
    # A gain means something else with wires than without; the response is the same thing in both.
    both = {
        name: (one, theirs[name])
        for name, one in ours.items()
        if name in theirs and name not in left_out and name != "gain"
    }
    (columns, cells), (old_columns, old_cells) = _responses(new), _responses(old)
    both["response"] = (columns, old_columns)
    if cells is not None and old_cells is not None:
        unknown = new.stuck | old.stuck
        both["cell_response"] = (_without(cells, unknown), _without(old_cells, unknown))
    return both, left_out


def _responses(array: ArrayParameters) -> tuple[Estimate, Estimate | None]:
    """How strongly columns and cells answer: output over target of a write with every cell at half the range.

    Gain, wires, crosstalk and the fixed pattern together, so that fits that share them out otherwise still agree.
    Errors of cells are None in files of schema 1.
    """
    surrogate = ArraySurrogate(array).double()
    range_s = array.converters
    target_s = torch.full(
        (array.rows, array.columns), 0.5 * (range_s.conductance_min_s + range_s.conductance_max_s), dtype=torch.float64
    )
    with torch.no_grad():
        reached = (surrogate.new_write(target_s) / target_s).numpy()
    mean, error = reached.mean(axis=0) * array.gain.value, _times(np.abs(reached.mean(axis=0)), array.gain.error)
    if array.cell_slope_error is None:
        return Estimate(mean, error, "1"), None
    if array.wire_ohm is not None:
        # The error of a gain then holds what cannot be told from wires; a response is as sure as its cells together.
        healthy = ~array.stuck & np.isfinite(array.cell_slope_error)
        count, squares = healthy.sum(axis=0), np.where(healthy, array.cell_slope_error, 0.0) ** 2
        error = np.where(count > 0, np.abs(mean) * np.sqrt(squares.sum(axis=0)) / np.maximum(count, 1), np.inf)
    column = Estimate(mean, error, "1")
    share = np.divide(reached, array.cell_slope, out=np.ones_like(reached), where=array.cell_slope > 0)
    return column, Estimate(array.gain.value * reached, _times(array.gain.value * share, array.cell_slope_error), "1")


def _times(factor: FloatArray, error: FloatArray) -> FloatArray:
    """An error times a factor; what is not known stays so, whatever the factor."""
    known = np.isfinite(error)
    return np.asarray(np.where(known, factor * np.where(known, error, 0.0), np.inf))


def _without(estimate: Estimate, unknown: NDArray[np.bool_]) -> Estimate:
    return Estimate(estimate.value, np.where(unknown, np.inf, estimate.error), estimate.unit)


def _questions(name: str, estimate: Estimate) -> int:
    if estimate.value.size == 1 or name in _ONE_BY_ONE:
        return 1
    return 2 if name in _NO_COMMON_SHIFT else 3


def _array_change(
    new: ArrayParameters,
    old: ArrayParameters,
    pairs: Mapping[str, tuple[Estimate, Estimate]],
    left_out: Mapping[str, str],
    questions: int,
) -> ArrayChange:
    return ArrayChange(
        new.array,
        tuple(_family_change(name, *pair, questions) for name, pair in pairs.items()),
        left_out,
        _cells(new.stuck & ~old.stuck),
        _cells(old.stuck & ~new.stuck),
        _other_chip_evidence(pairs),
    )


def _family_change(name: str, new: Estimate, old: Estimate, questions: int) -> FamilyChange:
    error = np.hypot(new.error, old.error)
    known = np.isfinite(error) & (error > 0) & np.isfinite(new.value) & np.isfinite(old.value)
    difference = new.value - old.value
    z = np.where(known, difference / np.where(known, error, 1.0), np.nan)
    kept, count = z[known], int(known.sum())
    believed = kept / _ERROR_ALLOWANCE
    asked = _questions(name, new)
    adjusted: dict[str, float] = {}
    weight = 1.0 / error[known] ** 2
    shift = float((weight * difference[known]).sum() / weight.sum()) if count else np.nan
    shift_error = float(1.0 / np.sqrt(weight.sum())) if count else np.inf
    if count:
        adjusted["worst"] = _two_sided(float(np.abs(believed).max())) * count
        if asked > 1 and count > 1:
            adjusted["scatter"] = float(special.chdtrc(count, float((believed**2).sum())))
        if asked > 2 and count > 1:
            adjusted["shift"] = _two_sided(abs(shift) / shift_error / _ERROR_ALLOWANCE)
    order = np.argsort(-np.abs(np.nan_to_num(z, nan=0.0)), axis=None)[: min(_WORST, count)]
    worst = [tuple(int(axis) for axis in np.unravel_index(flat, z.shape)) for flat in order]
    return FamilyChange(
        name=name,
        unit=new.unit,
        compared=count,
        old_median=float(np.median(old.value)),
        new_median=float(np.median(new.value)),
        shift=shift,
        shift_error=shift_error,
        scatter=float(np.sqrt((kept**2).mean())) if count else np.nan,
        z=z,
        worst=tuple(Place(at, float(old.value[at]), float(new.value[at]), float(z[at])) for at in worst),
        adjusted={question: min(1.0, questions * p) for question, p in adjusted.items()},
    )


def _other_chip_evidence(pairs: Mapping[str, tuple[Estimate, Estimate]]) -> float:
    """Log odds that the patterns are of two chips: their correlation against what errors leave of it.

    Fisher's transformation of a correlation is normal with variance `1 / (n - 3)`; its mean is zero between two chips,
    and that of the reliability (1 less the share of the errors in the variance) between two fits of one.
    """
    evidence, told = 0.0, False
    for name in ("cell_response", "response", "offset", "compression"):
        if name not in pairs:
            continue
        new, old = pairs[name]
        known = np.isfinite(new.error) & np.isfinite(old.error)
        count = int(known.sum())
        if count < 8 or not all(float(np.ptp(one.value[known])) > 0 for one in pairs[name]):
            continue
        reliability = [
            float(np.clip(1.0 - (one.error[known] ** 2).mean() / one.value[known].var(), 0.0, 0.99))
            for one in (new, old)
        ]
        expected = float(np.sqrt(reliability[0] * reliability[1]))
        if expected < 0.3:
            continue
        found = float(np.corrcoef(new.value[known], old.value[known])[0, 1])
        transformed, mean = np.arctanh(np.clip(found, -0.99, 0.99)), np.arctanh(expected)
        # A column that aged pulls the correlation down a little, which is no other chip: half way is the border.
        evidence += 0.5 * (count - 3) * float((transformed - mean) ** 2 - transformed**2)
        told = True
    return evidence if told else float("nan")


def _two_sided(z: float) -> float:
    return float(2.0 * special.ndtr(-z))


def _cells(flags: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    return tuple((int(row), int(column)) for row, column in np.argwhere(flags))
