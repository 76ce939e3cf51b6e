"""netCDF-4, through h5netcdf: a group for each stream, as in the recording, with the attributes that CF knows."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import h5netcdf
import numpy as np

from labrig.export.tables import Content, Table, is_text
from labrig.recording.contents import TEXT_TYPE, StoredColumn
from labrig.recording.output_file import OutputFile
from labrig_calibration.stimulus import StimulusKind

# Blocks of rows are written in whole chunks, and every netCDF library has this filter.
_CHUNK_BYTES = 256 * 1024
_GZIP_LEVEL = 1


def write(part: Path, content: Content) -> None:
    """Writes all tables; `labrig` among the attributes of the file holds what there is to know about them, as JSON."""
    with closing(OutputFile(part)) as output:
        with h5netcdf.File(output, "w", decode_vlen_strings=True) as file:
            _fill(file, content, output)
        output.check()


def _fill(file: h5netcdf.File, content: Content, output: OutputFile) -> None:
    facts = content.facts
    file.attrs["Conventions"] = "CF-1.11"
    file.attrs["title"] = f"MVMs of chip {facts['chip_id']}"
    file.attrs["source"] = f"{facts['recording']}, recorded by labrig on rig {facts['rig_name']}"
    file.attrs["history"] = f"{facts['exported_utc']}: exported by {facts['exported_by']}"
    file.attrs["labrig"] = json.dumps(facts)
    for table in content.tables:
        _write_table(_group(file, table.name), table, output)


def _group(file: h5netcdf.File, name: str) -> h5netcdf.Group:
    group = file
    for part in name.split("/"):
        group = group.groups[part] if part in group.groups else group.create_group(part)
    return group


def _write_table(group: h5netcdf.Group, table: Table, output: OutputFile) -> None:
    group.dimensions[table.axis] = table.rows
    number = StoredColumn(table.axis, np.dtype("<i4"), (), (), "", f"index of the {table.axis}")
    for one in [*table.columns, *(fixed.column for fixed in table.fixed.values())]:
        for name, length in zip(one.dims, one.shape, strict=True):
            if name not in group.dimensions:
                group.dimensions[name] = length
                group.create_variable(name, (name,), "i4", data=np.arange(length, dtype=np.int32))
    variables = {one.name: _variable(group, table, one) for one in (number, *table.columns)}
    for name, fixed in table.fixed.items():
        if fixed.values.dtype.kind in "biuf":
            dims = fixed.column.dims
            _describe(group.create_variable(name, dims, fixed.values.dtype, data=fixed.values), fixed.column)
    for start, block in table.blocks():
        stop = start + len(next(iter(block.values())))
        variables[table.axis][start:stop] = np.arange(start, stop, dtype=np.int32)
        for name, values in block.items():
            variables[name][start:stop] = values
        output.check()


def _variable(group: h5netcdf.Group, table: Table, column: StoredColumn) -> h5netcdf.Variable:
    dims = (table.axis, *column.dims)
    if is_text(column):
        variable = group.create_variable(column.name, dims, TEXT_TYPE)
    elif table.rows == 0:
        variable = group.create_variable(column.name, dims, column.dtype)
    else:
        rows = max(1, min(table.rows, _CHUNK_BYTES // max(1, column.row_bytes)))
        variable = group.create_variable(
            column.name,
            dims,
            column.dtype,
            chunks=(rows, *column.shape),
            compression="gzip",
            compression_opts=_GZIP_LEVEL,
            # Steps of a converter repeat as whole numbers do; taken apart into bytes they no longer look alike.
            shuffle=column.name not in table.derived,
            fletcher32=True,
        )
    _describe(variable, column)
    if column.name == "kind":
        variable.attrs["flag_values"] = np.array([kind.value for kind in StimulusKind], column.dtype)
        variable.attrs["flag_meanings"] = " ".join(kind.name.lower() for kind in StimulusKind)
    return variable


def _describe(variable: h5netcdf.Variable, column: StoredColumn) -> None:
    if not is_text(column):
        variable.attrs["units"] = column.units or "1"
    variable.attrs["long_name"] = column.meaning
