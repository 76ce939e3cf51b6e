"""From recorded matrix-vector products to a fitted surrogate with standard errors. Takes arrays, never files.

What `__all__` lists is promised, and each name loads its module when it is first used: see
docs/reference/public-api.md. The names of `labrig_calibration.dataset` and `.stimulus` need numpy only; all others
need the extra `train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig_calibration.alarms import Cusum, CusumTrace, design_cusum, watch
    from labrig_calibration.battery import Judgement, judge
    from labrig_calibration.changes import ChipChange, ComparisonError, compare_chips
    from labrig_calibration.dataset import Converters, DatasetError, MvmDataset
    from labrig_calibration.devices.iv import IvFit, fit_iv
    from labrig_calibration.devices.programming import ProgrammedCells, ProgrammingFit, fit_programming
    from labrig_calibration.devices.pulses import PulseFit, PulseTrains, fit_pulses
    from labrig_calibration.devices.read_noise import ReadNoiseFit, Traces, fit_read_noise
    from labrig_calibration.devices.relaxation import RelaxationFit, fit_relaxation
    from labrig_calibration.devices.telegraph import TelegraphFit, fit_telegraph
    from labrig_calibration.devices.values import DeviceFitError
    from labrig_calibration.diagnostics import Diagnostics, diagnose
    from labrig_calibration.drift import DriftModel, fit_drift, innovations
    from labrig_calibration.fit import CalibrationError, chip_parameters
    from labrig_calibration.fit import fit as fit_array
    from labrig_calibration.remeasure import measure_again
    from labrig_calibration.residuals import JudgementError
    from labrig_calibration.result import CalibrationResult, JudgedArray
    from labrig_calibration.stimulus import (
        MvmDesign,
        StimulusBlock,
        StimulusCounts,
        StimulusError,
        WriteDesign,
        design_mvm_calibration,
    )

__all__ = [
    "CalibrationError",
    "CalibrationResult",
    "ChipChange",
    "ComparisonError",
    "Converters",
    "Cusum",
    "CusumTrace",
    "DatasetError",
    "DeviceFitError",
    "Diagnostics",
    "DriftModel",
    "IvFit",
    "JudgedArray",
    "Judgement",
    "JudgementError",
    "MvmDataset",
    "MvmDesign",
    "ProgrammedCells",
    "ProgrammingFit",
    "PulseFit",
    "PulseTrains",
    "ReadNoiseFit",
    "RelaxationFit",
    "StimulusBlock",
    "StimulusCounts",
    "StimulusError",
    "TelegraphFit",
    "Traces",
    "WriteDesign",
    "chip_parameters",
    "compare_chips",
    "design_cusum",
    "design_mvm_calibration",
    "diagnose",
    "fit_array",
    "fit_drift",
    "fit_iv",
    "fit_programming",
    "fit_pulses",
    "fit_read_noise",
    "fit_relaxation",
    "fit_telegraph",
    "innovations",
    "judge",
    "measure_again",
    "watch",
]

# Where each name lives: `module:name there`. The test of the public API holds this equal to the imports above.
_HOMES = {
    "CalibrationError": "labrig_calibration.fit:CalibrationError",
    "CalibrationResult": "labrig_calibration.result:CalibrationResult",
    "ChipChange": "labrig_calibration.changes:ChipChange",
    "ComparisonError": "labrig_calibration.changes:ComparisonError",
    "Converters": "labrig_calibration.dataset:Converters",
    "Cusum": "labrig_calibration.alarms:Cusum",
    "CusumTrace": "labrig_calibration.alarms:CusumTrace",
    "DatasetError": "labrig_calibration.dataset:DatasetError",
    "DeviceFitError": "labrig_calibration.devices.values:DeviceFitError",
    "Diagnostics": "labrig_calibration.diagnostics:Diagnostics",
    "DriftModel": "labrig_calibration.drift:DriftModel",
    "IvFit": "labrig_calibration.devices.iv:IvFit",
    "JudgedArray": "labrig_calibration.result:JudgedArray",
    "Judgement": "labrig_calibration.battery:Judgement",
    "JudgementError": "labrig_calibration.residuals:JudgementError",
    "MvmDataset": "labrig_calibration.dataset:MvmDataset",
    "MvmDesign": "labrig_calibration.stimulus:MvmDesign",
    "ProgrammedCells": "labrig_calibration.devices.programming:ProgrammedCells",
    "ProgrammingFit": "labrig_calibration.devices.programming:ProgrammingFit",
    "PulseFit": "labrig_calibration.devices.pulses:PulseFit",
    "PulseTrains": "labrig_calibration.devices.pulses:PulseTrains",
    "ReadNoiseFit": "labrig_calibration.devices.read_noise:ReadNoiseFit",
    "RelaxationFit": "labrig_calibration.devices.relaxation:RelaxationFit",
    "StimulusBlock": "labrig_calibration.stimulus:StimulusBlock",
    "StimulusCounts": "labrig_calibration.stimulus:StimulusCounts",
    "StimulusError": "labrig_calibration.stimulus:StimulusError",
    "TelegraphFit": "labrig_calibration.devices.telegraph:TelegraphFit",
    "Traces": "labrig_calibration.devices.read_noise:Traces",
    "WriteDesign": "labrig_calibration.stimulus:WriteDesign",
    "chip_parameters": "labrig_calibration.fit:chip_parameters",
    "compare_chips": "labrig_calibration.changes:compare_chips",
    "design_cusum": "labrig_calibration.alarms:design_cusum",
    "design_mvm_calibration": "labrig_calibration.stimulus:design_mvm_calibration",
    "diagnose": "labrig_calibration.diagnostics:diagnose",
    "fit_array": "labrig_calibration.fit:fit",
    "fit_drift": "labrig_calibration.drift:fit_drift",
    "fit_iv": "labrig_calibration.devices.iv:fit_iv",
    "fit_programming": "labrig_calibration.devices.programming:fit_programming",
    "fit_pulses": "labrig_calibration.devices.pulses:fit_pulses",
    "fit_read_noise": "labrig_calibration.devices.read_noise:fit_read_noise",
    "fit_relaxation": "labrig_calibration.devices.relaxation:fit_relaxation",
    "fit_telegraph": "labrig_calibration.devices.telegraph:fit_telegraph",
    "innovations": "labrig_calibration.drift:innovations",
    "judge": "labrig_calibration.battery:judge",
    "measure_again": "labrig_calibration.remeasure:measure_again",
    "watch": "labrig_calibration.alarms:watch",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _HOMES[name].partition(":")
    return getattr(import_module(module), there)


def __dir__() -> list[str]:
    return __all__
