"""CSV: one line for each row, one column for each number.

Floats are written as Python's `repr` of the float64 that equals them, so that reading them gives the very same number.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labrig.export.tables import Content, Table
from labrig.recording.contents import Block, StoredColumn


def write(part: Path, content: Content) -> None:
    """Writes one table.

    The columns of a vector stand side by side: `voltage_v_0 [V]`, `voltage_v_1 [V]`. Of a stream with a matrix in each
    row, as the target of a write is, every element of the matrix gets a line, and the other columns are repeated.
    """
    (table,) = content.tables
    lines_of, spread = _split(table)
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        matrix = [] if lines_of is None else [one for one in table.columns if one.shape == lines_of.shape]
        heads = [_headings(one) for one in spread]
        index = [] if lines_of is None else list(lines_of.dims)
        writer.writerow([table.axis, *index, *chain(*heads), *(_heading(one) for one in matrix)])
        for start, block in table.blocks():
            if lines_of is None:
                writer.writerows(_rows(start, block, spread))
            else:
                writer.writerows(_matrix_rows(start, block, spread, matrix, lines_of.shape))


def _split(table: Table) -> tuple[StoredColumn | None, list[StoredColumn]]:
    """The column whose elements have lines of their own, where there is one, and those that are spread over columns."""
    matrices = [one for one in table.columns if len(one.shape) > 1]
    lines_of = max(matrices, key=lambda one: len(one.shape), default=None)
    shape = None if lines_of is None else lines_of.shape
    return lines_of, [one for one in table.columns if one.shape != shape]


def _headings(column: StoredColumn) -> list[str]:
    places = product(*(range(length) for length in column.shape))
    return [_heading(column, "".join(f"_{number}" for number in place)) for place in places]


def _heading(column: StoredColumn, place: str = "") -> str:
    return f"{column.name}{place} [{column.units}]" if column.units else f"{column.name}{place}"


def _rows(start: int, block: Block, columns: Sequence[StoredColumn]) -> Iterator[list[object]]:
    parts = [_lists(block[one.name]) for one in columns]
    for number, values in enumerate(zip(*parts, strict=True), start=start):
        yield [number, *chain.from_iterable(values)]


def _matrix_rows(
    start: int, block: Block, spread: Sequence[StoredColumn], matrix: Sequence[StoredColumn], shape: tuple[int, ...]
) -> Iterator[list[object]]:
    places = list(product(*(range(length) for length in shape)))
    elements = [_lists(block[one.name]) for one in matrix]
    for row, (number, *repeated) in enumerate(_rows(start, block, spread)):
        columns = [one[row] for one in elements]
        for place, values in zip(places, zip(*columns, strict=True), strict=True):
            yield [number, *place, *repeated, *values]


def _lists(values: NDArray[np.generic]) -> list[list[object]]:
    """Each row as a flat list of Python numbers."""
    exact: NDArray[np.generic] = values.astype(np.float64) if values.dtype.kind == "f" else values
    return [list(row) for row in exact.reshape(len(exact), -1).tolist()]
