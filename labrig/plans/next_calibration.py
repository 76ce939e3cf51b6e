"""What to measure next on a fitted chip: which parameters are least certain, and the best MVMs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from labrig.plans.calibration_design import DesignedCalibration, DesignRequest, design_calibration
from labrig.plans.mvm import board_converters
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.certainty import Certainty, known_errors, least_certain, with_more
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.predictions import GOALS
from labrig_drivers.crossbar import BoardInfo

if TYPE_CHECKING:
    from labrig_calibration.result import CalibrationResult

Progress = Callable[[str, float], None]

# Goals whose relative error is at least this part of the worst one's are what the next MVMs are for.
_WORTH = 1.0 / 3.0


@dataclass(frozen=True)
class NextCalibration:
    """The next MVMs of a chip.

    Attributes:
        array: The array that is known least; the design is for it and measures all that were fitted.
        least_certain: The goals that a surrogate's outputs depend on, the least certain first.
        certainty: Every parameter that was fitted: error now, of the new MVMs alone, of all together.
        designed: The design.
        seed: With which it has to be swept: another one than that of the recording, whose targets would come again.
    """

    array: int
    least_certain: tuple[str, ...]
    certainty: Mapping[str, Certainty]
    designed: DesignedCalibration
    seed: int


def next_calibration(
    info: BoardInfo,
    fits: Sequence[CalibrationResult],
    budget: int,
    *,
    seed: int = 1,
    progress: Progress | None = None,
) -> NextCalibration:
    """Designs the next MVMs of a chip from the errors of its fit.

    Args:
        info: The board, as the recording has it.
        fits: One for each fitted array.
        budget: MVMs over all these arrays.
        seed: Of the design.
        progress: Called with the name of a stage and the fraction of it that is done.

    Raises:
        ConfigError: The budget is too small for any design.
    """
    known = [known_errors(one.array_parameters, one.posterior) for one in fits]
    orders = [least_certain(one, GOALS) for one in known]
    worst = max(range(len(fits)), key=lambda place: known[place][orders[place][0]].relative)
    fitted, mine, order = fits[worst], known[worst], orders[worst]
    goals = tuple(name for name in order if mine[name].relative >= _WORTH * mine[order[0]].relative)
    array = fitted.array_parameters
    sheet = AssumedChip.from_data_sheet(board_converters(info))
    request = DesignRequest(
        budget=budget,
        goals=goals,
        arrays=tuple(one.array_parameters.array for one in fits),
        max_voltage_v=float(np.abs(fitted.dataset.voltage_v).max()),
        mvm_s=_mvm_s(fitted.dataset) or None,
        seed=seed,
    )
    designed = design_calibration(
        info, request, AssumedChip.from_parameters(array, sheet, f"the fit of array {array.array}"), progress
    )
    more = dict(designed.analysis.predicted)
    if array.wire_ohm is not None:
        # Where wires are fitted, the errors of gains hold what cannot be told from them.
        more["gain"] = replace(more["gain_with_lines"], name="gain")
    certainty = with_more(mine, more)
    return NextCalibration(array.array, tuple(order), certainty, designed, seed)


def _mvm_s(dataset: MvmDataset) -> float:
    """Time in s between two MVMs of a write, link and host included, as it was recorded; zero where it was not."""
    spans = []
    for write in range(dataset.writes):
        time_s = dataset.time_s[dataset.pattern == write]
        if time_s.size > 1:
            spans.append(float(np.ptp(time_s)) / (time_s.size - 1))
    return float(np.median(spans)) if spans else 0.0
