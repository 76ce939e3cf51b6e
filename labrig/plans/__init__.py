"""What to measure: plans are asynchronous generators of points."""

from labrig.plans.base import MvmPoint, Plan, Point, ProgramPoint, StreamCapacity
from labrig.plans.canary import CanaryDesign
from labrig.plans.mvm import MvmCalibrationPlan, board_converters
from labrig.plans.read_noise import ReadNoiseDesign
from labrig.plans.registry import options_of, plan_by_name
from labrig.plans.schedule import Schedule, ScheduleDesign, ScheduledPlan, in_blocks, random_target, read_amplitude_v
from labrig.plans.transfer import TransferCurveDesign
from labrig.plans.write_statistics import WriteStatisticsDesign
from labrig_calibration.stimulus import StimulusBlock, WriteDesign

__all__ = [
    "CanaryDesign",
    "MvmCalibrationPlan",
    "MvmPoint",
    "Plan",
    "Point",
    "ProgramPoint",
    "ReadNoiseDesign",
    "Schedule",
    "ScheduleDesign",
    "ScheduledPlan",
    "StimulusBlock",
    "StreamCapacity",
    "TransferCurveDesign",
    "WriteDesign",
    "WriteStatisticsDesign",
    "board_converters",
    "in_blocks",
    "options_of",
    "plan_by_name",
    "random_target",
    "read_amplitude_v",
]
