"""The public names of a package as directives for autodoc: what `__all__` lists, under the name that is promised."""

from __future__ import annotations

import inspect
from importlib import import_module

PACKAGES = ("labrig_drivers", "labrig_surrogates", "labrig_calibration", "labrig")
"""Lowest first: what a package gives out again is documented where it comes from."""

HEADINGS = {"class": "Classes", "function": "Functions", "exception": "Errors", "data": "Constants and types"}
OPTIONS = {"class": ["members"], "exception": ["members", "show-inheritance"], "function": [], "data": []}


def kind_of(value: object) -> str:
    """What a public name is: `class`, `function`, `exception` or `data`."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) and hasattr(value, "__code__") else "data"


def api_text(package: str) -> str:
    """The reference of one package, in MyST: a heading for each kind of name, below it the names.

    Raises:
        AttributeError: The package has no `__all__`, or a name in it that does not exist.
    """
    module = import_module(package)
    names: list[str] = sorted(module.__all__, key=str.lower)
    kinds = {name: kind_of(getattr(module, name)) for name in names}
    parts = [f"```{{py:module}} {package}\n```"]
    for kind, heading in HEADINGS.items():
        chosen = [name for name in names if kinds[name] == kind]
        if chosen:
            parts.append(f"## {heading}")
            parts += [f"### {name}\n\n{directive(package, name, kind)}" for name in chosen]
    return "\n\n".join(parts)


def directive(package: str, name: str, kind: str) -> str:
    """One name, in the spelling of autodoc.

    A name that a package below promises too is documented there. Autodoc shows nothing of a class whose own name is
    another one, so that it is documented under its own.
    """
    value = getattr(import_module(package), name)
    options = "".join(f"   :{option}:\n" for option in OPTIONS[kind])
    below = home_below(package, name)
    if below is not None:
        return alias(f"{package}.{name}", f"{below}.{name}", kind)
    if inspect.isclass(value) and value.__name__ != name:
        home = f"{value.__module__}.{value.__qualname__}"
        return f"{alias(f'{package}.{name}', home, kind)}\n\n```{{eval-rst}}\n.. auto{kind}:: {home}\n{options}```"
    return f"```{{eval-rst}}\n.. auto{kind}:: {package}.{name}\n{options}```"


def alias(name: str, documented: str, kind: str) -> str:
    """A line that says what a name is another name of."""
    return f"```{{public-alias}} {name} {documented} {kind}\n```"


def home_below(package: str, name: str) -> str | None:
    """The package below `package` that promises the very same object, where there is one."""
    value = getattr(import_module(package), name)
    for below in PACKAGES[: PACKAGES.index(package)]:
        module = import_module(below)
        if name in module.__all__ and getattr(module, name) is value:
            return below
    return None
