"""Refusing bad settings: all faults of one thing in one error."""

from __future__ import annotations

from collections.abc import Sequence

from labrig_surrogates.errors import SurrogateError


def refuse(subject: str, faults: Sequence[str]) -> None:
    """Raises one error that names every fault of a subject; does nothing when there is none.

    Args:
        subject: What was to be made, as the reader knows it.
        faults: One clause for each fault, each saying what would be right.

    Raises:
        SurrogateError: There is at least one fault.
    """
    if faults:
        raise SurrogateError(f"{subject}: " + "; ".join(faults))
