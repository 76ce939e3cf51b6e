"""Where each key of a TOML text stands. `tomllib` gives values only, and an error message needs the line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence

KeyPath = tuple[str, ...]


def key_lines(text: str) -> dict[KeyPath, int]:
    """Maps every table and key of a valid TOML text to the line (from 1) on which it begins.

    Lines are gathered until they parse on their own, so that values over several lines, dotted and quoted
    keys and inline tables need no grammar of ours.
    """
    lines: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    statement = ""
    begin = 1
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement:
            begin = number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = _header_path(parsed)
            for depth in range(1, len(table) + 1):
                lines.setdefault(table[:depth], begin)
        else:
            for path in _paths(parsed):
                lines.setdefault(table + path, begin)
        statement = ""
    return lines


def line_of(lines: Mapping[KeyPath, int], path: Sequence[str]) -> int:
    """The line of `path`, or of the nearest table above it when the key itself is absent."""
    for depth in range(len(path), -1, -1):
        line = lines.get(tuple(path[:depth]))
        if line is not None:
            return line
    return 1


def _header_path(parsed: Mapping[str, object]) -> KeyPath:
    path: list[str] = []
    node: object = parsed
    while isinstance(node, dict) and node:
        name, node = next(iter(node.items()))
        path.append(name)
    return tuple(path)


def _paths(node: Mapping[str, object]) -> Iterator[KeyPath]:
    for name, value in node.items():
        yield (name,)
        if isinstance(value, dict):
            for below in _paths(value):
                yield (name, *below)
