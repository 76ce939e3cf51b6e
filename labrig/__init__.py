"""labrig closes the loop between an analog in-memory-computing chip and the network trained for it.

What `__all__` lists is what labrig promises; everything else may move. Names load when they are first used, so
that `import labrig` is quick and a bench PC needs no more than it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig.acquisition import RunSummary, acquire, run_sweep
    from labrig.config import RigConfig, load_rig, shipped_rig
    from labrig.energy_meter import EnergyMeter
    from labrig.events import EventBus
    from labrig.plans import MvmCalibrationPlan, Plan, plan_by_name
    from labrig.recording import Recording, RecordingHeader, RecordingWriter, read_mvms
    from labrig.rig import Rig, open_rig
    from labrig.run_control import Condition, RunControl
    from labrig_drivers.errors import LabrigError

__all__ = [
    "Condition",
    "EnergyMeter",
    "EventBus",
    "LabrigError",
    "MvmCalibrationPlan",
    "Plan",
    "Recording",
    "RecordingHeader",
    "RecordingWriter",
    "Rig",
    "RigConfig",
    "RunControl",
    "RunSummary",
    "acquire",
    "load_rig",
    "open_rig",
    "plan_by_name",
    "read_mvms",
    "run_sweep",
    "shipped_rig",
]

_HOMES = {
    "Condition": "labrig.run_control",
    "EnergyMeter": "labrig.energy_meter",
    "EventBus": "labrig.events",
    "LabrigError": "labrig_drivers.errors",
    "MvmCalibrationPlan": "labrig.plans",
    "Plan": "labrig.plans",
    "Recording": "labrig.recording",
    "RecordingHeader": "labrig.recording",
    "RecordingWriter": "labrig.recording",
    "Rig": "labrig.rig",
    "RigConfig": "labrig.config",
    "RunControl": "labrig.run_control",
    "RunSummary": "labrig.acquisition",
    "acquire": "labrig.acquisition",
    "load_rig": "labrig.config",
    "open_rig": "labrig.rig",
    "plan_by_name": "labrig.plans",
    "read_mvms": "labrig.recording",
    "run_sweep": "labrig.acquisition",
    "shipped_rig": "labrig.config",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'labrig' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
