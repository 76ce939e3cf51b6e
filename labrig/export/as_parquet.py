"""Parquet, through pyarrow: one column for each data set, vectors as lists of fixed size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labrig.export.tables import Content, is_text
from labrig.recording.contents import StoredColumn


def write(part: Path, content: Content) -> None:
    """Writes one table.

    Unit and meaning of a column are in its metadata (`units`, `long_name`), what else there is to know in that of the
    file (`labrig`, as JSON). Rows of a matrix are lists in a list.
    """
    (table,) = content.tables
    number = pa.field(table.axis, pa.int64(), nullable=False)
    fields = [number, *(_field(one) for one in table.columns)]
    schema = pa.schema(fields, metadata={"labrig": json.dumps(content.facts)})
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for start, block in table.blocks():
            count = len(next(iter(block.values())))
            columns = [pa.array(np.arange(start, start + count, dtype=np.int64))]
            columns += [_values(block[one.name], one) for one in table.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _field(column: StoredColumn) -> pa.Field:
    kind = pa.string() if is_text(column) else pa.from_numpy_dtype(column.dtype)
    for length in reversed(column.shape):
        kind = pa.list_(pa.field("element", kind, nullable=False), length)
    return pa.field(column.name, kind, nullable=False, metadata={"units": column.units, "long_name": column.meaning})


def _values(values: NDArray[np.generic], column: StoredColumn) -> pa.Array:
    array = pa.array(values.reshape(-1)) if not is_text(column) else pa.array(values.reshape(-1).tolist(), pa.string())
    kinds = []
    kind = _field(column).type
    while pa.types.is_fixed_size_list(kind):
        kinds.append(kind)
        kind = kind.value_type
    for one in reversed(kinds):
        array = pa.FixedSizeListArray.from_arrays(array, type=one)
    return array
