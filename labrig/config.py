"""Rig files: TOML, checked by pydantic, with every fault in one error as `file:line: key: reason`."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from labrig.driver_faults import driver_faults
from labrig.instruments import installed_drivers
from labrig.rig_faults import rig_faults
from labrig.toml_lines import key_lines, line_of
from labrig.toml_models import Section, check_toml, read_toml
from labrig.toml_reasons import ARRAY_NUMBER, BROKER_URL, INSTRUMENT_NAME, LINK_URL, VARIABLE_NAME
from labrig_drivers.errors import ConfigError

__all__ = [
    "AxisConfig",
    "BoardConfig",
    "BoardSafetyConfig",
    "ConditionConfig",
    "InterlockConfig",
    "RigConfig",
    "SafetyConfig",
    "SourceMeterConfig",
    "TelemetryConfig",
    "installed_drivers",
    "load_rig",
    "parse_rig",
    "rig_schema",
    "shipped_rig",
]

# Instruments are named groups in a recording, hence no slash and no dot.
InstrumentName = Annotated[str, StringConstraints(pattern=INSTRUMENT_NAME)]
ArrayNumber = Annotated[str, StringConstraints(pattern=ARRAY_NUMBER)]
LinkUrl = Annotated[str, StringConstraints(pattern=LINK_URL)]
Positive = Annotated[float, Field(gt=0)]


class RigSection(Section):
    """The rig as a whole."""

    name: Annotated[str, Field(min_length=1)]
    """How messages and recordings call this rig."""


class BoardSafetyConfig(Section):
    """Limits of the board, or of one array: tighter than those above it."""

    max_read_voltage_v: Positive | None = None
    """Highest voltage in V of the word lines, either sign."""
    min_conductance_s: Positive | None = None
    """Lowest conductance in S that may be programmed."""
    max_conductance_s: Positive | None = None
    """Highest conductance in S that may be programmed."""


class ArrayConfig(Section):
    """One array of the board."""

    safety: BoardSafetyConfig
    """Limits of this array alone."""


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
    """Settings of the driver's own."""
    safety: BoardSafetyConfig | None = None
    """Limits of all its arrays."""
    arrays: dict[ArrayNumber, ArrayConfig] = Field(default_factory=dict)
    """Arrays with limits of their own, by number."""


class SourceMeterSafetyConfig(Section):
    """Limits of one source-meter: tighter than those of the rig."""

    max_voltage_v: Positive | None = None
    """Highest voltage in V, either sign."""
    max_current_a: Positive | None = None
    """Highest current in A, either sign."""
    max_power_w: Positive | None = None
    """Highest product of level and limit in W."""
    max_ramp_v_per_s: Positive | None = None
    """Fastest change in V/s of the output while it is on."""
    max_ramp_a_per_s: Positive | None = None
    """Fastest change in A/s of the output while it is on."""


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
    settings: dict[str, object] = Field(default_factory=dict)
    """Settings of the driver's own, such as `channel = "b"`."""
    safety: SourceMeterSafetyConfig | None = None
    """Limits of this source-meter alone."""


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
    max_ramp_a_per_s: Positive | None = None
    """Fastest change in A/s of a sourced current; without it a change is made in 20 steps."""
    max_read_voltage_v: Positive
    """Highest voltage in V of the array's word lines, either sign."""


class InterlockConfig(Section):
    """An interlock (door, emergency stop) that an instrument of the rig reads; a run pauses while it is open."""

    instrument: str
    """The instrument that reads it: the name of a source-meter, or `board`."""
    poll_s: Annotated[float, Field(ge=0.01, le=60)] = 0.5
    """Time in s between two looks at it while a run measures or waits."""


class AxisConfig(Section):
    """An axis: a quantity of the surroundings that a plan may set, such as the temperature of the chuck."""

    driver: str
    """Entry point in the group `labrig.drivers`, such as `scpi-axis` or `mock-axis`."""
    link: LinkUrl | None = None
    """Address, such as `tcp://192.168.0.12:5025`; absent for drivers that run in this process."""
    expect_model: str | None = None
    """Text that the reported model must contain."""
    expect_serial: str | None = None
    """Serial number that the instrument must report."""
    low: float | None = None
    """Lowest value that may be set, in the unit of the axis; may only be tighter than what the driver allows."""
    high: float | None = None
    """Highest value that may be set, in the unit of the axis; may only be tighter than what the driver allows."""
    settings: dict[str, object] = Field(default_factory=dict)
    """Settings of the driver's own: what is set, how, and where it goes at the end (`safe_value`)."""


class ConditionConfig(Section):
    """Something that must hold while a run measures; a run suspends while it does not, and goes on by itself."""

    reads: str
    """What is looked at: `board.temperature` (in K), `axes.NAME` (in its unit), or `supply.compliance`."""
    low: float | None = None
    """Lower end of the band."""
    high: float | None = None
    """Upper end of the band."""
    poll_s: Annotated[float, Field(ge=0.01, le=3600)] = 1.0
    """Shortest time in s between two readings."""
    hold_s: Annotated[float, Field(ge=0, le=86400)] = 0.0
    """How long in s it must be back in its band before the run goes on."""
    retry_s: Annotated[float, Field(ge=0, le=86400)] = 10.0
    """`supply.compliance` only: how long in s the array supply stays off before it is tried again."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 3
    """`supply.compliance` only: how often in a row it is tried again before the run ends."""


class TelemetryConfig(Section):
    """Where events of runs are published over MQTT; a file without this section publishes nothing."""

    broker: Annotated[str, StringConstraints(pattern=BROKER_URL)]
    """Address of the broker, `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for an encrypted connection."""
    site: Annotated[str, Field(min_length=1)] = "lab"
    """How topics call the place of this rig: they begin with `labrig/1/SITE/RIG/`."""
    username: Annotated[str, Field(min_length=1)] | None = None
    """Account at the broker."""
    password_file: Annotated[str, Field(min_length=1)] | None = None
    """File that holds the password of the account, and nothing else."""
    password_env: Annotated[str, StringConstraints(pattern=VARIABLE_NAME)] | None = None
    """Name of the environment variable that holds the password of the account."""
    ca_file: Annotated[str, Field(min_length=1)] | None = None
    """Certificates (PEM) that an `mqtts` broker is checked with; those of the system when absent."""
    max_rate_hz: Annotated[float, Field(gt=0, le=1000)] = 5.0
    """Documents per second of one kind of progress: blocks, steps of one phase, readings of the supply."""


class RigFile(Section):
    """A labrig rig file."""

    rig: RigSection
    board: BoardConfig
    source_meters: dict[InstrumentName, SourceMeterConfig] = Field(default_factory=dict)
    axes: dict[InstrumentName, AxisConfig] = Field(default_factory=dict)
    interlocks: dict[InstrumentName, InterlockConfig] = Field(default_factory=dict)
    conditions: dict[InstrumentName, ConditionConfig] = Field(default_factory=dict)
    safety: SafetyConfig
    telemetry: TelemetryConfig | None = None


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
        interlocks: The sections `[interlocks.NAME]` by name.
        axes: The sections `[axes.NAME]` by name.
        conditions: The sections `[conditions.NAME]` by name.
        telemetry: The section `[telemetry]`; None without one.
    """

    rig: RigSection
    board: BoardConfig
    source_meters: Mapping[str, SourceMeterConfig]
    safety: SafetyConfig
    path: Path
    source_text: str
    interlocks: Mapping[str, InterlockConfig] = field(default_factory=dict)
    axes: Mapping[str, AxisConfig] = field(default_factory=dict)
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    telemetry: TelemetryConfig | None = None

    @property
    def max_read_voltage_v(self) -> float:
        """Highest voltage in V that every array may be read with: what a plan for all of them has to keep."""
        tables = [self.board.safety, *(array.safety for array in self.board.arrays.values())]
        own = [table.max_read_voltage_v for table in tables if table is not None]
        return min([self.safety.max_read_voltage_v, *(limit for limit in own if limit is not None)])

    def locate(self, key: str) -> str:
        """The place `file:line` of a dotted key, for messages."""
        return f"{self.path}:{line_of(key_lines(self.source_text), key.split('.'))}"


def load_rig(path: Path | str) -> RigConfig:
    """Reads and checks a rig file.

    Args:
        path: The rig file (TOML).

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
    checked = check_toml(text, path, RigFile, lambda raw: rig_faults(raw, known), driver_faults)
    return RigConfig(
        rig=checked.rig,
        board=checked.board,
        source_meters=checked.source_meters,
        safety=checked.safety,
        path=path,
        source_text=text,
        interlocks=checked.interlocks,
        axes=checked.axes,
        conditions=checked.conditions,
        telemetry=checked.telemetry,
    )


def rig_schema() -> dict[str, object]:
    """The JSON schema of rig files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RigFile.model_json_schema()}


def shipped_rig(name: str) -> Path:
    """The path of a rig file that comes with labrig, such as `mock` or `simulated_bench`.

    Args:
        name: The file's name without `.toml`.

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
