"""`verify` finds everything that it says it looks for, and nothing in a recording that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.recording import RecordingHeader, layout
from labrig.recording.compaction import compact
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.journal_entries import entry_crc32
from labrig.recording.recovery import recover_recording
from labrig.recording.refusal import refusal_here
from labrig.recording.verification import VerifyReport, verify_recording
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity

ROWS, COLUMNS, BATCH = 5, 3, 8
INFO = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader(
    "bench", "[rig]\n", {"name": "mvm"}, {"board": Identity("a", "b", "c", "d")}, {}, "2026-01-01T00:00:00+00:00", {}
)
ARRAY = "entry/array_0"
JOURNAL = "entry/journal/array_0"


def record(path: Path, *, close: bool = True, readings: int = 3) -> None:
    """Two writes with three blocks each, three readings of the supply, and room for more."""
    capacity = {0: StreamCapacity(rows=100, writes=12, blocks=12)}
    file = RecordingFile(path, HEADER, INFO, capacity, 20, "process")
    rng = np.random.default_rng(0)
    for write in range(2):
        target_s = rng.uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)).astype(np.float32)
        numbers = {"programmed_at_s": np.array([100.0 * write]), "rms_error_s": np.array([1e-7])}
        counts = {"pulses": np.array([3]), "board_write": np.array([write])}
        file.append_write(0, {"target_conductance_s": target_s, **counts, **numbers})
        for block in range(3):
            code = rng.integers(-512, 512, (BATCH, COLUMNS)).astype(np.int16)
            columns: dict[str, NDArray[np.generic]] = {
                "voltage_v": rng.uniform(-0.3, 0.3, (BATCH, ROWS)).astype(np.float32),
                "current_code": code,
                "saturated": ((code == -512) | (code == 511)).astype(np.uint8),
                "time_s": 100.0 * write + 10.0 * block + np.arange(float(BATCH)),
            }
            file.append_mvms(0, columns, BlockLabel(bytes([write, block] * 8), block))
    for second in range(readings):
        values = {"time_s": 1e9 + second, "voltage_v": 1.8, "current_a": 0.1}
        reading: dict[str, NDArray[np.generic]] = {name: np.array([value]) for name, value in values.items()}
        file.append_supply(reading | {"in_compliance": np.array([0], np.uint8)})
    if close:
        file.close("finished")
    else:
        file.abandon()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("verify") / "run.h5"
    record(path)
    return path.read_bytes()


@pytest.fixture
def path(closed: bytes, tmp_path: Path) -> Path:
    """A copy of a recording that ended well."""
    path = tmp_path / "run.h5"
    path.write_bytes(closed)
    return path


def verified(path: Path) -> VerifyReport:
    return verify_recording(path, refusal=lambda _: "")


@pytest.mark.parametrize("close", [True, False])
def test_a_recording_that_is_right_has_no_fault(tmp_path: Path, *, close: bool) -> None:
    record(tmp_path / "run.h5", close=close)
    report = verify_recording(tmp_path / "run.h5")
    assert (report.faults, report.notes) == ((), ())
    assert report.rows == {ARRAY: 6 * BATCH, f"{ARRAY}/writes": 2, "entry/supply": 3}
    assert report.status == ("finished" if close else "running")


def delete(path: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(path)


def attribute(path: str, name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file[path].attrs.__setitem__(name, value)


def value(path: str, row: object, new: object) -> Callable[[h5py.File], None]:
    return lambda file: file[path].__setitem__(row, new)


def of_type(path: str, dtype: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        old = file[path]
        values, attributes = old[...], {name: old.attrs[name] for name in ("units", "long_name")}
        del file[path]
        file.create_dataset(path, data=values.astype(dtype), chunks=True).attrs.update(attributes)

    return change


def shorter(path: str, rows: int) -> Callable[[h5py.File], None]:
    return lambda file: file[path].resize(rows, axis=0)


def without_scale(path: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[path].dims[0].detach_scale(file[path].dims[0][0])

    return change


STRUCTURE = [
    (lambda file: file.attrs.__delitem__("git_commit"), "root: attribute git_commit is lost or damaged"),
    (attribute("/", "NX_class", "NXroad"), "root: its attribute NX_class is 'NXroad', expected 'NXroot'"),
    (attribute("/", "plan", "no json"), "root: attribute plan is lost or damaged"),
    (attribute("/", "plan", "[" * 50_000), "root: attribute plan is lost or damaged"),
    (attribute("/", "board_info", "[" * 50_000), "the description of the board is lost"),
    (attribute(ARRAY, "signal", "voltage"), "its attribute signal is 'voltage', expected 'current_code'"),
    (attribute(f"{ARRAY}/voltage_v", "units", "mV"), "voltage_v: its attribute units is 'mV', expected 'V'"),
    (lambda file: file[f"{ARRAY}/kind"].attrs.__delitem__("long_name"), "kind: has no attribute long_name"),
    (delete("entry/title"), "entry/title: there is no such dataset"),
    (delete("entry/instruments/board"), "entry/instruments/board: there is no such group"),
    (delete("entry/instruments/board/serial"), "entry/instruments/board/serial: there is no such dataset"),
    (delete(f"{ARRAY}/saturated"), f"{ARRAY}/saturated: there is no such dataset"),
    (delete(JOURNAL), f"{JOURNAL}: there is no such dataset"),
    (delete(f"{ARRAY}/committed"), f"{ARRAY}: its counter cannot be read"),
    (of_type("entry/supply/voltage_v", "<f4"), "entry/supply/voltage_v: is of type float32, expected float64"),
    (value(f"{ARRAY}/adc_lsb_a", 1, 1.0), "adc_lsb_a: is not the step of the board's converter"),
    (without_scale(f"{ARRAY}/current_code"), "current_code: its axes are not mvm, column"),
    (shorter(f"{ARRAY}/mvm", 40), "voltage_v: is [48, 5], expected [40, 5]"),
    (shorter(f"{ARRAY}/time_s", 40), "48 rows are committed, but there are fewer in time_s"),
    (value(f"{ARRAY}/committed", (), 49), f"{ARRAY}: its counter says 49, but no block ends there"),
    (value(f"{ARRAY}/committed", (), 40), f"{ARRAY}: its counter says 40, but more was recorded"),
    (value(f"{ARRAY}/writes/committed", (), -3), "its counter says -3, which cannot be"),
]


@pytest.mark.parametrize(("change", "fault"), STRUCTURE, ids=[fault for _, fault in STRUCTURE])
def test_every_departure_from_the_layout_is_named(path: Path, change: Callable[[h5py.File], None], fault: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    assert any(fault in one for one in verified(path).faults), verified(path).faults


def test_what_somebody_added_is_noted_and_no_fault(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["entry/remarks/monday"] = "the door was open"
        file["entry/remarks/tuesday"] = 3
    report = verified(path)
    assert (report.faults, report.notes) == ((), ("entry/remarks: is none of labrig's",))


def with_right_checksums(file: h5py.File) -> None:
    """Makes checksums right again, so that only what the rows say can be wrong."""
    capacity = StreamCapacity(0, 0, 0)
    names = [one.name for one in layout.mvm_stream(0, INFO, capacity).columns if f"{ARRAY}/{one.name}" in file]
    journal = file[JOURNAL][...]
    for entry in journal:
        if entry["rows"] > 0:
            own = slice(int(entry["start"]), int(entry["start"] + entry["rows"]))
            entry["crc32"] = layout.crc32_of(file[f"{ARRAY}/{name}"][own] for name in names)
        if (crc := entry_crc32(entry)) is not None:
            entry["entry_crc32"] = crc
    file[JOURNAL][...] = journal
    writes = file[f"{ARRAY}/writes"]
    columns = [one.name for one in layout.write_stream(0, INFO, capacity).columns[:-1] if one.name in writes]
    for row in range(len(writes["crc32"])):
        writes["crc32"][row] = layout.crc32_of(writes[name][row : row + 1] for name in columns)


def entry(number: int, **fields: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        journal = file[JOURNAL][...]
        for name, new in fields.items():
            journal[number][name] = new
        file[JOURNAL][...] = journal

    return change


FIRST_POINT = np.frombuffer(bytes([0, 0] * 8), np.uint8)
VALUES = [
    (value(f"{ARRAY}/voltage_v", (9, 2), np.nan), "rows 8 to 15: voltage_v is no number somewhere"),
    (value(f"{ARRAY}/time_s", 9, np.nan), "rows 8 to 15: time_s is no number somewhere"),
    (value(f"{ARRAY}/time_s", 9, 9.5), "rows 8 to 15: the board's clock goes back"),
    (value(f"{ARRAY}/time_s", slice(8, 16), 1.0), "rows 8 to 15: the board's clock goes back"),
    (value(f"{ARRAY}/writes/programmed_at_s", 1, 105.0), "rows 24 to 31: they were measured before write 1"),
    (value(f"{ARRAY}/current_code", (9, 2), 600), "rows 8 to 15: codes lie beyond -512 to 511"),
    (value(f"{ARRAY}/current_code", (9, slice(None)), 511), "rows 8 to 15: saturation is not that of the codes"),
    (value(f"{ARRAY}/saturated", (9, 2), 2), "rows 8 to 15: saturation is neither 0 nor 1"),
    (value(f"{ARRAY}/kind", 9, 77), "rows 8 to 15: their kind is not that of the journal"),
    (value(f"{ARRAY}/write", 9, 1), "rows 8 to 15: they are of more than one write"),
    (value(f"{ARRAY}/write", slice(8, 16), 1), "rows 16 to 23: they are of write 0, after rows of write 1"),
    (value(f"{ARRAY}/write", slice(8, 16), 2), "rows 8 to 15 are of a write that is not there"),
    (entry(2, start=-1, rows=0), "its journal has rows 16 to 23 in no block"),
    (entry(5, start=-1, rows=0), f"{ARRAY}: its counter says 48, but no block ends there"),
    (entry(3, point=FIRST_POINT), "rows 24 to 31: their point 0000"),
    (entry(2, start=8), "rows 8 to 15 are in more than one block"),
    (entry(2, rows=-5), "entry 2 of its journal is damaged"),
    (value(f"{ARRAY}/writes/target_conductance_s", (1, 2, 2), 1.0), "writes/target_conductance_s: lies beyond"),
    (value(f"{ARRAY}/writes/target_conductance_s", (1, 2, 2), np.nan), "writes/target_conductance_s: is no number"),
    (value(f"{ARRAY}/writes/pulses", 1, -1), "writes/pulses: is negative"),
    (value("entry/supply/current_a", 1, np.nan), "supply/current_a: is no number"),
    (value("entry/supply/in_compliance", 1, 255), "supply/in_compliance: is neither 0 nor 1"),
]


@pytest.mark.parametrize(("change", "fault"), VALUES, ids=[fault for _, fault in VALUES])
def test_rows_that_cannot_be_true_are_named_though_their_checksum_is_right(
    path: Path, change: Callable[[h5py.File], None], fault: str
) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
        with_right_checksums(file)
    assert any(fault in one for one in verified(path).faults), verified(path).faults


@pytest.mark.parametrize(
    ("path_of", "row", "fault"),
    [
        (f"{ARRAY}/voltage_v", 20, "rows 16 to 23 are committed, but not what was written (checksum)"),
        (f"{ARRAY}/writes/pulses", 1, "writes: row 1 is committed, but not what was written (checksum)"),
        (f"{ARRAY}/kind", 60, "kind: holds something behind its last row"),
        ("entry/supply/current_a", 15, "current_a: holds something behind its last row"),
        (f"{ARRAY}/writes/rms_error_s", 11, "rms_error_s: holds something behind its last row"),
    ],
)
def test_rows_that_were_changed_are_named(tmp_path: Path, path_of: str, row: int, fault: str) -> None:
    path = tmp_path / "run.h5"
    record(path, close=False)
    with h5py.File(path, "r+") as file:
        file[path_of][row] = 1
    assert any(fault in one for one in verified(path).faults), verified(path).faults


def test_a_block_that_was_never_acknowledged_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path, close=False)
    with h5py.File(path, "r+") as file:
        file[f"{ARRAY}/committed"][()] = 5 * BATCH
        # Its rows may be there in part only.
        file[f"{ARRAY}/time_s"][5 * BATCH + 3 : 6 * BATCH] = np.nan
        file[f"{ARRAY}/writes/pulses"][2] = 7
    report = verified(path)
    assert (report.faults, report.rows[ARRAY]) == ((), 5 * BATCH)


@pytest.mark.parametrize("readings", [0, 3])
def test_a_compact_copy_is_right_too(tmp_path: Path, readings: int) -> None:
    record(tmp_path / "run.h5", readings=readings)
    compact(tmp_path / "run.h5", tmp_path / "small.h5")
    for name in ("run.h5", "small.h5"):
        assert verify_recording(tmp_path / name, refusal=refusal_here).faults == ()
        assert recover_recording(tmp_path / name, refusal=refusal_here).needs_nothing
