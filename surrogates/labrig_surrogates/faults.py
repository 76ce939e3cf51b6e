"""Refusing bad settings: all faults of one thing in one error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral, Real
from types import UnionType
from typing import TYPE_CHECKING, Literal, Union, get_args, get_origin, get_type_hints

from labrig_surrogates.errors import SurrogateError

if TYPE_CHECKING:
    from torch import Tensor


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


def value_faults(settings: object, prefix: str = "") -> list[str]:
    """Words that no setting knows and numbers that are none, by the types of a dataclass's fields.

    Code compares words with the ones that it knows and takes the last branch for all others, so that a slip of the pen
    would quietly be another effect.

    Args:
        settings: A dataclass.
        prefix: What its fields are called by, with the dot.

    Returns:
        A clause for each value that is not of its field's type: not one of its words, not whole, not finite.
    """
    found = [(name, getattr(settings, name), kinds) for name, kinds in _kinds(type(settings))]  # type: ignore[arg-type]
    reasons = [(name, value, _reason(value, kinds)) for name, value, kinds in found]
    return [f"{prefix}{name} = {told(value)} {reason}" for name, value, reason in reasons if reason is not None]


def told(value: object) -> str:
    """A value as its author wrote it, for messages: words in quotes, numbers without the name of their type."""
    return str(value) if isinstance(value, Real) else repr(value)


def counted(count: int, one: str, several: str | None = None) -> str:
    """A count and what is counted, as a person says it: `1 value`, `2 values`.

    Args:
        count: How many.
        one: What there is one of.
        several: The words for any other count; `one` and an s without it.
    """
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def numbered(numbers: Sequence[int], one: str, does: str, do: str) -> str:
    """Which ones, and what they do, as a person says it: `column 3 saturates`, `columns [2, 7] saturate`.

    Args:
        numbers: At least one.
        one: What there is one of.
        does: The verb for one.
        do: The verb for several.
    """
    return f"{one} {numbers[0]} {does}" if len(numbers) == 1 else f"{one}s {list(numbers)} {do}"


def not_finite(**values: Tensor) -> list[str]:
    """Says how many values of each tensor are not finite; nothing of those in which all are."""
    bad = {name: int((~value.isfinite()).sum()) for name, value in values.items()}
    words = ("value that is not finite", "values that are not finite")
    return [f"{name} has {counted(n, *words)}" for name, n in bad.items() if n]


@lru_cache
def _kinds(settings: type) -> tuple[tuple[str, tuple[object, ...]], ...]:
    """The fields of a dataclass, and the types that a value may have."""
    unions = {Union, UnionType}
    hints = get_type_hints(settings).items()
    return tuple((name, get_args(hint) if get_origin(hint) in unions else (hint,)) for name, hint in hints)


def _reason(value: object, kinds: tuple[object, ...]) -> str | None:
    """What is wrong with a value; None where nothing is, or nothing is known about such types."""
    if value is None and type(None) in kinds:
        return None
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if words:
        return None if value in words else f"is none of {', '.join(map(repr, words))}"
    if bool in kinds:
        return None if isinstance(value, bool) else "is neither True nor False"
    if int in kinds and float not in kinds:
        return None if isinstance(value, Integral) and not isinstance(value, bool) else "is no whole number"
    return "is not finite" if isinstance(value, Real) and not math.isfinite(value) else None
