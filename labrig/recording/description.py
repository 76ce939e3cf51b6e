"""What the texts of a recording say, read once when it is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]

from labrig.recording import layout
from labrig.recording.header import RecordingHeader, board_info_from_json
from labrig.recording.nodes import group_at, text_attribute
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError
from labrig_drivers.instrument import Identity

_OWN_GROUPS = frozenset({"instruments", "journal", "settings", "curves", "supply"})


class ForeignFileError(StorageError):
    """The file says that it is something else than this labrig can read."""


@dataclass(frozen=True)
class Description:
    """What a recording says about itself.

    Attributes:
        format_version: Version of its layout, as `1.0`.
        header: What was known before the run.
        info: The board that was measured.
        arrays: The arrays that it was made for.
        axis_units: Unit of each axis that its plan moves, by name, in the order of the columns.
    """

    format_version: str
    header: RecordingHeader
    info: BoardInfo
    arrays: tuple[int, ...]
    axis_units: Mapping[str, str]


def describe(path: Path, file: h5py.File) -> Description:
    """Reads the texts.

    Args:
        path: The file, for messages.
        file: The same, open.

    Raises:
        StorageError: It is no labrig recording, or comes from a newer labrig.
        KeyError: Something is missing; other errors where it is not what it should be.
    """
    version = _format_version(path, file)
    demand_self_contained(path, file)
    names = [str(name) for name in group_at(file, "entry")]
    return Description(
        format_version=version,
        header=RecordingHeader(
            rig_name=text_attribute(file, "rig_name"),
            rig_toml=text_attribute(file, "rig_toml"),
            plan=json.loads(text_attribute(file, "plan")),
            identities={name: Identity(**one) for name, one in json.loads(text_attribute(file, "identities")).items()},
            settings=json.loads(text_attribute(file, "settings")),
            started_utc=text_attribute(file, "started_utc"),
            versions=json.loads(text_attribute(file, "versions")),
            git_commit=text_attribute(file, "git_commit"),
            run_id=run_id_of(file),
        ),
        info=board_info_from_json(text_attribute(file, "board_info")),
        arrays=tuple(sorted(int(name.removeprefix("array_")) for name in names if name.startswith("array_"))),
        # Format 1.0 has no axes.
        axis_units=json.loads(text_attribute(file, "axes")) if "axes" in file.attrs else {},
    )


def run_id_of(file: h5py.File) -> str:
    """The identity of the run; empty in files of before format 1.2, which have none."""
    return text_attribute(file, "run_id") if "run_id" in file.attrs else ""


def demand_self_contained(path: Path, file: h5py.File) -> None:
    """Refuses a file that has HDF5 read other files in its place: what is opened then is not what was sent.

    A link in a group that somebody added is kept as a link and never followed; values are copied, wherever they are.

    Args:
        path: The file, for messages.
        file: The same, open.

    Raises:
        ForeignFileError: A link in labrig's own groups leads to another file, or the values of a dataset lie in one.
    """
    elsewhere: list[str] = []

    def note_link(name: bytes, info: h5l.LinkInfo) -> None:
        place = name.decode(errors="replace")
        if info.type == h5l.TYPE_EXTERNAL and not _is_added(place):
            elsewhere.append(place)

    def note_values(name: bytes) -> None:
        node = h5o.open(file.id, name)
        if isinstance(node, h5py.h5d.DatasetID) and node.get_create_plist().get_external_count():
            elsewhere.append(name.decode(errors="replace"))

    file.id.links.visit(note_link, info=True)
    h5o.visit(file.id, note_values)
    if elsewhere:
        raise ForeignFileError(f"{path}: {', '.join(elsewhere)} would be read from other files; no recording is so")


def _is_added(place: str) -> bool:
    """Whether a place lies in a group below the entry that labrig does not make."""
    entry, *below = place.split("/")
    own = len(below) < 2 or below[0] in _OWN_GROUPS or below[0].startswith("array_")
    return entry == "entry" and not own


def _format_version(path: Path, file: h5py.File) -> str:
    if "file_format" not in file.attrs:
        raise StorageError(f"{path}: is an HDF5 file, but does not say that it is a labrig recording")
    if (file_format := text_attribute(file, "file_format")) != layout.FILE_FORMAT:
        raise ForeignFileError(f"{path}: is an HDF5 file, but no labrig recording (file_format is {file_format!r})")
    version = text_attribute(file, "format_version")
    if version.partition(".")[0] != str(layout.FORMAT_MAJOR):
        raise ForeignFileError(
            f"{path}: has format version {version!r}, this labrig reads {layout.FORMAT_MAJOR}.x; "
            "read it with the labrig that wrote it, or update"
        )
    return version
