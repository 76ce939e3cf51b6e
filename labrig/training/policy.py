"""When to spend a physical pass: policies that alternate surrogate steps with passes through the chip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from labrig.training.ledger import Ledger

StepKind = Literal["surrogate", "physical"]


@dataclass(frozen=True)
class Progress:
    """What a policy may know before a step.

    Attributes:
        step: Steps taken.
        steps: Steps of the whole training.
        weight_change: Relative change of the weights on arrays since the last physical step, `|dW| / |W|`.
        ledger: What was spent.
    """

    step: int
    steps: int
    weight_change: float
    ledger: Ledger


class AlternationPolicy(Protocol):
    """Says for every step whether it runs on the surrogate or on the chip."""

    def choose(self, progress: Progress) -> StepKind:
        """The kind of the next step."""
        ...

    def saw(self, cosine: float | None) -> bool:
        """Notes a physical step and the cosine that it found; True asks for a recalibration."""
        ...

    @property
    def probes(self) -> bool:
        """Whether it wants the cosine of physical steps."""
        ...

    def most_passes(self, steps: int) -> int:
        """Physical steps that it takes at most; a recording is sized by it."""
        ...

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint."""
        ...


@dataclass(frozen=True)
class FixedRatio:
    """`surrogate_steps` on the surrogate, then one pass through the chip, again and again.

    Attributes:
        surrogate_steps: Surrogate steps before each pass.
    """

    surrogate_steps: int

    probes: bool = False

    def choose(self, progress: Progress) -> StepKind:
        """See `AlternationPolicy`."""
        length = self.surrogate_steps + 1
        return "physical" if progress.step % length == self.surrogate_steps else "surrogate"

    def saw(self, cosine: float | None) -> bool:
        """See `AlternationPolicy`; it goes its way."""
        del cosine
        return False

    def most_passes(self, steps: int) -> int:
        """See `AlternationPolicy`."""
        return steps // (self.surrogate_steps + 1)

    def state(self) -> dict[str, float]:
        """See `AlternationPolicy`."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """See `AlternationPolicy`."""
        del state


@dataclass(frozen=True)
class OnlySurrogate:
    """No step on the chip."""

    probes: bool = False

    def choose(self, progress: Progress) -> StepKind:
        """See `AlternationPolicy`."""
        del progress
        return "surrogate"

    def saw(self, cosine: float | None) -> bool:
        """See `AlternationPolicy`."""
        del cosine
        return False

    def most_passes(self, steps: int) -> int:
        """See `AlternationPolicy`."""
        del steps
        return 0

    def state(self) -> dict[str, float]:
        """See `AlternationPolicy`."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """See `AlternationPolicy`."""
        del state


@dataclass
class Scheduled:
    """Ratios of surrogate to physical steps that change along the training.

    Attributes:
        phases: End of each phase as a part of all steps, and surrogate steps for each physical one in it; infinite
            takes none. The default is nothing, 20, 5, and 1 in the last tenth.
    """

    phases: Sequence[tuple[float, float]] = ((0.5, math.inf), (0.75, 20.0), (0.9, 5.0), (1.0, 1.0))
    _since: int = 0

    probes: bool = field(default=False, init=False)

    def choose(self, progress: Progress) -> StepKind:
        """See `AlternationPolicy`."""
        done = progress.step / max(progress.steps, 1)
        ratio = next((ratio for end, ratio in self.phases if done < end), self.phases[-1][1])
        if self._since >= ratio:
            self._since = 0
            return "physical"
        self._since += 1
        return "surrogate"

    def saw(self, cosine: float | None) -> bool:
        """See `AlternationPolicy`."""
        del cosine
        return False

    def most_passes(self, steps: int) -> int:
        """See `AlternationPolicy`."""
        passes, begin = 0.0, 0.0
        for end, ratio in self.phases:
            passes += 0.0 if math.isinf(ratio) else (end - begin) * steps / (ratio + 1.0) + 1.0
            begin = end
        return min(math.ceil(passes), steps)

    def state(self) -> dict[str, float]:
        """See `AlternationPolicy`."""
        return {"since": self._since}

    def load_state(self, state: Mapping[str, float]) -> None:
        """See `AlternationPolicy`."""
        self._since = int(state["since"])


@dataclass(frozen=True)
class Budget:
    """What may be spent on the chip; None sets no limit.

    Attributes:
        passes: Forward passes.
        writes: Programmings of an array.
        seconds: Wall time in s.
        joules: Energy in J.
    """

    passes: int | None = None
    writes: int | None = None
    seconds: float | None = None
    joules: float | None = None

    def spent(self, ledger: Ledger) -> str | None:
        """Which limit is reached; None where none is."""
        for name in ("passes", "writes", "seconds", "joules"):
            limit, used = getattr(self, name), getattr(ledger, name)
            if limit is not None and used is not None and used >= limit:
                return name
        return None


@dataclass
class Adaptive:
    """Spends passes where the surrogate's gradient is wrong or the weights have moved far.

    A physical step that finds the gradients alike (`cosine > alike`) doubles the surrogate steps before the next one;
    one that finds them apart (`cosine < apart`) halves them and asks for a recalibration. Whatever the ratio, a
    relative change of the weights beyond `trust` since the last pass forces one.

    Where the budget has passes, `finale` of them are kept for the end, since what the chip was asked early it has
    forgotten where it drifts; and once no more steps are left than passes, all of them are physical, so that no budget
    is left over.

    Attributes:
        ratio: Surrogate steps before the next pass.
        most: Largest ratio.
        alike: Cosine above which the surrogate is good.
        apart: Cosine below which it is not.
        trust: Relative change of the weights that a surrogate is trusted for.
        budget: What may be spent.
        finale: Part of the budget of passes that is kept for the last steps.
        renew_from: Passes after which every one asks for a recalibration, whatever the cosine; zero for never.
    """

    ratio: float = 4.0
    most: float = 64.0
    alike: float = 0.95
    apart: float = 0.8
    trust: float = 0.05
    budget: Budget = field(default_factory=Budget)
    finale: float = 0.0
    renew_from: int = 0
    _since: int = 0
    _seen: int = 0

    probes: bool = field(default=True, init=False)

    def choose(self, progress: Progress) -> StepKind:
        """See `AlternationPolicy`."""
        if self.budget.spent(progress.ledger) is not None:
            return "surrogate"
        if self.budget.passes is not None:
            left = self.budget.passes - progress.ledger.passes
            if progress.steps - progress.step <= left:
                return "physical"
            if left <= round(self.finale * self.budget.passes):
                return "surrogate"
        if self._since >= self.ratio or progress.weight_change > self.trust:
            self._since = 0
            return "physical"
        self._since += 1
        return "surrogate"

    def saw(self, cosine: float | None) -> bool:
        """See `AlternationPolicy`."""
        self._seen += 1
        wanted = 0 < self.renew_from <= self._seen
        if cosine is not None and cosine > self.alike:
            self.ratio = min(2.0 * self.ratio, self.most)
        elif cosine is not None and cosine < self.apart:
            self.ratio = max(0.5 * self.ratio, 1.0)
            wanted = True
        return wanted

    def most_passes(self, steps: int) -> int:
        """See `AlternationPolicy`."""
        return steps if self.budget.passes is None else min(steps, self.budget.passes)

    def state(self) -> dict[str, float]:
        """See `AlternationPolicy`."""
        return {"ratio": self.ratio, "since": self._since, "seen": self._seen}

    def load_state(self, state: Mapping[str, float]) -> None:
        """See `AlternationPolicy`."""
        self.ratio, self._since, self._seen = state["ratio"], int(state["since"]), int(state.get("seen", 0))


@dataclass
class Recorded:
    """The kinds of a run that was recorded: what was decided by time or energy then is not decided again.

    Attributes:
        kinds: Kind of each step.
    """

    kinds: Sequence[StepKind]
    probes: bool = False

    def choose(self, progress: Progress) -> StepKind:
        """See `AlternationPolicy`."""
        return self.kinds[progress.step]

    def saw(self, cosine: float | None) -> bool:
        """See `AlternationPolicy`; recalibrations are recorded by themselves."""
        del cosine
        return False

    def most_passes(self, steps: int) -> int:
        """See `AlternationPolicy`."""
        return sum(1 for kind in self.kinds[:steps] if kind == "physical")

    def state(self) -> dict[str, float]:
        """See `AlternationPolicy`."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """See `AlternationPolicy`."""
        del state
