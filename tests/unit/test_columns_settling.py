"""Steps with kept blocks come to rest, also where the blocks say too little of what the data hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_chips import measure

from labrig_calibration.columns import accumulate, climb, factorise, settle
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


@pytest.mark.parametrize("multiple", [4, 6, 60])
def test_blocks_of_a_part_lead_to_where_all_mvms_are_best(multiple: int) -> None:
    data = Measurements.of(measure(SETTINGS, np.random.default_rng(0)).dataset, 1.0)
    best, exact, resting = climb(data, robust_start(data), FREE)
    assert resting
    part = data.thinned(multiple * ROWS)
    start, _, _ = climb(part, robust_start(part), FREE)
    blocks = factorise(accumulate(part, start, FREE, blocks=True), start, FREE)
    blocks = blocks.scaled(float(part.counts().sum()) / float(data.counts().sum()))
    found, resting = settle(data, start, FREE, blocks, iterations=40)
    assert resting
    errors_s = exact.cell_error_s()
    if multiple < 60:
        # Four MVMs for each conductance: full steps with such blocks grew to 85 standard errors.
        assert float(((start.conductance_s - best.conductance_s).abs() / errors_s).max()) > 2.0
    assert float(((found.conductance_s - best.conductance_s).abs() / errors_s).max()) < 0.15
    assert torch.isfinite(found.shared).all()


def test_blocks_that_say_hardly_anything_lead_nowhere_worse() -> None:
    data = Measurements.of(measure(SETTINGS, np.random.default_rng(0)).dataset, 1.0)
    best, exact, _ = climb(data, robust_start(data), FREE)
    part = data.thinned(2 * ROWS)
    start, _, _ = climb(part, robust_start(part), FREE)
    blocks = factorise(accumulate(part, start, FREE, blocks=True), start, FREE)
    blocks = blocks.scaled(float(part.counts().sum()) / float(data.counts().sum()))
    found, _ = settle(data, start, FREE, blocks)

    def off(conductance_s: torch.Tensor) -> float:
        return float(((conductance_s - best.conductance_s).abs() / exact.cell_error_s()).max())

    # Steps that were taken whatever they did to the likelihood ended 180 standard errors away.
    assert off(found.conductance_s) < 0.5 * off(start.conductance_s)
