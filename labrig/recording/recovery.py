"""`labrig recover`: says what is in a damaged recording and rescues what its checksums vouch for into a new one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from labrig.plans.base import StreamCapacity
from labrig.recording import layout
from labrig.recording.file_bytes import FileBytes
from labrig.recording.header import utc_now, versions_now
from labrig.recording.inspection import Inspection, Inspector, open_unwritten
from labrig.recording.journal import journal_path
from labrig.recording.medium import FileSystem
from labrig.recording.nodes import dataset_at, set_front_text
from labrig.recording.refusal import refusal_here, refusal_of
from labrig.recording.rescue_report import RescueReport, Selection, report_of, select
from labrig.recording.row_copier import RowCopier
from labrig.recording.run_streams import RunStreams
from labrig.recording.stored_rows import PIECE_BYTES
from labrig.recording.structure import create_file
from labrig.recording.table import locate_scalar
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
    streams = _new_streams(inspection, chosen)
    header = replace(inspection.header, versions=inspection.header.versions or versions_now())
    medium = FileSystem()
    file = create_file(path, header, inspection.info, streams, medium)
    try:
        try:
            _describe(file, inspection, report)
            disk = medium.disk(file)
            copier = RowCopier(file, disk, {name: one.rows for name, one in chosen.items() if not one.blocks})
            for stream in streams:
                old, selection = inspection.streams[stream.path].found, chosen[stream.path]
                if inspection.streams[stream.path].blocks is None:
                    copier.copy_rows(old, stream, selection.rows)
                else:
                    copier.copy_blocks(old, stream, selection.blocks)
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
        if isinstance(error, OSError | RuntimeError):
            raise StorageError(f"{path}: cannot be written: {error}; none is left") from error
        raise


def _new_streams(inspection: Inspection, chosen: Mapping[str, Selection]) -> RunStreams:
    """The streams of the new file: what this labrig writes, with room for what is rescued and no more."""
    old = {name: one.found.stream for name, one in inspection.streams.items()}
    moves_axes = layout.SETTINGS in old

    def rows(path: str) -> int:
        return chosen[path].count

    mvms, writes = dict[int, layout.Stream](), dict[int, layout.Stream]()
    for array in inspection.arrays:
        path = f"entry/array_{array}"
        room = StreamCapacity(rows(path), rows(f"{path}/writes"), 0)
        mvms[array] = layout.mvm_stream(array, inspection.info, room, moves_axes=moves_axes)
        writes[array] = layout.write_stream(array, inspection.info, room, moves_axes=moves_axes)
    curves = layout.curve_stream(rows(layout.CURVES), moves_axes=moves_axes) if layout.CURVES in old else None
    return RunStreams(
        mvms=mvms,
        writes=writes,
        supply=layout.supply_stream(rows("entry/supply")),
        settings=replace(old[layout.SETTINGS], rows=rows(layout.SETTINGS)) if moves_axes else None,
        curves=curves,
        journals={
            name: max(len(chosen[name].blocks), 1) for name, one in inspection.streams.items() if one.blocks is not None
        },
    )


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
    if RECOVERED_FROM in inspection.texts:
        origin["before"] = inspection.texts[RECOVERED_FROM]
    set_front_text(file, RECOVERED_FROM, json.dumps(origin))
    for name, settings in inspection.reported_settings.items():
        dataset_at(file, f"entry/instruments/{name}/{layout.REPORTED_SETTINGS}")[()] = np.bytes_(settings)
    dataset_at(file, "entry/status")[()] = np.bytes_(RECOVERED)
    dataset_at(file, "entry/end_time")[()] = np.bytes_(inspection.ended_utc)


def _trim(file: h5py.File, inspection: Inspection, chosen: Mapping[str, Selection]) -> None:
    """Cuts off the one row that a dataset without rows was made with."""
    for name, stream in inspection.streams.items():
        if not chosen[name].count:
            for path in stream.found.stream.dataset_paths:
                dataset_at(file, path).resize(0, axis=0)
        if stream.blocks is not None and not chosen[name].blocks:
            dataset_at(file, journal_path(name)).resize(0, axis=0)
