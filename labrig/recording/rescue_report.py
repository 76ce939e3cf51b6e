"""What is in a damaged recording, what of it was rescued, and what has to be measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from labrig.recording.inspection import Inspection
from labrig.recording.judging import JudgedBlock, JudgedStream, possible_rows, referenced


@dataclass(frozen=True)
class StreamReport:
    """One stream of a damaged recording.

    Attributes:
        path: The stream.
        committed: Rows that count, by the file's counter; None where it cannot be believed.
        vouched: Rows that a checksum vouches for, the uncounted included.
        rescued: Rows that a rescue takes.
        lost: Committed rows that it does not take; None where nobody can know.
        uncounted: Rows that a checksum vouches for and the counter does not count.
        reasons: Why rows are lost, and how many of each.
        again: Points that have to be measured again, as far as they are known, 32 hex digits each.
        unnamed: Entries of the journal that are damaged, so that their points are not known.
        checked: Whether the stream has checksums.
    """

    path: str
    committed: int | None
    vouched: int
    rescued: int
    lost: int | None
    uncounted: int
    reasons: dict[str, int]
    again: tuple[str, ...] = ()
    unnamed: int = 0
    checked: bool = True


@dataclass(frozen=True)
class Selection:
    """What a rescue takes of one stream.

    Attributes:
        rows: Numbers of single rows, for a stream without journal.
        blocks: Blocks, for one with a journal.
    """

    rows: tuple[int, ...] = ()
    blocks: tuple[JudgedBlock, ...] = ()

    @property
    def count(self) -> int:
        """How many rows that is."""
        return len(self.rows) + sum(one.rows for one in self.blocks)


@dataclass(frozen=True)
class RescueReport:
    """What is in a recording and what became of it.

    Attributes:
        file: The file.
        size_bytes: Its size.
        sha256: Its checksum; empty where nothing was written.
        status: How the run ended, as the file says.
        faults: What is not as it should be.
        streams: Each stream.
        output: The new recording; None where none was written.
    """

    file: Path
    size_bytes: int
    sha256: str
    status: str
    faults: tuple[str, ...]
    streams: tuple[StreamReport, ...]
    output: Path | None = None

    @property
    def needs_nothing(self) -> bool:
        """Whether the file is as good as a rescue of it would be."""
        return not self.faults and self.loses_nothing

    @property
    def loses_nothing(self) -> bool:
        """Whether every committed row is rescued."""
        return all(one.lost == 0 for one in self.streams)

    @property
    def rescues_nothing(self) -> bool:
        """Whether there is no row to rescue."""
        return not any(one.rescued for one in self.streams)

    @property
    def exit_code(self) -> int:
        """0: nothing is lost; 1: rows are lost; 2: nothing can be rescued."""
        if self.loses_nothing:
            return 0
        return 2 if self.rescues_nothing else 1

    def as_json(self) -> dict[str, object]:
        """The same as JSON can hold it."""
        content = asdict(self)
        content |= {"file": str(self.file), "output": None if self.output is None else str(self.output)}
        return content | {"needs_nothing": self.needs_nothing, "exit_code": self.exit_code}


_MOST_ALONE = 3
_REASONS = {
    "entry": "journal entry damaged",
    "rows": "checksum differs",
    "reference": "their write or setting is lost",
    "twice": "recorded already",
}


def select(inspection: Inspection, *, beyond_committed: bool, unchecked: bool) -> dict[str, Selection]:
    """What a rescue takes, by stream.

    Args:
        inspection: The damaged file.
        beyond_committed: Also rows that a checksum vouches for and the counter does not count.
        unchecked: Also rows of streams that have no checksums, where their values are possible.
    """
    chosen = dict[str, Selection]()
    needed = dict[str, set[int]]()
    wanted = ("right", "missed", "uncounted") if beyond_committed else ("right", "missed")
    for path, stream in inspection.streams.items():
        if stream.blocks is None:
            continue
        blocks = tuple(one for one in stream.blocks if one.verdict in wanted)
        chosen[path] = Selection(blocks=blocks)
        for block in blocks:
            _note(needed, stream, block.start, block.stop)
    # Writes before the settings that they refer to.
    for path, stream in reversed(list(inspection.streams.items())):
        if stream.blocks is not None:
            continue
        if not stream.checked:
            chosen[path] = Selection(rows=possible_rows(stream) if unchecked else ())
            continue
        right = set(np.flatnonzero(stream.right).tolist())
        counted = (
            right if stream.counted is None or beyond_committed else {one for one in right if one < stream.counted}
        )
        # Rows are recorded only after what they refer to counts: where they count, so does that.
        chosen[path] = Selection(rows=tuple(sorted(counted | (right & needed.get(path, set())))))
        for row in chosen[path].rows:
            _note(needed, stream, row, row + 1)
    return chosen


def _note(needed: dict[str, set[int]], stream: JudgedStream, start: int, stop: int) -> None:
    """Adds what some rows refer to."""
    for path, numbers in referenced(stream.found, start, stop).items() if start < stop else ():
        needed.setdefault(path, set()).update(numbers)


def report_of(stream: JudgedStream, selection: Selection, *, damaged: bool) -> StreamReport:
    """What is in a stream, and what a selection takes of it.

    Args:
        stream: The stream.
        selection: What is taken.
        damaged: Whether the file is known to be damaged; otherwise rows without checksums are taken for right.
    """
    path = stream.found.stream.path
    if not stream.checked and not damaged and stream.counted is not None and stream.counted <= stream.found.places:
        return StreamReport(path, stream.counted, 0, stream.counted, 0, 0, {}, checked=False)
    if stream.blocks is None:
        return _report_of_rows(stream, selection, path)
    taken = {one.number for one in selection.blocks}
    left = [one for one in stream.blocks if one.number not in taken]
    counted = stream.counted
    within = selection.count if counted is None else sum(one.rows for one in selection.blocks if one.stop <= counted)
    lost = _lost_of_blocks(stream, left) if counted is None else counted - within
    reasons = dict[str, int]()
    missing = [one for one in left if one.verdict in _REASONS and one.verdict != "twice"]
    if lost != 0:
        for one in missing:
            # Of a damaged entry nobody knows how many rows it had.
            reasons[_REASONS[one.verdict]] = reasons.get(_REASONS[one.verdict], 0) + (
                one.rows if one.verdict != "entry" else 0
            )
        if not stream.has_journal or not stream.found.whole:
            reasons = {"their journal is lost" if stream.found.whole else "their place is lost": lost or 0}
    again = [one.point for one in left if one.verdict in ("rows", "reference", "uncounted")]
    return StreamReport(
        path=path,
        committed=counted,
        vouched=sum(one.rows for one in stream.blocks if one.verdict in ("right", "uncounted", "reference")),
        rescued=selection.count,
        lost=lost,
        uncounted=sum(one.rows for one in stream.blocks if one.verdict == "uncounted"),
        reasons=reasons,
        again=tuple(again),
        unnamed=sum(one.verdict == "entry" for one in missing) if lost != 0 else 0,
    )


def _lost_of_blocks(stream: JudgedStream, left: list[JudgedBlock]) -> int | None:
    """Rows that were lost, where the counter is too; None where a damaged entry hides how many."""
    if any(one.verdict == "entry" for one in left) or not stream.found.whole or not stream.has_journal:
        return None
    return sum(one.rows for one in left if one.verdict in ("rows", "reference"))


def _report_of_rows(stream: JudgedStream, selection: Selection, path: str) -> StreamReport:
    counted, right = stream.counted, stream.right
    reasons = dict[str, int]()
    if counted is not None:
        lost: int | None = counted - sum(one < counted for one in selection.rows)
    elif not stream.checked or not stream.found.whole or stream.uncertain:
        lost = None
    else:
        last = max(np.flatnonzero(right).tolist(), default=-1)
        lost = int((~right[: last + 1]).sum())
    if lost != 0:
        what = "checksum differs" if stream.checked else "no checksum"
        reasons[what if stream.found.whole else "their place is lost"] = lost or 0
    return StreamReport(
        path=path,
        committed=counted,
        vouched=int(right.sum()),
        rescued=selection.count,
        lost=lost,
        uncounted=0 if counted is None else int(right[counted:].sum()),
        reasons=reasons,
        checked=stream.checked,
    )


def grouped(faults: Sequence[str]) -> list[str]:
    """Faults for people: those that differ only in where they are become one line."""
    places = dict[str, list[str]]()
    for fault in faults:
        where, _, what = fault.partition(": ")
        places.setdefault(what or where, []).append(where)
    lines = list[str]()
    for what, named in places.items():
        if len(named) <= _MOST_ALONE or what == named[0]:
            lines += [what if what == one else f"{one}: {what}" for one in named]
        else:
            lines.append(f"{what}: {named[0]}, {named[1]} and {len(named) - 2} more")
    return lines
