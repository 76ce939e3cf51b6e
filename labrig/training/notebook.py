"""A rig in a notebook: opened, recorded and metered for one network, in one line."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from labrig.config import load_rig
from labrig.events import EventBus
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.chip_model import ChipModel
from labrig.training.live_rig import LiveRig, LiveRun
from labrig.training.plan import Plan


def open_chip(
    rig: Path | str,
    chip: ChipModel,
    network: nn.Module,
    plan: Plan,
    recording: Path | str,
    bus: EventBus | None = None,
) -> LiveRig:
    """Opens a rig for one training, in a `with` statement; when that ends, every output is off.

    Args:
        rig: The rig file.
        chip: The calibration; another chip on the rig is refused.
        network: What will be trained, on analog layers.
        plan: How; the recording is sized by it, and extended where that is not enough.
        recording: The file to make; every pass goes into it.
        bus: Gets the events of the rig.

    Raises:
        ConfigError: The rig file is wrong.
    """
    placement = chip.placement(network)
    passes = max(plan.most_passes(), 1)
    planned = [PlannedPasses(passes, plan.optimisation.batch, passes)]
    run = LiveRun(
        config=load_rig(Path(rig)),
        chip_id=chip.chip_id,
        path=Path(recording),
        plan={"name": "training", "method": plan.method},
        capacity=lambda info: training_capacity(placement, planned, info.arrays),
    )
    return LiveRig(run, bus or EventBus())
