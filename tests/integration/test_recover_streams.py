"""What is rescued beside MVMs: settings of axes, curves, missed points, compact copies, files of format 1.0."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.plans.base import BesideCapacity
from labrig.recording import Recording, RecordingHeader, layout
from labrig.recording.compaction import compact
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.journal import MISSED
from labrig.recording.recovery import recover_recording
from labrig.recording.rescue_report import RescueReport, StreamReport
from labrig.recording.rows import read_rows
from labrig.recording.table import locate_table
from labrig.recording.verification import verify_recording
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity

ROWS, COLUMNS, BATCH = 5, 3, 8
INFO = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader(
    rig_name="bench",
    rig_toml="[rig]\n",
    plan={"name": "mvm"},
    identities={"board": Identity("a", "b", "c", "d")},
    settings={},
    started_utc="2026-01-01T00:00:00+00:00",
    versions={},
    run_id="2f1d5c3e-8a94-4b60-9d27-6c0b7e5a1f48",
)
# Not in the order of the alphabet: checksums go over columns in the order in which they were made.
AXES = {"temperature": "K", "field": "T"}
ARRAY = "entry/array_0"
Columns = dict[str, NDArray[np.generic]]


def point(number: int) -> bytes:
    return bytes([number] * 16)


def write_columns(rng: np.random.Generator, number: int) -> Columns:
    return {
        "target_conductance_s": rng.uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)).astype(np.float32),
        "programmed_at_s": np.array([100.0 * number]),
        "rms_error_s": np.array([1e-7]),
        "pulses": np.array([number]),
        "board_write": np.array([number + 40]),
    }


def mvm_columns(rng: np.random.Generator, start_s: float) -> Columns:
    code = rng.integers(-500, 500, (BATCH, COLUMNS)).astype(np.int16)
    return {
        "voltage_v": rng.uniform(-0.3, 0.3, (BATCH, ROWS)).astype(np.float32),
        "current_code": code,
        "saturated": np.zeros(code.shape, np.uint8),
        "time_s": start_s + np.arange(float(BATCH)),
    }


def curve_columns(rng: np.random.Generator, number: int, array: int) -> Columns:
    count = 4 + number
    same = {"curve": number, "array": array, "row": 1 if array >= 0 else -1, "column": 2 if array >= 0 else -1}
    return {name: np.full(count, value, np.int32) for name, value in same.items()} | {
        "level_v": np.linspace(0.0, 0.1, count),
        "voltage_v": np.linspace(0.0, 0.1, count),
        "current_a": rng.normal(size=count),
        "in_compliance": np.zeros(count, np.uint8),
        "time_s": 1000.0 * number + np.arange(float(count)),
    }


def record(path: Path, *, axes: bool = True) -> None:
    """Three settings of two axes; at each a write, two blocks, a missed point, and two curves, one of a device."""
    file = RecordingFile(
        path,
        HEADER,
        INFO,
        {0: StreamCapacity(rows=100, writes=5, blocks=20)},
        10,
        "process",
        beside=BesideCapacity(curves=10, readings=100, settings=5 if axes else 0),
        axis_units=AXES if axes else {},
    )
    rng = np.random.default_rng(0)
    for number in range(3):
        setting = -1
        if axes:
            moved: Columns = {"time_s": np.array([1e9 + number])}
            for place, name in enumerate(AXES):
                moved |= {f"{name}_{what}": np.array([300.0 + 10 * number + place]) for what in ("set", "read")}
            setting = file.stage_setting(moved)
        file.stage_write(0, write_columns(rng, number), setting)
        file.commit()
        for block in range(2):
            label = BlockLabel(point(10 * number + block), 3, 1e9 + number, 1e9 + number + 0.5)
            file.stage_mvms(0, mvm_columns(rng, 100.0 * number + 10.0 * block), label, setting)
        file.stage_missed(0, BlockLabel(point(10 * number + 2)))
        file.stage_curve(curve_columns(rng, 2 * number, 0), BlockLabel(point(10 * number + 3)), setting)
        file.stage_curve(curve_columns(rng, 2 * number + 1, -1), BlockLabel(point(10 * number + 4)), setting)
        values = {"time_s": 1e9 + number, "voltage_v": 1.8, "current_a": 0.1}
        reading: Columns = {name: np.array([value]) for name, value in values.items()}
        file.stage_supply(reading | {"in_compliance": np.array([0], np.uint8)})
        file.commit()
    file.note_settings("board", {"range": "auto"})
    file.close("finished")


def spoil(path: Path, dataset: str, row: int) -> None:
    """Changes the bytes of one row."""
    with h5py.File(path) as file:
        table = locate_table(file, dataset)
        ((_, _, offset),) = table.pieces(row, row + 1)
    content = bytearray(path.read_bytes())
    content[offset : offset + table.row_bytes] = bytes(255 - one for one in content[offset : offset + table.row_bytes])
    path.write_bytes(content)


def rescued(path: Path, *, unchecked: bool = False) -> tuple[Path, RescueReport]:
    """The recording that is made of a damaged one, found right."""
    output = path.with_name("rescued.h5")
    report = recover_recording(path, output, refusal=lambda _: "", unchecked=unchecked)
    assert report.output == output
    assert verify_recording(output, refusal=lambda _: "").faults == ()
    with Recording.open(output) as recording:
        recording.verify()
    return output, report


def stream(report: RescueReport, path: str) -> StreamReport:
    (found,) = [one for one in report.streams if one.path == path]
    return found


def journal_points(path: Path, name: str) -> list[int]:
    with h5py.File(path) as file:
        return [int(one["point"][0]) for one in file[f"entry/journal/{name}"][...]]


def values(path: Path, dataset: str) -> list[float]:
    with h5py.File(path) as file:
        return [float(one) for one in file[dataset][...]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    record(path)
    return path


def test_every_stream_that_is_right_is_found_right(path: Path) -> None:
    report = verify_recording(path)
    assert (report.faults, report.notes) == ((), ())
    assert report.rows == {
        layout.SETTINGS: 3,
        f"{ARRAY}/writes": 3,
        "entry/supply": 3,
        ARRAY: 6 * BATCH,
        layout.CURVES: sum(4 + number for number in range(6)),
    }
    assert recover_recording(path).needs_nothing


def test_all_streams_go_over_into_the_new_file(path: Path) -> None:
    spoil(path, f"{ARRAY}/current_code", 10)
    output, report = rescued(path)
    assert report.exit_code == 1
    assert stream(report, ARRAY).again == (point(1).hex(),)
    assert journal_points(output, "array_0") == [0, 2, 10, 11, 12, 20, 21, 22]
    assert journal_points(output, "curves") == [3, 4, 13, 14, 23, 24]
    with h5py.File(output) as file:
        kinds = file["entry/journal/array_0"]["kind"].tolist()
        assert [kind == MISSED for kind in kinds] == [number % 10 == 2 for number in journal_points(output, "array_0")]
        assert file["entry/journal/array_0"]["began_s"][0] == 1e9
        assert file[f"{layout.SETTINGS}/field_set"].attrs["units"] == "T"
        assert file["entry/instruments/board/reported_settings"][()] == b'{"range": "auto"}'
    for dataset in (f"{layout.SETTINGS}/field_set", f"{layout.CURVES}/current_a", "entry/supply/current_a"):
        assert values(output, dataset) == values(path, dataset)
    assert values(output, f"{ARRAY}/writes/board_write") == [40, 41, 42]


def test_what_belongs_to_a_lost_setting_is_left_out_and_the_rest_keeps_its_own(path: Path) -> None:
    spoil(path, f"{layout.SETTINGS}/temperature_read", 1)
    output, report = rescued(path)
    assert stream(report, layout.SETTINGS).lost == 1
    assert stream(report, f"{ARRAY}/writes").rescued == 2
    assert journal_points(output, "array_0") == [0, 1, 2, 12, 20, 21, 22]
    assert journal_points(output, "curves") == [3, 4, 23, 24]
    assert values(output, f"{ARRAY}/setting") == [0] * 2 * BATCH + [1] * 2 * BATCH
    assert values(output, f"{ARRAY}/writes/setting") == [0, 1]
    assert values(output, f"{layout.SETTINGS}/temperature_set") == [300.0, 320.0]
    assert set(values(output, f"{layout.CURVES}/setting")) == {0, 1}


def test_curves_of_cells_need_their_write_and_those_of_devices_do_not(path: Path) -> None:
    spoil(path, f"{ARRAY}/writes/target_conductance_s", 0)
    output, _ = rescued(path)
    assert journal_points(output, "curves") == [4, 13, 14, 23, 24]
    written: dict[int, set[float]] = {number: set() for number in range(6)}
    for number, write in zip(
        values(output, f"{layout.CURVES}/curve"), values(output, f"{layout.CURVES}/write"), strict=True
    ):
        written[int(number)].add(write)
    assert written == {0: set(), 1: {-1}, 2: {0}, 3: {-1}, 4: {1}, 5: {-1}}


def test_names_of_settings_and_curves_can_be_lost(path: Path) -> None:
    with h5py.File(path) as file:
        counts = {name: len(file[name]) for name in (layout.SETTINGS, layout.CURVES)}
    content = path.read_bytes()
    for name in (b"temperature_read\0", b"level_v\0"):
        # In the names of the group, not in what a column says of itself.
        place = content.index(name)
        content = content[:place] + bytes(len(name)) + content[place + len(name) :]
    path.write_bytes(content)
    output, report = rescued(path)
    assert report.loses_nothing
    with h5py.File(output) as file:
        assert {name: len(file[name]) for name in counts} == counts


def test_a_compact_copy_is_verified_and_rescued(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.h5"
    compact(path, packed)
    assert verify_recording(packed, refusal=lambda _: "").faults == ()
    with h5py.File(packed) as file:
        place = file[f"{ARRAY}/voltage_v"].id.get_chunk_info(0).byte_offset
    content = bytearray(packed.read_bytes())
    content[place + 20] ^= 4
    packed.write_bytes(content)
    assert any("not what was written (checksum)" in one for one in verify_recording(packed).faults)
    report = recover_recording(packed, tmp_path / "rescued.h5", refusal=lambda _: "")
    # The one chunk holds all rows of the column: every block is lost, all else is there.
    assert stream(report, ARRAY).rescued == 0
    assert stream(report, layout.CURVES).lost == 0
    assert stream(report, f"{ARRAY}/writes").lost == 0


def downgraded(path: Path) -> None:
    """Makes format 1.0 of a recording without axes and curves: fewer columns, journal entries without checksum."""
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.bytes_("1.0")
        del file.attrs["run_id"]
        del file["entry/entry_identifier_uuid"]
        for name in (f"{ARRAY}/writes/board_write", "entry/supply/crc32", "entry/instruments/board/reported_settings"):
            del file[name]
        for name in (layout.CURVES, "entry/journal/curves"):
            del file[name]
        old = file["entry/journal/array_0"][...]
        del file["entry/journal/array_0"]
        fields = [(name, old.dtype[name]) for name in ("point", "start", "rows", "crc32", "kind")]
        journal = np.zeros(len(old), fields)
        for name, _ in fields:
            journal[name] = old[name]
        # Format 1.0 notes no missed points.
        journal = journal[journal["rows"] > 0]
        file.create_dataset("entry/journal/array_0", data=journal, chunks=(len(journal),), maxshape=(None,))
        writes = file[f"{ARRAY}/writes"]
        names: Iterable[str] = ("target_conductance_s", "programmed_at_s", "rms_error_s", "pulses")
        for row in range(3):
            writes["crc32"][row] = layout.crc32_of(writes[name][row : row + 1] for name in names)


def test_what_is_rescued_is_of_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path)
    spoil(path, f"{ARRAY}/writes/pulses", 2)
    output, _ = rescued(path)
    with Recording.open(output) as recording, h5py.File(output) as file:
        assert recording.header.run_id == file["entry/entry_identifier_uuid"][()].decode() == HEADER.run_id


def test_a_file_of_format_1_1_has_no_run_id_and_needs_none(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["run_id"]
    assert "root: attribute run_id is lost or damaged" in verify_recording(path).faults
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.bytes_("1.1")
        del file["entry/entry_identifier_uuid"]
    with Recording.open(path) as recording:
        assert recording.summary().run_id == ""
    assert verify_recording(path).faults == ()
    assert recover_recording(path).needs_nothing
    spoil(path, f"{ARRAY}/writes/pulses", 2)
    output, _ = rescued(path)
    assert verify_recording(output).faults == ()
    with Recording.open(output) as recording:
        assert (recording.format_version, recording.header.run_id) == (layout.FORMAT_VERSION, "")


def test_a_file_of_format_1_0_is_verified_and_rescued_as_one(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path, axes=False)
    downgraded(path)
    assert verify_recording(path).faults == ()
    assert recover_recording(path).needs_nothing
    spoil(path, f"{ARRAY}/writes/pulses", 2)
    report = recover_recording(path, tmp_path / "strict.h5", refusal=lambda _: "")
    assert stream(report, "entry/supply").reasons == {"no checksum": 3}
    output, report = rescued(path, unchecked=True)
    assert stream(report, "entry/supply").rescued == 3
    assert verify_recording(output).faults == ()
    with Recording.open(output) as recording:
        assert recording.header.run_id == ""
        assert recording.supply().time_s.tolist() == [1e9, 1e9 + 1, 1e9 + 2]
        rows = read_rows(recording, 0)
    assert len(rows.code) == 4 * BATCH
    # Nothing is said that the old file did not say.
    with h5py.File(output) as file:
        assert file.attrs["format_version"] == b"1.0"
        assert "board_write" not in file[f"{ARRAY}/writes"]
        assert np.isnan(file["entry/journal/array_0"]["began_s"]).all()
