"""The ladder of models: which rungs there are, what climbing found, and what its verdicts mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

RungName = Literal["global", "cells", "columns", "curve", "wires", "stuck", "drift", "residual"]

RUNGS: tuple[RungName, ...] = ("global", "cells", "columns", "curve", "wires", "stuck", "drift", "residual")
"""From two numbers to everything: each rung keeps what those below it have found.

global: one gain and one noise. cells: the conductance of every cell of every write, its programming error a random
effect around the target. columns: gain, offset and noise of each column. curve: transfer curve and the law of the
noise over the load. wires: wire resistance and crosstalk. stuck: cells that do not follow their targets, and the
fixed pattern of those that do. drift: exponents of a logarithmic law of time. residual: a small network.
"""

HELDOUT_FRACTION: Final = 0.1
"""Last part of every write that a fit holds back to judge by, unless it is told otherwise."""


@dataclass(frozen=True)
class Ladder:
    """Which rungs are climbed, and how.

    Attributes:
        rungs: The rungs to try, in the order of `RUNGS`; the first two cannot be left out.
        select: Whether a rung has to earn its place on later data. Without it every rung is kept.
        heldout_fraction: Last part of every write that is only used to judge.
        confidence: A rung is kept where it predicts better by this many standard errors.
        drift_reference_s: Time constant of the drift law in s (a gauge: others change the exponents a little).
        exact_wires: Whether wires are fitted with the exact solution of the network instead of its first order.
    """

    rungs: tuple[RungName, ...] = RUNGS
    select: bool = True
    heldout_fraction: float = HELDOUT_FRACTION
    confidence: float = 3.0
    drift_reference_s: float = 1.0
    exact_wires: bool = False

    def __post_init__(self) -> None:
        faults = [f"unknown rung {name!r}" for name in self.rungs if name not in RUNGS]
        if tuple(name for name in RUNGS if name in self.rungs) != self.rungs or self.rungs[:2] != RUNGS[:2]:
            faults.append(f"rungs have to begin with {', '.join(RUNGS[:2])} and keep the order {', '.join(RUNGS)}")
        if not 0.0 < self.heldout_fraction < 0.9:
            faults.append(f"heldout_fraction is {self.heldout_fraction}, must lie between 0 and 0.9")
        if not self.drift_reference_s > 0.0:
            faults.append(f"drift_reference_s is {self.drift_reference_s}, must be above zero")
        if faults:
            raise ValueError("no such ladder: " + "; ".join(faults))


@dataclass(frozen=True)
class RungVerdict:
    """What one rung brought.

    Attributes:
        rung: Its name.
        kept: Whether it is part of the fitted model.
        parameters: Numbers that the model with it estimates, random effects included.
        heldout_nll: Negative log likelihood in nats per MVM of the held-out, later MVMs of recorded writes.
        improvement: How much less it is than without this rung; what `judged_on` says where that is not the MVMs.
        improvement_error: Standard error of `improvement`.
        judged_on: What decided: `later MVMs`, or `last write` for what only a write that was never read can tell, and
            `all writes` for what no prediction can: where a cell's weakness comes from.
        reason: Why it was kept or not, in words.
    """

    rung: RungName
    kept: bool
    parameters: int
    heldout_nll: float
    improvement: float
    improvement_error: float
    judged_on: Literal["later MVMs", "last write", "all writes"]
    reason: str
