"""What changed between two calibrations, in words, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labrig.reports.families import direction, family, shown
from labrig_calibration.changes import ArrayChange, ChipChange, FamilyChange, Place
from labrig_surrogates.parameters import PARTS, Estimate

_NAMED_CELLS = 12


@dataclass(frozen=True)
class ChangeRow:
    """One family of one array.

    Attributes:
        array: Which array.
        name: The family in a word.
        title: The family in words.
        before: Median before, with its unit.
        now: Median now.
        shift: Mean change in its standard errors.
        scatter: Root mean square of the changes in standard errors.
        worst: Where the largest change is.
        chance: How likely so sure an answer is where nothing changed, the whole comparison counted.
        changed: Whether that is below the false-alarm rate.
    """

    array: int
    name: str
    title: str
    before: str
    now: str
    shift: str
    scatter: str
    worst: str
    chance: str
    changed: bool


def change_rows(change: ChipChange) -> list[ChangeRow]:
    """A row for every family that was compared, those that changed first."""
    rows = [
        _row(array.array, one, change.false_alarm_rate)
        for array in change.arrays
        for one in sorted(array.families, key=lambda one: one.surest)
        if one.compared
    ]
    return sorted(rows, key=lambda row: not row.changed)


def change_sentences(change: ChipChange) -> list[str]:
    """What happened to the chip, the most important first; always at least one sentence."""
    sentences = []
    if change.looks_like_another_chip:
        named = ", ".join(str(one.array) for one in change.arrays if one.looks_like_another_chip)
        sentences.append(
            f"This looks like another chip under the name {change.chip_id}: the fixed pattern of array {named} is not "
            "the one that was calibrated before."
        )
    for array in change.arrays:
        found = change.significant(array)
        sentences += [f"Array {array.array}: {_sentence(one, change.false_alarm_rate)}." for one in found]
        for cells, text in ((array.newly_stuck, "stuck since"), (array.recovered, "not stuck any more")):
            if cells:
                named = ", ".join(f"({row}, {column})" for row, column in cells[:_NAMED_CELLS])
                more = " ..." if len(cells) > _NAMED_CELLS else ""
                sentences.append(f"Array {array.array}: cells {text}: {len(cells)}, (row, column) {named}{more}.")
    if not sentences:
        sentences.append(f"Nothing changed that can be told from noise (false-alarm rate {_rate(change)} in all).")
    for array in change.arrays:
        reasons: dict[str, list[str]] = {}
        for name, reason in array.left_out.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            sentences.append(f"Array {array.array}: not compared: {', '.join(names)} ({reason}).")
    for missing, text in ((change.only_old, "only in the earlier"), (change.only_new, "only in this")):
        if missing:
            sentences.append(f"Arrays {', '.join(map(str, missing))} are {text} calibration.")
    return sentences


def change_json(change: ChipChange) -> dict[str, object]:
    """Everything that was found, as JSON can hold it; values in SI units."""
    return {
        "changed": change.changed,
        "looks_like_another_chip": change.looks_like_another_chip,
        "false_alarm_rate": change.false_alarm_rate,
        "sentences": change_sentences(change),
        "only_in_old": list(change.only_old),
        "only_in_new": list(change.only_new),
        "arrays": [_array_json(one, change.false_alarm_rate) for one in change.arrays],
    }


def _array_json(array: ArrayChange, rate: float) -> dict[str, object]:
    return {
        "array": array.array,
        "other_chip_evidence_nats": _number(array.other_chip_evidence),
        "newly_stuck": [list(cell) for cell in array.newly_stuck],
        "recovered": [list(cell) for cell in array.recovered],
        "left_out": dict(array.left_out),
        "families": {
            one.name: {
                "unit": one.unit,
                "compared": one.compared,
                "old_median": _number(one.old_median),
                "new_median": _number(one.new_median),
                "shift": _number(one.shift),
                "shift_error": _number(one.shift_error),
                "scatter": _number(one.scatter),
                "chances": dict(one.adjusted),
                "changed": one.surest < rate,
                "worst": [
                    {"index": list(place.index), "old": place.old, "new": place.new, "z": place.z}
                    for place in one.worst
                ],
            }
            for one in array.families
        },
    }


def _row(array: int, one: FamilyChange, rate: float) -> ChangeRow:
    medians, _, unit = shown(one.name, Estimate(np.array([one.old_median, one.new_median]), np.zeros(2), one.unit))
    before, now = (f"{value:.4g} {unit}".rstrip() for value in medians)
    place = one.worst[0]
    return ChangeRow(
        array=array,
        name=one.name,
        title=family(one.name).title,
        before=before,
        now=now,
        shift=f"{_in_errors(one):+.1f}",
        scatter=f"{one.scatter:.2f}",
        worst=f"{_where(one.name, place)} ({direction(one.name) * place.z:+.1f})",
        chance=_chance(one.surest),
        changed=one.surest < rate,
    )


def _sentence(one: FamilyChange, rate: float) -> str:
    row = _row(0, one, rate)
    parts = []
    if one.adjusted.get("shift", 1.0) < rate:
        parts.append(f"all moved together, median {row.before} to {row.now} ({row.shift} standard errors of the mean)")
    if one.adjusted.get("scatter", 1.0) < rate:
        parts.append(f"they moved apart, by {row.scatter} standard errors each")
    if one.adjusted.get("worst", 1.0) < rate:
        place = one.worst[0]
        values, _, unit = shown(one.name, Estimate(np.array([place.old, place.new]), np.zeros(2), one.unit))
        moved = f"{values[0]:.4g} to {values[1]:.4g} {unit}".rstrip()
        parts.append(
            f"most in {_where(one.name, place)}, {moved} ({direction(one.name) * place.z:+.1f} standard errors)"
        )
    return f"{family(one.name).title}: " + "; ".join(parts)


def _in_errors(one: FamilyChange) -> float:
    return direction(one.name) * one.shift / one.shift_error


def _where(name: str, place: Place) -> str:
    if name in PARTS and place.index:
        return PARTS[name][place.index[0]] + (" term" if name == "programming" else "")
    if len(place.index) == 2:
        return f"cell ({place.index[0]}, {place.index[1]})"
    return f"column {place.index[0]}" if place.index else "the array"


def _chance(chance: float) -> str:
    return "-" if chance >= 1.0 else f"{chance:.1g}"


def _rate(change: ChipChange) -> str:
    return f"{100.0 * change.false_alarm_rate:.3g} %"


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
