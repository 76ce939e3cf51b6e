"""The committed rows of a stream that is not of one array: the supply, settings of axes, curves. Each is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from labrig.recording import layout, streams
from labrig.recording.array_rows import damaged
from labrig.recording.journal import JOURNAL_DTYPE, journal_path
from labrig.recording.opening import believed
from labrig.recording.source import RowSource
from labrig.recording.streams import Columns, Entries


class OtherRows:
    """Reads one such stream.

    Every method raises `StorageError` where committed rows are not those that were written.

    Args:
        path: The file, for messages.
        source: Where rows come from.
        stream: Which stream.
        what: What messages call one row.

    Attributes:
        stream: The stream.
        count: How many rows count; whoever reads the counters sets it.
    """

    def __init__(self, path: Path, source: RowSource, stream: layout.Stream, what: str) -> None:
        self.stream = stream
        self.count = 0
        self._path = path
        self._source = source
        self._what = what
        self._checked = 0
        self._journal = streams.JournalReader(journal_path(stream.path)) if stream.path == layout.CURVES else None

    def entries(self) -> Entries:
        """The journal's entries of the committed blocks; none where the stream has no journal."""
        if self._journal is None:
            return np.empty(0, JOURNAL_DTYPE)
        with believed(self._path):
            found = self._journal.entries(self._source, self.count)
            if streams.covered(found) < self.count:
                self._source.look()
                found = self._journal.entries(self._source, self.count)
        if streams.covered(found) < self.count:
            raise damaged(self._path, f"the journal of {self.stream.path}")
        return found

    def columns(self) -> Columns:
        """All committed rows as stored, without their checksums. Each is checked when it is read first."""
        self._check(self._checked)
        with believed(self._path):
            rows = streams.columns(self._source, self.stream, 0, self.count)
            return {name: column for name, column in rows.items() if name != streams.ROW_CHECKSUM}

    def verify(self) -> None:
        """Checks every committed row."""
        self._check(0)

    def _check(self, start: int) -> None:
        """Checks the committed rows from `start` on, a few at a time."""
        if self._journal is not None:
            entries = self.entries()
            with believed(self._path):
                for group in streams.blocks(self._source, self.stream, entries[entries["start"] >= start]):
                    if wrong := group.wrong():
                        raise damaged(self._path, f"{self._what} {int(group.entries[wrong[0]]['start'])}")
        for first in range(start, self.count, streams.MOST_ROWS) if self._journal is None else ():
            with believed(self._path):
                stop = min(first + streams.MOST_ROWS, self.count)
                rows = streams.columns(self._source, self.stream, first, stop)
            # Format 1.0 has no checksums of the supply's readings.
            if streams.ROW_CHECKSUM in rows and (wrong := streams.wrong_rows(rows)):
                raise damaged(self._path, f"{self._what} {first + wrong[0]}")
        self._checked = self.count


def other_streams(source: RowSource, axis_units: Mapping[str, str]) -> dict[str, tuple[layout.Stream, str]]:
    """The streams of a file that are not of an array, by path, each with what messages call its rows.

    Args:
        source: The file.
        axis_units: Unit of each axis that its plan moves, in the order of the columns: checksums go over them in it.
    """
    found = {layout.supply_stream(0).path: (layout.supply_stream(0), "reading of the supply")}
    if streams.names_in(source, layout.SETTINGS):
        found[layout.SETTINGS] = (layout.settings_stream(0, axis_units), "setting of the axes")
    if streams.names_in(source, layout.CURVES):
        found[layout.CURVES] = (layout.curve_stream(0), "reading of a curve")
    return found
