"""The journal: one entry for each block of rows of a stream, written before the rows count.

An entry says which point of the plan its block is of, where the rows lie, and their checksum. A point that was missed
has an entry too, with no rows: it is done, and will not be measured. Each entry carries a checksum of its own.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

POINT_HASH_BYTES = 16
JOURNAL_DTYPE = np.dtype(
    [
        ("point", "u1", (POINT_HASH_BYTES,)),
        ("start", "<i8"),
        ("rows", "<i8"),
        ("crc32", "<u4"),
        ("kind", "i1"),
        ("began_s", "<f8"),
        ("ended_s", "<f8"),
        ("entry_crc32", "<u4"),
    ]
)
MISSED = -2
"""The kind of an entry whose point was missed."""


def journal_path(stream_path: str) -> str:
    """The dataset that tells the blocks of a stream apart, such as `entry/journal/array_0` for `entry/array_0`."""
    entry, _, name = stream_path.rpartition("/")
    return f"{entry}/journal/{name}"


def fill_entry() -> NDArray[np.void]:
    """What stands where no entry was written."""
    entry = np.zeros((), JOURNAL_DTYPE)
    entry["start"] = -1
    return entry


def make_entry(
    point: bytes, start: int, rows: int, kind: int, rows_crc32: int, interval_s: tuple[float, float]
) -> NDArray[np.void]:
    """One entry, `[1]`.

    Args:
        point: 16 bytes that name the point of the plan.
        start: First row of its block.
        rows: How many rows; 0 for a point that was missed.
        kind: What the vectors were for, or `MISSED`.
        rows_crc32: Checksum of the rows, see `layout.crc32_of`.
        interval_s: UTC in s, by the host, when the request was made and when it was answered.
    """
    entry = np.zeros(1, JOURNAL_DTYPE)
    entry["point"] = np.frombuffer(point, np.uint8)
    entry["start"], entry["rows"], entry["kind"], entry["crc32"] = start, rows, kind, rows_crc32
    entry["began_s"], entry["ended_s"] = interval_s
    entry["entry_crc32"] = zlib.crc32(entry.tobytes()[: -JOURNAL_DTYPE["entry_crc32"].itemsize])
    return entry
