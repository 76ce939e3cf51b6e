"""Finds the rows of every stream of a damaged recording: by name, by what describes them, or by their place.

A place that had to be guessed is taken only when a checksum of the recording vouches for the rows there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from typing import cast

import numpy as np

from labrig.recording import layout
from labrig.recording.damaged_file import DamagedFile
from labrig.recording.file_bytes import FileBytes, StructureError
from labrig.recording.hdf5_nodes import Chunk, StoredDataset, chunks_of
from labrig.recording.journal import JOURNAL_DTYPE
from labrig.recording.stored_rows import StoredRows, with_holes_filled

_ALIGNMENT_BYTES = 8
# Combinations of guessed places that are tried: enough for two lost columns in any file.
_MOST_GUESSES = 1_000
# Entries that are read of a journal whose length is not known.
_MOST_ENTRIES = 65_536
# How far behind something known a journal is looked for.
_SEARCHED_BYTES = 4096

Rows = Mapping[str, StoredRows]
Judge = Callable[[Rows], int]
"""How many checksums vouch for the first rows when the columns lie there."""
JournalJudge = Callable[[np.dtype[np.void], StoredRows], int]
"""How many checksums of the first entries vouch for rows when the journal lies there."""
FoundJournal = tuple[np.dtype[np.void], StoredRows, int | None, list[str]]


@dataclass(frozen=True)
class FoundStream:
    """One stream and where its rows are.

    Attributes:
        stream: With those columns that the file has.
        rows: Where each column lies; one that was not found is absent.
        committed: What the counter says; None where it cannot be read.
        lengths: Rows that each dataset says it has, the axis included.
        faults: What had to be found in another way, or was not found.
    """

    stream: layout.Stream
    rows: Rows
    committed: int | None
    lengths: Mapping[str, int]
    faults: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every column was found."""
        return all(column.name in self.rows for column in self.stream.columns)

    @property
    def places(self) -> int:
        """Rows that have a place in every column."""
        if not self.whole:
            return 0
        return min(_covered(one) for one in self.rows.values())

    @property
    def most_rows(self) -> int:
        """More rows than this the stream cannot have."""
        return max((one.chunk_rows * (max(one.chunks, default=-1) + 1) for one in self.rows.values()), default=0)


class StreamFinder:
    """Finds streams in a damaged file.

    Args:
        source: The file.
        damaged: What is left of its structure.
    """

    def __init__(self, source: FileBytes, damaged: DamagedFile) -> None:
        self._source = source
        self._damaged = damaged

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    def stream(self, wanted: layout.Stream, place: int, places: int, judge: Judge | None) -> FoundStream:
        """Finds the rows of a stream.

        Args:
            wanted: The stream, with all columns that it may have.
            place: Which of the streams of its kind it is, in the order of arrays.
            places: How many of its kind there are.
            judge: Decides between guessed places; without one there is no guessing.
        """
        faults, found, lost = list[str](), dict[str, StoredRows](), list[layout.Column]()
        columns = []
        for column in wanted.columns:
            path = f"{wanted.path}/{column.name}"
            columns.append(column)
            dataset = self._damaged.datasets.get(path)
            located = None if dataset is None else self._located(dataset, column, path, faults)
            if located is None:
                lost.append(column)
            else:
                found[column.name] = located
        stream = replace(wanted, columns=tuple(columns))
        lengths = self._lengths(stream)
        if lost and judge is not None:
            described = {one.name: self._described_as(one, place, places) for one in lost}
            lengths |= {name: one[0][0] for name, one in described.items() if one}
            reserved = max((length for length in lengths.values() if length <= self._source.size), default=0)
            reserved = max(reserved, *_rows_once_reserved(stream, found), 0)
            likely = found | {name: one[0][1] for name, one in described.items() if len(one) == 1}
            combinations = chain(
                self._in_a_row(stream, likely, [one.name for one in lost], reserved),
                product(*([rows for _, rows in described[one.name]] + list(self._runs(one, reserved)) for one in lost)),
            )
            names = [one.name for one in lost]
            best = _best(found, names, islice(combinations, _MOST_GUESSES), judge)
            found |= best
            faults += [f"{stream.path}/{name}: its place was found by its checksums" for name in best]
        elif judge is not None and self.counter(stream.path) and not judge(found):
            for column in columns:
                runs = ((rows,) for rows in self._runs(column, max(lengths.values(), default=0)))
                if best := _best(found, [column.name], runs, judge):
                    found |= best
                    faults.append(f"{stream.path}/{column.name}: its place was found by its checksums")
                    break
        faults += [f"{stream.path}/{one.name}: cannot be found" for one in lost if one.name not in found]
        return FoundStream(stream, found, self.counter(stream.path), lengths, tuple(faults))

    def _lengths(self, stream: layout.Stream) -> dict[str, int]:
        """Rows that each dataset of a stream says it has."""
        named = {path.rpartition("/")[2]: self._damaged.datasets.get(path) for path in stream.dataset_paths}
        return {name: one.shape[0] for name, one in named.items() if one is not None and one.shape}

    def journal(self, path: str, place: int, places: int, judge: JournalJudge) -> FoundJournal | None:
        """Type, rows, length where it is known, and faults of a journal; None where there is none.

        Args:
            path: Where it should be.
            place: Which journal it is, in the order of arrays.
            places: How many there are.
            judge: As in `stream`.
        """
        faults = list[str]()
        dataset = self._damaged.datasets.get(path)
        dtype = None if dataset is None else _journal_dtype(dataset)
        if dataset is not None and dtype is not None:
            located = self._located(dataset, _journal_column(dtype), path, faults)
            if located is not None:
                return dtype, located, None, faults
        candidates = list[tuple[np.dtype[np.void], StoredRows]]()
        fitting = self._fitting(lambda one: _journal_dtype(one) is not None)
        for one in self._whose_turn(fitting, place, places):
            kind = _journal_dtype(one)
            located = None if kind is None else self._located(one, _journal_column(kind), path, [])
            if kind is not None and located is not None:
                candidates.append((kind, located))
        known = dtype or (candidates[0][0] if candidates else np.dtype(JOURNAL_DTYPE))
        reserved = dataset.shape[0] if dataset is not None and dataset.shape else 0
        # One whose length is lost may be as long as the others.
        others = [one.shape[0] for one in fitting.values() if one.shape]
        for length in [reserved] if reserved else list(dict.fromkeys((*others, 0))):
            runs = self._runs(_journal_column(known), length, within=_SEARCHED_BYTES)
            candidates += [(known, rows) for rows in runs]
        scores = [judge(*one) for one in candidates]
        if not candidates or max(scores) < 1:
            return None
        dtype, located = candidates[scores.index(max(scores))]
        return dtype, located, reserved or _MOST_ENTRIES, [f"{path}: was found by its content"]

    def counter(self, path: str) -> int | None:
        """What a stream's counter says; None where it cannot be read."""
        value = self.scalar(f"{path}/{layout.COMMITTED}", 8)
        return None if value is None else int.from_bytes(value, "little", signed=True)

    def scalar(self, path: str, size: int) -> bytes | None:
        """The bytes of a dataset with one element; None where they cannot be read."""
        dataset = self._damaged.datasets.get(path)
        if dataset is None or dataset.shape or dataset.stored_type.size != size:
            return None
        if dataset.layout.inline is not None:
            return dataset.layout.inline
        if dataset.layout.offset is None:
            return None
        try:
            return self._source.read(dataset.layout.offset, size)
        except StructureError:
            return None

    def _located(
        self, dataset: StoredDataset, column: layout.Column, path: str, faults: list[str]
    ) -> StoredRows | None:
        """Where the rows of a dataset lie, chunks that its index lost filled in; None where nothing says so."""
        dtype = np.dtype(column.dtype)
        row_bytes = _row_bytes(column)
        if dataset.layout.offset is not None and dataset.shape:
            chunks = {0: Chunk(0, dataset.layout.offset, dataset.shape[0] * row_bytes, 0)}
            return StoredRows(self._source, row_bytes, dtype.itemsize, max(dataset.shape[0], 1), chunks)
        shape = dataset.layout.chunk_shape
        if dataset.layout.tree is None or shape[1:] != column.shape or not shape or not shape[0]:
            faults.append(f"{path}: does not lie as labrig lays it out")
            return None
        chunk_rows, chunk_bytes = shape[0], shape[0] * row_bytes
        listed, lost = chunks_of(self._source, dataset.layout.tree, len(shape))
        chunks = dict[int, Chunk]()
        for one in listed:
            possible = one.first % chunk_rows == 0 and one.offset > 0 and (dataset.filters or one.size == chunk_bytes)
            if possible and one.first // chunk_rows not in chunks:
                chunks[one.first // chunk_rows] = one
            else:
                lost.append("its index lists a chunk that cannot be")
        faults += [f"{path}: {one}" for one in lost]
        if not chunks:
            # A dataset of no rows has an index that is empty.
            return StoredRows(self._source, row_bytes, dtype.itemsize, chunk_rows, {}) if not lost else None
        if not dataset.filters:
            count = min(-(-dataset.shape[0] // chunk_rows), self._source.size // chunk_bytes + 1)
            chunks, guessed = with_holes_filled(chunks, count, chunk_rows, chunk_bytes)
            if guessed:
                faults.append(f"{path}: places of {guessed} of {count} chunks were guessed from their neighbours'")
        return StoredRows(self._source, row_bytes, dtype.itemsize, chunk_rows, chunks, dataset.filters)

    def _fitting(self, fits: Callable[[StoredDataset], bool]) -> dict[int, StoredDataset]:
        """Every dataset that fits, named or not, by address, in the order in which they were made."""
        return {address: one for address, one in sorted(self._damaged.all_datasets.items()) if fits(one)}

    def _whose_turn(self, fitting: Mapping[int, StoredDataset], place: int, places: int) -> list[StoredDataset]:
        """Of the datasets that fit the one whose turn it is; where not all are left, those that no name claims."""
        if len(fitting) == places:
            return [list(fitting.values())[place]]
        named = {self._damaged.addresses[path] for path in self._damaged.datasets}
        return [one for address, one in fitting.items() if address not in named]

    def _described_as(self, column: layout.Column, place: int, places: int) -> list[tuple[int, StoredRows]]:
        """Length and rows of every dataset that may be a column by what is said of it."""

        def fits(one: StoredDataset) -> bool:
            return bool(one.shape) and one.shape[1:] == column.shape and one.stored_type.dtype == np.dtype(column.dtype)

        fitting = self._fitting(lambda one: fits(one) and one.attributes.get("long_name") == column.meaning)
        if len(fitting) != places:
            # A description can be lost alone.
            meanings = (column.meaning, None)
            fitting = self._fitting(lambda one: fits(one) and one.attributes.get("long_name") in meanings)
        located = [
            (one.shape[0], self._located(one, column, "", [])) for one in self._whose_turn(fitting, place, places)
        ]
        return [(length, rows) for length, rows in located if rows is not None and rows.chunks]

    def _in_a_row(
        self, stream: layout.Stream, likely: Rows, lost: Sequence[str], reserved: int
    ) -> Iterator[tuple[StoredRows, ...]]:
        """The lost columns where they lie if all columns were laid one behind the other, as they are made."""
        first = stream.columns[0]
        if first.name in likely and likely[first.name].chunks:
            starts = [min(one.offset for one in likely[first.name].chunks.values())]
        else:
            starts = [rows.chunks[0].offset for rows in self._runs(first, reserved)]
        for start in starts:
            end, laid = start, dict[str, StoredRows]()
            for column in stream.columns:
                known = likely.get(column.name)
                if known is not None and known.chunks:
                    end = min(one.offset for one in known.chunks.values())
                    laid[column.name] = known
                else:
                    laid[column.name] = self._run(column, end, reserved)
                end += _aligned(_reserved_bytes(column, reserved))
            yield tuple(laid[name] for name in lost)

    def _runs(self, column: layout.Column, reserved: int, within: int = 1) -> Iterator[StoredRows]:
        """Rows behind one another that begin where something known ends, or end where something known begins.

        Args:
            column: What the rows look like.
            reserved: How many there are; 0 where that is not known.
            within: Bytes after the end of something known in which they may begin.
        """
        own_bytes = _reserved_bytes(column, reserved)
        extents = sorted(set(self._extents()))
        starts = dict.fromkeys(
            _aligned(end) + more for more in range(0, within, _ALIGNMENT_BYTES) for _, end in extents
        )
        starts |= dict.fromkeys((start - own_bytes) // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES for start, _ in extents)
        for start in starts:
            taken = any(first <= start < end for first, end in extents)
            if 0 < start < self._source.size and not taken:
                yield self._run(column, start, reserved)

    def _run(self, column: layout.Column, start: int, reserved: int) -> StoredRows:
        """Rows of a column behind one another."""
        dtype = np.dtype(column.dtype)
        row_bytes = _row_bytes(column)
        rows = reserved or max(1, (self._source.size - start) // row_bytes)
        return StoredRows(self._source, row_bytes, dtype.itemsize, rows, {0: Chunk(0, start, rows * row_bytes, 0)})

    def _extents(self) -> Iterator[tuple[int, int]]:
        """Begin and end of the rows of every dataset that is known."""
        for dataset in (*self._damaged.datasets.values(), *self._damaged.all_datasets.values()):
            stored = dataset.layout
            if stored.offset is not None:
                yield stored.offset, stored.offset + dataset.stored_type.size * math.prod(dataset.shape)
            elif stored.tree is not None:
                chunks, _ = chunks_of(self._source, stored.tree, len(stored.chunk_shape))
                if chunks:
                    yield min(one.offset for one in chunks), max(one.offset + one.size for one in chunks)


def _rows_once_reserved(stream: layout.Stream, found: Rows) -> Iterator[int]:
    """How many rows columns were made with, though they may have been cut since: a small one is a single chunk."""
    for column in stream.columns:
        if column.name in found:
            chunk_rows = found[column.name].chunk_rows
            if chunk_rows < layout.chunk_rows(_row_bytes(column), chunk_rows + 1):
                yield chunk_rows


def _covered(rows: StoredRows) -> int:
    count = 0
    while count in rows.chunks:
        count += 1
    return count * rows.chunk_rows


def _best(
    found: Rows, names: Sequence[str], guesses: Iterable[Sequence[StoredRows]], judge: Judge
) -> dict[str, StoredRows]:
    """The guess for which most checksums vouch, the first of equals; nothing where none vouches."""
    best, most = dict[str, StoredRows](), 0
    for guess in guesses:
        tried = dict(zip(names, guess, strict=True))
        score = judge({**found, **tried})
        if score > most:
            best, most = tried, score
    return best


def _row_bytes(column: layout.Column) -> int:
    return int(np.dtype(column.dtype).itemsize * math.prod(column.shape))


def _reserved_bytes(column: layout.Column, reserved: int) -> int:
    """What a column takes in the file when so many rows are reserved for it."""
    chunk_rows = layout.chunk_rows(_row_bytes(column), max(reserved, 1))
    return -(-max(reserved, 1) // chunk_rows) * chunk_rows * _row_bytes(column)


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _journal_dtype(dataset: StoredDataset) -> np.dtype[np.void] | None:
    dtype = dataset.stored_type.dtype
    needed: Iterable[str] = ("point", "start", "rows", "crc32", "kind")
    if dtype is None or dtype.names is None or not set(needed) <= set(dtype.names):
        return None
    return cast("np.dtype[np.void]", dtype)


def _journal_column(dtype: np.dtype[np.void]) -> layout.Column:
    return layout.Column("journal", dtype, (), "", "", 0.0)
