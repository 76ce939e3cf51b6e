"""What a report says of the past: which earlier calibration it compares with, and what it knows of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labrig.calibration_history import CalibrationRecord, history_of
from labrig_calibration.carried_over import CarriedOver, carried_over
from labrig_calibration.changes import ChipChange, ComparisonError, compare_chips
from labrig_calibration.fit import heldout_part
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_surrogates.parameters import ChipParameters


@dataclass(frozen=True)
class Past:
    """What a report knows of earlier calibrations.

    Attributes:
        change: What changed since one of them; None where there is none to compare with.
        since: Which one.
        carried_over: Whether that one would still do, for each array.
        records: All of them in short, oldest first.
    """

    change: ChipChange | None = None
    since: str = ""
    carried_over: tuple[CarriedOver, ...] = ()
    records: tuple[CalibrationRecord, ...] = ()


def past_of(
    chip: ChipParameters,
    fits: Sequence[CalibrationResult | JudgedArray],
    earlier: Sequence[ChipParameters],
    against: ChipParameters | None,
) -> Past:
    """Looks back.

    Args:
        chip: The calibration that is reported.
        fits: Its arrays with their data.
        earlier: Whatever earlier calibrations were found.
        against: The one to compare with; the newest of `earlier` that fits where None.

    Raises:
        ComparisonError: `against` is of another chip or has arrays of other sizes.
    """
    records = tuple(history_of([*earlier, *([] if against is None else [against])], chip))
    now = str(chip.provenance.get("calibrated_utc", ""))
    if against is None:
        others = [one for one in earlier if one.chip_id == chip.chip_id and _when(one) < now]
        for one in sorted(others, key=_when, reverse=True):
            try:
                return _compared(chip, fits, one, records)
            except ComparisonError:
                continue
        return Past(records=records)
    return _compared(chip, fits, against, records)


def _compared(
    chip: ChipParameters,
    fits: Sequence[CalibrationResult | JudgedArray],
    old: ChipParameters,
    records: tuple[CalibrationRecord, ...],
) -> Past:
    change = compare_chips(chip, old)
    both = []
    for one in fits:
        index = one.array_parameters.array
        if index in old.arrays:
            heldout, _ = heldout_part(one.dataset)
            both.append(carried_over(one.array_parameters, old.arrays[index], heldout))
    return Past(change, _when(old) or "an unknown time", tuple(both), records)


def _when(chip: ChipParameters) -> str:
    return str(chip.provenance.get("calibrated_utc", ""))
