"""What a training is made of, as one value; `assemble` turns it into a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from labrig.training.backends import Kind
from labrig.training.canaries import CanarySettings
from labrig.training.optimisation import Optimisation
from labrig.training.policy import Adaptive, AlternationPolicy, Budget, FixedRatio, OnlySurrogate, Scheduled
from labrig.training.refit import RefitSettings
from labrig_surrogates.schedules import Constant, Schedule

MethodName = Literal[
    "digital",
    "surrogate",
    "offline-calibrated",
    "in-loop",
    "dat",
    "asyt",
    "in-loop-overlapped",
    "in-loop-stale",
    "spsa",
    "progressive",
    "head",
]
"""`in-loop` is physics-aware training."""

PolicyName = Literal["fixed", "scheduled", "adaptive"]

METHODS: tuple[str, ...] = get_args(MethodName)
WITHOUT_RIG = frozenset({"digital", "surrogate"})
WITHOUT_PHYSICAL_STEPS = frozenset({"digital", "surrogate", "offline-calibrated", "progressive", "head"})
"""Methods that never alternate: the last three ask the chip between steps or at the end."""


@dataclass(frozen=True)
class PolicyPlan:
    """How surrogate steps and physical ones alternate.

    Attributes:
        name: `fixed`, `scheduled` or `adaptive`.
        surrogate_steps: Surrogate steps before each physical one: always, or at the start of `adaptive`.
        budget: What `adaptive` may spend.
        trust: Relative change of the weights for which `adaptive` trusts the surrogate.
        finale: Part of the budget of passes that `adaptive` keeps for the last steps.
        renew_from: Passes after which `adaptive` asks for a recalibration at every one; zero for never.
    """

    name: PolicyName = "fixed"
    surrogate_steps: int = 5
    budget: Budget = field(default_factory=Budget)
    trust: float = 0.05
    finale: float = 0.0
    renew_from: int = 0

    def build(self) -> AlternationPolicy:
        """A policy at its start."""
        if self.name == "scheduled":
            return Scheduled()
        if self.name == "adaptive":
            return Adaptive(
                ratio=float(self.surrogate_steps),
                trust=self.trust,
                budget=self.budget,
                finale=self.finale,
                renew_from=self.renew_from,
            )
        return FixedRatio(self.surrogate_steps)


@dataclass(frozen=True)
class Plan:
    """A training that starts from a network on analog layers.

    Attributes:
        method: Which one.
        steps: Its steps.
        policy: How surrogate steps and physical ones alternate, for methods that do.
        optimisation: How steps are taken.
        noise: Multiple of the chip's noise in surrogate steps.
        draws: Programmings that each surrogate step meets.
        population: Chips drawn from the errors of the calibration; zero for the fitted one alone.
        conductance_step_s: Smallest change of a cell in S that is written; surrogate steps round likewise.
        stochastic_rounding: Whether surrogate steps round at random.
        average_decay: Weight of the past in the moving average of the weights; zero for none.
        chunks: Parts of a batch that are in flight together.
        layers: Kinds of layers that stay what they are, by name.
        recalibrate: Whether the surrogate is renewed while training.
        canaries: When canaries are read; None for never.
        refit: How the calibration is renewed.
        perturbation: Relative size of the perturbations of `spsa`.
        calibration_images: Images that `offline-calibrated` fits the columns to.
        probe_every: Physical steps between two looks at the gradient's cosine, for other policies than `adaptive`.
    """

    method: MethodName = "in-loop"
    steps: int = 240
    policy: PolicyPlan = field(default_factory=PolicyPlan)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(learning_rate=1e-3))
    noise: Schedule = field(default_factory=lambda: Constant(1.0))
    draws: int = 1
    population: int = 0
    conductance_step_s: float = 0.0
    stochastic_rounding: bool = False
    average_decay: float = 0.0
    chunks: int = 1
    layers: tuple[tuple[str, Kind], ...] = ()
    recalibrate: bool = False
    canaries: CanarySettings | None = None
    refit: RefitSettings = field(default_factory=RefitSettings)
    perturbation: float = 0.02
    calibration_images: int = 512
    probe_every: int = 0

    def most_passes(self) -> int:
        """Physical steps at most, where the method alternates."""
        return 0 if self.method in WITHOUT_PHYSICAL_STEPS else self.build_policy().most_passes(self.steps)

    def build_policy(self) -> AlternationPolicy:
        """The policy at its start."""
        return OnlySurrogate() if self.method in WITHOUT_PHYSICAL_STEPS else self.policy.build()
