"""Designs the plan `mvm` for a board: by a budget, for a precision, or as it is; and predicts what a fit will know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from labrig.plans.base import PlanNeeds
from labrig.plans.mvm import MvmCalibrationPlan, board_converters
from labrig.plans.schedule import chosen_arrays
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.identifiability import Confusion, confusions, demands
from labrig_calibration.optimal_design import WRITES, Search, Task
from labrig_calibration.predictions import GOALS, PREDICTED, Analysis, analyse
from labrig_calibration.stimulus import StimulusCounts
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError

Progress = Callable[[str, float], None]

# Numbers that a design holds in memory at most (8 bytes each), and with it a sweep.
_MOST_NUMBERS = 10**8
# Times that a design is looked for anew because the drawn one fell short of a goal, and how much more is then asked.
_TRIES = 4
_MARGIN = 0.98


@dataclass(frozen=True)
class DesignRequest:
    """What is asked for.

    Attributes:
        precision: Largest relative standard error of every goal; None to take what a budget gives.
        budget: Most MVMs over all arrays; None for no limit but memory.
        goals: Names of the predicted errors that count.
        writes: Programmings of each array; None to choose.
        max_writes: Most programmings of each array.
        arrays: Which arrays; all of the board when None.
        max_voltage_v: Amplitude in V that no vector exceeds.
        mvm_s: Time in s between two MVMs of an array; None for what the board says.
        seed: Of the design that is looked at.
        plan: A plan to look at, where neither precision nor budget is given.
    """

    precision: float | None = None
    budget: int | None = None
    goals: Sequence[str] = GOALS
    writes: int | None = None
    max_writes: int = 64
    arrays: Sequence[int] | None = None
    max_voltage_v: float | None = None
    mvm_s: float | None = None
    seed: int = 0
    plan: MvmCalibrationPlan | None = None

    def faults(self) -> list[str]:
        """What is wrong with it, whatever the board."""
        faults = []
        if self.precision is not None and not 0.0 < self.precision < 1.0:
            faults.append(f"precision is {self.precision:g}, must lie between 0 and 1 (or 0 % and 100 %)")
        if self.mvm_s is not None and not self.mvm_s > 0.0:
            faults.append(f"the time between two MVMs is {self.mvm_s:g} s, must be above zero")
        for name in ("budget", "writes", "max_writes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append(f"{name} is {value}, must be at least 1")
        unknown = [name for name in self.goals if name not in PREDICTED]
        if unknown:
            faults.append(f"there is no error of {', '.join(unknown)} to reach; there are: {', '.join(PREDICTED)}")
        if not self.goals:
            faults.append("there is no goal")
        return faults


@dataclass(frozen=True)
class DesignedCalibration:
    """A calibration that was not measured yet, and what it will tell.

    Attributes:
        plan: The plan, ready to be swept.
        needs: MVMs, writes and least time of it.
        arrays: Which arrays it measures.
        analysis: Predicted errors of the first of them.
        chip: What the chip was taken to be.
        confusions: What it cannot tell apart.
        refusals: Why a fit will refuse its recording; empty where it will not.
        goals: The goals.
        precision: Largest relative standard error that was asked for.
        limits: Goals that cannot be reached, each with the best relative error.
    """

    plan: MvmCalibrationPlan
    needs: PlanNeeds
    arrays: tuple[int, ...]
    analysis: Analysis
    chip: AssumedChip
    confusions: tuple[Confusion, ...]
    refusals: tuple[str, ...]
    goals: tuple[str, ...]
    precision: float | None
    limits: Mapping[str, float]

    @property
    def missed(self) -> tuple[str, ...]:
        """Goals whose predicted error is larger than what was asked for."""
        if self.precision is None:
            return ()
        return tuple(name for name in self.goals if self.analysis.predicted[name].relative > self.precision)


def design_calibration(
    info: BoardInfo, request: DesignRequest, chip: AssumedChip, progress: Progress | None = None
) -> DesignedCalibration:
    """Designs the calibration of a board, and predicts every standard error.

    Args:
        info: The board.
        request: What is asked for.
        chip: What the chip is taken to be.
        progress: Called with the name of a stage and the fraction of it that is done.

    Raises:
        ConfigError: The request cannot be met at all; every fault is listed.
        CapabilityError: The board has not the arrays.
        StimulusError: The board allows no design.
    """
    arrays = chosen_arrays(info, request.arrays)
    mvm_s = info.mvm_latency_s if request.mvm_s is None else request.mvm_s
    most = _MOST_NUMBERS // (info.rows * len(arrays))
    if request.budget is not None:
        most = min(most, request.budget // len(arrays))
    if faults := request.faults():
        raise ConfigError("no calibration can be designed: " + "; ".join(faults))
    limits: Mapping[str, float] = {}
    if request.precision is None and request.budget is None:
        plan = request.plan or _plan(request, request.writes or 4, None)
        return _judged(info, request, plan, arrays, chip, mvm_s, limits)
    task = Task(
        rows=info.rows,
        columns=info.columns,
        converters=board_converters(info),
        chip=chip,
        mvm_s=mvm_s,
        goals=dict.fromkeys(request.goals, request.precision or 0.01),
        max_voltage_v=request.max_voltage_v,
        max_mvms=most,
        writes=WRITES if request.writes is None else (request.writes,),
        max_writes=request.max_writes,
        seed=request.seed,
    )
    search = Search(task, progress)
    if most < search.least_mvms:
        given = len(arrays) * most if request.budget is None else min(request.budget, _MOST_NUMBERS // info.rows)
        ones = f"{len(arrays)} arrays of {info.rows} rows need" if len(arrays) > 1 else f"{info.rows} rows need"
        raise ConfigError(f"{given} MVMs are too few: {ones} {len(arrays) * search.least_mvms} at least")
    found = search.within(most) if request.precision is None else search.for_precision()
    judged = _judged(info, request, _plan(request, found.writes, found.counts), arrays, chip, mvm_s, found.limits)
    for _ in range(_TRIES):
        short = {name: judged.analysis.predicted[name].relative for name in judged.missed if name not in found.limits}
        if request.precision is None or not short:
            break
        # The vectors that were drawn say a little less than typical ones; ask for a little more.
        tighter = {name: _MARGIN * task.goals[name] * request.precision / relative for name, relative in short.items()}
        task = replace(task, goals={**task.goals, **tighter})
        again = Search(task, progress).for_precision()
        if again.limits:
            break
        found = again
        judged = _judged(info, request, _plan(request, found.writes, found.counts), arrays, chip, mvm_s, found.limits)
    # What was missed by a hair at the limit of the budget was missed.
    late = {name: judged.analysis.predicted[name].relative for name in judged.missed if name not in judged.limits}
    return replace(judged, limits={**judged.limits, **late})


def _plan(request: DesignRequest, writes: int, counts: StimulusCounts | None) -> MvmCalibrationPlan:
    return MvmCalibrationPlan(
        writes=writes,
        seed=request.seed,
        arrays=request.arrays,
        max_voltage_v=request.max_voltage_v,
        counts=None if counts is None else counts.as_options(),
    )


def _judged(
    info: BoardInfo,
    request: DesignRequest,
    plan: MvmCalibrationPlan,
    arrays: list[int],
    chip: AssumedChip,
    mvm_s: float,
    limits: Mapping[str, float],
) -> DesignedCalibration:
    converters = board_converters(info)
    design = plan.design(info, arrays[0])
    analysis = analyse(design, converters, chip, mvm_s=mvm_s)
    return DesignedCalibration(
        plan=plan,
        needs=PlanNeeds.of(plan, info),
        arrays=tuple(arrays),
        analysis=analysis,
        chip=chip,
        confusions=tuple(confusions(analysis, converters, chip)),
        refusals=tuple(demands(design)),
        goals=tuple(request.goals),
        precision=request.precision,
        limits=limits,
    )
