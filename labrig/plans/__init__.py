"""What to measure: plans are asynchronous generators of points."""

from labrig.plans.adaptive import AdaptiveDesign, AdaptivePlan
from labrig.plans.base import (
    Answer,
    BesideCapacity,
    CurvePoint,
    MvmPoint,
    Plan,
    Point,
    Points,
    ProgramPoint,
    SettingPoint,
    StreamCapacity,
)
from labrig.plans.canary import CanaryDesign
from labrig.plans.energy import EnergyPlan
from labrig.plans.iv import IvPlan
from labrig.plans.mvm import MvmCalibrationPlan, board_converters
from labrig.plans.over_axes import OverAxes, Setting, grid, repeated, shuffled
from labrig.plans.read_noise import ReadNoiseDesign
from labrig.plans.registry import options_of, plan_by_name
from labrig.plans.retention import RetentionPlan
from labrig.plans.schedule import Schedule, ScheduleDesign, ScheduledPlan, in_blocks, random_target, read_amplitude_v
from labrig.plans.transfer import TransferCurveDesign
from labrig.plans.write_statistics import WriteStatisticsDesign
from labrig_calibration.stimulus import StimulusBlock, WriteDesign

__all__ = [
    "AdaptiveDesign",
    "AdaptivePlan",
    "Answer",
    "BesideCapacity",
    "CanaryDesign",
    "CurvePoint",
    "EnergyPlan",
    "IvPlan",
    "MvmCalibrationPlan",
    "MvmPoint",
    "OverAxes",
    "Plan",
    "Point",
    "Points",
    "ProgramPoint",
    "ReadNoiseDesign",
    "RetentionPlan",
    "Schedule",
    "ScheduleDesign",
    "ScheduledPlan",
    "Setting",
    "SettingPoint",
    "StimulusBlock",
    "StreamCapacity",
    "TransferCurveDesign",
    "WriteDesign",
    "WriteStatisticsDesign",
    "board_converters",
    "grid",
    "in_blocks",
    "options_of",
    "plan_by_name",
    "random_target",
    "read_amplitude_v",
    "repeated",
    "shuffled",
]
