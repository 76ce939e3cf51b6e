"""The chip of a training is asked who it is from wherever the training is started."""

from __future__ import annotations

import pytest

from labrig.config import load_rig, shipped_rig
from labrig.training.run_chip import demand_chip
from labrig_drivers.errors import IdentityError


async def test_in_a_loop_that_runs_already_as_in_a_notebook() -> None:
    rig = load_rig(shipped_rig("mock"))
    with pytest.raises(IdentityError) as refused:
        demand_chip(rig, "another chip")
    chip_id = refused.value.got.removeprefix("chip ").strip("'")
    assert demand_chip(rig, chip_id).chip_id == chip_id
