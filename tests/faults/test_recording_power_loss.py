"""The power fails at any moment of a recording: what was acknowledged is read back, and nothing is invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.recording import Recording, RecordingHeader
from labrig.recording.file import BlockLabel, Durability, RecordingFile
from labrig.recording.late_changes import SECTOR_BYTES
from labrig.recording.recovery import recover_recording
from labrig.recording.refusal import refusal_here
from labrig.recording.rows import read_rows
from labrig.recording.write_trace import (
    CrashImage,
    Operation,
    Sync,
    TracedMedium,
    Truncate,
    Write,
    crash_images,
    prefixes,
    torn_images,
)
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

ROWS, COLUMNS, BATCH = 6, 4, 8
INFO = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader("bench", "[rig]\n", {"name": "mvm"}, {}, {}, "2026-01-01T00:00:00+00:00", {})
PATH = Path("in-memory.h5")
ROOMY = StreamCapacity(rows=250, writes=4, blocks=30)
# Every stream outgrows it.
TIGHT = StreamCapacity(rows=20, writes=1, blocks=2)
# Each row is a chunk of its own, so that nodes of the indexes are split while they grow.
TINY = StreamCapacity(rows=1, writes=1, blocks=1)


@dataclass(frozen=True)
class Acknowledged:
    """What a recording had promised when so many operations were done; `phase` is what it did next."""

    after: int
    phase: str
    writes: int = 0
    mvms: int = 0
    readings: int = 0


def write_columns(index: int) -> dict[str, NDArray[np.generic]]:
    target_s = np.random.default_rng([index, 2]).uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)).astype(np.float32)
    return {
        "target_conductance_s": target_s,
        "programmed_at_s": np.array([float(index)]),
        "rms_error_s": np.array([1e-7]),
        "pulses": np.array([index]),
        "board_write": np.array([index]),
    }


def mvm_columns(index: int) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng([index, 1])
    return {
        "voltage_v": rng.uniform(-0.3, 0.3, (BATCH, ROWS)).astype(np.float32),
        "current_code": rng.integers(-512, 512, (BATCH, COLUMNS)).astype(np.int16),
        "saturated": rng.integers(0, 2, (BATCH, COLUMNS)).astype(np.uint8),
        "time_s": 100.0 * index + np.arange(float(BATCH)),
    }


def reading_columns(index: int) -> dict[str, NDArray[np.generic]]:
    values = {"time_s": 1e9 + index, "voltage_v": 1.8, "current_a": 0.01 * index}
    return {name: np.array([value]) for name, value in values.items()} | {"in_compliance": np.array([0], np.uint8)}


def laid_out(
    folder: Path, capacity: StreamCapacity, supply_rows: int | None = None, header: RecordingHeader = HEADER
) -> TracedMedium:
    """A new recording as HDF5 lays it out with its ordinary driver; with the one for traces it is laid out otherwise.

    Where the streams are roomy, the file ends with rows that are never used, unless it is said how many there are.
    """
    path, medium = folder / "laid-out.h5", TracedMedium()
    path.unlink(missing_ok=True)
    if supply_rows is None:
        supply_rows = 20_000 if capacity is ROOMY else 2
    RecordingFile(path, header, INFO, {0: capacity}, supply_rows, "power").abandon()
    medium.trace.write_at(0, np.frombuffer(path.read_bytes(), np.uint8))
    medium.trace.sync()
    return medium


def record(
    medium: TracedMedium,
    capacity: StreamCapacity,
    durability: Durability,
    *,
    resume: bool = True,
    header: RecordingHeader = HEADER,
) -> list[Acknowledged]:
    """Three writes, each with a block, a reading, and three blocks that share a commit; then a clean end."""
    operations = medium.trace.operations
    file = RecordingFile(PATH, header, INFO, {0: capacity}, 10, durability, resume=resume, medium=medium)
    promised = [Acknowledged(len(operations), "rows")]
    blocks = 0
    for write in range(3):
        file.append_write(0, write_columns(write))
        promised.append(Acknowledged(len(operations), "rows", write + 1, BATCH * blocks, write))
        file.append_mvms(0, mvm_columns(blocks), BlockLabel(bytes([blocks] * 16), 3))
        file.append_supply(reading_columns(write))
        for index in range(blocks + 1, blocks + 4):
            file.stage_mvms(0, mvm_columns(index), BlockLabel(bytes([index] * 16), 3))
        file.commit()
        blocks += 4
        promised.append(Acknowledged(len(operations), "rows", write + 1, BATCH * blocks, write + 1))
    promised.append(Acknowledged(len(operations), "close", 3, BATCH * blocks, 3))
    file.close("finished")
    return [*promised, Acknowledged(len(operations), "closed", 3, BATCH * blocks, 3)]


def fault_of(path: Path, promised: Acknowledged) -> str:
    """What is wrong with a recording that was promised to hold so much; empty where nothing is."""
    try:
        with Recording.open(path) as recording:
            rows, hashes, supply = read_rows(recording, 0), recording.point_hashes(0), recording.supply()
    except StorageError as error:
        print(f"refused: {error}")
        return "refused"
    if len(rows.pulses) < promised.writes or len(rows.code) < promised.mvms or len(supply.time_s) < promised.readings:
        return "lost"
    blocks = len(rows.code) // BATCH
    expected = [mvm_columns(index) for index in range(blocks)]
    for name, values in (("voltage_v", rows.voltage_v), ("current_code", rows.code), ("saturated", rows.saturated)):
        if expected and not np.array_equal(values, np.concatenate([one[name] for one in expected])):
            return "invented"
    targets = [write_columns(index)["target_conductance_s"] for index in range(len(rows.pulses))]
    right = (
        len(rows.code) % BATCH == 0
        and hashes == [bytes([index] * 16).hex() for index in range(blocks)]
        and all(np.array_equal(one, target[0]) for one, target in zip(rows.target_conductance_s, targets, strict=True))
        and supply.time_s.tolist() == [1e9 + index for index in range(len(supply.time_s))]
        and rows.write.tolist() == [index // (4 * BATCH) for index in range(len(rows.code))]
    )
    return "" if right else "invented"


def outcomes(images: Iterable[CrashImage], promised: list[Acknowledged], folder: Path) -> Counter[tuple[str, str, str]]:
    """How often (kind of image, phase, fault) occurs."""
    path, found = folder / "crash.h5", Counter[tuple[str, str, str]]()
    for image in images:
        known = [one for one in promised if one.after <= image.after]
        path.write_bytes(image.data)
        fault = fault_of(path, known[-1] if known else Acknowledged(0, "create"))
        if fault:
            print(f"{fault} after {image.after} operations, {image.how}")
        found[image.how, known[-1].phase if known else "create", fault] += 1
    return found


@pytest.mark.parametrize("each", [1, pytest.param(8, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])])
def test_under_power_no_power_cut_loses_what_was_acknowledged(tmp_path: Path, each: int) -> None:
    medium = laid_out(tmp_path, ROOMY)
    promised = record(medium, ROOMY, "power")
    operations, first = medium.trace.operations, promised[0].after
    found = outcomes(prefixes(operations, first=first), promised, tmp_path)
    found += outcomes(crash_images(operations, np.random.default_rng(0), each=each, first=first), promised, tmp_path)
    print(dict(found))
    assert {fault for _, _, fault in found} == {""}
    assert {(how, phase) for how, phase, _ in found} >= {
        (how, phase) for how in ("prefix", "reordered") for phase in ("rows", "close")
    }


# Large: indexes of several levels, and whole nodes of them that are given back.
LARGE = StreamCapacity(rows=60_000, writes=40, blocks=3000)


@pytest.mark.parametrize(
    ("shifts", "layouts"),
    [
        ([0], [(ROOMY, 2), (TIGHT, 2)]),
        pytest.param(range(64), [(ROOMY, 2), (TIGHT, 2)], marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
        pytest.param(
            range(0, 64, 8),
            [(ROOMY, 20_000), (ROOMY, 10), (LARGE, 3000)],
            marks=[pytest.mark.nightly, pytest.mark.timeout(1800)],
        ),
    ],
    ids=["usual", "every-place", "every-layout"],
)
def test_no_torn_sector_of_a_closing_file_loses_what_was_acknowledged(
    tmp_path: Path, shifts: Sequence[int], layouts: Sequence[tuple[StreamCapacity, int]]
) -> None:
    found = Counter[tuple[str, str, str]]()
    for shift in shifts:
        # Everything that follows the text lies so many bytes later: each piece meets each border of a sector.
        header = replace(HEADER, rig_toml="[rig]\n" + "#" * 8 * shift)
        for capacity, supply_rows in layouts:
            medium = laid_out(tmp_path, capacity, supply_rows, header)
            promised = record(medium, capacity, "power", header=header)
            operations, first = medium.trace.operations, promised[-2].after
            images = [*prefixes(operations, first=first), *torn_images(operations, first=first + 1)]
            found += outcomes({one.data: one for one in images}.values(), promised, tmp_path)
    print(dict(found))
    assert {fault for _, _, fault in found} == {""}
    assert found["torn", "close", ""] > 40 * len(shifts) * len(layouts)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capacity", [TIGHT, TINY], ids=["tight", "tiny"])
def test_no_torn_sector_of_a_growing_file_loses_what_was_acknowledged(tmp_path: Path, capacity: StreamCapacity) -> None:
    found, shifts = Counter[tuple[str, str, str]](), range(0, 64, 9)
    for shift in shifts:
        header = replace(HEADER, rig_toml="[rig]\n" + "#" * 8 * shift)
        medium = laid_out(tmp_path, capacity, 2, header)
        promised = record(medium, capacity, "power", header=header)
        images = torn_images(medium.trace.operations, first=promised[0].after + 1)
        found += outcomes({one.data: one for one in images}.values(), promised, tmp_path)
    print(dict(found))
    assert {fault for _, _, fault in found} == {""}
    assert found["torn", "rows", ""] > 500 * len(shifts)


def test_under_process_no_kill_loses_what_was_acknowledged(tmp_path: Path) -> None:
    medium = laid_out(tmp_path, ROOMY)
    promised = record(medium, ROOMY, "process")
    found = outcomes(prefixes(medium.trace.operations, first=promised[0].after), promised, tmp_path)
    print(dict(found))
    assert {fault for _, _, fault in found} == {""}


def test_under_process_a_power_cut_may_lose_rows(tmp_path: Path) -> None:
    # That the images above can show a loss: without the fsyncs there is one.
    medium = laid_out(tmp_path, ROOMY)
    promised = record(medium, ROOMY, "process")
    images = crash_images(medium.trace.operations, np.random.default_rng(0), each=1, first=promised[0].after)
    found = outcomes(images, promised, tmp_path)
    assert found["reordered", "rows", "lost"] + found["reordered", "rows", "refused"] > 10


def test_a_file_that_is_still_being_created_is_empty_or_refused(tmp_path: Path) -> None:
    medium = TracedMedium()
    promised = record(medium, ROOMY, "power", resume=False)
    operations = medium.trace.operations[: promised[0].after]
    found = outcomes(prefixes(operations), promised, tmp_path)
    found += outcomes(crash_images(operations, np.random.default_rng(0), each=1), promised, tmp_path)
    print(dict(found))
    assert {fault for _, _, fault in found} <= {"", "refused"}


@pytest.mark.parametrize("durability", ["process", "power"])
def test_while_a_stream_grows_no_row_is_invented_or_passed_over(tmp_path: Path, durability: Durability) -> None:
    medium = laid_out(tmp_path, TIGHT)
    promised = record(medium, TIGHT, durability)
    operations, first = medium.trace.operations, promised[0].after
    # Of the moments every sixth, shifted between the two kinds of crash.
    found = outcomes([*prefixes(operations, first=first)][::6], promised, tmp_path)
    if durability == "power":
        images = [*crash_images(operations, np.random.default_rng(0), each=1, first=first)]
        found += outcomes(images[3::6], promised, tmp_path)
    print(dict(found))
    assert {fault for _, _, fault in found} == {""}


def gone_on(image: CrashImage, capacity: StreamCapacity, path: Path) -> str:
    """What is wrong with a recording that was resumed after a crash, and brought to four writes and its end."""
    path.write_bytes(image.data)
    with Recording.open(path) as recording:
        writes, blocks = recording.writes(0), recording.committed(0) // BATCH
        readings = len(recording.supply().time_s)
    medium = TracedMedium()
    medium.trace.write_at(0, np.frombuffer(image.data, np.uint8))
    file = RecordingFile(PATH, HEADER, INFO, {0: capacity}, 10, "process", resume=True, medium=medium)
    for index in range(blocks, 16):
        if index == 4 * writes:
            file.append_write(0, write_columns(writes))
            writes += 1
        file.append_mvms(0, mvm_columns(index), BlockLabel(bytes([index] * 16), 3))
    for index in range(readings, 6):
        file.append_supply(reading_columns(index))
    file.close("finished")
    path.write_bytes(medium.trace.content())
    return fault_of(path, Acknowledged(0, "resumed", 4, 16 * BATCH, 6))


@pytest.mark.parametrize("capacity", [ROOMY, TIGHT, TINY], ids=["roomy", "tight", "tiny"])
@pytest.mark.parametrize("every", [199, pytest.param(1, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_a_run_goes_on_from_every_moment_at_which_the_power_may_fail(
    tmp_path: Path, capacity: StreamCapacity, every: int
) -> None:
    medium = laid_out(tmp_path, capacity, 2)
    promised = record(medium, capacity, "power")
    operations, first = medium.trace.operations, promised[0].after
    images = [*prefixes(operations, first=first), *torn_images(operations, first=promised[-2].after + 1)]
    images += crash_images(operations, np.random.default_rng(0), each=1, first=first)
    found = Counter(gone_on(image, capacity, tmp_path / "crash.h5") for image in images[::every])
    print(dict(found))
    assert found.keys() == {""}


def fault_of_rescue(path: Path, promised: Acknowledged) -> str:
    """What is wrong with what `recover` makes of a recording that was promised to hold so much."""
    rescued = path.with_name("rescued.h5")
    rescued.unlink(missing_ok=True)
    try:
        report = recover_recording(path, rescued, refusal=refusal_here)
    except StorageError:
        return "refused"
    if report.rescues_nothing and not report.needs_nothing:
        return "lost" if promised.writes else ""
    with Recording.open(path if report.output is None else rescued) as recording:
        rows, hashes = read_rows(recording, 0), recording.point_hashes(0)
    numbers = [int(one[:2], 16) for one in hashes]
    if len(rows.code) < promised.mvms or len(rows.pulses) < promised.writes:
        return "lost"
    right = len(rows.code) == BATCH * len(numbers) and len(set(numbers)) == len(numbers)
    for place, number in enumerate(numbers):
        own, true = slice(BATCH * place, BATCH * (place + 1)), mvm_columns(number)
        target_s = write_columns(number // 4)["target_conductance_s"][0]
        right = right and np.array_equal(rows.voltage_v[own], true["voltage_v"])
        right = right and np.array_equal(rows.code[own], true["current_code"])
        right = right and np.array_equal(rows.target_conductance_s[rows.write[own][0]], target_s)
    return "" if right else "invented"


@pytest.mark.parametrize("capacity", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("every", [59, pytest.param(1, marks=pytest.mark.nightly)])
def test_recover_gives_all_that_was_acknowledged_before_a_power_cut(
    tmp_path: Path, capacity: StreamCapacity, every: int
) -> None:
    medium = laid_out(tmp_path, capacity)
    promised = record(medium, capacity, "power")
    operations, first = medium.trace.operations, promised[0].after
    images = [*prefixes(operations, first=first)]
    images += crash_images(operations, np.random.default_rng(0), each=1, first=first)
    path, found = tmp_path / "crash.h5", Counter[tuple[str, str]]()
    for image in images[::every]:
        known = [one for one in promised if one.after <= image.after]
        path.write_bytes(image.data)
        # As a reader finds it, and after `recover`.
        found[fault_of(path, known[-1]), fault_of_rescue(path, known[-1])] += 1
    print(dict(found))
    assert {rescue for _, rescue in found} == {""}


@pytest.mark.parametrize("rows", range(20, 120, 9))
def test_no_counter_lies_across_two_sectors(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "run.h5"
    capacity = {0: StreamCapacity(rows=rows, writes=3, blocks=rows)}
    RecordingFile(path, HEADER, INFO, capacity, 10, "power").close("finished")
    with h5py.File(path, "r") as file:
        for name in ("entry/array_0", "entry/array_0/writes", "entry/supply"):
            counter = file[f"{name}/committed"]
            assert isinstance(counter, h5py.Dataset)
            offset = counter.id.get_offset()
            assert offset // SECTOR_BYTES == (offset + 7) // SECTOR_BYTES


def test_images_are_those_of_a_disk_with_sectors() -> None:
    old, new = b"a" * 2 * SECTOR_BYTES, b"b" * 2 * SECTOR_BYTES
    operations: list[Operation] = [
        Truncate(4 * SECTOR_BYTES),
        Write(0, old),
        Sync(),
        Write(0, new),
        Write(3 * SECTOR_BYTES, b"c"),
    ]
    images = list(crash_images(operations, np.random.default_rng(0), each=300, first=5))
    seen = {tuple(one.data[place] for place in range(0, 4 * SECTOR_BYTES, SECTOR_BYTES)) for one in images}
    assert seen == {(first, second, 0, last) for first in b"ab" for second in b"ab" for last in b"\0c"}
    assert all(one.data[place : place + SECTOR_BYTES] in (old[:512], new[:512]) for one in images for place in (0, 512))
    ends = [one.data for one in prefixes(operations, first=3)]
    assert [content[0:1] + content[3 * SECTOR_BYTES :][:1] for content in ends] == [b"a\0", b"b\0", b"bc"]
