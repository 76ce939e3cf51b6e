"""The examples of a page of the documentation, and what its source says about them.

Every fenced block of `python` or `console` is an example and is run. In a page's source, HTML comments, which no reader
sees, say what else there is to know:

- `<!-- example: not run: REASON -->` ahead of a block: it is not run.
- `<!-- example: file NAME -->` ahead of a block of any language: it is written to that file, not run.
- `<!-- example: given NAME... -->`: these files (or the simulated bench) are there before the next block.
- `<!-- example: python` or `<!-- example: console`, lines of code, `-->`: run like a block that is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

COMMENT = re.compile(r"^<!-- example: (?P<words>[^\n]*?)(?: -->|\n(?P<body>.*?)^-->)$", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^(?P<ticks>```+)(?P<language>[\w-]+)\n(?P<body>.*?)^(?P=ticks)$", re.DOTALL | re.MULTILINE)
RUNNABLE = ("python", "console")


@dataclass(frozen=True)
class Example:
    """One block of a page.

    Attributes:
        page: Path from the root of the repository.
        line: Where the block starts, from 1.
        kind: `python`, `console`, `test` (python with test functions), `file` or `given`.
        text: The code; the content of the file; the names that are given.
        file: Name of the file that the block is, else empty.
        not_run: Why it is not run, else empty.
    """

    page: str
    line: int
    kind: str
    text: str
    file: str = ""
    not_run: str = ""


class PageMarkError(ValueError):
    """A comment of a page that nobody understands."""


def pages() -> list[Path]:
    """Every page whose examples are examples of labrig."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def examples_of(page: Path) -> list[Example]:
    """The examples of a page, in its order.

    Raises:
        PageMarkError: A comment is none that this module knows, or stands ahead of no block.
    """
    return list(read_examples(page.read_text(), str(page.relative_to(ROOT))))


def read_examples(text: str, page: str) -> Iterator[Example]:
    """The examples of a text, in its order; see `examples_of`."""
    comments = {match.start(): match for match in COMMENT.finditer(text)}
    fences = {match.start(): match for match in FENCE.finditer(text)}
    starts = text.count("<!-- example:")
    if starts != len(comments):
        raise PageMarkError(
            f"{page}: {starts - len(comments)} of its comments `example:` are not of a form that is known"
        )
    mark = ""
    for start in sorted({*comments, *fences}):
        line = text.count("\n", 0, start) + 1
        if (comment := comments.get(start)) is not None:
            if mark:
                raise PageMarkError(f"{page}:{line}: `{mark}` stands ahead of no block")
            yield from hidden(comment, page, line)
            mark = (
                comment["words"] if comment["words"].startswith(("not run: ", "file ")) and not comment["body"] else ""
            )
        else:
            fence = fences[start]
            if mark or fence["language"] in RUNNABLE:
                yield shown(fence["language"], fence["body"], mark, page, line)
            mark = ""
    if mark:
        raise PageMarkError(f"{page}: `{mark}` stands ahead of no block")


def hidden(comment: re.Match[str], page: str, line: int) -> Iterator[Example]:
    """What a comment is by itself: nothing, where it is about the block that follows."""
    word, _, rest = comment["words"].partition(" ")
    if comment["body"] is None and word == "given" and rest:
        yield Example(page, line, "given", rest)
    elif comment["body"] is not None and word in RUNNABLE and not rest:
        yield Example(page, line, word, comment["body"])
    elif comment["body"] is not None or not re.match(r"not run: \S|file \S+$", comment["words"]):
        raise PageMarkError(f"{page}:{line}: `example: {comment['words']}` is not known")


def shown(language: str, body: str, mark: str, page: str, line: int) -> Example:
    """A fenced block, with what the comment ahead of it says."""
    if mark.startswith("file "):
        return Example(page, line, "file", body, file=mark.removeprefix("file ").strip())
    kind = "test" if language == "python" and re.search(r"^(async )?def test_", body, re.MULTILINE) else language
    return Example(page, line, kind, body, not_run=mark.removeprefix("not run: "))


@dataclass(frozen=True)
class Command:
    """A command of a console block, what it shows of its output, and the exit code that it says."""

    line: str
    output: str
    exit_code: int


def commands_of(text: str) -> list[Command]:
    """The commands of a console block: lines that start with `$ `, continued while a line ends with a backslash.

    `# exit code N` at the end of a command says that it ends with that code.

    Raises:
        PageMarkError: The block starts with something else than a command.
    """
    if not text.startswith("$ "):
        raise PageMarkError(f"a console block starts with `$ `, not with {text.splitlines()[0]!r}")
    commands = []
    for part in re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        code = re.search(r" +# exit code (\d+)$", line)
        commands.append(Command(line[: code.start()] if code else line, output, int(code[1]) if code else 0))
    return commands


def shows(shown_output: str, output: str) -> bool:
    """Whether an output is what a page shows: `...` stands for anything, blanks at the ends of lines for nothing."""
    wanted = [re.escape(line.rstrip()).replace(r"\.\.\.", ".*?") for line in shown_output.rstrip().splitlines()]
    given = "\n".join(line.rstrip() for line in output.rstrip().splitlines())
    return not wanted or re.fullmatch("\n".join(wanted), given, re.DOTALL) is not None
