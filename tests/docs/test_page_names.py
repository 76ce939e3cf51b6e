"""What pages name exists: promised names are imported from where they are promised, and commands take what is shown."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator

import pytest
import typer
from page_examples import ROOT, commands_of, examples_of, pages

from api_text import PACKAGES
from labrig.cli import app

GROUP = typer.main.get_command(app)
INDENTED = re.compile(r"^(?: {4}|\$ )(labrig [a-z-]+.*)$", re.MULTILINE)


def imports_of(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of every `from ... import` of the four packages."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
            yield from ((node.module, alias.name) for alias in node.names)


def promised_elsewhere(module: str, name: str) -> str | None:
    """The package that promises a name which was imported from one of its modules."""
    package = module.partition(".")[0]
    home = importlib.import_module(package)
    if module == package or name not in home.__all__:
        return None
    return package if getattr(home, name) is getattr(importlib.import_module(module), name) else None


def test_examples_import_promised_names_from_their_package() -> None:
    found, seen = [], 0
    for page in pages():
        for example in examples_of(page):
            if example.kind in {"python", "test"} or example.file.endswith(".py"):
                for module, name in imports_of(example.text):
                    seen += 1
                    if (package := promised_elsewhere(module, name)) is not None:
                        found.append(f"{example.page}:{example.line}: import {name} from {package}, not from {module}")
    assert seen > 50
    assert found == []


def test_a_name_from_its_module_is_found() -> None:
    (one, other) = imports_of("from labrig.rig import open_rig\nfrom labrig_drivers import TcpLink\nimport numpy\n")
    assert promised_elsewhere(*one) == "labrig"
    assert promised_elsewhere(*other) is None


def unknown_options(line: str) -> list[str]:
    """The options of a command line that its command does not have; the words that name no command."""
    words = shlex.split(line, comments=True)[1:]
    command: object = GROUP
    while (inner := getattr(command, "commands", None)) is not None:
        if not words or words[0] not in inner:
            return words[:1]
        command, words = inner[words[0]], words[1:]
    known = {spelling for one in getattr(command, "params", []) for spelling in (*one.opts, *one.secondary_opts)}
    return [
        word for word in words if re.match(r"--?[A-Za-z]", word) and word.partition("=")[0] not in {*known, "--help"}
    ]


def shown_commands() -> list[tuple[str, str]]:
    """Every command line of every page, run or not, with its page."""
    lines = []
    for page in pages():
        where = str(page.relative_to(ROOT))
        shown = [
            command.line for one in examples_of(page) if one.kind == "console" for command in commands_of(one.text)
        ]
        shown += INDENTED.findall(page.read_text())
        lines += [(where, line.partition(" | ")[0]) for line in shown if line.startswith("labrig ")]
    return lines


def test_every_command_that_is_shown_takes_its_options() -> None:
    commands = shown_commands()
    assert len(commands) > 60
    assert [f"{page}: {line}: {bad}" for page, line in commands if (bad := unknown_options(line))] == []


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("labrig sweep rig.toml --plan mvm -o run.h5", []),
        ("labrig sweep rig.toml --paln mvm", ["--paln"]),
        ("labrig sweep rig.toml --set low_v=-0.5", []),
        ("labrig config schema -x", ["-x"]),
        ("labrig measure", ["measure"]),
    ],
)
def test_an_option_that_is_not_there_is_found(line: str, unknown: list[str]) -> None:
    assert unknown_options(line) == unknown
