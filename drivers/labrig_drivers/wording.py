"""How messages say numbers: one or several, and values beyond a limit."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, one: str, several: str | None = None) -> str:
    """A count and what is counted, as a person says it: `1 level`, `2 levels`.

    Args:
        count: How many.
        one: What there is one of.
        several: The words for any other count; `one` and an s without it.
    """
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def beyond(what: str, values: Sequence[float], highest: float, unit: str) -> list[str]:
    """Says which values lie beyond a limit of either sign: one reason, however many they are; none where none does.

    Args:
        what: What the values are, in the singular.
        values: The values in `unit`; one that is no number lies beyond every limit.
        highest: The limit in `unit`, as a magnitude.
        unit: Sign of the unit.
    """
    outside = [value for value in values if not abs(value) <= highest]
    if not outside:
        return []
    allowed = f"{-highest:g} to {highest:g} {unit}"
    if len(values) == 1:
        return [f"{what} {outside[0]:g} {unit} is not in {allowed}"]
    few = counted(len(outside), f"{what} of {len(values)} is", f"{what}s of {len(values)} are")
    return [f"{few} not in {allowed} (the first is {outside[0]:g} {unit})"]


def objection(error: Exception) -> str:
    """What a reader of a file objected to; of a key that is not there, that the file has no such thing."""
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
