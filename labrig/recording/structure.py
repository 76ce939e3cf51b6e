"""Builds the whole structure of a recording, so that nothing but rows changes while a run lasts."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from labrig.recording import layout
from labrig.recording.differences import difference
from labrig.recording.header import RecordingHeader
from labrig.recording.journal import JOURNAL_DTYPE, fill_entry, journal_path
from labrig.recording.medium import FileSystem, Held, Medium
from labrig.recording.nodes import HDF5_REFUSES, dataset_at, group_at, in_words, set_front_text, text_attribute
from labrig.recording.run_streams import RunStreams
from labrig.recording.table import locate_scalar, locate_table
from labrig_drivers.board_messages import info_to_json
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

_NUMBERED_AT_ONCE = 262_144
# Root attributes that a run must share with the recording that it goes on with, as messages call them.
_SAME_WHEN_RESUMED = {
    "format_version": "format of the file",
    "rig_toml": "rig file",
    "plan": "plan",
    "chip_id": "chip",
    "board_info": "board description",
    "identities": "identity of an instrument",
}


def create_file(
    path: Path,
    header: RecordingHeader,
    info: BoardInfo,
    streams: RunStreams,
    medium: Medium | None = None,
) -> h5py.File:
    """Creates a recording with all its structure and space, safely on disk.

    Args:
        path: The file.
        header: What is known before the run.
        info: The board.
        streams: All streams and journals.
        medium: Where the file is kept; by default the file system.

    Raises:
        StorageError: The file exists already, the folder cannot be written, or the disk is too full. None is left.
    """
    texts = {**_root_attributes(header, info), "axes": json.dumps(dict(streams.axis_units))}
    text_bytes = sum(len(text.encode()) for text in texts.values())
    text_bytes += layout.SETTINGS_TEXT_BYTES * len(header.identities)
    size = layout.file_size(streams, streams.journals.values(), text_bytes)
    medium = FileSystem() if medium is None else medium
    try:
        file = medium.create(path, size)
    except HDF5_REFUSES as error:
        raise StorageError(f"{path}: cannot be created: {in_words(error)}") from error
    try:
        _build(file, texts, header, info, streams)
        file.flush()
        medium.disk(file).sync()
        medium.keep_name(path)
    except BaseException as error:
        with contextlib.suppress(*HDF5_REFUSES):
            file.close()
        medium.remove(path)
        if isinstance(error, HDF5_REFUSES):
            raise StorageError(f"{path}: cannot be created: {in_words(error)}") from error
        raise
    return file


def held_file(path: Path, header: RecordingHeader, info: BoardInfo, streams: RunStreams, medium: Medium) -> Held:
    """Creates a recording as `create_file` does, and holds it for writing.

    Raises:
        StorageError: It cannot be created or held; none is left.
    """
    file = create_file(path, header, info, streams, medium)
    try:
        return medium.hold(file)
    except OSError as error:
        medium.remove(path)
        raise StorageError(f"{path}: cannot be created: {in_words(error)}") from error


def reopen_file(
    path: Path, header: RecordingHeader, info: BoardInfo, streams: RunStreams, medium: Medium | None = None
) -> Held:
    """Opens a recording to go on with it.

    Args:
        path: The file.
        header: What is known before the run.
        info: The board.
        streams: The streams that will be written.
        medium: Where the file is kept; by default the file system.

    Raises:
        StorageError: It cannot be opened, or it was made with another rig, plan, board or instrument (the message
            names everything that differs), or its rows have no places of their own, as in a compact copy. Nothing in
            it has changed then.
    """
    try:
        held = (FileSystem() if medium is None else medium).reopen(path)
    except BlockingIOError as error:
        raise StorageError(f"{path}: is open in another program; resume it when that has ended") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened to go on with it: {in_words(error)}") from error
    try:
        with held.looking() as file:
            _demand_same(path, file, _root_attributes(header, info))
            lost = _rows_without_places(path, file, streams, held.end())
            status = locate_scalar(file, "entry/status")
        if lost:
            with held.changing() as file:
                for name, rows in lost.items():
                    dataset_at(file, name).resize(rows, axis=0)
        held.disk.write_at(status, text_field("running"))
    except BaseException as error:
        held.close()
        if isinstance(error, (*HDF5_REFUSES, KeyError, TypeError)):
            raise StorageError(f"{path}: is no recording that can be resumed: {in_words(error)}") from error
        raise
    return held


def text_field(text: str) -> NDArray[np.uint8]:
    """A text as it stands in the file where its size is fixed, such as the status."""
    return np.frombuffer(text.encode().ljust(layout.TEXT_BYTES, b"\0"), np.uint8)


def _demand_same(path: Path, file: h5py.File, wanted: Mapping[str, str]) -> None:
    differs = [
        f"{meaning} ({difference(text_attribute(file, name), wanted[name])})"
        for name, meaning in _SAME_WHEN_RESUMED.items()
        if not _is_same(name, text_attribute(file, name), wanted[name])
    ]
    if differs:
        raise StorageError(
            f"{path}: was made with another {', '.join(differs)}; resume with the same rig file, plan and chip, or "
            "start a new recording"
        )


def _rows_without_places(path: Path, file: h5py.File, streams: RunStreams, end: int) -> dict[str, int]:
    """Datasets that are longer than their index leads, and how far that is.

    A power cut while HDF5 changed the structure may leave them so; rows that count are never among them.

    Raises:
        StorageError: Rows that count have no places, or some lie where HDF5 would put others.
    """
    counted = {name: f"{one.path}/{layout.COMMITTED}" for one in streams for name in one.dataset_paths}
    names = [*counted, *(journal_path(one) for one in streams.journals)]
    found = dict[str, int]()
    for name in names:
        table, length = locate_table(file, name), int(dataset_at(file, name).shape[0])
        needed = int(dataset_at(file, counted[name])[()]) if name in counted else 0
        if table.rows < needed or table.end > end:
            raise StorageError(
                f"{path}: its structure is damaged at {name}, so nothing can be added; rescue what is in it with "
                f"`labrig recover {path}` and go on with that"
            )
        if table.rows < length:
            found[name] = table.rows
    return found


def _is_same(name: str, recorded: str, wanted: str) -> bool:
    """Whether a run may go on with what was recorded: a rig is the same whoever is told about its runs."""
    if name != "rig_toml" or recorded == wanted:
        return recorded == wanted
    try:
        there, here = tomllib.loads(recorded), tomllib.loads(wanted)
    except tomllib.TOMLDecodeError:
        return False
    return {**there, "telemetry": None} == {**here, "telemetry": None}


def _root_attributes(header: RecordingHeader, info: BoardInfo) -> dict[str, str]:
    return {
        "file_format": layout.FILE_FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "versions": json.dumps(dict(header.versions)),
        "git_commit": header.git_commit,
        "rig_name": header.rig_name,
        "rig_toml": header.rig_toml,
        "plan": json.dumps(dict(header.plan)),
        "board_info": info_to_json(info),
        "chip_id": info.chip_id,
        "identities": json.dumps({name: asdict(identity) for name, identity in header.identities.items()}),
        "settings": json.dumps({name: dict(one) for name, one in header.settings.items()}),
        "started_utc": header.started_utc,
        "run_id": header.run_id,
    }


def _build(
    file: h5py.File,
    texts: Mapping[str, str],
    header: RecordingHeader,
    info: BoardInfo,
    streams: RunStreams,
) -> None:
    # Metadata first: where the tail of a file is lost, what it was about is not.
    for name, text in texts.items():
        set_front_text(file, name, text)
    file.attrs["NX_class"] = "NXroot"
    file.attrs["default"] = "entry"
    entry = file.create_group("entry")
    entry.attrs["NX_class"] = "NXentry"
    entry.attrs["default"] = streams.default_group
    entry["title"] = f"{header.plan.get('name', 'run')} on {header.rig_name}"
    entry["definition"] = layout.FILE_FORMAT
    entry["start_time"] = header.started_utc
    entry[layout.RUN_UUID] = header.run_id
    for name, value in (("end_time", ""), ("status", "running")):
        entry.create_dataset(name, data=np.bytes_(value), dtype=f"S{layout.TEXT_BYTES}")
    _build_instruments(entry, header)
    for stream in streams:
        group = file.require_group(stream.path)
        group.create_dataset(layout.COMMITTED, data=np.int64(0)).attrs["units"] = ""
    # Counters and journals before rows: where the tail of a file is lost, they vouch for the rows that are left.
    entry.create_group("journal").attrs["NX_class"] = "NXcollection"
    for path, blocks in streams.journals.items():
        _create_table(file, journal_path(path), JOURNAL_DTYPE, (), blocks, fill_entry())
    for stream in streams:
        _build_stream(file, stream, info)


def _build_instruments(entry: h5py.Group, header: RecordingHeader) -> None:
    instruments = entry.create_group("instruments")
    instruments.attrs["NX_class"] = "NXcollection"
    for name, identity in header.identities.items():
        group = instruments.create_group(name)
        group.attrs["NX_class"] = "NXinstrument"
        group["name"] = str(identity)
        for key, value in asdict(identity).items():
            group[key] = value
        group["settings"] = json.dumps(dict(header.settings.get(name, {})))
        group.create_dataset(layout.REPORTED_SETTINGS, data=np.bytes_(b""), dtype=f"S{layout.SETTINGS_TEXT_BYTES}")


def _build_stream(file: h5py.File, stream: layout.Stream, info: BoardInfo) -> None:
    group = group_at(file, stream.path)
    group.attrs["NX_class"] = "NXdata"
    group.attrs["signal"] = stream.signal
    group.attrs["axes"] = np.array(stream.axes, dtype=h5py.string_dtype())
    _create_table(file, f"{stream.path}/{stream.axis}", "<i4", (), stream.reserved, np.int32(-1))
    index = dataset_at(group, stream.axis)
    number_rows(index, 0, stream.reserved)
    scales = {stream.axis: index}
    for name, count in (("row", info.rows), ("column", info.columns)):
        if any(name in column.dims for column in stream.columns):
            scales[name] = group.create_dataset(name, data=np.arange(count, dtype=np.int32))
    for name, scale in scales.items():
        scale.make_scale(name)
        scale.attrs["units"] = ""
        scale.attrs["long_name"] = f"index of the {name}"
    for column in stream.columns:
        _create_table(file, f"{stream.path}/{column.name}", column.dtype, column.shape, stream.reserved, column.fill)
        dataset = dataset_at(group, column.name)
        dataset.attrs["units"] = column.units
        dataset.attrs["long_name"] = column.meaning
        # By the CF conventions nobody plots rows that were never written, unless a converter can give that code.
        if column.name == stream.signal and np.dtype(column.dtype).kind == "i" and info.adc_bits < 16:
            dataset.attrs["_FillValue"] = np.asarray(column.fill, column.dtype)
        for axis, name in enumerate((stream.axis, *column.dims)):
            dataset.dims[axis].attach_scale(scales[name])
    if stream.signal == "current_code":
        lsb = group.create_dataset("adc_lsb_a", data=info.adc_lsb_a)
        lsb.attrs["units"] = "A"
        lsb.attrs["long_name"] = "current of one ADC step"
        lsb.dims[0].attach_scale(scales["column"])


def number_rows(index: h5py.Dataset, start: int, stop: int) -> None:
    """Fills in the numbers of rows, a megabyte at a time."""
    for first in range(start, stop, _NUMBERED_AT_ONCE):
        last = min(first + _NUMBERED_AT_ONCE, stop)
        index[first:last] = np.arange(first, last, dtype=np.int32)


def _create_table(
    file: h5py.File, path: str, dtype: DTypeLike, row_shape: tuple[int, ...], rows: int, fill: object
) -> None:
    """A chunked dataset whose space is allocated and filled now."""
    row_bytes = int(np.dtype(dtype).itemsize * np.prod(row_shape, dtype=np.int64))
    shape = (rows, *row_shape)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((layout.chunk_rows(row_bytes, rows), *row_shape))
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    properties.set_fill_value(np.asarray(fill, dtype=dtype))
    space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, *row_shape))
    h5py.h5d.create(file.id, path.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, properties)
