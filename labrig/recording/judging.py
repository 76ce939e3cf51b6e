"""Judges the rows of one stream by its checksums, and its counter by what the rows say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labrig.recording import layout
from labrig.recording.file_bytes import StructureError
from labrig.recording.found_streams import FoundStream, Rows, StreamFinder
from labrig.recording.journal import journal_path
from labrig.recording.journal_entries import entries_of, first_table, is_plausible, is_unused, vouches
from labrig.recording.stored_rows import StoredRows

MOST_UNCOUNTED = 8
"""Blocks or rows that may have been written and not yet counted when a run ended: those of the writer's queue."""

_NONE = -1

# Blocks and rows that judge a guessed place, and how far they are looked for.
_JUDGES = 5
_JUDGED_ENTRIES = 256

Verdict = Literal["right", "missed", "uncounted", "entry", "rows", "reference", "twice"]
"""What became of a block.

`right`: its checksum vouches for it. `missed`: a point without rows. `uncounted`: right, but beyond the counter.
`entry`: its journal entry is damaged. `rows`: its rows are not those of its checksum. `reference`: its rows are right,
but the write that they belong to is lost. `twice`: its rows are those of an earlier block, or it does not count and its
point was recorded before.
"""


@dataclass(frozen=True)
class JudgedBlock:
    """One entry of a journal.

    Attributes:
        number: Which entry.
        entry: As it stands in the file; zeros where it cannot be read.
        verdict: What became of its block.
    """

    number: int
    entry: np.void
    verdict: Verdict

    @property
    def start(self) -> int:
        """Its first row."""
        return int(self.entry["start"])

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(self.entry["rows"])

    @property
    def stop(self) -> int:
        """The row after its last."""
        return self.start + self.rows

    @property
    def point(self) -> str:
        """Hash of its point, 32 hex digits."""
        return bytes(self.entry["point"]).hex()


@dataclass(frozen=True)
class JudgedStream:
    """One stream, judged.

    Attributes:
        found: Where its rows are.
        counted: How many rows count; None where the counter cannot be believed.
        checked: False where the stream has no checksums.
        right: For a stream without journal, which rows a checksum vouches for, those beyond the counter included.
        blocks: For a stream with a journal, its blocks; None for one without.
        faults: What is not as it should be, one text each.
        has_journal: False where the journal that there should be cannot be found.
        uncertain: Whether rows may have been written that neither counter nor checksum tells of.
    """

    found: FoundStream
    counted: int | None
    checked: bool
    right: NDArray[np.bool_]
    blocks: tuple[JudgedBlock, ...] | None
    faults: tuple[str, ...]
    has_journal: bool = True
    uncertain: bool = False


def judge_rows(
    finder: StreamFinder,
    wanted: layout.Stream,
    place: int,
    places: int,
    streams: Mapping[str, JudgedStream],
    *,
    ended_well: bool,
) -> JudgedStream:
    """Judges a stream without journal: its rows have a checksum each, or none.

    Args:
        finder: Finds it.
        wanted: What it looks like.
        place: Which of the streams of its kind it is.
        places: How many of its kind there are.
        streams: The streams that it refers to, by path.
        ended_well: Whether the run ended in a way that cuts the datasets to what counts.
    """
    checked = wanted.columns[-1].name == "crc32"

    def judge(rows: Rows) -> int:
        return sum(_row_is_right(wanted, rows, row) for row in range(_JUDGES))

    found = finder.stream(wanted, place, places, judge if checked else None)
    ceiling = min(found.places, max(found.lengths.values(), default=found.places))
    counted = found.committed
    said = f"{wanted.path}: its counter {_words(counted)}"
    faults = list(found.faults)
    if counted is None or not 0 <= counted <= max(found.lengths.values(), default=ceiling):
        faults.append(f"{said}, which cannot be" if counted is not None else said)
        counted = None
    elif checked and _disagrees(found, counted, _last_right_row(wanted, found), ended_well=ended_well):
        faults.append(f"{said}, but more was recorded")
        counted = None
    last = ceiling if counted is None else min(ceiling, counted + MOST_UNCOUNTED)
    if checked:
        # A write whose setting of the axes is lost is not what it was; see `_judged` for blocks.
        right = np.array(
            [
                _row_is_right(wanted, found.rows, row) and _references_are_right(found, row, row + 1, streams)
                for row in range(last)
            ],
            np.bool_,
        )
    else:
        right = np.zeros(0, np.bool_)
    # Without the counter a row counts as never written only where its reserved place is as it was made.
    written = int(np.flatnonzero(right)[-1]) + 1 if right.any() else 0
    uncertain = counted is None and not all(_is_unwritten(found, row) for row in range(written, ceiling))
    return JudgedStream(found, counted, checked, right, None, tuple(faults), uncertain=uncertain)


def judge_blocks(
    finder: StreamFinder,
    wanted: layout.Stream,
    place: int,
    places: int,
    streams: Mapping[str, JudgedStream],
    *,
    ended_well: bool,
) -> JudgedStream:
    """Judges a stream with a journal; arguments as in `judge_rows`."""
    path = journal_path(wanted.path)
    found = finder.stream(wanted, place, places, None)

    def judge_journal(dtype: np.dtype[np.void], entries: StoredRows) -> int:
        return sum(
            vouches(one, found.stream.columns, found.rows) for one in _first_entries(dtype, entries, finder.size)
        )

    journal = finder.journal(path, place, places, judge_journal)
    if journal is None:
        fault = f"{path}: cannot be found, so nothing vouches for any row of {wanted.path}"
        counted = found.committed if found.committed in found.lengths.values() else None
        return JudgedStream(found, counted, True, np.zeros(0, np.bool_), (), (*found.faults, fault), has_journal=False)
    dtype, entries, length, journal_faults = journal
    judges, columns = _first_entries(dtype, entries, finder.size), found.stream.columns

    def judge(rows: Rows) -> int:
        return sum(vouches(one, columns, rows) for one in judges)

    blocks = _judged(found, dtype, entries, length, streams)
    # Places that any block vouches for are the right ones: the blocks that judge a guess may be those that are hurt.
    if judges and not (found.whole and any(one.verdict in ("right", "reference") for one in blocks)):
        found = finder.stream(wanted, place, places, judge)
        blocks = _judged(found, dtype, entries, length, streams)
    counted, faults = _believed(found, blocks, ended_well=ended_well)
    return JudgedStream(
        found,
        counted,
        True,
        np.zeros(0, np.bool_),
        tuple(_against_counter(blocks, counted)),
        (*found.faults, *journal_faults, *faults),
    )


def _row_is_right(wanted: layout.Stream, rows: Rows, row: int) -> bool:
    try:
        crc = 0
        for column in wanted.columns[:-1]:
            if column.name in rows:
                crc = rows[column.name].crc32(row, row + 1, crc)
        return crc == int.from_bytes(b"".join(rows["crc32"].pieces(row, row + 1)), "little")
    except (StructureError, KeyError):
        return False


def _last_right_row(wanted: layout.Stream, found: FoundStream) -> int:
    """How many rows there are when the last that the datasets have was recorded; 0 where it was not."""
    length = max(found.lengths.values(), default=0)
    return length if length and _row_is_right(wanted, found.rows, length - 1) else 0


def _is_unwritten(found: FoundStream, row: int) -> bool:
    try:
        for column in found.stream.columns:
            content = b"".join(found.rows[column.name].pieces(row, row + 1))
            fill = np.full((), column.fill, column.dtype).tobytes()
            if content != fill * (len(content) // len(fill)):
                return False
    except StructureError:
        return False
    return True


def _first_entries(dtype: np.dtype[np.void], entries: StoredRows, most_rows: int) -> list[np.void]:
    """Some entries that can judge a guess, from the whole beginning: places that only begin alike are told apart."""
    table = first_table(dtype, entries, _JUDGED_ENTRIES)
    start, rows = table["start"].astype(np.float64), table["rows"].astype(np.float64)
    # Guesses are many and most are wrong: what cannot be is sorted out at once.
    (possible,) = np.nonzero((start >= 0) & (rows > 0) & (start + rows <= most_rows))
    able = [entry for entry in table[possible] if is_plausible(entry, most_rows)]
    numbers = np.linspace(0, len(able) - 1, min(_JUDGES, len(able))).astype(int)
    return [able[number] for number in numbers.tolist()]


def _judged(
    found: FoundStream,
    dtype: np.dtype[np.void],
    entries: StoredRows,
    length: int | None,
    streams: Mapping[str, JudgedStream],
) -> list[JudgedBlock]:
    blocks, end, most_rows = list[JudgedBlock](), 0, found.most_rows
    for number, entry in entries_of(dtype, entries, length):
        if is_unused(entry):
            continue
        verdict: Verdict = "right"
        if not is_plausible(entry, most_rows):
            verdict = "entry"
        elif not entry["rows"]:
            verdict = "missed"
        elif not vouches(entry, found.stream.columns, found.rows):
            verdict = "rows"
        elif int(entry["start"]) < end:
            verdict = "twice"
        elif not _references_are_right(found, int(entry["start"]), int(entry["start"]) + int(entry["rows"]), streams):
            verdict = "reference"
        if verdict in ("right", "reference"):
            end = int(entry["start"]) + int(entry["rows"])
        blocks.append(JudgedBlock(number, entry, verdict))
    return blocks


def referenced(found: FoundStream, start: int, stop: int) -> dict[str, list[int]]:
    """Which rows of other streams some rows refer to, by the path of that stream.

    Args:
        found: The stream.
        start: The first of its rows.
        stop: The row after the last.
    """
    numbers = dict[str, list[int]]()
    for name, path in references(found, start).items():
        values = np.unique(found.rows[name].read(start, stop, np.dtype("<i4"))).tolist()
        # An MVM has a write; a curve need not have one.
        may_be_absent = name != "write" or found.stream.path == layout.CURVES
        numbers[path] = [one for one in values if one != _NONE or not may_be_absent]
    return numbers


def references(found: FoundStream, start: int) -> dict[str, str]:
    """The columns that name rows of other streams, and the paths of those, for the block that begins with a row."""
    paths = {"write": f"{found.stream.path}/writes", "setting": layout.SETTINGS}
    if found.stream.path == layout.CURVES:
        # A curve is of one cell, so all its rows are of one array.
        array = int(found.rows["array"].read(start, start + 1, np.dtype("<i4"))[0]) if "array" in found.rows else _NONE
        paths["write"] = f"entry/array_{array}/writes"
    return {name: path for name, path in paths.items() if name in found.rows}


def _references_are_right(found: FoundStream, start: int, stop: int, streams: Mapping[str, JudgedStream]) -> bool:
    for path, numbers in referenced(found, start, stop).items():
        right = streams[path].right if path in streams else ()
        if not all(0 <= one < len(right) and right[one] for one in numbers):
            return False
    return True


def _believed(found: FoundStream, blocks: Sequence[JudgedBlock], *, ended_well: bool) -> tuple[int | None, list[str]]:
    """What the counter says, where the journal agrees that it can be."""
    counted = found.committed
    said = f"{found.stream.path}: its counter {_words(counted)}"
    if counted is None or counted < 0:
        return None, [f"{said}, which cannot be" if counted is not None else said]
    vouched = [one for one in blocks if one.verdict in ("right", "reference")]
    borders = {0, *(one.stop for one in blocks if one.verdict in ("right", "reference", "rows"))}
    last = max((one.stop for one in vouched), default=0)
    # Where the last entries are damaged, nothing tells where the last block ended.
    unknown_after = any(one.verdict == "entry" and (not vouched or one.number > vouched[-1].number) for one in blocks)
    if counted not in borders and not (unknown_after and last < counted <= found.most_rows):
        return None, [f"{said}, but no block ends there"]
    beyond = sum(one.stop > counted for one in vouched)
    if beyond > MOST_UNCOUNTED or _disagrees(found, counted, last, ended_well=ended_well):
        return None, [f"{said}, but more was recorded"]
    return counted, []


def _words(counter: int | None) -> str:
    return "cannot be read" if counter is None else f"says {counter}"


def _disagrees(found: FoundStream, counted: int, last: int, *, ended_well: bool) -> bool:
    """Whether the counter of a run that was closed, and so cut to what counts, is not what it was cut to.

    Args:
        found: The stream.
        counted: What its counter says.
        last: The row after the last that a checksum vouches for.
        ended_well: Whether it was closed. Its datasets may have their reserved length even then: a kill can come
            between.
    """
    lengths = set(found.lengths.values())
    return ended_well and len(lengths) == 1 and counted < last and last in lengths


def _against_counter(blocks: Sequence[JudgedBlock], counted: int | None) -> list[JudgedBlock]:
    """Sets apart what is right and does not count; of it nothing is taken whose point is there already."""
    judged, points = list[JudgedBlock](), set[str]()
    for block in blocks:
        verdict = block.verdict
        if counted is not None and (
            (verdict == "right" and block.stop > counted) or (verdict == "missed" and block.start > counted)
        ):
            verdict = "uncounted"
        if verdict in ("right", "uncounted") and block.point in points and (counted is None or verdict == "uncounted"):
            verdict = "twice"
        if verdict in ("right", "uncounted", "missed"):
            points.add(block.point)
        judged.append(replace(block, verdict=verdict))
    return judged


def possible_rows(stream: JudgedStream) -> tuple[int, ...]:
    """Committed rows of a stream without checksums whose values are possible: none is a fill value, time goes on."""
    found, kept, latest = stream.found, list[int](), -np.inf
    for row in range(min(stream.counted or 0, found.places)):
        try:
            values = {
                one.name: found.rows[one.name].read(row, row + 1, np.dtype(one.dtype)) for one in found.stream.columns
            }
        except StructureError:
            continue
        filled = any(
            np.array_equal(
                values[one.name][0], np.array(one.fill, one.dtype), equal_nan=np.dtype(one.dtype).kind == "f"
            )
            for one in found.stream.columns
        )
        time_s = float(values["time_s"][0]) if "time_s" in values else latest
        if not filled and time_s >= latest and all(np.isfinite(one).all() for one in values.values()):
            kept.append(row)
            latest = time_s
    return tuple(kept)
