"""What a recording holds, in numbers: the facts that `labrig show` prints and puts on its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from labrig.durations import duration_text
from labrig.recording import Recording, RecordingSummary
from labrig.recording.contents import Contents, Stream
from labrig_calibration.stimulus import StimulusKind
from labrig_drivers.wording import counted


@dataclass(frozen=True)
class StreamFacts:
    """One stream.

    Attributes:
        name: Its path below the entry.
        rows: Committed rows.
        stored_bytes: Their size before any compression.
        columns: Each column with its unit and size.
    """

    name: str
    rows: int
    stored_bytes: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class ArrayFacts:
    """The MVMs of one array.

    Attributes:
        array: Which array.
        mvms: How many.
        writes: Programmings.
        kinds: MVMs by what their vector was for.
        saturated: Share of the outputs at an end of the converter, 0 to 1; None without outputs.
        clock_s: Board clock in s at the first and at the last MVM; None without any.
        backwards: How often the board clock went back from one MVM to the next.
    """

    array: int
    mvms: int
    writes: int
    kinds: Mapping[str, int]
    saturated: float | None
    clock_s: tuple[float, float] | None
    backwards: int

    @property
    def saturated_text(self) -> str:
        """Share of saturated outputs."""
        return "-" if self.saturated is None else f"{100.0 * self.saturated:.2f} %"

    @property
    def clock_text(self) -> str:
        """What the board clock said."""
        if self.clock_s is None:
            return "-"
        first_s, last_s = self.clock_s
        back = f"; went back {self.backwards} times" if self.backwards else ""
        return f"{first_s:.6g} s to {last_s:.6g} s ({duration_text(last_s - first_s)}){back}"

    @property
    def kinds_text(self) -> str:
        """MVMs of each kind, the most frequent first."""
        ordered = sorted(self.kinds.items(), key=lambda pair: -pair[1])
        return ", ".join(f"{name} {count}" for name, count in ordered) or "-"


@dataclass(frozen=True)
class Overview:
    """A whole recording.

    Attributes:
        summary: Status, chip, rig, times, counts.
        plan: The plan and its options.
        identities: Who each instrument said it is.
        versions: What wrote the file.
        git_commit: The checkout that ran; empty where it is not known.
        file_bytes: Size of the file.
        compacted: When and by what a compact copy was made, and the hash of its content; empty for a recording.
        lasted_s: From start to end, in s; None where the writer died.
        streams: Every stream.
        arrays: Every array.
    """

    summary: RecordingSummary
    plan: Mapping[str, object]
    identities: Mapping[str, str]
    versions: Mapping[str, str]
    git_commit: str
    file_bytes: int
    compacted: str
    lasted_s: float | None
    streams: tuple[StreamFacts, ...]
    arrays: tuple[ArrayFacts, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The facts about the whole, as name and text."""
        one = self.summary
        rows = [
            ("status", one.status),
            ("rig", one.rig_name),
            ("chip", one.chip_id),
            ("plan", ", ".join(f"{key} {value}" for key, value in self.plan.items() if value is not None)),
            *self.identities.items(),
            ("run", one.run_id or "without an identity"),
            ("started", one.started_utc),
            ("ended", one.ended_utc or ("not yet" if one.status == "running" else "not noted, the writer died")),
        ]
        if self.lasted_s is not None:
            rows.append(("lasted", duration_text(self.lasted_s)))
        rows += [
            (f"array {one.array}", f"{counted(one.mvms, 'MVM')}, {counted(one.writes, 'write')}") for one in self.arrays
        ]
        if one.supply_readings:
            rows.append(("array supply", f"{counted(one.supply_readings, 'reading')}, {one.energy_j:.3g} J"))
        rows.append(("size", f"{size(self.file_bytes)}; {size(sum(one.stored_bytes for one in self.streams))} of rows"))
        if self.compacted:
            rows.append(("compact copy", self.compacted))
        rows.append(("versions", ", ".join(f"{name} {one}" for name, one in self.versions.items())))
        rows.append(("commit", self.git_commit or "not known"))
        return rows


def overview(recording: Recording, contents: Contents) -> Overview:
    """Reads the facts; of the rows only kinds, saturation and times, some at a time.

    Raises:
        StorageError: The file cannot be read.
    """
    header, summary = recording.header, recording.summary()
    there = {one.name: one for one in contents.streams()}
    return Overview(
        summary=summary,
        plan=header.plan,
        identities={name: str(identity) for name, identity in header.identities.items()},
        versions=header.versions,
        git_commit=header.git_commit,
        file_bytes=recording.path.stat().st_size,
        compacted=_compacted(contents.texts()),
        lasted_s=_between(summary.started_utc, summary.ended_utc),
        streams=tuple(_stream_facts(one) for one in there.values()),
        arrays=tuple(_array_facts(array, there[f"array_{array}"], summary) for array in recording.arrays),
    )


def kind_name(kind: int) -> str:
    """What a vector was for, in a word; a plan of one's own has numbers of its own."""
    return StimulusKind(kind).name.lower().replace("_", " ") if kind in set(StimulusKind) else f"kind {kind}"


def size(count: int) -> str:
    """Bytes, readable."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _stream_facts(stream: Stream) -> StreamFacts:
    columns = []
    for one in stream.columns:
        times = " × " + " × ".join(map(str, one.shape)) if one.shape else ""
        columns.append(f"{one.name}{f' [{one.units}]' if one.units else ''}{times}")
    row_bytes = sum(one.row_bytes for one in stream.columns)
    return StreamFacts(stream.name, stream.rows, stream.rows * row_bytes, tuple(columns))


def _array_facts(array: int, stream: Stream, summary: RecordingSummary) -> ArrayFacts:
    counts = np.zeros(256, dtype=np.int64)
    saturated = outputs = backwards = 0
    first_s = last_s = None
    for block in stream.blocks(["kind", "saturated", "time_s"]):
        counts += np.bincount(block["kind"].astype(np.int64) + 128, minlength=256)
        saturated += int(np.count_nonzero(block["saturated"]))
        outputs += block["saturated"].size
        time_s = block["time_s"].astype(np.float64)
        backwards += int((np.diff(time_s, prepend=time_s[0] if last_s is None else last_s) < 0.0).sum())
        first_s, last_s = float(time_s[0]) if first_s is None else first_s, float(time_s[-1])
    return ArrayFacts(
        array=array,
        mvms=stream.rows,
        writes=summary.writes[array],
        kinds={kind_name(int(kind) - 128): int(counts[kind]) for kind in np.flatnonzero(counts)},
        saturated=saturated / outputs if outputs else None,
        clock_s=None if first_s is None or last_s is None else (first_s, last_s),
        backwards=backwards,
    )


def _compacted(texts: Mapping[str, str]) -> str:
    if "content_sha256" not in texts:
        return ""
    return f"made {texts.get('compacted_utc', '')} by {texts.get('compacted_by', '')}, sha256 {texts['content_sha256']}"


def _between(started_utc: str, ended_utc: str) -> float | None:
    try:
        return (datetime.fromisoformat(ended_utc) - datetime.fromisoformat(started_utc)).total_seconds()
    except (ValueError, TypeError):
        return None
