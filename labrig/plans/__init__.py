"""What to measure: plans are asynchronous generators of points."""

from labrig.plans.base import MvmPoint, Plan, Point, ProgramPoint, StreamCapacity
from labrig.plans.mvm import MvmCalibrationPlan, board_converters
from labrig.plans.registry import plan_by_name

__all__ = [
    "MvmCalibrationPlan",
    "MvmPoint",
    "Plan",
    "Point",
    "ProgramPoint",
    "StreamCapacity",
    "board_converters",
    "plan_by_name",
]
