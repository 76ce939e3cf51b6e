"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, get_args, get_type_hints

import typer

from labrig.cli import app

EXAMPLES = re.compile(r"^Example: +(.+)$", re.MULTILINE)
TYPE_NAMES: dict[object, str] = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT", bool: ""}


class Parameter(Protocol):
    """What typer and click both say of an argument or option."""

    name: str
    opts: list[str]
    secondary_opts: list[str]
    help: str | None
    metavar: str | None
    required: bool
    default: object
    multiple: bool
    param_type_name: str
    hidden: bool


def command_text() -> str:
    """Every command, in MyST: what it does, how it is called, its arguments and options."""
    return "\n\n".join(section(path, command) for path, command in leaves("labrig", typer.main.get_command(app)))


def leaves(path: str, command: object) -> Iterator[tuple[str, object]]:
    """The commands of a group and of the groups in it, each with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, part in (inner or {}).items():
        yield from leaves(f"{path} {name}", part)


def section(path: str, command: object) -> str:
    """One command: heading, usage, help, examples, table of parameters."""
    help_text = str(getattr(command, "help", "") or "")
    parameters: list[Parameter] = [
        one for one in getattr(command, "params", []) if not one.hidden and one.name != "help"
    ]
    types = get_type_hints(inspect.unwrap(getattr(command, "callback")))  # noqa: B009  groups have none
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    words = [path, *(usage(one) for one in arguments), *(["[OPTIONS]"] if len(arguments) < len(parameters) else [])]
    parts = [f"## {path}", f"```text\n{' '.join(words)}\n```", literal_options(EXAMPLES.sub("", help_text).strip())]
    if examples := EXAMPLES.findall(help_text):
        parts.append("```console\n" + "\n".join(f"$ {example}" for example in examples) + "\n```")
    if parameters:
        rows = "\n".join(row(one, types[one.name]) for one in parameters)
        parts.append(f"| | | default |\n| --- | --- | --- |\n{rows}")
    return "\n\n".join(parts)


def usage(argument: Parameter) -> str:
    """An argument as the usage line shows it."""
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def row(parameter: Parameter, annotation: object) -> str:
    """A line of the table: name, meaning, default."""
    value = parameter.metavar or type_name(annotation)
    if parameter.param_type_name == "argument":
        name = f"`{usage(parameter)}`"
    else:
        spellings = ", ".join([*parameter.opts, *parameter.secondary_opts])
        name = f"`{spellings} {value}`".replace(" `", "`")
    meaning = literal_options((parameter.help or "").replace("|", r"\|"))
    return f"| {name.replace('|', chr(92) + '|')} | {meaning} | {default(parameter)} |"


def type_name(annotation: object) -> str:
    """What an option takes, in a word; for an enumeration its values."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, enum.Enum):
            return "|".join(str(member.value) for member in one)
        if isinstance(one, type) and one in TYPE_NAMES:
            return TYPE_NAMES[one]
    return "TEXT"


def default(parameter: Parameter) -> str:
    """The default of a parameter, `required`, or nothing where there is none to tell."""
    if parameter.required:
        return "required"
    value = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
    if value is None or value is False or callable(value) or value in {float("inf"), float("-inf")}:
        return ""
    return f"`{value}`" if not isinstance(value, bool) else "on"


def literal_options(text: str) -> str:
    """Options within a sentence, `--like-this`, as code: smart typography would make dashes of them."""
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text)
