"""What a recording looks like inside: every dataset of every stream, in one table.

The file is NeXus (NXroot, NXentry, NXdata with signal and axes) and carries netCDF dimension scales, so that
silx, H5Web and xarray open it without labrig.

    entry/array_0            NXdata: one row for each MVM, `committed` says how many rows count
    entry/array_0/writes     NXdata: one row for each programming of the array, with its own `committed`
    entry/settings           NXdata: one row for each time that axes were moved, where the plan moves any
    entry/curves             NXdata: one row for each reading of an I-V curve, where the plan takes any
    entry/journal/array_0    one row for each block of MVMs: where it lies, its checksum, the hash of its point
    entry/journal/curves     the same for each curve
    entry/supply             NXdata: readings of the array supply
    entry/instruments/NAME   NXinstrument: identity, settings of the rig file, settings as the instrument reports them

Format 1.1 added to 1.0: the streams `settings` and `curves`, the columns `setting` and `board_write`, `crc32` in
`supply`, and the last three fields of the journal. Format 1.2 added the identity of the run. Readers take what a file
has.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from labrig.plans.base import StreamCapacity
from labrig.recording.journal import JOURNAL_DTYPE
from labrig_drivers.crossbar import BoardInfo

FILE_FORMAT = "labrig-recording"
FORMAT_MAJOR = 1
FORMAT_VERSION = f"{FORMAT_MAJOR}.2"

COMMITTED = "committed"
REPORTED_SETTINGS = "reported_settings"
# The identity of the run, as NXentry calls it.
RUN_UUID = "entry_identifier_uuid"
# Two NeXus texts that change while a run ends; their size is fixed, so that nothing moves in the file.
TEXT_BYTES = 40
# Room for what an instrument says of its settings after the file was made.
SETTINGS_TEXT_BYTES = 4096

# Each commit rewrites the chunk that it ends in, so chunks are small.
_CHUNK_BYTES = 64 * 1024
# What HDF5 needs for a dataset with its attributes and scales, from above.
_DATASET_METADATA_BYTES = 8 * 1024
CHUNK_METADATA_BYTES = 160
"""What HDF5 needs for one entry of a chunk index, from above."""
_LEAST_METADATA_BYTES = 256 * 1024
# Texts of variable length and lists of scales, which HDF5 keeps among the rows.
_HEAP_BYTES = 64 * 1024
_INDEX_BYTES = np.dtype("<i4").itemsize


@dataclass(frozen=True)
class Column:
    """One dataset of a stream; its first axis is the stream's.

    Attributes:
        name: Name in the group.
        dtype: Stored type.
        shape: Shape of one row.
        units: SI unit as text, empty for pure numbers and codes.
        meaning: NeXus `long_name`.
        fill: Value of rows that were never written.
        dims: Names of the axes after the first.
    """

    name: str
    dtype: DTypeLike
    shape: tuple[int, ...]
    units: str
    meaning: str
    fill: float
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stream:
    """A group of datasets that grow together, with one `committed` counter.

    Attributes:
        path: Group in the file.
        axis: Name of the first axis.
        columns: The datasets.
        rows: How many rows are reserved.
        signal: Which dataset a viewer plots.
        axes: What NeXus calls the axes of the signal.
    """

    path: str
    axis: str
    columns: tuple[Column, ...]
    rows: int
    signal: str
    axes: tuple[str, ...]

    @property
    def reserved(self) -> int:
        """Rows that the datasets have from the start; at least one, an empty dataset cannot be allocated."""
        return max(self.rows, 1)

    @property
    def dataset_paths(self) -> tuple[str, ...]:
        """Every dataset that grows: the axis and the columns."""
        return tuple(f"{self.path}/{name}" for name in (self.axis, *(column.name for column in self.columns)))


SETTINGS = "entry/settings"
CURVES = "entry/curves"

_BOARD_WRITE = Column("board_write", "<i8", (), "", "programmings of the array before, as the board counts", -1)
_CHECKSUM = Column("crc32", "<u4", (), "", "checksum of the other columns of this row", 0)


def mvm_stream(array: int, info: BoardInfo, capacity: StreamCapacity, *, moves_axes: bool = True) -> Stream:
    """The MVMs of one array; with the setting of the axes where the plan moves any."""
    rows, columns = info.rows, info.columns
    return Stream(
        path=f"entry/array_{array}",
        axis="mvm",
        rows=capacity.rows,
        signal="current_code",
        axes=("mvm", "column"),
        columns=(
            Column("voltage_v", "<f4", (rows,), "V", "commanded word line voltage", math.nan, ("row",)),
            Column("current_code", "<i2", (columns,), "", "raw ADC code", -32768, ("column",)),
            Column("saturated", "u1", (columns,), "", "1 where the ADC was at an end", 255, ("column",)),
            Column("write", "<i4", (), "", "which write of this file was read", -1),
            Column("kind", "i1", (), "", "what the vector was for", -1),
            Column("time_s", "<f8", (), "s", "board clock", math.nan),
            *_setting_column(moves_axes),
        ),
    )


def write_stream(
    array: int, info: BoardInfo, capacity: StreamCapacity, *, moves_axes: bool = True, counted: bool = True
) -> Stream:
    """The programmings of one array; with the setting of the axes where the plan moves any.

    In format 1.0 what the board counts is not among the columns.
    """
    return Stream(
        path=f"entry/array_{array}/writes",
        axis="write",
        rows=capacity.writes,
        signal="target_conductance_s",
        axes=("write", "row", "column"),
        columns=(
            Column(
                "target_conductance_s",
                "<f4",
                (info.rows, info.columns),
                "S",
                "target conductance",
                math.nan,
                ("row", "column"),
            ),
            Column("programmed_at_s", "<f8", (), "s", "board clock at the end of the programming", math.nan),
            Column("rms_error_s", "<f8", (), "S", "rms of read-back minus target", math.nan),
            Column("pulses", "<i8", (), "", "programming pulses spent", -1),
            *((_BOARD_WRITE,) if counted else ()),
            *_setting_column(moves_axes),
            _CHECKSUM,
        ),
    )


def settings_stream(rows: int, axis_units: Mapping[str, str]) -> Stream:
    """Where the axes of the rig were moved to.

    Args:
        rows: How many rows are reserved.
        axis_units: Unit of each axis by its name.
    """
    columns = [Column("time_s", "<f8", (), "s", "UTC of the arrival", math.nan)]
    for name, unit in axis_units.items():
        columns.append(Column(f"{name}_set", "<f8", (), unit, f"set point of the axis {name}", math.nan))
        columns.append(Column(f"{name}_read", "<f8", (), unit, f"what the axis {name} read on arrival", math.nan))
    return Stream(SETTINGS, "setting", (*columns, _CHECKSUM), rows, "time_s", ("setting",))


def unmoved(settings: Stream) -> dict[str, NDArray[np.generic]]:
    """A row of the settings in which no axis was moved yet: NaN throughout."""
    return {one.name: np.array([one.fill]) for one in settings.columns if one is not _CHECKSUM}


def curve_stream(rows: int, *, moves_axes: bool = True) -> Stream:
    """The readings of I-V curves, curve after curve."""
    return Stream(
        path=CURVES,
        axis="reading",
        rows=rows,
        signal="current_a",
        axes=("reading",),
        columns=(
            Column("curve", "<i4", (), "", "which curve of the plan", -1),
            Column("array", "<i4", (), "", "array of the cell, -1 for a device at a source-meter", -1),
            Column("row", "<i4", (), "", "word line of the cell", -1),
            Column("column", "<i4", (), "", "bit line of the cell", -1),
            Column("write", "<i4", (), "", "which write of this file was read, -1 where none was made", -1),
            Column("level_v", "<f8", (), "V", "commanded voltage", math.nan),
            Column("voltage_v", "<f8", (), "V", "measured voltage", math.nan),
            Column("current_a", "<f8", (), "A", "measured current", math.nan),
            Column("in_compliance", "u1", (), "", "1 where the limit determined the output", 255),
            Column("time_s", "<f8", (), "s", "board clock for a cell, UTC for a device at a source-meter", math.nan),
            *_setting_column(moves_axes),
        ),
    )


def supply_stream(rows: int, *, checked: bool = True) -> Stream:
    """The readings of the array supply; without checksums in format 1.0."""
    return Stream(
        path="entry/supply",
        axis="reading",
        rows=rows,
        signal="current_a",
        axes=("reading",),
        columns=(
            Column("time_s", "<f8", (), "s", "UTC", math.nan),
            Column("voltage_v", "<f8", (), "V", "voltage at the array supply", math.nan),
            Column("current_a", "<f8", (), "A", "current of the array supply", math.nan),
            Column("in_compliance", "u1", (), "", "1 where the limit determined the output", 255),
            *((_CHECKSUM,) if checked else ()),
        ),
    )


def chunk_rows(row_bytes: int, rows: int) -> int:
    """Rows in a chunk: 64 kB, but never more than there are rows."""
    return max(1, min(rows, _CHUNK_BYTES // max(row_bytes, 1)))


@dataclass(frozen=True)
class FileSize:
    """How large a recording will be.

    Attributes:
        metadata_bytes: Room for everything that is not rows, in one block at the front of the file.
        data_bytes: Room for all rows that are reserved, and for what HDF5 keeps among them.
    """

    metadata_bytes: int
    data_bytes: int


def file_size(streams: Iterable[Stream], journal_blocks: Iterable[int], text_bytes: int) -> FileSize:
    """Size of a file with these streams, from above for the metadata.

    Args:
        streams: All streams.
        journal_blocks: The reserved entries of each journal.
        text_bytes: Length of all texts that describe the run.
    """
    streams = list(streams)
    tables = [(_row_bytes(column), one.reserved) for one in streams for column in one.columns]
    tables += [(_INDEX_BYTES, one.reserved) for one in streams]
    tables += [(JOURNAL_DTYPE.itemsize, blocks) for blocks in journal_blocks]
    data_bytes = chunks = 0
    for row_bytes, rows in tables:
        size = chunk_rows(row_bytes, rows)
        count = -(-rows // size)
        chunks += count
        data_bytes += count * size * row_bytes
    metadata_bytes = 2 * text_bytes + _DATASET_METADATA_BYTES * len(tables) + CHUNK_METADATA_BYTES * chunks
    return FileSize(max(_LEAST_METADATA_BYTES, metadata_bytes), data_bytes + text_bytes + _HEAP_BYTES)


def as_stored(columns: Sequence[Column], values: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Rows of a stream as the bytes that the file holds, in the order of `columns`; not copied where they are that.

    Args:
        columns: Columns of one stream.
        values: One array for each, its first axis the rows.

    Raises:
        ValueError: The arrays have other shapes than the rows of these columns, or not one number of rows; every one
            is named.
    """
    stored = {one.name: np.ascontiguousarray(values[one.name], dtype=one.dtype) for one in columns}
    count = len(next(iter(stored.values())))
    wanted = {one.name: (count, *one.shape) for one in columns}
    faults = [
        f"{name} is {list(array.shape)}, expected {list(wanted[name])}"
        for name, array in stored.items()
        if array.shape != wanted[name]
    ]
    if faults:
        raise ValueError("these rows do not fit the recording, nothing was written: " + "; ".join(faults))
    return stored


def crc32_of(columns: Iterable[NDArray[np.generic]]) -> int:
    """CRC-32 of the stored bytes of one block, column after column."""
    crc = 0
    for column in columns:
        crc = zlib.crc32(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data, crc)
    return crc


def _setting_column(moves_axes: bool) -> tuple[Column, ...]:
    if not moves_axes:
        return ()
    return (Column("setting", "<i4", (), "", "which row of entry/settings was in force, -1 for none", -1),)


def _row_bytes(column: Column) -> int:
    return int(np.dtype(column.dtype).itemsize * np.prod(column.shape, dtype=np.int64))
