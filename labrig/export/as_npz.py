"""NumPy's `.npz`: an archive of arrays, written array by array, so that none has to fit into memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from labrig.export.tables import Content, Table, is_text
from labrig.recording.contents import StoredColumn

# Names and types that these have in a data set of labrig, where they are other than in the recording.
_DATASET_NAMES = {"write": "pattern"}
_DATASET_TYPES: Mapping[str, str] = {
    "voltage_v": "<f8",
    "current_a": "<f8",
    "pattern": "<i8",
    "target_conductance_s": "<f8",
    "time_s": "<f8",
    "programmed_at_s": "<f8",
    "saturated": "?",
}


def write(part: Path, content: Content) -> None:
    """Writes all tables: `array_0/voltage_v`, or `voltage_v` alone where that is wanted.

    Names and types are those of `labrig_calibration.dataset.MvmDataset`, and the recording's where that has none.
    `about` holds what there is to know about them, as JSON.
    """
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=1) as archive:
        _add(archive, "about", np.array(json.dumps(content.facts)))
        for table in content.tables:
            for column in table.columns:
                name = _DATASET_NAMES.get(column.name, column.name) if table.axis == "mvm" else column.name
                kind = np.dtype(_DATASET_TYPES.get(name, column.dtype))
                _add_column(archive, _free_name(archive, table, name, bare=content.bare_names), kind, table, column)
            for name, fixed in table.fixed.items():
                if fixed.values.dtype.kind in "biuf":
                    _add(archive, _free_name(archive, table, name, bare=content.bare_names), fixed.values)


def _free_name(archive: zipfile.ZipFile, table: Table, name: str, *, bare: bool) -> str:
    """The name alone where that is wanted and no other stream has it."""
    return name if bare and f"{name}.npy" not in archive.namelist() else f"{table.name}/{name}"


def _add_column(
    archive: zipfile.ZipFile, name: str, kind: np.dtype[np.generic], table: Table, column: StoredColumn
) -> None:
    if is_text(column):
        # Texts are few; the length of the longest is the type of all.
        blocks = [block[column.name] for _, block in table.blocks([column.name])]
        _add(archive, name, np.concatenate(blocks).astype(np.str_) if blocks else np.empty((0, *column.shape), "U1"))
        return
    header = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": (table.rows, *column.shape)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, header)
        for _, block in table.blocks([column.name]):
            member.write(np.ascontiguousarray(block[column.name], dtype=kind).tobytes())


def _add(archive: zipfile.ZipFile, name: str, values: NDArray[np.generic]) -> None:
    content = BytesIO()
    npy.write_array(content, values, allow_pickle=False)
    archive.writestr(f"{name}.npy", content.getvalue())
