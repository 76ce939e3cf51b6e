"""One training as it goes on: steps of a method, chosen by a policy, with everything that a checkpoint needs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labrig.training.averaging import MovingAverage
from labrig.training.batches import Sampler
from labrig.training.bench import TrainingBench, analog_weights
from labrig.training.canaries import Canaries
from labrig.training.chip_model import ChipModel
from labrig.training.methods.base import Method, StepOutcome
from labrig.training.physical import Observation
from labrig.training.policy import AlternationPolicy, Progress, StepKind
from labrig.training.refit import RefitSettings, refit

Line = dict[str, object]
"""What the log says about one step, as JSON can hold it."""

# Passes of an array that a refit is made from at least, though some may be of the time before a change.
_FEWEST_PASSES = 5


@dataclass(frozen=True)
class RecordedUpkeep:
    """When a recorded run kept its surrogate right.

    Attributes:
        looked: Steps after which canaries were read.
        renewed: Steps after which the calibration was renewed.
    """

    looked: frozenset[int]
    renewed: frozenset[int]


@dataclass
class Recalibration:
    """How the surrogate is kept right while training.

    Attributes:
        canaries: Look for drift; None looks for none, and only a policy asks for a recalibration.
        refit: How the calibration is renewed.
        recorded: What a recorded run did, in place of what canaries and policy ask for; None where nothing is
            replayed.
    """

    canaries: Canaries | None = None
    refit: RefitSettings = field(default_factory=RefitSettings)
    recorded: RecordedUpkeep | None = None


class Session:
    """A training.

    Args:
        bench: What the method works with.
        method: Turns batches into steps.
        policy: Chooses their kinds.
        sampler: Source of the batches.
        steps: Steps of the whole training.
        chip: The calibrated chip; None for a training in float.
        recalibration: How the surrogate is kept right; None leaves it as it was calibrated.
        average: Moving average of the weights.
        meter_j: Reads the energy meter in J, None without one.
        probe_every: Physical steps between two looks at the gradient's cosine, where the policy does not want them
            all; zero for none.
    """

    def __init__(
        self,
        bench: TrainingBench,
        method: Method,
        policy: AlternationPolicy,
        sampler: Sampler,
        steps: int,
        *,
        chip: ChipModel | None = None,
        recalibration: Recalibration | None = None,
        average: MovingAverage | None = None,
        meter_j: Callable[[], float | None] = lambda: None,
        probe_every: int = 0,
    ) -> None:
        self.bench = bench
        self.method = method
        self.policy = policy
        self.sampler = sampler
        self.steps = steps
        self.step = 0
        self.physical_steps = 0
        self.chip = chip
        self.recalibration = recalibration
        self.average = average or MovingAverage(0.0)
        self.meter_j = meter_j
        self.measured: dict[int, deque[Observation]] = {}
        self.reference = {name: one.detach().clone() for name, one in self._watched_weights().items()}
        self._probe_every = probe_every
        self.now_s = float("nan")
        self.looked_s = float("-inf")
        if bench.physical is not None:
            bench.physical.observers.append(self._observe)

    def run(self, journal: Callable[[Line], None], after_step: Callable[[], None] = lambda: None) -> None:
        """Takes the steps that are left, and what the method does after the last one.

        Args:
            journal: Gets a line for each step.
            after_step: Called after each line.
        """
        self.method.begin(self.bench)
        while self.step < self.steps:
            self.advance(journal)
            after_step()
        self.method.finish(self.bench)
        self.average.put(self.bench.stepper.network, self.bench.stepper.parameters)

    def advance(self, journal: Callable[[Line], None]) -> None:
        """Takes one step; where it fails, nothing but the account of what was spent has changed.

        A look at the canaries that fails is told by its error as well, but the step before it is taken and in the log.
        """
        begin_s, begin_j = time.perf_counter(), self.meter_j()
        kind, outcome = self._take_step()
        self.step += 1
        line: Line = {"step": self.step, "steps": self.steps, "phase": self.method.name, "kind": kind}
        line |= {name: value for name, value in vars(outcome).items() if value is not None}
        try:
            self.average.update(self.bench.stepper.parameters, self.step, self.steps)
            if kind == "physical":
                line |= self._after_pass(outcome)
        finally:
            ledger = self.bench.ledger
            ledger.seconds += time.perf_counter() - begin_s
            end_j = self.meter_j()
            if begin_j is not None and end_j is not None:
                ledger.joules = (ledger.joules or 0.0) + end_j - begin_j
            if kind == "physical":
                line["ledger"] = ledger.as_dict()
            journal(line)

    @property
    def version(self) -> int:
        """How often the calibration was renewed."""
        return 0 if self.chip is None else self.chip.version

    def use_chip(self, chip: ChipModel) -> None:
        """Goes on with a renewed calibration; weights and optimiser stay, so that nothing jumps."""
        self.chip = chip
        self.bench.fitted = chip.surrogates
        self.bench.surrogate.use(chip.surrogates)

    def _take_step(self) -> tuple[StepKind, StepOutcome]:
        policy, sampler, bench = self.policy, self.sampler, self.bench
        before = (policy.state(), sampler.mark(), bench.generator.get_state(), bench.surrogate.generator.get_state())
        try:
            kind = policy.choose(Progress(self.step, self.steps, self._weight_change(), bench.ledger))
            batch = sampler.next()
            if kind == "physical" and self.method.physical_step is not None:
                probe = policy.probes or (self._probe_every > 0 and self.physical_steps % self._probe_every == 0)
                return kind, self.method.physical_step(bench, batch, probe=probe)
            return "surrogate", self.method.surrogate_step(bench, batch)
        except BaseException:
            policy.load_state(before[0])
            sampler.back(before[1])
            bench.generator.set_state(before[2])
            bench.surrogate.generator.set_state(before[3])
            raise

    def _after_pass(self, outcome: StepOutcome) -> Line:
        self.physical_steps += 1
        self.reference = {name: one.detach().clone() for name, one in self._watched_weights().items()}
        line: Line = {"version": self.version, "gaps": self._gaps(), "time_s": self.now_s}
        wanted = self.policy.saw(outcome.cosine)
        if self.recalibration is None or self.chip is None:
            return line
        reasons = ["gradient cosine"] if wanted else []
        canaries, recorded = self.recalibration.canaries, self.recalibration.recorded
        due = canaries is not None and canaries.due(self.now_s)
        if canaries is not None and (due if recorded is None else self.step in recorded.looked):
            self.method.settle(self.bench)  # a pass that is still under way has the board first
            looks, alarms = canaries.look(self.bench.chip, self.chip.parameters.arrays, self.looked_s)
            self.looked_s = self.now_s
            line["canaries"] = [vars(look) for look in looks]
            reasons += [one.reason for one in alarms]
            for one in alarms:
                self._forget_before(one.array, one.began_s)
        if recorded is not None:
            reasons = ["recorded"] if self.step in recorded.renewed else []
        if reasons:
            self.method.settle(self.bench)
            line["recalibration"] = {"reasons": reasons, **self._recalibrate(self.recalibration.refit)}
        return line

    def _recalibrate(self, settings: RefitSettings) -> Line:
        assert self.chip is not None
        found = {
            array: refit(self.chip.parameters.arrays[array], list(seen), settings)
            for array, seen in sorted(self.measured.items())
        }
        better = {array: one.parameters for array, one in found.items() if one is not None and one.better}
        if better:
            self.use_chip(self.chip.renewed(better))
            self.bench.ledger.recalibrations += 1
        canaries = None if self.recalibration is None else self.recalibration.canaries
        if canaries is not None:
            canaries.recalibrated(self.now_s)
        return {
            "version": self.version,
            "arrays": {
                str(array): {"before": one.before, "after": one.after, "batches": one.batches, "kept": one.better}
                for array, one in found.items()
                if one is not None
            },
        }

    def _forget_before(self, array: int, began_s: float) -> None:
        """Drops passes of what the chip was before it changed, as long as enough are left for a fit."""
        seen = self.measured.get(array, deque())
        while len(seen) > _FEWEST_PASSES and float(seen[0].result.time_s[0]) < began_s:
            seen.popleft()

    def _observe(self, observation: Observation) -> None:
        self.now_s = float(observation.result.time_s[-1])
        if self.recalibration is None:
            return
        memory = self.recalibration.refit.memory
        self.measured.setdefault(observation.array, deque(maxlen=memory)).append(observation)

    def _watched_weights(self) -> dict[str, Tensor]:
        return analog_weights(self.bench) if self.policy.probes else {}

    @torch.no_grad()
    def _weight_change(self) -> float:
        moved, size = 0.0, 0.0
        for name, one in self._watched_weights().items():
            if name in self.reference:
                moved += float((one - self.reference[name]).square().sum())
                size += float(self.reference[name].square().sum())
        return (moved / size) ** 0.5 if size else 0.0

    def _gaps(self) -> dict[str, float]:
        """The largest gap between chip and surrogate of each layer in the last pass."""
        gaps: dict[str, float] = {}
        for tile, gap in self.bench.chip.gaps.items():
            layer = tile.rpartition("/")[0]
            gaps[layer] = max(gaps.get(layer, 0.0), gap)
        return gaps
