"""Arrays that are too large for memory, in files without a name that go when the array does. Numpy only.

What is taken out of such an array is such an array again; what is taken out of an array in memory stays in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

# Rows that are in memory at once.
PIECE_ROWS = 16384


def mapped(shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap:
    """An array of zeros in a file of the folder for temporary files (`TMPDIR`), which nothing but the array holds.

    Args:
        shape: Its shape.
        dtype: Its type.

    Raises:
        OSError: The file cannot be made, or there is no room.
    """
    if 0 in shape:
        raise ValueError(f"an array of shape {list(shape)} has nothing that a file could hold")
    # The array has a file descriptor of its own; the file is gone from its folder already.
    with tempfile.TemporaryFile(prefix="labrig-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def pieces(rows: int) -> Iterator[slice]:
    """Slices of a few thousand rows that cover all of them."""
    for start in range(0, rows, PIECE_ROWS):
        yield slice(start, min(start + PIECE_ROWS, rows))


def picked_rows(array: NDArray[Scalar], rows: NDArray[np.bool_]) -> NDArray[Scalar]:
    """The rows where `rows[N]` is true, `[n, ...]`: in a file where the array is in one, else in memory."""
    count = int(rows.sum())
    if not isinstance(array, np.memmap) or not count:
        return np.asarray(array[rows])
    found = mapped((count, *array.shape[1:]), array.dtype)
    filled = 0
    for piece in pieces(len(array)):
        some = array[piece][rows[piece]]
        found[filled : filled + len(some)] = some
        filled += len(some)
    return found


def picked_columns(array: NDArray[Scalar], columns: NDArray[np.bool_]) -> NDArray[Scalar]:
    """The columns where `columns` is true, `[N, n]`: in a file where the array is in one, else in memory."""
    count = int(columns.sum())
    if not isinstance(array, np.memmap) or not count:
        return np.asarray(array[:, columns])
    found = mapped((len(array), count), array.dtype)
    for piece in pieces(len(array)):
        found[piece] = array[piece][:, columns]
    return found
