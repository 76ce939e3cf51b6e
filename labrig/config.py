"""Rig files: TOML, checked by pydantic, with every fault in one error as `file:line: key: reason`."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from labrig.toml_lines import key_lines, line_of
from labrig.toml_models import Fault, Section, check_toml, read_toml
from labrig_drivers.errors import ConfigError

DRIVER_GROUP = "labrig.drivers"

# Instruments are named groups in a recording, hence no slash and no dot.
InstrumentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
LinkUrl = Annotated[str, StringConstraints(pattern=r"^[a-z]+://.+")]
Positive = Annotated[float, Field(gt=0)]


class RigSection(Section):
    """The rig as a whole."""

    name: Annotated[str, Field(min_length=1)]
    """How messages and recordings call this rig."""


class BoardConfig(Section):
    """The crossbar board."""

    driver: str
    """Entry point in the group `labrig.drivers`, such as `wire-board` or `mock-board`."""
    link: LinkUrl | None = None
    """Address, such as `tcp://127.0.0.1:15731`; absent for drivers that run in this process."""
    expect_model: str | None = None
    """Text that the reported model must contain."""
    expect_serial: str | None = None
    """Serial number that the board must report."""
    settings: dict[str, object] = Field(default_factory=dict)
    """Settings of a driver that runs in this process."""


class SourceMeterConfig(Section):
    """One source-meter."""

    driver: str
    """Entry point in the group `labrig.drivers`, such as `keithley2400`."""
    link: LinkUrl
    """Address, such as `visa://TCPIP::192.168.0.7::5025::SOCKET`."""
    expect_model: str | None = None
    """Text that the reported model must contain."""
    expect_serial: str | None = None
    """Serial number that the instrument must report."""
    role: Literal["array-supply"] | None = None
    """`array-supply`: this source-meter feeds the board while a run lasts. At most one has this role."""
    level_voltage_v: float | None = None
    """Voltage in V that it sources."""
    limit_current_a: Positive | None = None
    """Compliance limit in A."""
    nplc: Annotated[float, Field(ge=0.01, le=25)] = 1.0
    """Integration time in power line cycles."""


class SafetyConfig(Section):
    """The envelope of the whole rig: what no request may exceed."""

    max_voltage_v: Positive
    """Highest voltage in V of any source-meter, either sign."""
    max_current_a: Positive
    """Highest current in A of any source-meter, either sign."""
    max_power_w: Positive
    """Highest product of level and limit in W of any source-meter."""
    max_ramp_v_per_s: Positive
    """Fastest change in V/s of an output that is on."""
    max_read_voltage_v: Positive
    """Highest voltage in V of the array's word lines, either sign."""


class RigFile(Section):
    """A labrig rig file."""

    rig: RigSection
    board: BoardConfig
    source_meters: dict[InstrumentName, SourceMeterConfig] = Field(default_factory=dict)
    safety: SafetyConfig


@dataclass(frozen=True)
class RigConfig:
    """A valid rig file.

    Attributes:
        rig: The section `[rig]`.
        board: The section `[board]`.
        source_meters: The sections `[source_meters.NAME]` by name.
        safety: The section `[safety]`.
        path: The file.
        source_text: The file's text, verbatim: recordings carry it.
    """

    rig: RigSection
    board: BoardConfig
    source_meters: Mapping[str, SourceMeterConfig]
    safety: SafetyConfig
    path: Path
    source_text: str

    def locate(self, key: str) -> str:
        """The place `file:line` of a dotted key, for messages."""
        return f"{self.path}:{line_of(key_lines(self.source_text), key.split('.'))}"


def installed_drivers() -> dict[str, EntryPoint]:
    """The drivers of this Python environment by entry point name (group `labrig.drivers`)."""
    return {point.name: point for point in sorted(entry_points(group=DRIVER_GROUP))}


def load_rig(path: Path | str) -> RigConfig:
    """Reads and checks a rig file.

    Raises:
        ConfigError: The file cannot be read, or is wrong; every fault is listed as `file:line: key: reason`.
    """
    path = Path(path)
    return parse_rig(read_toml(path), path)


def parse_rig(text: str, path: Path, *, drivers: Collection[str] | None = None) -> RigConfig:
    """Checks the text of a rig file; see `load_rig`.

    Args:
        text: The TOML text.
        path: Where the text comes from, for messages.
        drivers: Names of drivers that exist; those installed when None.

    Raises:
        ConfigError: The text is wrong; the message lists every fault.
    """
    known = installed_drivers() if drivers is None else drivers
    checked = check_toml(text, path, RigFile, lambda raw: _cross_faults(raw, known))
    return RigConfig(checked.rig, checked.board, checked.source_meters, checked.safety, path, text)


def rig_schema() -> dict[str, object]:
    """The JSON schema of rig files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RigFile.model_json_schema()}


def shipped_rig(name: str) -> Path:
    """The path of a rig file that comes with labrig, such as `mock` or `simulated_bench`.

    Raises:
        ConfigError: There is no such file; the message lists those that exist.
    """
    # In a wheel they lie inside the package, in a checkout beside it.
    package = Path(str(importlib.resources.files("labrig")))
    folders = [folder for folder in (package / "rig_configs", package.parent / "rig_configs") if folder.is_dir()]
    for folder in folders:
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    raise ConfigError(f"no rig file named {name!r} comes with labrig; there are: {', '.join(known) or 'none'}")


def _cross_faults(raw: Mapping[str, object], drivers: Collection[str]) -> Iterator[Fault]:
    """Faults between keys, on values that may be wrong by themselves, so that all come in one error."""
    board = _table(raw, "board")
    yield from _driver_fault(board, ("board",), drivers)
    if "link" in board and board.get("settings"):
        yield Fault(("board", "settings"), "only a driver without a link has settings; remove link or settings")
    supplies: list[str] = []
    for name, meter in _table(raw, "source_meters").items():
        if not isinstance(meter, dict):
            continue
        where = ("source_meters", name)
        if name == "board":
            yield Fault(where, "this name is taken by the crossbar board")
        yield from _driver_fault(meter, where, drivers)
        yield from _envelope_faults(meter, where, _table(raw, "safety"))
        if meter.get("role") == "array-supply":
            for key in ("level_voltage_v", "limit_current_a"):
                if key not in meter:
                    yield Fault((*where, key), "is missing; the role array-supply needs it")
            if supplies:
                yield Fault((*where, "role"), f"only one array-supply is possible, {supplies[0]} is one already")
            supplies.append(name)


def _driver_fault(table: Mapping[str, object], where: tuple[str, ...], drivers: Collection[str]) -> Iterator[Fault]:
    driver = table.get("driver")
    if isinstance(driver, str) and driver not in drivers:
        known = ", ".join(sorted(drivers)) or "none"
        yield Fault((*where, "driver"), f"no driver named {driver!r} is installed; installed are: {known}")


def _envelope_faults(
    meter: Mapping[str, object], where: tuple[str, ...], safety: Mapping[str, object]
) -> Iterator[Fault]:
    level_v, limit_a = _number(meter, "level_voltage_v"), _number(meter, "limit_current_a")
    max_v, max_a = _number(safety, "max_voltage_v"), _number(safety, "max_current_a")
    max_w = _number(safety, "max_power_w")
    if level_v is not None and max_v is not None and abs(level_v) > max_v:
        yield Fault((*where, "level_voltage_v"), f"{level_v:g} V exceeds safety.max_voltage_v = {max_v:g} V")
    if limit_a is not None and max_a is not None and limit_a > max_a:
        yield Fault((*where, "limit_current_a"), f"{limit_a:g} A exceeds safety.max_current_a = {max_a:g} A")
    if level_v is not None and limit_a is not None and max_w is not None and abs(level_v) * limit_a > max_w:
        power = f"{abs(level_v) * limit_a:g} W"
        yield Fault(
            (*where, "limit_current_a"),
            f"level times limit is {power}, exceeds safety.max_power_w = {max_w:g} W",
        )


def _table(raw: Mapping[str, object], name: str) -> dict[str, object]:
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


def _number(table: Mapping[str, object], key: str) -> float | None:
    value = table.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
