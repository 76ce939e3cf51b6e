"""How many vectors of each kind, and how many writes, a budget or a precision asks for. Numpy only.

The information of a vector of one kind is the same whichever it is, nearly, so that of a design is a sum over kinds of
count times information, and a design is found without drawing it: counts grow by that packet of one kind which lowers
the worst relative error most for its length. What was found is then drawn, and predicted vector by vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from labrig_calibration.adc_step import fixed_step_variance
from labrig_calibration.assumptions import AssumedChip
from labrig_calibration.cell_information import Cells
from labrig_calibration.dataset import Converters
from labrig_calibration.information import WriteInformation, total, write_information
from labrig_calibration.ladder import HELDOUT_FRACTION
from labrig_calibration.line_loads import transfer_s
from labrig_calibration.predictions import Analysis, analysed, typical_columns
from labrig_calibration.stimulus import (
    LADDER_LEVELS,
    LOAD_FRACTIONS,
    StimulusCounts,
    StimulusKind,
    design_mvm_calibration,
)

Progress = Callable[[str, float], None]

WRITES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of writes that are tried; more cost endurance."""
# What every write has at least.
_LEAST = StimulusCounts(
    zero=8,
    one_hot_repeats=1,
    sparse=0,
    ladder_patterns=1,
    random=0,
    activation=16,
    repeat_vectors=8,
    repeats=2,
    hadamard_repeats=0,
)
# Parts of a write that go to what the model takes for granted: offsets, the curve's shape, noise without a model, the
# load of a network's sparse layers, and vectors as a network makes them, by which the fit is judged.
_SHARES = {"zero": 0.02, "ladder_patterns": 0.05, "repeats": 0.05, "sparse": 0.05, "activation": 0.05}
# A packet is at least this part of what there is.
_GROWTH = 0.12
# Times that the last packet is halved.
_HALVINGS = 6
# Times that every kind may give vectors to others.
_PASSES = 3
# The worst error counts most; a maximum alone would see no way down where two are equally bad.
_NORM = 8.0
# One of each distinct vector: what repeats share is added by count.
_DRAWN = StimulusCounts(
    zero=1, one_hot_repeats=1, sparse=192, ladder_patterns=8, random=192, activation=192, repeat_vectors=8, repeats=1
)
# Cells that stand for all of an array.
_CELLS = 128
_ENDLESS = 1e12


@dataclass(frozen=True)
class Task:
    """What is asked for.

    Attributes:
        rows: Word lines of the array.
        columns: Bit lines.
        converters: Ranges and resolutions.
        chip: What the chip is taken to be.
        mvm_s: Time in s between two MVMs.
        goals: Names of the predicted errors that count, each with its largest relative size.
        max_voltage_v: Amplitude in V that no vector exceeds, where it is lower than the DAC's.
        max_mvms: Most MVMs of the array.
        writes: Numbers of writes to try.
        max_writes: Most programmings of the array.
        seed: Of the typical targets and vectors.
    """

    rows: int
    columns: int
    converters: Converters
    chip: AssumedChip
    mvm_s: float
    goals: Mapping[str, float]
    max_voltage_v: float | None = None
    max_mvms: int = 1_000_000
    writes: tuple[int, ...] = WRITES
    max_writes: int = 64
    seed: int = 0


@dataclass(frozen=True)
class FoundDesign:
    """Counts that were found.

    Attributes:
        writes: Programmings.
        counts: Vectors of each kind of one write.
        analysis: Predicted errors, from typical vectors.
        limits: Best relative error of each goal that no number of MVMs brings down to what was asked.
    """

    writes: int
    counts: StimulusCounts
    analysis: Analysis
    limits: Mapping[str, float]

    def mvms(self, rows: int) -> int:
        """MVMs over all writes."""
        return self.writes * self.counts.total(rows)


class Search:
    """Looks for counts; draws typical vectors once and then only weighs them."""

    def __init__(self, task: Task, progress: Progress | None = None) -> None:
        self._task = task
        self._progress = progress
        self._cells: dict[int, Cells] = {}
        # Enough cells to stand for all; large arrays have them in one column.
        self._chosen = typical_columns(task.columns, max(1, _CELLS // task.rows))

    @property
    def least_mvms(self) -> int:
        """MVMs of the smallest design."""
        return self._writes()[0] * _LEAST.total(self._task.rows)

    def within(self, mvms: int) -> FoundDesign:
        """The best design of at most `mvms` MVMs, which are `least_mvms` at least."""
        rows = self._task.rows
        candidates = [writes for writes in self._writes() if writes * _LEAST.total(rows) <= mvms]
        best: FoundDesign | None = None
        worse = 0
        for number, writes in enumerate(candidates):
            plan = self._grown(writes, mvms // writes, stop=False)
            self._report(f"{writes} writes", (number + 1) / len(candidates))
            if best is None or self._score(plan.analysis) < self._score(best.analysis):
                best, worse = plan, 0
                continue
            # More writes leave fewer vectors to each: once it gets worse, it stays so.
            worse += 1
            if worse == 2:
                break
        if best is None:
            raise ValueError(f"{mvms} MVMs are fewer than the {self.least_mvms} of the smallest design")
        return self._exchanged(best, mvms // best.writes)

    def for_precision(self) -> FoundDesign:
        """The smallest design that reaches every goal; where one is out of reach, the best for it.

        `limits` names the goals that cannot be reached, with what endless reading, or the most MVMs, would give.
        """
        candidates = self._writes()
        floors = {writes: self._floors(writes) for writes in candidates}
        last = candidates[-1]
        hopeless = {name: floors[last][name] for name, goal in self._task.goals.items() if floors[last][name] > goal}
        if hopeless:
            # As good as it gets, but for a tenth.
            eased = {name: max(goal, 1.1 * floors[last][name]) for name, goal in self._task.goals.items()}
            eased_search = Search(replace(self._task, goals=eased), self._progress)
            plan = eased_search.for_precision()
            return replace(plan, limits={**plan.limits, **hopeless})
        best: FoundDesign | None = None
        nearest: FoundDesign | None = None
        for number, writes in enumerate(candidates):
            if any(floors[writes][name] > goal for name, goal in self._task.goals.items()):
                continue
            plan = self._grown(writes, self._task.max_mvms // writes, stop=True)
            self._report(f"{writes} writes", (number + 1) / len(candidates))
            if self._reached(plan.analysis):
                if best is not None and plan.mvms(self._task.rows) >= best.mvms(self._task.rows):
                    break
                best = plan
            elif nearest is None or self._score(plan.analysis) < self._score(nearest.analysis):
                nearest = plan
        if best is not None:
            return best
        assert nearest is not None
        short = {name: nearest.analysis.predicted[name].relative for name in self._missed(nearest.analysis)}
        return replace(nearest, limits=short)

    def weighed(self, counts: StimulusCounts, writes: int) -> Analysis:
        """The predictions for a design that was not drawn."""
        task = self._task
        mvms = float(counts.total(task.rows))
        age = np.log1p(task.mvm_s * mvms * (np.arange(64) + 0.5) / 64.0 / task.chip.drift_reference_s)
        kinds = [
            total(
                [part.times((1.0 - HELDOUT_FRACTION) * count) for part, count in self._parts(unit, counts) if count > 0]
            ).aged(float(age.mean()), float((age**2).mean()))
            for unit in self._units
        ]
        times = [float(-(-writes // 2)), float(writes // 2)]
        return analysed(kinds, times, self._typical_cells(writes), task.converters, task.chip)

    def _writes(self) -> list[int]:
        """Numbers of writes that fit, the smallest at least."""
        task = self._task
        most = min(task.max_writes, task.max_mvms // _LEAST.total(task.rows))
        return [writes for writes in task.writes if writes <= most] or [min(task.max_writes, *task.writes)]

    def _parts(
        self, unit: Mapping[StimulusKind, WriteInformation], counts: StimulusCounts
    ) -> list[tuple[WriteInformation, float]]:
        repeated = {
            StimulusKind.ZERO: counts.zero,
            StimulusKind.ONE_HOT: counts.one_hot_repeats,
            StimulusKind.HADAMARD: counts.hadamard_repeats,
            StimulusKind.REPEAT: counts.repeats,
        }
        found = []
        for kind, count in counts.by_kind(self._task.rows).items():
            info = unit[kind]
            # Readings of one vector share the fixed part of the ADC's step; about the noise each says its own.
            share = 1.0 / (1.0 + max(repeated.get(kind, 1) - 1, 0) * self._fixed)
            shared = replace(info, border=share * info.border, cross=share * info.cross, gram=share * info.gram)
            found.append((shared, float(count)))
        return found

    @cached_property
    def _fixed(self) -> float:
        """Part of a reading's variance at no current that repeats do not average out."""
        lsb_a = np.array([float(np.median(self._task.converters.adc_lsb_a))])
        noise_a2 = self._task.chip.amplifier_noise_a2
        fixed_a2 = fixed_step_variance(np.sqrt(np.array([noise_a2])), lsb_a)
        return float(fixed_a2[0] / (noise_a2 + lsb_a[0] ** 2 / 12.0))

    @cached_property
    def _units(self) -> list[dict[StimulusKind, WriteInformation]]:
        """Mean information of one vector of each kind, for a write and its complement, at log(1 + age) = 1."""
        task = self._task
        design = design_mvm_calibration(
            task.rows,
            task.columns,
            task.converters,
            writes=2,
            seed=task.seed,
            max_voltage_v=task.max_voltage_v,
            counts=_DRAWN,
        )
        units = []
        for write in design.writes:
            unit = {}
            for kind in StimulusKind:
                voltage_v = np.concatenate([block.voltage_v for block in write.blocks if block.kind == kind])
                info = write_information(
                    voltage_v,
                    np.ones(len(voltage_v)),
                    transfer_s(write.target_conductance_s, task.chip.wire_ohm)[:, self._chosen],
                    task.converters.adc_full_scale_a[self._chosen],
                    task.converters,
                    task.chip,
                )
                unit[kind] = info.times(1.0 / len(voltage_v))
            units.append(unit)
        return units

    def _typical_cells(self, writes: int) -> Cells:
        if writes not in self._cells:
            limits = self._task.converters
            shape = (-(-writes // 2), self._task.rows, self._task.columns)
            first = np.random.default_rng([self._task.seed, writes]).uniform(
                limits.conductance_min_s, limits.conductance_max_s, shape
            )
            both = np.stack([first, limits.conductance_min_s + limits.conductance_max_s - first], axis=1)
            targets = both.reshape(-1, self._task.rows, self._task.columns)[:writes]
            kind = tuple(write % 2 for write in range(writes))
            self._cells[writes] = Cells.of(targets, self._chosen, kind, limits.conductance_max_s, self._task.chip)
        return self._cells[writes]

    def _floors(self, writes: int) -> dict[str, float]:
        """Relative errors that are left however often everything is read."""
        endless = StimulusCounts.of(dict.fromkeys(_LEAST.as_options(), 10**9))
        analysis = self.weighed(endless, writes)
        return {name: analysis.predicted[name].relative for name in self._task.goals}

    def _score(self, analysis: Analysis) -> float:
        """The worst error over its goal, nearly."""
        ratios = [analysis.predicted[name].relative / goal for name, goal in self._task.goals.items()]
        largest = max(ratios)
        if not np.isfinite(largest):
            return _ENDLESS
        return float(largest * np.mean([(ratio / largest) ** _NORM for ratio in ratios]) ** (1.0 / _NORM))

    def _missed(self, analysis: Analysis) -> list[str]:
        return [name for name, goal in self._task.goals.items() if analysis.predicted[name].relative > goal]

    def _reached(self, analysis: Analysis) -> bool:
        return not self._missed(analysis)

    def _grown(self, writes: int, most: int, *, stop: bool) -> FoundDesign:
        """Adds packets until no more fit in `most` vectors a write, or all goals are reached."""
        rows = self._task.rows
        counts = _LEAST
        analysis = self.weighed(counts, writes)
        while not (stop and self._reached(analysis)):
            now, score = counts.total(rows), self._score(analysis)
            trials: list[tuple[float, StimulusCounts, Analysis]] = []
            for option, unit in _units_of(rows).items():
                packet = max(1, round(_GROWTH * now / unit))
                trial = _with_shares(_added(counts, option, packet), rows)
                if trial.total(rows) > most:
                    trial = _with_shares(_added(counts, option, 1), rows)
                if trial.total(rows) > most:
                    continue
                found = self.weighed(trial, writes)
                gain = np.log(score / self._score(found)) / (trial.total(rows) - now)
                trials.append((gain, trial, found))
            if not trials:
                break
            gain, grown, found = max(trials, key=lambda trial: trial[0])
            if stop and gain <= 0.0:
                break
            if stop and self._reached(found):
                return self._trimmed(writes, counts, grown, found)
            counts, analysis = grown, found
        return FoundDesign(writes, counts, analysis, {})

    def _trimmed(self, writes: int, short: StimulusCounts, enough: StimulusCounts, analysis: Analysis) -> FoundDesign:
        """As little of the last packet as is enough, by halving."""
        low, high = short.as_options(), enough.as_options()
        for _ in range(_HALVINGS):
            middle = StimulusCounts.of({name: (low[name] + high[name] + 1) // 2 for name in low})
            if middle.as_options() == high:
                break
            found = self.weighed(middle, writes)
            if self._reached(found):
                high, analysis = middle.as_options(), found
            else:
                low = middle.as_options()
        return FoundDesign(writes, StimulusCounts.of(high), analysis, {})

    def _exchanged(self, plan: FoundDesign, most: int) -> FoundDesign:
        """Moves vectors from one kind to another as long as that helps."""
        rows, units = self._task.rows, _units_of(self._task.rows)
        least = _LEAST.as_options()
        for _ in range(_PASSES):
            before = plan
            for source, source_unit in units.items():
                have = plan.counts.as_options()[source]
                taken = min(max(1, have // 5), have - least[source])
                if taken < 1:
                    continue
                for target, unit in units.items():
                    given = int(taken * source_unit // unit)
                    if target == source or given < 1:
                        continue
                    counts = _with_shares(_added(_added(plan.counts, source, -taken), target, given), rows)
                    if counts.total(rows) > most:
                        continue
                    analysis = self.weighed(counts, plan.writes)
                    if self._score(analysis) < 0.999 * self._score(plan.analysis):
                        plan = replace(plan, counts=counts, analysis=analysis)
                        break
            if plan is before:
                break
        return plan

    def _report(self, stage: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(stage, fraction)


def _units_of(rows: int) -> dict[str, int]:
    """How many vectors one more of each count is."""
    return {
        "zero": 1,
        "one_hot_repeats": 2 * rows,
        "hadamard_repeats": 2 * rows * len(LOAD_FRACTIONS),
        "sparse": 1,
        "ladder_patterns": 2 * LADDER_LEVELS,
        "random": 1,
        "activation": 1,
        "repeats": _LEAST.repeat_vectors,
    }


def _added(counts: StimulusCounts, option: str, packet: int) -> StimulusCounts:
    return StimulusCounts.of({**counts.as_options(), option: counts.as_options()[option] + packet})


def _with_shares(counts: StimulusCounts, rows: int) -> StimulusCounts:
    """Keeps a share of the kinds that guard against what the model leaves out."""
    options, units = counts.as_options(), _units_of(rows)
    others = counts.total(rows) - sum(options[name] * units[name] for name in _SHARES)
    whole = max(counts.total(rows), others / (1.0 - sum(_SHARES.values())))
    least = {name: int(share * whole // units[name]) for name, share in _SHARES.items()}
    return replace(counts, **{name: max(options[name], count) for name, count in least.items()})
