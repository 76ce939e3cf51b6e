"""How a network is trained, as one value: steps, rates and the alternation with the chip."""

from __future__ import annotations

from dataclasses import dataclass, field

from labrig.training.loops import Optimisation
from labrig.training.policy import FixedRatio


@dataclass(frozen=True)
class Recipe:
    """A two-layer network and its three trainings.

    Attributes:
        hidden: Hidden units.
        digital_steps: Steps of the digital baseline.
        surrogate_steps: Steps on the surrogate, starting from the digital weights.
        alternation: In-the-loop training, starting from the surrogate-trained weights.
        optimisation: Digital and surrogate steps.
        in_loop_optimisation: In-the-loop steps: smaller, since they fine-tune.
    """

    hidden: int = 32
    digital_steps: int = 1500
    surrogate_steps: int = 1000
    alternation: FixedRatio = field(default_factory=lambda: FixedRatio(cycles=40, surrogate_steps=5))
    optimisation: Optimisation = field(default_factory=Optimisation)
    in_loop_optimisation: Optimisation = field(default_factory=lambda: Optimisation(learning_rate=1e-3))
