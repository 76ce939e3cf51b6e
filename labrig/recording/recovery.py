"""`labrig recover`: says what is in a damaged recording and rescues what its checksums vouch for into a new one."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import h5py
import numpy as np

from labrig.recording import layout
from labrig.recording.disk import Disk
from labrig.recording.file_bytes import FileBytes
from labrig.recording.header import utc_now, versions_now
from labrig.recording.inspection import Inspection, Inspector, open_unwritten
from labrig.recording.journal import journal_path
from labrig.recording.journal_entries import entry_crc32
from labrig.recording.judging import JudgedStream, references
from labrig.recording.medium import FileSystem
from labrig.recording.nodes import HDF5_REFUSES, dataset_at, in_words, set_front_text
from labrig.recording.refusal import refusal_here, refusal_of
from labrig.recording.rescue_report import RescueReport, Selection, report_of, select
from labrig.recording.run_streams import RunStreams
from labrig.recording.stored_rows import PIECE_BYTES
from labrig.recording.streams import ROW_CHECKSUM
from labrig.recording.structure import create_file
from labrig.recording.table import Table, locate_scalar, locate_table
from labrig_drivers.errors import StorageError

RECOVERED = "recovered"
"""Status of a recording that was made by `recover_recording`."""

RECOVERED_FROM = "recovered_from"
"""Attribute of the root that says from what, when, and without what."""

# Faults that the new file names; an attribute has little room.
_MOST_FAULTS = 100


def recover_recording(
    path: Path | str,
    output: Path | str | None = None,
    *,
    beyond_committed: bool = False,
    unchecked: bool = False,
    dry_run: bool = False,
    refusal: Callable[[Path], str] = refusal_of,
) -> RescueReport:
    """Says what is in a recording and, where it is damaged, rescues it into a new one. It is never written itself.

    A block of MVMs is rescued when the checksum in its journal entry is that of its rows and the checksum of its write
    is right; a write when its own is. Blocks keep their points and their order, so that the new recording can be
    resumed: it then measures what is missing.

    Args:
        path: The recording.
        output: The new one; it must not exist. By default beside the old one, with `-recovered` in its name.
        beyond_committed: Also rescue rows that a checksum vouches for and the counter does not count: they were
            measured, but never acknowledged.
        unchecked: Also rescue readings that have no checksum, where their values are possible.
        dry_run: Write nothing.
        refusal: Says why HDF5 does not open a file; asked only where nothing else is wrong.

    Raises:
        StorageError: There is no such file, it is being written, it is no recording or nothing can be known of it; or
            the new one cannot be written, and none is left.
    """
    path = Path(path)
    new = Path(output) if output is not None else path.with_name(f"{path.stem}-recovered.h5")
    with open_unwritten(path) as source:
        inspection = Inspector(source, str(path)).inspect()
        chosen = select(inspection, beyond_committed=beyond_committed, unchecked=unchecked)
        report = _report(path, source.size, inspection, chosen)
        if report.needs_nothing:
            reason = refusal(path)
            report = replace(report, faults=(f"HDF5: {reason}",) if reason else ())
            if not reason and not (beyond_committed and any(one.uncounted for one in report.streams)):
                return report
        # From here on the file counts as damaged: what nothing vouches for may be so too.
        report = _report(path, source.size, inspection, chosen, faults=report.faults, damaged=True)
        if dry_run or report.rescues_nothing:
            return report
        if new.exists():
            raise StorageError(f"{new}: exists already and is not overwritten; choose another name with --output")
        report = replace(report, sha256=_sha256(source), output=new)
        _write(new, inspection, chosen, report)
    return report


def _report(
    path: Path,
    size_bytes: int,
    inspection: Inspection,
    chosen: Mapping[str, Selection],
    *,
    faults: tuple[str, ...] | None = None,
    damaged: bool = False,
) -> RescueReport:
    return RescueReport(
        file=path,
        size_bytes=size_bytes,
        sha256="",
        status=inspection.status,
        faults=inspection.all_faults if faults is None else faults,
        streams=tuple(
            report_of(one, chosen[name], damaged=damaged) for name, one in sorted(inspection.streams.items())
        ),
    )


def _sha256(source: FileBytes) -> str:
    digest = hashlib.sha256()
    for start in range(0, source.size, PIECE_BYTES):
        digest.update(source.read(start, min(PIECE_BYTES, source.size - start)))
    return digest.hexdigest()


def _write(path: Path, inspection: Inspection, chosen: Mapping[str, Selection], report: RescueReport) -> None:
    """Makes the new recording; when anything fails none is left."""
    streams = _streams(inspection, chosen)
    header = replace(inspection.header, versions=inspection.header.versions or versions_now())
    medium = FileSystem()
    file = create_file(path, header, inspection.info, streams, medium)
    try:
        try:
            _describe(file, inspection, report)
            disk = medium.disk(file)
            settings = _new_numbers(chosen.get(layout.SETTINGS, Selection()))
            for name, stream in inspection.streams.items():
                if stream.blocks is None:
                    _copy_rows(file, disk, stream, chosen[name], settings)
                else:
                    _copy_blocks(file, disk, stream, chosen, name)
            file.flush()
            disk.sync()
            for name in inspection.streams:
                count = np.array(chosen[name].count, "<i8")
                disk.write_at(locate_scalar(file, f"{name}/{layout.COMMITTED}"), count)
            _trim(file, inspection, chosen)
            file.flush()
            disk.sync()
        finally:
            file.close()
        _demand_right(path, inspection, chosen)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, HDF5_REFUSES):
            raise StorageError(f"{path}: cannot be written: {in_words(error)}; none is left") from error
        raise


def _demand_right(path: Path, inspection: Inspection, chosen: Mapping[str, Selection]) -> None:
    """Reads the new file back, as it would be read if it were damaged, and through HDF5."""
    with open_unwritten(path) as made:
        found = Inspector(made, str(path)).inspect()
    faults = list(found.all_faults)
    for name in inspection.streams:
        stream, count = found.streams[name], chosen[name].count
        right = (
            int(stream.right.sum())
            if stream.blocks is None
            else sum(one.rows for one in stream.blocks if one.verdict == "right")
        )
        if stream.counted != count or (stream.checked and right != count):
            faults.append(f"{name}: {right} rows of {count} are right")
    faults += filter(None, [refusal_here(path)])
    if faults:
        raise StorageError(f"{path}: is not what was to be written, and none is left: {'; '.join(faults)}")


def _streams(inspection: Inspection, chosen: Mapping[str, Selection]) -> RunStreams:
    """The streams of the new recording: those of the old one, with room for what is rescued."""
    made = {name: replace(one.found.stream, rows=chosen[name].count) for name, one in inspection.streams.items()}
    journals = {
        name: max(len(chosen[name].blocks), 1) for name, one in inspection.streams.items() if one.blocks is not None
    }
    return RunStreams(
        mvms={array: made[f"entry/array_{array}"] for array in inspection.arrays},
        writes={array: made[f"entry/array_{array}/writes"] for array in inspection.arrays},
        supply=made[layout.supply_stream(0).path],
        settings=made.get(layout.SETTINGS),
        curves=made.get(layout.CURVES),
        journals=journals,
        axis_units=inspection.shape.axis_units,
    )


def _describe(file: h5py.File, inspection: Inspection, report: RescueReport) -> None:
    """What the new file says of itself: all that the old one said, word for word, and where it comes from."""
    for name, text in inspection.texts.items():
        if name not in ("file_format", "format_version") and file.attrs.get(name) != text:
            set_front_text(file, name, text)
    left_out = {
        one.path: {"rows": one.lost, "uncounted": one.uncounted, "reasons": one.reasons}
        for one in report.streams
        if one.lost != 0
    }
    origin = {
        "file": report.file.name,
        "sha256": report.sha256,
        "size_bytes": report.size_bytes,
        "status": inspection.status,
        "recovered_utc": utc_now(),
        "versions": versions_now(),
        "left_out": left_out,
        "faults": list(report.faults[:_MOST_FAULTS]),
    }
    if inspection.shape.minor == 0:
        # Its rows have no more than they had.
        set_front_text(file, "format_version", f"{layout.FORMAT_MAJOR}.0")
    if RECOVERED_FROM in inspection.texts:
        origin["before"] = inspection.texts[RECOVERED_FROM]
    set_front_text(file, RECOVERED_FROM, json.dumps(origin))
    for name, settings in inspection.reported_settings.items():
        dataset_at(file, f"entry/instruments/{name}/{layout.REPORTED_SETTINGS}")[()] = np.bytes_(settings)
    dataset_at(file, "entry/status")[()] = np.bytes_(RECOVERED)
    dataset_at(file, "entry/end_time")[()] = np.bytes_(inspection.ended_utc)


def _copy_rows(
    file: h5py.File, disk: Disk, stream: JudgedStream, selection: Selection, settings: Mapping[int, int]
) -> None:
    """Copies single rows; the setting that they name may have another number now."""
    found = stream.found
    columns = found.stream.columns
    tables = {one.name: locate_table(file, f"{found.stream.path}/{one.name}") for one in columns}
    for target, row in enumerate(selection.rows):
        crc = 0
        for column in columns:
            content = b"".join(found.rows[column.name].pieces(row, row + 1))
            values = np.frombuffer(content, np.uint8)
            if column.name == "setting":
                values = _renumbered(content, settings)
            elif column.name == ROW_CHECKSUM:
                # The last column: it covers all before it, with their new numbers.
                values = np.frombuffer(crc.to_bytes(4, "little"), np.uint8)
            crc = zlib.crc32(values.data, crc)
            _write_rows(disk, tables[column.name], target, values)


def _copy_blocks(file: h5py.File, disk: Disk, stream: JudgedStream, chosen: Mapping[str, Selection], path: str) -> None:
    """Copies blocks with their journal; what they refer to may have another number now."""
    found = stream.found
    numbers = {name: _new_numbers(selection) for name, selection in chosen.items()}
    journal = dataset_at(file, journal_path(path))
    entries = np.zeros(len(chosen[path].blocks), journal.dtype)
    journal_table = locate_table(file, journal_path(path))
    tables = {one.name: locate_table(file, f"{path}/{one.name}") for one in found.stream.columns}
    start = 0
    for entry, block in zip(entries, chosen[path].blocks, strict=True):
        crc, target = 0, start
        refers_to = references(found, block.start) if block.rows else {}
        for column in found.stream.columns:
            target = start
            for piece in found.rows[column.name].pieces(block.start, block.stop):
                rows = np.frombuffer(piece, np.uint8)
                if column.name in refers_to:
                    rows = _renumbered(piece, numbers.get(refers_to[column.name], {}))
                crc = zlib.crc32(rows.data, crc)
                _write_rows(disk, tables[column.name], target, rows)
                target += len(piece) // tables[column.name].row_bytes
        _fill_entry(cast(np.void, entry), block.entry, start, crc)
        start += block.rows
    if len(entries):
        _write_rows(disk, journal_table, 0, entries.view(np.uint8))


def _new_numbers(selection: Selection) -> dict[int, int]:
    """What each rescued row is called in the new recording, by what it was called in the old."""
    return {row: number for number, row in enumerate(selection.rows)}


def _fill_entry(entry: np.void, old: np.void, start: int, crc: int) -> None:
    """A journal entry in the form of the new file, made of one in the form of the old."""
    names = entry.dtype.names or ()
    known = old.dtype.names or ()
    for name in names:
        if name in known:
            entry[name] = old[name]
        elif entry.dtype[name].kind == "f":
            entry[name] = np.nan
    entry["start"], entry["crc32"] = start, crc
    checksum = entry_crc32(entry)
    if checksum is not None:
        entry["entry_crc32"] = checksum


def _renumbered(piece: bytes, numbers: Mapping[int, int]) -> np.ndarray:
    values = np.frombuffer(piece, "<i4")
    new = np.array([numbers.get(int(one), -1) for one in values], "<i4")
    return new.view(np.uint8)


def _write_rows(disk: Disk, table: Table, start: int, content: np.ndarray) -> None:
    count = len(content) // table.row_bytes
    for first, stop, offset in table.pieces(start, start + count):
        disk.write_at(offset, content[(first - start) * table.row_bytes : (stop - start) * table.row_bytes])


def _trim(file: h5py.File, inspection: Inspection, chosen: Mapping[str, Selection]) -> None:
    """Cuts off the one row that a dataset without rows was made with."""
    for name, stream in inspection.streams.items():
        if not chosen[name].count:
            for path in stream.found.stream.dataset_paths:
                dataset_at(file, path).resize(0, axis=0)
        if stream.blocks is not None and not chosen[name].blocks:
            dataset_at(file, journal_path(name)).resize(0, axis=0)
