"""How a network is trained, as one value: steps, rates and the alternation with the chip."""

from __future__ import annotations

from dataclasses import dataclass, field

from labrig.training.optimisation import Optimisation
from labrig.training.plan import Plan, PolicyPlan


@dataclass(frozen=True)
class Recipe:
    """A two-layer network and its three trainings.

    Attributes:
        hidden: Hidden units.
        digital_steps: Steps of the digital baseline.
        surrogate_steps: Steps on the surrogate, starting from the digital weights.
        optimisation: Digital and surrogate steps.
        in_loop: Training with the chip, starting from the surrogate-trained weights; its steps are smaller, since they
            fine-tune. The default makes 40 passes.
    """

    hidden: int = 32
    digital_steps: int = 1500
    surrogate_steps: int = 1000
    optimisation: Optimisation = field(default_factory=Optimisation)
    in_loop: Plan = field(default_factory=lambda: Plan(steps=240, policy=PolicyPlan(surrogate_steps=5)))
