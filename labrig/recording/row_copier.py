"""Copies rows from a damaged recording into a new one, with new numbers where rows before them were left out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import h5py
import numpy as np

from labrig.recording import layout
from labrig.recording.disk import Disk
from labrig.recording.found_streams import FoundStream
from labrig.recording.journal import JOURNAL_DTYPE, journal_path
from labrig.recording.judging import JudgedBlock
from labrig.recording.references import new_numbers, reference_columns, referenced, renumbered
from labrig.recording.streams import ROW_CHECKSUM, entry_checksums
from labrig.recording.table import Table, locate_table


class RowCopier:
    """Writes into a new recording, beside HDF5.

    Args:
        file: The new file, with room for all that will be copied.
        disk: Its bytes.
        kept: Rows that are kept of each stream without journal, by their old numbers.
    """

    def __init__(self, file: h5py.File, disk: Disk, kept: Mapping[str, Sequence[int]]) -> None:
        self._file = file
        self._disk = disk
        self._numbers = {path: new_numbers(rows) for path, rows in kept.items()}

    def copy_rows(self, old: FoundStream, new: layout.Stream, rows: Sequence[int]) -> None:
        """Copies single rows, each with its checksum; columns that the old file has not are filled.

        Args:
            old: Where the rows are.
            new: Where they go.
            rows: Their numbers in the old file.
        """
        tables = self._tables(new) if rows else {}
        for target, row in enumerate(rows):
            crc = 0
            for column in new.columns:
                if column.name == ROW_CHECKSUM:
                    pieces: Iterator[bytes] = iter([crc.to_bytes(4, "little")])
                else:
                    pieces = self._pieces(old, column, row, row + 1)
                content = b"".join(pieces)
                crc = zlib.crc32(content, crc)
                self._write(tables[column.name], target, content)

    def copy_blocks(self, old: FoundStream, new: layout.Stream, blocks: Sequence[JudgedBlock]) -> None:
        """Copies blocks one behind the other, and their journal.

        Args:
            old: Where the rows are.
            new: Where they go.
            blocks: Which, in their order.
        """
        entries = np.zeros(len(blocks), JOURNAL_DTYPE)
        tables = self._tables(new) if blocks else {}
        start = 0
        for entry, block in zip(entries, blocks, strict=True):
            crc = 0
            for column in new.columns if block.rows else ():
                target = start
                for piece in self._pieces(old, column, block.start, block.stop):
                    crc = zlib.crc32(piece, crc)
                    self._write(tables[column.name], target, piece)
                    target += len(piece) // tables[column.name].row_bytes
            _fill(entry, block.entry, start, crc)
            start += block.rows
        if blocks:
            self._write(locate_table(self._file, journal_path(new.path)), 0, entries.tobytes())

    def _tables(self, stream: layout.Stream) -> dict[str, Table]:
        return {one.name: locate_table(self._file, f"{stream.path}/{one.name}") for one in stream.columns}

    def _pieces(self, old: FoundStream, column: layout.Column, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of some rows of a column as the new file has them."""
        if column.name not in old.rows:
            # Of a format that had no such column: nobody knows.
            shape = (stop - start, *column.shape)
            yield np.full(shape, column.fill, column.dtype).tobytes()
            return
        numbers = None
        if column.name in reference_columns(old.stream):
            named = referenced(old, start, stop).get(column.name)
            numbers = {} if named is None else self._numbers[named[0]]
        for piece in old.rows[column.name].pieces(start, stop):
            yield piece if numbers is None else renumbered(piece, numbers)

    def _write(self, table: Table, start: int, content: bytes) -> None:
        values = np.frombuffer(content, np.uint8)
        for first, stop, offset in table.pieces(start, start + len(values) // table.row_bytes):
            self._disk.write_at(offset, values[(first - start) * table.row_bytes : (stop - start) * table.row_bytes])


def _fill(entry: np.void, old: np.void, start: int, crc: int) -> None:
    """Makes a journal entry of one of the old file."""
    known = old.dtype.names or ()
    for name in JOURNAL_DTYPE.names or ():
        if name in known:
            entry[name] = old[name]
        elif JOURNAL_DTYPE[name].kind == "f":
            entry[name] = np.nan
    entry["start"], entry["crc32"] = start, crc
    entry["entry_crc32"] = entry_checksums(entry.reshape(1))[0]
