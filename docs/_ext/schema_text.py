"""The reference of rig files, from the JSON schema that editors use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_Node = dict[str, Any]
"""A part of a schema, as JSON has it."""

SCHEMAS = Path(__file__).resolve().parents[2] / "rig_configs"
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
ANY_NAME = {"^(0|[1-9][0-9]*)$": "NUMBER"}


def schema_text(file_name: str) -> str:
    """Every section of a rig file in MyST, with its keys: type, bounds, default, meaning.

    Args:
        file_name: A schema in `rig_configs/`.
    """
    schema = json.loads((SCHEMAS / file_name).read_text())
    return "\n\n".join(_section(path, one, schema) for path, one in _sections([], schema, schema))


def _sections(path: list[str], node: _Node, schema: _Node) -> Iterator[tuple[list[str], _Node]]:
    """The tables that a node has below it, and below those, each with its path from the top of the file."""
    for key, raw in node.get("properties", {}).items():
        names: _Node = {"": raw, **{ANY_NAME.get(one, "NAME"): of for one, of in _patterns(raw).items()}}
        for name, inner in names.items():
            table = _table(inner, schema)
            if table is not None:
                here = [*path, key, *([name] if name else [])]
                yield here, table
                yield from _sections(here, table, schema)


def _patterns(node: _Node) -> _Node:
    patterns: _Node = node.get("patternProperties", {})
    return patterns


def _alternatives(node: _Node) -> list[_Node]:
    """What a value may be, without null: in a TOML file that is a missing key."""
    return [one for one in node.get("anyOf", [node]) if one.get("type") != "null"]


def _table(node: _Node, schema: _Node) -> _Node | None:
    """The definition of a table that a node refers to; `None` where it is something else."""
    for one in _alternatives(node):
        if "$ref" in one:
            found: _Node = schema["$defs"][one["$ref"].rpartition("/")[2]]
            return found
    return None


def _section(path: list[str], table: _Node, schema: _Node) -> str:
    required = table.get("required", [])
    rows = [
        f"| `{key}` | {_type(node)} | {_default(key, node, required)} | {_text(node.get('description', ''))} |"
        for key, node in table["properties"].items()
        if _table(node, schema) is None and not _patterns(node)
    ]
    head = "| key | value | default | meaning |\n| --- | --- | --- | --- |"
    parts = [f"## `[{'.'.join(path)}]`", table.get("description", "")]
    return "\n\n".join([*parts, "\n".join([head, *rows])] if rows else parts)


def _type(node: _Node) -> str:
    """What a value is, with its bounds."""
    texts = []
    for one in _alternatives(node):
        name = f'`"{one["const"]}"`' if "const" in one else str({"object": "table"}.get(one["type"], one["type"]))
        bounds = [f"{word} {one[bound]}" for bound, word in BOUNDS.items() if bound in one]
        pattern = [f"like `{_text(one['pattern'])}`"] if "pattern" in one else []
        texts.append(" ".join([name, ", ".join([*bounds, *pattern])]).strip())
    return " or ".join(texts)


def _default(key: str, node: _Node, required: list[str]) -> str:
    if key in required:
        return "required"
    return "" if node.get("default") is None else f"`{json.dumps(node['default'])}`"


def _text(text: str) -> str:
    """A text for a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")
