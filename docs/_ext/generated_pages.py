"""Reference pages that are made of what they describe: the public API, the command line, the schema of rig files.

A page holds a line `<!-- generated: KIND ARGUMENT -->`, which a git host does not show. When the site is built, the
line becomes MyST text made by the function of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sphinx.application import Sphinx

from api_text import api_text
from command_text import command_text
from linked_contents import ExtensionMetadata
from schema_text import schema_text

MARKER = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.MULTILINE)

KINDS: Mapping[str, Callable[[str], str]] = {
    "api": api_text,
    "commands": lambda _: command_text(),
    "schema": schema_text,
}


def fill_in(text: str) -> str:
    """The text of a page with its generated parts.

    Raises:
        KeyError: A marker names a kind that does not exist.
    """
    return MARKER.sub(lambda marker: KINDS[marker[1]](marker[2] or ""), text)


def generate(_app: Sphinx, _docname: str, source: list[str]) -> None:
    """Fills in a page after Sphinx has read it."""
    source[0] = fill_in(source[0])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the extension."""
    app.connect("source-read", generate)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
