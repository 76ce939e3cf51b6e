"""Plan files: a plan and its options as TOML, made by `labrig plan` or by hand, and run by `labrig sweep`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from labrig.toml_models import Fault, Section, check_toml, read_toml


class _PlanSection(Section):
    """What is measured."""

    name: Annotated[str, Field(min_length=1)]
    """A plan of labrig's, or one's own as FILE.py:NAME."""
    options: dict[str, object] = Field(default_factory=dict)
    """Its options."""


class _PlanFile(Section):
    """A labrig plan file."""

    plan: _PlanSection


@dataclass(frozen=True)
class PlanFile:
    """A plan and its options.

    Attributes:
        name: A plan of labrig's, or one's own as FILE.py:NAME.
        options: Its options.
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    def text(self, comments: tuple[str, ...] = ()) -> str:
        """The file.

        Args:
            comments: Lines for its head.
        """
        tables = {key: value for key, value in self.options.items() if isinstance(value, Mapping)}
        plain = {key: value for key, value in self.options.items() if key not in tables}
        lines = [*(f"# {line}".rstrip() for line in comments), "[plan]", f"name = {json.dumps(self.name)}"]
        lines += ["", "[plan.options]", *(f"{key} = {json.dumps(value)}" for key, value in plain.items())]
        for name, table in tables.items():
            lines += ["", f"[plan.options.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def read_plan_file(path: Path) -> PlanFile:
    """Reads a plan file.

    Raises:
        ConfigError: It cannot be read, or is wrong; every fault is listed as `file:line: key: reason`.
    """
    checked = check_toml(read_toml(path), path, _PlanFile, _seed_faults)
    return PlanFile(checked.plan.name, checked.plan.options)


def _seed_faults(raw: Mapping[str, object]) -> Iterator[Fault]:
    """Options that have a place of their own."""
    plan = raw.get("plan")
    options = plan.get("options") if isinstance(plan, Mapping) else None
    elsewhere = {"seed": "use --seed of labrig sweep", "max_voltage_v": "the limit stands in the rig file"}
    for name, reason in elsewhere.items():
        if isinstance(options, Mapping) and name in options:
            yield Fault(("plan", "options", name), reason)
