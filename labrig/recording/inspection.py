"""Judges every row of a recording by its checksums, whatever state the file is in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labrig import file_locks
from labrig.plans.base import StreamCapacity
from labrig.recording import layout
from labrig.recording.damaged_file import DamagedFile, text_of
from labrig.recording.file_bytes import FileBytes
from labrig.recording.found_streams import StreamFinder
from labrig.recording.header import RecordingHeader, board_info_from_json
from labrig.recording.judging import JudgedStream, judge_blocks, judge_rows
from labrig.recording.whole_files import no_file
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError
from labrig_drivers.instrument import Identity

ROOT_TEXTS = (
    "file_format",
    "format_version",
    "versions",
    "git_commit",
    "rig_name",
    "rig_toml",
    "plan",
    "board_info",
    "chip_id",
    "identities",
    "settings",
    "started_utc",
)
"""Texts of the root that every recording has."""
_AXES_TEXT = "axes"
_RUN_ID_TEXT = "run_id"
LATER_TEXTS = {_AXES_TEXT: 1, _RUN_ID_TEXT: 2}
"""Texts of the root that it has beside them from a minor version on."""

_ANY_CAPACITY = StreamCapacity(rows=0, writes=0, blocks=0)
_MOST_LINES = 1 << 16
# How columns that every array has, and one of curves, say what they are.
_OF_EACH_ARRAY = ("commanded word line voltage", "raw ADC code")
_OF_CURVES = "which curve of the plan"
_ENDED = frozenset({"finished", "stopped", "aborted", "recovered"})


@dataclass(frozen=True)
class Inspection:
    """All that a file says of the recording in it.

    Attributes:
        header: What was known before the run; what is lost of it is empty.
        info: The board.
        texts: Every text of the root that is left.
        status: How the run ended, as the file says; empty where that is lost.
        ended_utc: When it ended; empty where that is lost, or the writer died.
        arrays: The arrays that it was made for.
        shape: Which streams and columns it has.
        streams: All streams, by path.
        reported_settings: What each instrument said of its settings, as the JSON of an object.
        faults: What is not as it should be with the file as a whole.
    """

    header: RecordingHeader
    info: BoardInfo
    texts: Mapping[str, str]
    status: str
    ended_utc: str
    arrays: tuple[int, ...]
    shape: RecordedShape
    streams: Mapping[str, JudgedStream]
    reported_settings: Mapping[str, str]
    faults: tuple[str, ...]

    @property
    def all_faults(self) -> tuple[str, ...]:
        """What is not as it should be, of the file and of every stream, each once."""
        return tuple(dict.fromkeys((*self.faults, *(one for stream in self.streams.values() for one in stream.faults))))


@dataclass(frozen=True)
class StreamKind:
    """Streams that look alike.

    Attributes:
        streams: Their layout, in the order of arrays.
        journalled: Whether a journal tells their blocks apart.
    """

    streams: tuple[layout.Stream, ...]
    journalled: bool


@dataclass(frozen=True)
class RecordedShape:
    """Which of the streams and columns that a recording may have it has.

    Attributes:
        minor: Minor version of its format.
        axis_units: Unit of each axis that the run moves, by its name.
        curves: Whether the run takes curves.
    """

    minor: int
    axis_units: Mapping[str, str]
    curves: bool


def texts_of(minor: int) -> tuple[str, ...]:
    """The texts of the root that a recording of a minor version has."""
    return (*ROOT_TEXTS, *(name for name, since in LATER_TEXTS.items() if minor >= since))


def kinds_of_streams(arrays: Sequence[int], info: BoardInfo, shape: RecordedShape) -> tuple[StreamKind, ...]:
    """Every stream of a recording, each after those that it refers to."""
    moves, newer = bool(shape.axis_units), shape.minor > 0
    writes = tuple(layout.write_stream(array, info, _ANY_CAPACITY, moves_axes=moves, counted=newer) for array in arrays)
    mvms = tuple(layout.mvm_stream(array, info, _ANY_CAPACITY, moves_axes=moves) for array in arrays)
    kinds = list[StreamKind]()
    if moves:
        kinds.append(StreamKind((layout.settings_stream(0, shape.axis_units),), journalled=False))
    kinds.append(StreamKind(writes, journalled=False))
    kinds.append(StreamKind((layout.supply_stream(0, checked=newer),), journalled=False))
    kinds.append(StreamKind(mvms, journalled=True))
    if shape.curves:
        kinds.append(StreamKind((layout.curve_stream(0, moves_axes=moves),), journalled=True))
    return tuple(kinds)


def open_unwritten(path: Path) -> FileBytes:
    """Opens a file to read its bytes.

    Raises:
        StorageError: There is no such file, it cannot be opened, or it is being written.
    """
    if (absent := no_file(path)) is not None:
        raise StorageError(absent)
    file_locks.demand_posix(f"{path}: cannot be looked into here")
    try:
        source = FileBytes(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        # Whoever writes a recording through HDF5 holds this lock.
        file_locks.lock(source.fileno(), shared=True)
    except BlockingIOError as error:
        source.close()
        raise StorageError(f"{path}: is being written; wait until that has ended") from error
    except OSError:
        # File systems without locks: nothing can be said.
        pass
    return source


class Inspector:
    """Judges one file.

    Args:
        source: The file.
        name: Its name, for messages.

    Attributes:
        damaged: What is left of its structure.
    """

    def __init__(self, source: FileBytes, name: str) -> None:
        self._source = source
        self._name = name
        self.damaged = DamagedFile(source)
        self._finder = StreamFinder(source, self.damaged)
        self._faults = list[str]()

    def inspect(self) -> Inspection:
        """Judges everything.

        Raises:
            StorageError: Nothing can be known of the file: it is no recording, or what says of which board is gone.
        """
        texts = self._texts()
        header, info = self._header(texts)
        arrays = self._arrays(header, info)
        shape = self._shape(texts)
        status, ended_utc = (self._fixed_text(name) for name in ("status", "end_time"))
        streams = dict[str, JudgedStream]()
        ended_well = status in _ENDED
        for kind in kinds_of_streams(arrays, info, shape):
            for place, stream in enumerate(kind.streams):
                judge = judge_blocks if kind.journalled else judge_rows
                streams[stream.path] = judge(
                    self._finder, stream, place, len(kind.streams), streams, ended_well=ended_well
                )
        self._demand_known_format(texts, streams)
        reported = self._reported_settings(header)
        faults = (*self._faults, *self.damaged.faults)
        return Inspection(header, info, texts, status, ended_utc, arrays, shape, streams, reported, faults)

    def _texts(self) -> dict[str, str]:
        wanted = texts_of(_minor(text_of(self.damaged.attributes, "format_version") or ""))
        if any(text_of(self.damaged.attributes, name) is None for name in wanted):
            self.damaged.find_attributes(wanted)
        texts = {name: text_of(self.damaged.attributes, name) for name in self.damaged.attributes}
        known = {name: text for name, text in texts.items() if text is not None}
        if known.keys() & set(ROOT_TEXTS):
            return known
        if self.damaged.datasets:
            raise StorageError(f"{self._name}: is an HDF5 file, but no labrig recording")
        if not self._source.size:
            what = "is empty"
        elif not self.damaged.front.strip(b"\0"):
            what = "begins with zeros only"
        else:
            what = "has no description of a recording in it"
        raise StorageError(
            f"{self._name}: {what}. If it was a recording, nothing can be known of the rest: what was measured, on "
            "which chip and where its rows are stands at the beginning, which an earlier or interrupted copy of it has"
        )

    def _header(self, texts: Mapping[str, str]) -> tuple[RecordingHeader, BoardInfo]:
        info = _board(texts.get("board_info", ""))
        if info is None:
            raise StorageError(
                f"{self._name}: the description of the board is lost, and with it of which chip the rows are and what "
                "they mean; nothing can be rescued from this copy"
            )
        wanted = texts_of(_minor(texts.get("format_version", "")))
        # Of the axes it is said below, with what else is known of them.
        lost = [name for name in wanted if name not in texts and name != _AXES_TEXT]
        if texts.get("file_format", layout.FILE_FORMAT) != layout.FILE_FORMAT:
            lost.append("file_format")
        if texts.get("chip_id", info.chip_id) != info.chip_id:
            lost.append("chip_id")
        decoded = {name: _object(texts.get(name, "")) for name in ("plan", "identities", "settings", "versions")}
        lost += [name for name, one in decoded.items() if one is None and name not in lost]
        identities = dict[str, Identity]()
        try:
            for name, one in (decoded["identities"] or {}).items():
                identities[name] = Identity(**one)  # type: ignore[arg-type]
        except TypeError:
            lost.append("identities")
        self._faults += [f"root: attribute {name} is lost or damaged" for name in lost]
        settings = {name: one for name, one in (decoded["settings"] or {}).items() if isinstance(one, dict)}
        header = RecordingHeader(
            rig_name=texts.get("rig_name", ""),
            rig_toml=texts.get("rig_toml", ""),
            plan=decoded["plan"] or {},
            identities=identities,
            settings=settings,
            started_utc=texts.get("started_utc", ""),
            versions={name: str(one) for name, one in (decoded["versions"] or {}).items()},
            git_commit=texts.get("git_commit", ""),
            run_id=texts.get(_RUN_ID_TEXT, ""),
        )
        return header, info

    def _arrays(self, header: RecordingHeader, info: BoardInfo) -> tuple[int, ...]:
        """The arrays of the file; a group that lost its name is given back what it must have been called."""
        names = [
            path.removeprefix("entry/array_") for path in self.damaged.addresses if path.startswith("entry/array_")
        ]
        named = {int(name) for name in names if name.isdecimal()}
        planned = header.plan.get("arrays")
        numbers = planned if isinstance(planned, list) else range(info.arrays)
        if self.damaged.faults and len(named) < max(self._described(meaning) for meaning in _OF_EACH_ARRAY):
            # Where names were lost the plan knows them.
            named |= {one for one in numbers if isinstance(one, int) and 0 <= one < info.arrays}
        arrays = tuple(sorted(named))
        self._adopt([f"entry/array_{one}" for one in arrays], "voltage_v", "current_code")
        self._adopt([f"entry/array_{one}/writes" for one in arrays], "programmed_at_s")
        self._adopt(["entry/supply"], "in_compliance")
        self._adopt(["entry/journal"], *(f"array_{one}" for one in arrays))
        return arrays

    def _shape(self, texts: Mapping[str, str]) -> RecordedShape:
        minor = _minor(texts.get("format_version", ""))
        axes = _object(texts.get(_AXES_TEXT, "{}"))
        if minor and (axes is None or _AXES_TEXT not in texts):
            self._faults.append(f"root: attribute {_AXES_TEXT} is lost or damaged")
        names = self.damaged.addresses
        # Which axes there are the names of the columns say too.
        prefix = f"{layout.SETTINGS}/"
        found = [name.removeprefix(prefix).removesuffix("_set") for name in names if name.startswith(prefix)]
        units = {name: str(unit) for name, unit in (axes or {}).items()}
        if not units:
            units = {name: "" for name in found if f"{prefix}{name}_set" in names}
        self._adopt([layout.SETTINGS] if units else [], *(f"{name}_set" for name in units))
        if self._described(_OF_CURVES):
            self._adopt([layout.CURVES], "level_v")
        curves = layout.CURVES in names or any(name.startswith(f"{layout.CURVES}/") for name in names)
        curves = curves or self._described(_OF_CURVES) > 0
        return RecordedShape(minor, units, curves)

    def _described(self, meaning: str) -> int:
        """How many datasets of a damaged file say that they are this, whatever they are called."""
        datasets = self.damaged.all_datasets.values() if self.damaged.faults else ()
        return sum(one.attributes.get("long_name") == meaning for one in datasets)

    def _adopt(self, paths: Sequence[str], *traces: str) -> None:
        lost = [path for path in paths if path not in self.damaged.groups]
        if not lost:
            return
        alike = [one for one in self.damaged.unnamed_groups if set(traces) <= one.children.keys()]
        if len(alike) == len(lost):
            for path, group in zip(lost, alike, strict=True):
                self._faults.append(f"{path}: was found without the path to it")
                self.damaged.adopt(path, group)

    def _reported_settings(self, header: RecordingHeader) -> dict[str, str]:
        found = dict[str, str]()
        for name in header.identities:
            path = f"entry/instruments/{name}/{layout.REPORTED_SETTINGS}"
            content = self._finder.scalar(path, layout.SETTINGS_TEXT_BYTES) or b""
            text = content.split(b"\0")[0].decode(errors="replace")
            if text and _object(text) is None:
                self._faults.append(f"{path}: is damaged")
            elif text:
                found[name] = text
        return found

    def _fixed_text(self, name: str) -> str:
        content = self._finder.scalar(f"entry/{name}", layout.TEXT_BYTES)
        try:
            text = (content or b"").split(b"\0")[0].decode("ascii")
        except UnicodeDecodeError:
            text = "\0"
        if content is None or not text.isprintable():
            self._faults.append(f"entry/{name}: is lost")
            return ""
        return text

    def _demand_known_format(self, texts: Mapping[str, str], streams: Mapping[str, JudgedStream]) -> None:
        version = texts.get("format_version", "")
        if not version or version.partition(".")[0] == str(layout.FORMAT_MAJOR):
            return
        self._faults.append(f"root: format version {version!r} is none that this labrig knows")
        if not any(
            one.right.any() or any(block.verdict == "right" for block in one.blocks or ()) for one in streams.values()
        ):
            raise StorageError(
                f"{self._name}: has format version {version!r}, this labrig knows {layout.FORMAT_MAJOR}.x; "
                "use the labrig that wrote it, or update"
            )


def _minor(format_version: str) -> int:
    """A minor version; the newest where it is lost."""
    minor = format_version.partition(".")[2]
    return int(minor) if minor.isdecimal() and len(minor) < 4 else max(LATER_TEXTS.values())


def _board(text: str) -> BoardInfo | None:
    """The board that a text describes; None where it describes none that can be."""
    try:
        info = board_info_from_json(text)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    lines = (info.arrays, info.rows, info.columns)
    return info if all(isinstance(one, int) and 0 < one <= _MOST_LINES for one in lines) else None


def _object(text: str) -> dict[str, object] | None:
    """The object that a text describes; None where it describes none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
