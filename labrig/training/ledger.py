"""What a training spent on the chip: the same account for every method, so that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass
class Ledger:
    """Running totals of one phase.

    Attributes:
        passes: Forward passes of whole batches through the chip.
        mvms: Matrix-vector products measured.
        writes: Programmings of an array.
        surrogate_steps: Gradient steps on the surrogate alone.
        seconds: Wall time in s.
        joules: Energy in J from the array supply; None where the rig has no supply meter.
        cell_writes: Cells whose target changed, over all programmings.
        stale_steps: Steps that used a physical pass of weights older than those they changed.
        overlapped_steps: Surrogate steps among them that were taken while a pass was under way.
        corrected_steps: Steps that joined the surrogate's gradient at the weights of the step to what the chip said
            against it at earlier ones.
        canary_mvms: Products among `mvms` that only looked for drift.
        digital_flops: Floating-point operations of the network's products that the computer did for the steps: two for
            each weight and image, for a gradient three times. Refits of the calibration are not among them.
        recalibrations: Times that the surrogate was fitted anew.
        reconnects: Times that the rig was lost and opened again.
    """

    passes: int = 0
    mvms: int = 0
    writes: int = 0
    surrogate_steps: int = 0
    seconds: float = 0.0
    joules: float | None = None
    cell_writes: int = 0
    stale_steps: int = 0
    overlapped_steps: int = 0
    corrected_steps: int = 0
    canary_mvms: int = 0
    digital_flops: float = 0.0
    recalibrations: int = 0
    reconnects: int = 0

    def as_dict(self) -> dict[str, float | int | None]:
        """For files."""
        return asdict(self)

    def copy_from(self, other: Ledger) -> None:
        """Takes over the totals of another account, such as that of a checkpoint."""
        for one in fields(self):
            setattr(self, one.name, getattr(other, one.name))


def total(ledgers: Sequence[Ledger]) -> Ledger:
    """The sum of several phases; energy is known only where every phase metered it."""
    joules = [ledger.joules for ledger in ledgers if ledger.joules is not None]
    counted = [one.name for one in fields(Ledger) if one.name != "joules"]
    sums = {name: sum(getattr(ledger, name) for ledger in ledgers) for name in counted}
    return Ledger(**sums, joules=sum(joules) if ledgers and len(joules) == len(ledgers) else None)
