"""labrig closes the loop between an analog in-memory-computing chip and the network trained for it.

What `__all__` lists is what labrig promises; everything else may move: see docs/reference/public-api.md. Names load
when they are first used, so that `import labrig` is quick and a bench PC needs no more than it uses. The names from
`labrig.training` and `labrig.calibrating` need the extra `train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig.acquisition import RunSummary, acquire, run_sweep
    from labrig.calibrating import Calibration, calibrate_recordings
    from labrig.config import RigConfig, load_rig, shipped_rig
    from labrig.energy_meter import EnergyMeter
    from labrig.events import EventBus
    from labrig.export import export_recording
    from labrig.plans import (
        Answer,
        CurvePoint,
        MvmCalibrationPlan,
        MvmPoint,
        Plan,
        Points,
        ProgramPoint,
        Schedule,
        SettingPoint,
        StreamCapacity,
        in_blocks,
        plan_by_name,
        read_amplitude_v,
    )
    from labrig.recording import Recording, RecordingHeader, RecordingWriter, read_mvms
    from labrig.recording.compaction import compact as compact_recording
    from labrig.recording.compaction import content_sha256
    from labrig.recording.recovery import recover_recording
    from labrig.recording.verification import VerifyReport, verify_recording
    from labrig.rig import Rig, RigError, open_rig
    from labrig.run_control import Condition, RunControl
    from labrig.training.assembly import assemble as assemble_training
    from labrig.training.chip_model import ChipModel
    from labrig.training.config import TrainConfig, load_training
    from labrig.training.datasets import ImageSet, load_digits
    from labrig.training.evaluation_run import Evaluation, evaluate_run
    from labrig.training.notebook import open_chip
    from labrig.training.plan import Plan as TrainingPlan
    from labrig.training.recipe import Recipe
    from labrig.training.run import RunResult, resume_run, train_run
    from labrig.training.session import Session
    from labrig.training.trainings import digital_baseline
    from labrig_drivers.errors import LabrigError

__all__ = [
    "Answer",
    "Calibration",
    "ChipModel",
    "Condition",
    "CurvePoint",
    "EnergyMeter",
    "Evaluation",
    "EventBus",
    "ImageSet",
    "LabrigError",
    "MvmCalibrationPlan",
    "MvmPoint",
    "Plan",
    "Points",
    "ProgramPoint",
    "Recipe",
    "Recording",
    "RecordingHeader",
    "RecordingWriter",
    "Rig",
    "RigConfig",
    "RigError",
    "RunControl",
    "RunResult",
    "RunSummary",
    "Schedule",
    "Session",
    "SettingPoint",
    "StreamCapacity",
    "TrainConfig",
    "TrainingPlan",
    "VerifyReport",
    "acquire",
    "assemble_training",
    "calibrate_recordings",
    "compact_recording",
    "content_sha256",
    "digital_baseline",
    "evaluate_run",
    "export_recording",
    "in_blocks",
    "load_digits",
    "load_rig",
    "load_training",
    "open_chip",
    "open_rig",
    "plan_by_name",
    "read_amplitude_v",
    "read_mvms",
    "recover_recording",
    "resume_run",
    "run_sweep",
    "shipped_rig",
    "train_run",
    "verify_recording",
]

# Where each name lives: `module:name there`. The test of the public API holds this equal to the imports above.
_HOMES = {
    "Answer": "labrig.plans:Answer",
    "Calibration": "labrig.calibrating:Calibration",
    "ChipModel": "labrig.training.chip_model:ChipModel",
    "Condition": "labrig.run_control:Condition",
    "CurvePoint": "labrig.plans:CurvePoint",
    "EnergyMeter": "labrig.energy_meter:EnergyMeter",
    "Evaluation": "labrig.training.evaluation_run:Evaluation",
    "EventBus": "labrig.events:EventBus",
    "ImageSet": "labrig.training.datasets:ImageSet",
    "LabrigError": "labrig_drivers.errors:LabrigError",
    "MvmCalibrationPlan": "labrig.plans:MvmCalibrationPlan",
    "MvmPoint": "labrig.plans:MvmPoint",
    "Plan": "labrig.plans:Plan",
    "Points": "labrig.plans:Points",
    "ProgramPoint": "labrig.plans:ProgramPoint",
    "Recipe": "labrig.training.recipe:Recipe",
    "Recording": "labrig.recording:Recording",
    "RecordingHeader": "labrig.recording:RecordingHeader",
    "RecordingWriter": "labrig.recording:RecordingWriter",
    "Rig": "labrig.rig:Rig",
    "RigConfig": "labrig.config:RigConfig",
    "RigError": "labrig.rig:RigError",
    "RunControl": "labrig.run_control:RunControl",
    "RunResult": "labrig.training.run:RunResult",
    "RunSummary": "labrig.acquisition:RunSummary",
    "Schedule": "labrig.plans:Schedule",
    "Session": "labrig.training.session:Session",
    "SettingPoint": "labrig.plans:SettingPoint",
    "StreamCapacity": "labrig.plans:StreamCapacity",
    "TrainConfig": "labrig.training.config:TrainConfig",
    "TrainingPlan": "labrig.training.plan:Plan",
    "VerifyReport": "labrig.recording.verification:VerifyReport",
    "acquire": "labrig.acquisition:acquire",
    "assemble_training": "labrig.training.assembly:assemble",
    "calibrate_recordings": "labrig.calibrating:calibrate_recordings",
    "compact_recording": "labrig.recording.compaction:compact",
    "content_sha256": "labrig.recording.compaction:content_sha256",
    "digital_baseline": "labrig.training.trainings:digital_baseline",
    "evaluate_run": "labrig.training.evaluation_run:evaluate_run",
    "export_recording": "labrig.export:export_recording",
    "in_blocks": "labrig.plans:in_blocks",
    "load_digits": "labrig.training.datasets:load_digits",
    "load_rig": "labrig.config:load_rig",
    "load_training": "labrig.training.config:load_training",
    "open_chip": "labrig.training.notebook:open_chip",
    "open_rig": "labrig.rig:open_rig",
    "plan_by_name": "labrig.plans:plan_by_name",
    "read_amplitude_v": "labrig.plans:read_amplitude_v",
    "read_mvms": "labrig.recording:read_mvms",
    "recover_recording": "labrig.recording.recovery:recover_recording",
    "resume_run": "labrig.training.run:resume_run",
    "run_sweep": "labrig.acquisition:run_sweep",
    "shipped_rig": "labrig.config:shipped_rig",
    "train_run": "labrig.training.run:train_run",
    "verify_recording": "labrig.recording.verification:verify_recording",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _HOMES[name].partition(":")
    return getattr(import_module(module), there)


def __dir__() -> list[str]:
    return __all__
