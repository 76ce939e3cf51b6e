"""Docstrings are written for people who read them in an editor; Sphinx reads them as reStructuredText.

Code in single backquotes becomes code in double ones, and a bar outside of code (the |x| of a formula) stays a bar.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from linked_contents import ExtensionMetadata

CODE_OR_BAR = re.compile(r"(?<![:`])`(?P<code>[^`]+)`(?!`)|``[^`]+``|(?P<bar>\|)")
BEFORE_NAPOLEON = 400


def as_restructured_text(text: str) -> str:
    """A docstring of labrig as reStructuredText."""

    def replace(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return f"``{found['code']}``"
        return r"\|" if found["bar"] is not None else found[0]

    return CODE_OR_BAR.sub(replace, text)


def process(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Rewrites a docstring in place, as autodoc wants it."""
    lines[:] = as_restructured_text("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the extension."""
    app.connect("autodoc-process-docstring", process, priority=BEFORE_NAPOLEON)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
