"""What a training spent on the chip: the same account for every method, so that they can be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
    """

    passes: int = 0
    mvms: int = 0
    writes: int = 0
    surrogate_steps: int = 0
    seconds: float = 0.0
    joules: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """For files."""
        return asdict(self)


def total(ledgers: list[Ledger]) -> Ledger:
    """The sum of several phases; energy is known only where every phase metered it."""
    joules = [ledger.joules for ledger in ledgers if ledger.joules is not None]
    return Ledger(
        passes=sum(ledger.passes for ledger in ledgers),
        mvms=sum(ledger.mvms for ledger in ledgers),
        writes=sum(ledger.writes for ledger in ledgers),
        surrogate_steps=sum(ledger.surrogate_steps for ledger in ledgers),
        seconds=sum(ledger.seconds for ledger in ledgers),
        joules=sum(joules) if ledgers and len(joules) == len(ledgers) else None,
    )
