"""The table `[board.settings]` of a rig file whose board is a bench crossbar, turned into instruments and settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Final, Protocol, TypeVar, cast

from labrig_drivers.bench_settings import BenchGeometry, BenchSettings, CellRange, PulseSettings, ReadSettings
from labrig_drivers.errors import ConfigError, LabrigError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links.base import Link
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.links.url import link_from_url
from labrig_drivers.settings_table import SettingsTable
from labrig_drivers.source_meter import SourceMeter
from labrig_drivers.switch_matrix import SwitchMatrix

_GROUP: Final = "labrig.drivers"
_WHERE: Final = "board.settings"

SettingsT = TypeVar("SettingsT", ReadSettings, PulseSettings)


@dataclass(frozen=True)
class BenchParts:
    """What a bench crossbar is made of; nothing is open."""

    word_source: SourceMeter
    bit_meters: list[SourceMeter]
    gate_source: SourceMeter | None
    matrix: SwitchMatrix
    settings: BenchSettings


class _Driver(Protocol):
    """A driver's class, as an entry point names it."""

    from_settings: Callable[..., object]


def bench_from_settings(values: Mapping[str, object]) -> BenchParts:
    """Makes the instruments and the settings of a bench.

    Raises:
        ConfigError: A key is missing, unknown or wrong, or a driver refuses its settings; every fault at once.
    """
    table = SettingsTable(values, _WHERE)
    cells = CellRange(
        chip_id=table.text("chip_id"),
        conductance_min_s=table.not_negative("conductance_min_s", CellRange.conductance_min_s),
        conductance_max_s=table.positive("conductance_max_s", CellRange.conductance_max_s),
        writes_before=table.whole("writes_before", CellRange.writes_before, low=0),
        gate_v=table.positive("gate_v", CellRange.gate_v),
    )
    settings = BenchSettings(
        geometry=_geometry(table.table("wiring", None)),
        cells=cells,
        read=_numbers(table.table("read"), ReadSettings),
        pulse=_numbers(table.table("pulse"), PulseSettings),
    )
    links: dict[str, Link] = {}
    word_source = _instrument(table.table("word_source", None), "word-source", links)
    bit_meters = [_instrument(one, f"bit-meter-{index}", links) for index, one in enumerate(table.tables("bit_meters"))]
    gate_source = _instrument(table.table("gate_source"), "gate-source", links) if table.has("gate_source") else None
    matrix = _instrument(table.table("matrix", None), "switch-matrix", links)
    table.finish()
    return BenchParts(
        cast(SourceMeter, word_source),
        cast(list[SourceMeter], bit_meters),
        cast("SourceMeter | None", gate_source),
        cast(SwitchMatrix, matrix),
        settings,
    )


def _geometry(table: SettingsTable) -> BenchGeometry:
    geometry = BenchGeometry(
        word_columns=table.wholes("word_columns"),
        bit_columns=table.wholes("bit_columns"),
        source_row=table.whole("source_row", low=1),
        meter_rows=table.wholes("meter_rows"),
        ground_row=table.whole("ground_row", low=1),
        gate_row=table.whole("gate_row", low=1) if table.has("gate_row") else None,
        gate_columns=table.wholes("gate_columns", ()),
    )
    table.finish()
    return geometry


def _numbers(table: SettingsTable, kind: type[SettingsT]) -> SettingsT:
    """Reads a table whose keys are the fields of a dataclass of numbers and flags with defaults."""
    found: dict[str, object] = {}
    for field in fields(kind):
        default = field.default
        if isinstance(default, bool):
            found[field.name] = table.flag(field.name, default)
        elif isinstance(default, int):
            found[field.name] = table.whole(field.name, default, low=1)
        elif isinstance(default, float):
            found[field.name] = table.not_negative(field.name, default)
    table.finish()
    return kind(**found)  # type: ignore[arg-type]  # the types were read off the same fields


def _instrument(table: SettingsTable, name: str, links: dict[str, Link]) -> object | None:
    """Makes one instrument of the bench; None where its table has faults, which were noted."""
    driver, address = table.text("driver"), table.text("link")
    expected = ExpectedIdentity(
        table.text("expect_model") if table.has("expect_model") else None,
        table.text("expect_serial") if table.has("expect_serial") else None,
    )
    offered: dict[str, object] = {}
    if table.has("settings"):
        offered["settings"] = table.table("settings").raw()
    if table.has("ramp_v_per_s"):
        offered["ramp_v_per_s"] = table.positive("ramp_v_per_s")
    before = len(table.faults)
    table.finish()
    if not driver or not address or len(table.faults) > before:
        return None
    try:
        make = _driver(driver)
        for key in offered:
            if key not in inspect.signature(make.from_settings).parameters:
                raise ConfigError(f"the driver {driver!r} takes no {key}")
        return make.from_settings(_link(make, address, links), expected, name, **offered)
    except LabrigError as error:
        table.faults += [f"{table.where}: {line}" for line in str(error).splitlines()]
        return None


def _driver(name: str) -> _Driver:
    points = {point.name: point for point in entry_points(group=_GROUP)}
    if name not in points:
        raise ConfigError(f"no driver named {name!r} is installed; installed are {', '.join(sorted(points))}")
    try:
        driver = cast(_Driver, points[name].load())
        _ = driver.from_settings
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the driver {name!r} cannot be loaded: {error}") from error
    return driver


def _link(driver: _Driver, address: str, links: dict[str, Link]) -> Link:
    """One link for each address; two instruments share it where their driver can, as two channels of one do."""
    shares = getattr(driver, "shares_link", False) is True
    if address not in links:
        link = link_from_url(address)
        links[address] = SharedLink(link) if shares else link
    elif not shares:
        raise ConfigError(f"link: {address} is the address of another instrument of this bench already")
    return links[address]
