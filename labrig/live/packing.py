"""Arrays of numbers inside JSON: little-endian float32 in base64, a tenth of the time of writing digits."""

from __future__ import annotations

import base64
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike


class Packed(TypedDict):
    """An array as the page unpacks it; what is not finite stays so.

    Attributes:
        f32: Base64 of its values, row by row.
        shape: Its shape.
    """

    f32: str
    shape: list[int]


def packed(values: ArrayLike) -> Packed:
    """Packs an array; float32 is finer than any screen."""
    array = np.ascontiguousarray(values, dtype="<f4")
    return {"f32": base64.b64encode(array.tobytes()).decode("ascii"), "shape": list(array.shape)}
