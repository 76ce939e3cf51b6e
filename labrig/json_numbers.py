"""Numbers that JSON has no word for."""

from __future__ import annotations

import math


def finite_json(value: object) -> object:
    """A document with null in the place of infinities and NaN, keys as text and tuples as lists."""
    if isinstance(value, dict):
        return {str(key): finite_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
