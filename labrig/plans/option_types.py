"""Whether the options of a plan are of the kinds that it takes: a file and a command line hold anything."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import Parameter
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

from labrig.toml_reasons import value_text

# One of it, and several.
_WORDS: Final[Mapping[object, tuple[str, str]]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    str: ("a text", "texts"),
}
_LISTS: Final = frozenset({Sequence, list, tuple})


def type_faults(make: Callable[..., object], options: Mapping[str, object]) -> Iterator[str]:
    """Yields each option that is of another kind than the parameter of that name.

    Only what a file can hold is judged: numbers, truth values, texts, and lists of them.

    Args:
        make: Makes the plan; its parameters say what they take.
        options: What was given, by name.
    """
    try:
        parameters = inspect.signature(make, eval_str=True).parameters
    except (NameError, TypeError, AttributeError, SyntaxError):
        # A plan of one's own may name types that are there for checkers only.
        return
    for name, value in options.items():
        hint = parameters[name].annotation if name in parameters else Parameter.empty
        if hint is not Parameter.empty and not _fits(value, hint):
            yield f"{name} is {value_text(value)}, must be {_word(hint)}"


def _fits(value: object, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in parts)
    if hint is NoneType:
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str)
    if origin in _LISTS:
        if isinstance(value, str | Mapping) or not isinstance(value, Collection):
            return False
        kinds = [one for one in parts if one is not Ellipsis]
        return not kinds or all(any(_fits(one, kind) for kind in kinds) for one in value)
    return True


def _word(hint: Any, *, several: bool = False) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_word(one, several=several) for one in parts if one is not NoneType)
    if origin in _LISTS:
        inside = " or ".join(_word(one, several=True) for one in parts if one is not Ellipsis)
        return f"{'lists' if several else 'a list'} of {inside}"
    return _WORDS.get(hint, ("another kind of value", "other values"))[several]
