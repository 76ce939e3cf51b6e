"""Recordings are cut, overwritten and flipped: what is rescued is true to the bit, and what is whole is rescued."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.recording import Recording, RecordingHeader, layout
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.journal import JOURNAL_DTYPE
from labrig.recording.recovery import recover_recording
from labrig.recording.rescue_report import RescueReport
from labrig.recording.rows import RecordedArray, read_rows
from labrig.recording.table import locate_scalar, locate_table
from labrig.recording.verification import verify_recording
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError
from labrig_drivers.instrument import Identity

ROWS, COLUMNS = 6, 4
INFO = BoardInfo("SIM-1", 2, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader(
    "bench",
    "[rig]\n",
    {"name": "mvm"},
    {"board": Identity("a", "b", "SIM-1", "c")},
    {},
    "2026-01-01T00:00:00+00:00",
    {},
)
ARRAYS = (0, 1)
ROOMY = dict.fromkeys(ARRAYS, StreamCapacity(rows=300, writes=4, blocks=40))
# Every stream outgrows it, so that rows of both arrays lie in turns.
TIGHT = dict.fromkeys(ARRAYS, StreamCapacity(rows=10, writes=1, blocks=2))
CHECKED_ENTRIES = "entry_crc32" in (JOURNAL_DTYPE.names or ())
Span = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """A block as it was recorded: its rows, its write, and the bytes that must be whole for it to be rescued."""

    array: int
    number: int
    start: int
    stop: int
    write: int
    needs: tuple[Span, ...]
    entry: Span


@dataclass(frozen=True)
class Truth:
    """An undamaged recording; before `front` there are no rows, and where it has grown some structure lies behind."""

    content: bytes
    rows: dict[int, RecordedArray]
    blocks: dict[str, Block]
    counters: tuple[Span, ...]
    front: int
    grown: bool

    def whole(self, damage: Iterable[Span]) -> set[str]:
        """The points whose bytes are all as they were."""
        spans = list(damage)
        return {
            point
            for point, block in self.blocks.items()
            if not any(first < stop and start < last for first, last in spans for start, stop in block.needs)
        }


def record(path: Path, capacity: dict[int, StreamCapacity], *, close: bool) -> None:
    """Three writes on each of two arrays, with blocks of several lengths, and some readings."""
    file = RecordingFile(path, HEADER, INFO, capacity, 4, "process")
    rng = np.random.default_rng(3)
    for write in range(3):
        for array in ARRAYS:
            target_s = rng.uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)).astype(np.float32)
            numbers: dict[str, NDArray[np.generic]] = {
                "target_conductance_s": target_s,
                "programmed_at_s": np.array([100.0 * write]),
                "rms_error_s": np.array([1e-7]),
                "pulses": np.array([write]),
                "board_write": np.array([write]),
            }
            file.append_write(array, numbers)
            for block in range(6):
                count = int(rng.integers(1, 16))
                code = rng.integers(-512, 512, (count, COLUMNS)).astype(np.int16)
                columns: dict[str, NDArray[np.generic]] = {
                    "voltage_v": rng.uniform(-0.3, 0.3, (count, ROWS)).astype(np.float32),
                    "current_code": code,
                    "saturated": ((code == -512) | (code == 511)).astype(np.uint8),
                    "time_s": 100.0 * write + 10.0 * block + np.arange(float(count)),
                }
                file.append_mvms(array, columns, BlockLabel(rng.bytes(16), 3 + block))
        values = {"time_s": 1e9 + write, "voltage_v": 1.8, "current_a": 0.01}
        reading: dict[str, NDArray[np.generic]] = {name: np.array([value]) for name, value in values.items()}
        file.append_supply(reading | {"in_compliance": np.array([0], np.uint8)})
    if close:
        file.close("finished")
    else:
        file.abandon()


def truth_of(path: Path, *, grown: bool) -> Truth:
    blocks, rows = dict[str, Block](), dict[int, RecordedArray]()
    with Recording.open(path) as recording:
        for array in ARRAYS:
            rows[array] = read_rows(recording, array)
    counters, places = list[Span](), list[int]()
    with h5py.File(path) as file:
        for array in ARRAYS:
            group = f"entry/array_{array}"
            for name in (group, f"{group}/writes"):
                place = locate_scalar(file, f"{name}/committed")
                counters.append((place, place + 8))

            def spans(name: str, start: int, stop: int) -> Iterator[Span]:
                table = locate_table(file, name)
                for first, last, offset in table.pieces(start, stop):
                    yield offset, offset + (last - first) * table.row_bytes

            def all_of(stream: layout.Stream, start: int, stop: int) -> Iterator[Span]:
                for column in stream.columns:
                    if f"{stream.path}/{column.name}" in file:
                        yield from spans(f"{stream.path}/{column.name}", start, stop)

            capacity = StreamCapacity(0, 0, 0)
            mvms, writes = layout.mvm_stream(array, INFO, capacity), layout.write_stream(array, INFO, capacity)
            journal = file[f"entry/journal/array_{array}"]
            assert isinstance(journal, h5py.Dataset)
            for number, entry in enumerate(journal[...]):
                if not 0 <= entry["start"] < len(rows[array].code):
                    continue
                start, stop = int(entry["start"]), int(entry["start"] + entry["rows"])
                write = int(rows[array].write[start])
                (own,) = spans(f"entry/journal/array_{array}", number, number + 1)
                needs = (own, *all_of(mvms, start, stop), *all_of(writes, write, write + 1))
                blocks[bytes(entry["point"]).hex()] = Block(array, number, start, stop, write, needs, own)
                places += [first for first, _ in needs]
    return Truth(path.read_bytes(), rows, blocks, tuple(counters), min(places), grown)


VARIANTS = ("closed", "grown-open", "open", "grown")
# Two of them show what there is to see; all four are looked at every night.
USUAL = [pytest.param(name, marks=[] if name in VARIANTS[:2] else pytest.mark.nightly) for name in VARIANTS]


@pytest.fixture(scope="module", params=USUAL)
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    path = tmp_path_factory.mktemp("truth") / "run.h5"
    record(path, TIGHT if "grown" in request.param else ROOMY, close="open" not in request.param)
    return truth_of(path, grown="grown" in request.param)


class Workshop:
    """Damages a recording, recovers it, and compares what came out with the truth."""

    def __init__(self, truth: Truth, folder: Path) -> None:
        self.truth = truth
        self.folder = folder
        self.looked = 0

    def outcome(self, content: bytes, *, strict: bool) -> str:
        """What became of a damaged file: `refused`, `nothing`, `all` that was whole, or `less`."""
        path, output = self.folder / "damaged.h5", self.folder / "rescued.h5"
        path.write_bytes(content)
        output.unlink(missing_ok=True)
        spans = changed_spans(content, self.truth.content)
        whole = self.truth.whole(spans)
        try:
            report = recover_recording(path, output, refusal=lambda _: "", beyond_committed=True)
        except StorageError:
            assert not strict
            return "refused"
        assert path.read_bytes() == content
        if report.needs_nothing:
            assert whole == set(self.truth.blocks) or self.only_entries_without_checksum(spans)
            return "nothing"
        rescued = self.judged(report, spans)
        assert whole <= rescued or not strict, (spans, report.faults)
        return "all" if whole <= rescued else "less"

    def judged(self, report: RescueReport, damage: list[Span]) -> set[str]:
        """The points that were rescued, after each row of each was found to be true."""
        if report.output is None:
            return set()
        found, once = set[str](), Counter[str]()
        with Recording.open(report.output) as recording:
            recording.verify()
            assert recording.status == "recovered"
            for array in recording.arrays:
                rows, start = read_rows(recording, array), 0
                points = recording.point_hashes(array)
                lengths = self.lengths(report.output, array)
                for point, length in zip(points, lengths, strict=True):
                    block = self.truth.blocks.get(point)
                    if block is None or block.array != array:
                        assert self.only_entries_without_checksum(damage)
                        block = self.by_rows(rows, array, start, length)
                    else:
                        found.add(point)
                    once[f"{array}/{block.number}"] += 1
                    self.compare(rows, start, block)
                    assert block.stop - block.start == length
                    start += length
                assert start == len(rows.code)
        assert set(once.values()) <= {1}
        self.looked += 1
        if self.looked % 4 == 1:
            # What was recovered needs nothing more.
            assert recover_recording(report.output, refusal=lambda _: "").needs_nothing
        return found

    def lengths(self, path: Path, array: int) -> list[int]:
        with h5py.File(path) as file:
            journal = file[f"entry/journal/array_{array}"]
            assert isinstance(journal, h5py.Dataset)
            return [int(one) for one in journal["rows"] if one]

    def compare(self, rows: RecordedArray, start: int, block: Block) -> None:
        stop, true = start + block.stop - block.start, self.truth.rows[block.array]
        for name in ("voltage_v", "code", "saturated", "time_s"):
            np.testing.assert_array_equal(
                getattr(rows, name)[start:stop], getattr(true, name)[block.start : block.stop]
            )
        (write,) = set(rows.write[start:stop].tolist())
        np.testing.assert_array_equal(rows.target_conductance_s[write], true.target_conductance_s[block.write])
        assert rows.programmed_at_s[write] == true.programmed_at_s[block.write]
        assert rows.pulses[write] == true.pulses[block.write]

    def only_entries_without_checksum(self, damage: list[Span]) -> bool:
        """Whether an entry was hit and has no checksum of its own, as in format 1.0: its point can be wrong alone."""
        entries = [block.entry for block in self.truth.blocks.values()]
        hit = any(first < stop and start < last for first, last in damage for start, stop in entries)
        return hit and not CHECKED_ENTRIES

    def by_rows(self, rows: RecordedArray, array: int, start: int, length: int) -> Block:
        (found,) = [
            block
            for block in self.truth.blocks.values()
            if block.array == array
            and block.stop - block.start == length
            and np.array_equal(self.truth.rows[array].code[block.start : block.stop], rows.code[start : start + length])
        ]
        return found


@pytest.fixture
def workshop(truth: Truth, tmp_path: Path) -> Workshop:
    return Workshop(truth, tmp_path)


def changed_spans(content: bytes, true: bytes) -> list[Span]:
    """Where two contents differ, and what one of them lacks."""
    size = min(len(content), len(true))
    differs = np.frombuffer(content, np.uint8, size) != np.frombuffer(true, np.uint8, size)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], differs, [False]]).astype(np.int8))).tolist()
    return [*zip(edges[::2], edges[1::2], strict=True), *([(size, len(true))] if size < len(true) else [])]


def cut(workshop: Workshop, lengths: Iterable[int]) -> Counter[str]:
    """What becomes of files of these lengths."""
    content, seen = workshop.truth.content, Counter[str]()
    for length in lengths:
        # Behind the front nothing that a rescue needs is lost with the end, unless the file had grown.
        strict = length >= workshop.truth.front and not workshop.truth.grown
        seen[workshop.outcome(content[:length], strict=strict)] += 1
    return seen


def test_a_file_cut_short_anywhere_gives_what_is_left_of_it(workshop: Workshop) -> None:
    size, front = len(workshop.truth.content), workshop.truth.front
    rng = np.random.default_rng(0)
    seen = cut(workshop, [*rng.integers(0, front, 10).tolist(), *rng.integers(front, size, 24).tolist()])
    print(dict(seen))
    assert seen["nothing"] == 0
    # Only with the beginning, or with places that a stream took later, is more lost than what was cut off.
    assert seen["all"] >= 24


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_file_cut_short_at_every_sector(workshop: Workshop) -> None:
    size = len(workshop.truth.content)
    borders = range(512, size, 512)
    seen = cut(workshop, sorted({place for border in borders for place in (border - 1, border, border + 1)}))
    print(dict(seen))
    assert seen["nothing"] == 0


def overwritten(content: bytes, spans: Iterable[Span], filling: bytes) -> bytes:
    new = bytearray(content)
    for start, stop in spans:
        new[start:stop] = (filling * (stop - start))[: stop - start]
    return bytes(new)


def flipped(truth: Truth, places: Iterable[tuple[float, int]]) -> bytes:
    """The recording with bits flipped among its rows: a place from 0 to 1, and which bit."""
    content = bytearray(truth.content)
    for share, bit in places:
        place = truth.front + int(share * (len(content) - truth.front - 1))
        content[place] ^= 1 << bit
    return bytes(content)


def sectors(truth: Truth, first: int, shares: Iterable[float]) -> list[Span]:
    """Sectors of the recording from the place `first` on, each named by a number from 0 to 1."""
    size = len(truth.content)
    count = (size - first) // 512
    starts = {first + 512 * int(share * (count - 1)) for share in shares}
    return [(start, min(start + 512, size)) for start in sorted(starts)]


FILLINGS = [b"\0", b"\xff", np.random.default_rng(1).bytes(512)]
SHARES = st.floats(0.0, 1.0)
# The one fixture is a folder and a recording: each example writes its files anew.
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(places=st.lists(st.tuples(SHARES, st.integers(0, 7)), min_size=1, max_size=8))
def test_flipped_bits_among_the_rows_cost_only_their_own_blocks(
    workshop: Workshop, places: list[tuple[float, int]]
) -> None:
    workshop.outcome(flipped(workshop.truth, places), strict=not workshop.truth.grown)


@FEW
@given(shares=st.lists(SHARES, min_size=1, max_size=4), filling=st.sampled_from(FILLINGS))
def test_overwritten_sectors_among_the_rows_cost_only_their_own_blocks(
    workshop: Workshop, shares: list[float], filling: bytes
) -> None:
    spans = sectors(workshop.truth, -(-workshop.truth.front // 512) * 512, shares)
    content = overwritten(workshop.truth.content, spans, filling)
    workshop.outcome(content, strict=not workshop.truth.grown)


@FEW
@given(places=st.lists(st.tuples(st.integers(0, 80_000), st.binary(min_size=1, max_size=64)), min_size=1, max_size=4))
def test_garbage_in_the_structure_invents_nothing(workshop: Workshop, places: list[tuple[int, bytes]]) -> None:
    content = bytearray(workshop.truth.content)
    for place, garbage in places:
        content[place : place + len(garbage)] = garbage
    workshop.outcome(bytes(content), strict=False)


def structure_lost(workshop: Workshop, spans: Iterable[Span]) -> Counter[str]:
    seen = Counter[str]()
    for span in spans:
        content = overwritten(workshop.truth.content, [span], b"\0")
        seen[workshop.outcome(content, strict=False)] += 1
    return seen


def used_sectors(truth: Truth) -> list[Span]:
    """The sectors at the front that hold something."""
    spans = [(start, start + 512) for start in range(0, truth.front // 512 * 512, 512)]
    return [span for span in spans if truth.content[slice(*span)].strip(b"\0")]


def test_any_overwritten_sector_of_the_structure_is_got_over(workshop: Workshop) -> None:
    spans = used_sectors(workshop.truth)
    seen = structure_lost(workshop, [spans[one] for one in np.random.default_rng(0).permutation(len(spans))[:8]])
    print(dict(seen))
    # Where a stream took more room later, neighbours do not tell its places.
    assert seen["less"] <= (4 if workshop.truth.grown else 0)
    # The description of the board lies in two of them at most.
    assert seen["refused"] <= 2


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_overwritten_sector_and_page_of_the_structure_is_got_over(workshop: Workshop) -> None:
    spans = used_sectors(workshop.truth)
    seen = structure_lost(workshop, spans)
    pages = structure_lost(workshop, {(start // 4096 * 4096, start // 4096 * 4096 + 4096) for start, _ in spans})
    print(dict(seen), dict(pages))
    assert seen["refused"] <= 2
    if not workshop.truth.grown:
        assert seen["less"] <= 0.02 * seen.total()
        # A page holds several headers of these small datasets: 10 of 31 cost some rows.
        assert pages["less"] <= 0.4 * pages.total()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_damage_of_every_kind_five_hundred_times(workshop: Workshop) -> None:
    truth, rng, seen = workshop.truth, np.random.default_rng(5), Counter[str]()
    for number in range(500):
        if number % 2:
            content = flipped(truth, [(rng.random(), int(rng.integers(8))) for _ in range(rng.integers(1, 9))])
        else:
            spans = sectors(truth, -(-truth.front // 512) * 512, rng.random(int(rng.integers(1, 5))).tolist())
            content = overwritten(truth.content, spans, FILLINGS[int(rng.integers(3))])
        seen[workshop.outcome(content, strict=not truth.grown)] += 1
    print(dict(seen))
    assert seen["all"] + seen["nothing"] >= 0.95 * seen.total()


@pytest.mark.parametrize("value", [-1, 0, 5, 1000, 2**40])
def test_a_counter_of_garbage_costs_no_row(workshop: Workshop, value: int) -> None:
    truth = workshop.truth
    content = bytearray(truth.content)
    for start, stop in truth.counters:
        content[start:stop] = value.to_bytes(8, "little", signed=True)
    assert workshop.outcome(bytes(content), strict=True) in ("all", "nothing")


def test_a_zeroed_superblock_costs_no_row(workshop: Workshop) -> None:
    for stop in (8, 96, 512, 4096):
        content = overwritten(workshop.truth.content, [(0, stop)], b"\0")
        assert workshop.outcome(content, strict=stop <= 512) in ("all", "refused")


def test_a_lost_beginning_is_told_and_nothing_is_made_up(workshop: Workshop) -> None:
    truth = workshop.truth
    path = workshop.folder / "run.h5"
    for content, message in (
        (b"", "is empty"),
        (bytes(len(truth.content)), "begins with zeros only"),
        (bytes(truth.front) + truth.content[truth.front :], "nothing can be known of the rest"),
        (b"hello" * 5000, "has no description of a recording"),
    ):
        path.write_bytes(content)
        with pytest.raises(StorageError, match=message):
            recover_recording(path)
    assert [one.name for one in workshop.folder.iterdir()] == ["run.h5"]


def test_a_lost_write_takes_its_blocks_with_it_and_the_others_keep_theirs(workshop: Workshop) -> None:
    truth = workshop.truth
    with_write = [block for block in truth.blocks.values() if (block.array, block.write) == (0, 1)]
    # The last span that a block needs is the checksum of its write.
    span = with_write[0].needs[-1]
    content = overwritten(truth.content, [span], b"\x55")
    assert workshop.outcome(content, strict=True) == "all"
    report = recover_recording(workshop.folder / "damaged.h5", dry_run=True, refusal=lambda _: "")
    (array,) = [one for one in report.streams if one.path == "entry/array_0"]
    assert array.reasons == {"their write or setting is lost": array.lost}
    assert set(array.again) == {point for point, block in truth.blocks.items() if block in with_write}
    (writes,) = [one for one in report.streams if one.path == "entry/array_0/writes"]
    assert (writes.committed, writes.rescued, writes.lost) == (3, 2, 1)


def test_a_column_that_is_hurt_in_most_blocks_is_not_looked_for_elsewhere(workshop: Workshop) -> None:
    truth = workshop.truth
    if truth.grown:
        pytest.skip("its columns lie in several pieces")
    blocks = sorted((one for one in truth.blocks.values() if one.array == 0), key=lambda one: one.start)
    # Behind the entry and three columns: which write a row is of. Zeros, as for the first write, are everywhere.
    spans = [block.needs[4] for block in blocks if block.number not in (13, 14, 15)]
    assert workshop.outcome(overwritten(truth.content, spans, b"\xff"), strict=True) == "all"


def test_memory_is_bounded_and_the_original_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    blocks, batch, lines = 40, 1000, 64
    info = BoardInfo("SIM-1", 1, lines, lines, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * lines, 1e-5, 5e-3)
    capacity = {0: StreamCapacity(rows=blocks * batch, writes=1, blocks=blocks)}
    file = RecordingFile(path, HEADER, info, capacity, 4, "process")
    numbers = {
        "programmed_at_s": np.array([0.0]),
        "rms_error_s": np.array([1e-7]),
        "pulses": np.array([1]),
        "board_write": np.array([0]),
    }
    file.append_write(0, {"target_conductance_s": np.full((1, lines, lines), 1e-5, np.float32), **numbers})
    rng = np.random.default_rng(0)
    voltage_v = rng.uniform(-0.3, 0.3, (batch, lines)).astype(np.float32)
    code = rng.integers(-500, 500, (batch, lines)).astype(np.int16)
    saturated = np.zeros((batch, lines), np.uint8)
    columns: dict[str, NDArray[np.generic]] = {"voltage_v": voltage_v, "current_code": code, "saturated": saturated}
    for number in range(blocks):
        file.append_mvms(
            0, {**columns, "time_s": number + np.arange(batch) / batch}, BlockLabel(number.to_bytes(16, "big"), 3)
        )
    file.close("finished")
    with path.open("r+b") as raw:
        raw.seek(path.stat().st_size // 2)
        raw.write(b"damage")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    tracemalloc.start()
    try:
        report = recover_recording(path, tmp_path / "rescued.h5", refusal=lambda _: "")
        verified = verify_recording(tmp_path / "rescued.h5", refusal=lambda _: "")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{report.size_bytes / 1e6:.1f} MB recovered and verified in {peak_bytes / 1e6:.1f} MB")
    assert report.exit_code == 1
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before == report.sha256
    assert verified.faults == ()
    # A block and pieces of a megabyte, not the file.
    assert peak_bytes < 0.4 * report.size_bytes
