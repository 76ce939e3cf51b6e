"""Arrays of numbers inside JSON: little-endian float32 in base64, a tenth of the time of writing digits."""

from __future__ import annotations

import base64
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

_LARGEST = 32767


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


class CoarselyPacked(TypedDict):
    """An array in half the space, to four digits of its largest value.

    Attributes:
        i16: Base64 of little-endian int16, row by row.
        scale: What each counts.
        shape: Its shape.
    """

    i16: str
    scale: float
    shape: list[int]


def packed_coarsely(values: ArrayLike) -> CoarselyPacked:
    """Packs an array for a picture; what is not finite becomes zero."""
    array = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    scale = float(np.abs(array).max(initial=0.0)) / _LARGEST or 1.0
    codes = np.round(array / scale).astype("<i2")
    return {"i16": base64.b64encode(codes.tobytes()).decode("ascii"), "scale": scale, "shape": list(array.shape)}
