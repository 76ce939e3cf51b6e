"""Steps with kept blocks come to rest, also where the blocks say too little of what the data hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from random_chips import measure

from labrig_calibration.columns import ColumnState, Factor, accumulate, climb, factorise, settle
from labrig_calibration.linear_rungs import robust_start
from labrig_calibration.measurements import Measurements
from labrig_drivers.mock.chip import ChipSettings

ROWS = 24
FREE = (0, 1)
SETTINGS = ChipSettings(
    seed=3,
    arrays=1,
    rows=ROWS,
    columns=6,
    adc_full_scale_a=60e-6,
    compression_a=50e-6,
    wire_ohm=0.0,
    stuck_fraction=0.0,
    drift_exponent=0.0,
    drift_exponent_sigma=0.0,
)


@dataclass(frozen=True)
class Settling:
    """All MVMs of a chip with their best state, and a start with its blocks from `multiple` MVMs for each row."""

    data: Measurements
    best: ColumnState
    error_s: torch.Tensor
    start: ColumnState
    blocks: Factor

    @classmethod
    def of(cls, multiple: int) -> Settling:
        data = Measurements.of(measure(SETTINGS, np.random.default_rng(0)).dataset, 1.0)
        best, exact, resting = climb(data, robust_start(data), FREE)
        assert resting
        part = data.thinned(multiple * ROWS)
        start, _, _ = climb(part, robust_start(part), FREE)
        blocks = factorise(accumulate(part, start, FREE, blocks=True), start, FREE)
        blocks = blocks.scaled(float(part.counts().sum()) / float(data.counts().sum()))
        return cls(data, best, exact.cell_error_s(), start, blocks)

    def off(self, state: ColumnState) -> float:
        """How far the worst conductance is from the best state, in standard errors."""
        return float(((state.conductance_s - self.best.conductance_s).abs() / self.error_s).max())


@pytest.mark.parametrize("multiple", [4, 6, 60])
def test_blocks_of_a_part_lead_to_where_all_mvms_are_best(multiple: int) -> None:
    one = Settling.of(multiple)
    found, resting = settle(one.data, one.start, FREE, one.blocks, iterations=40)
    assert resting
    if multiple < 60:
        # Four MVMs for each conductance: full steps with such blocks grew to 85 standard errors.
        assert one.off(one.start) > 2.0
    assert one.off(found) < 0.15
    assert torch.isfinite(found.shared).all()


def test_blocks_that_say_hardly_anything_lead_nowhere_worse() -> None:
    one = Settling.of(2)
    found, _ = settle(one.data, one.start, FREE, one.blocks)
    # Steps that were taken whatever they did to the likelihood ended 180 standard errors away.
    assert one.off(found) < 0.5 * one.off(one.start)
