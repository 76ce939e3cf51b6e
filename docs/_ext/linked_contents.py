"""The navigation of the site, from the lists of links that the index pages show anyway.

An index page of labrig is a plain list of links, so that it reads well on a git host. Sphinx wants a `toctree`, which a
git host would show as code. This extension adds a hidden one for each heading of an index page, with the pages that the
text below it links to, in that order. There is one list, and a page that no index names is an error of the build.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TypedDict

from sphinx.application import Sphinx

HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\((?!\w+://)([^)#\s]+)\.(?:md|ipynb)(?:#[^)]*)?\)")


class ExtensionMetadata(TypedDict):
    """What Sphinx asks of an extension."""

    version: str
    parallel_read_safe: bool
    parallel_write_safe: bool


def is_index(docname: str) -> bool:
    """Whether a page is an index page: `index`, or `decisions/index`."""
    return docname.rpartition("/")[2] == "index"


def contents_of(text: str) -> list[tuple[str, list[str]]]:
    """The headings of an index page, each with the pages that are linked below it; before the first one it is ''."""
    starts = [0, *(match.start() for match in HEADING.finditer(text)), len(text)]
    titles = ["", *HEADING.findall(text)]
    sections = [text[start:end] for start, end in pairwise(starts)]
    linked = [list(dict.fromkeys(PAGE_LINK.findall(section))) for section in sections]
    return [(title, pages) for title, pages in zip(titles, linked, strict=True) if pages]


def toctree(title: str, pages: list[str]) -> str:
    """A hidden table of contents, in MyST's spelling."""
    caption = [f":caption: {title}"] if title else []
    return "\n".join(["```{toctree}", ":hidden:", ":titlesonly:", *caption, "", *pages, "```", ""])


def add_contents(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Adds the tables of contents to the text of an index page, after Sphinx has read it."""
    if is_index(docname):
        trees = [toctree(title, pages) for title, pages in contents_of(source[0])]
        source[0] = "\n\n".join([source[0].rstrip(), *trees])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the extension."""
    app.connect("source-read", add_contents)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
