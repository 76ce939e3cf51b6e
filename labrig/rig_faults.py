"""What can be wrong between the keys of a rig file, found also where single values are wrong by themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from labrig.addresses import broker_address
from labrig.toml_models import Fault
from labrig.toml_reasons import BROKER_URL

BOARD_TEMPERATURE: Final = "board.temperature"
"""What a condition reads: the temperature of the chip in K."""
SUPPLY_COMPLIANCE: Final = "supply.compliance"
"""What a condition reads: whether the array supply is at its limit."""

_Where = tuple[str, ...]
_UNITS = {"_v": "V", "_a": "A", "_w": "W", "_v_per_s": "V/s", "_a_per_s": "A/s", "_s": "S"}


def rig_faults(raw: Mapping[str, object], drivers: Collection[str]) -> Iterator[Fault]:
    """Yields every such fault.

    Args:
        raw: The parsed text of a rig file.
        drivers: Names of drivers that exist.
    """
    board, safety = _table(raw, "board"), _table(raw, "safety")
    yield from _driver_fault(board, ("board",), drivers)
    yield from _board_limit_faults(board, safety)
    yield from _made_board_faults(_table(board, "settings"), safety)
    meters = _table(raw, "source_meters")
    supplies: list[str] = []
    for name, meter in meters.items():
        if not isinstance(meter, dict):
            continue
        where = ("source_meters", name)
        if name == "board":
            yield Fault(where, "this name is taken by the crossbar board")
        yield from _driver_fault(meter, where, drivers)
        own = _table(meter, "safety")
        yield from _looser_faults(own, (*where, "safety"), [("safety", safety)])
        yield from _level_faults(meter, where, [("safety", safety), (f"source_meters.{name}.safety", own)])
        if meter.get("role") == "array-supply":
            for key in ("level_voltage_v", "limit_current_a"):
                if key not in meter:
                    yield Fault((*where, key), "is missing; the role array-supply needs it")
            if supplies:
                yield Fault((*where, "role"), f"only one array-supply is possible, {supplies[0]} is one already")
            supplies.append(name)
    axes = _table(raw, "axes")
    yield from _axis_faults(axes, meters, drivers)
    yield from _interlock_faults(_table(raw, "interlocks"), meters)
    yield from _condition_faults(_table(raw, "conditions"), axes, has_supply=bool(supplies))
    yield from _telemetry_faults(_table(raw, "telemetry"))


def _driver_fault(table: Mapping[str, object], where: _Where, drivers: Collection[str]) -> Iterator[Fault]:
    driver = table.get("driver")
    if isinstance(driver, str) and driver not in drivers:
        known = ", ".join(sorted(drivers)) or "none"
        yield Fault((*where, "driver"), f"no driver named {driver!r} is installed; installed are: {known}")


def _board_limit_faults(board: Mapping[str, object], safety: Mapping[str, object]) -> Iterator[Fault]:
    own = _table(board, "safety")
    yield from _looser_faults(own, ("board", "safety"), [("safety", safety)])
    yield from _empty_range_fault([("board.safety", own)], ("board", "safety"))
    for number, array in _table(board, "arrays").items():
        if not isinstance(array, dict):
            continue
        where = ("board", "arrays", number, "safety")
        limits = _table(array, "safety")
        above = [("safety", safety), ("board.safety", own)]
        yield from _looser_faults(limits, where, above)
        yield from _empty_range_fault([("board.safety", own), (".".join(where), limits)], where)


def _made_board_faults(settings: Mapping[str, object], safety: Mapping[str, object]) -> Iterator[Fault]:
    """What a board that is made of source-meters would ask of them beyond the limits of the rig.

    Such a board owns its instruments, so no guard stands before them; see the table of `bench-crossbar`.
    """
    meters = settings.get("bit_meters")
    made_of: dict[_Where, Mapping[str, object]] = {
        ("word_source",): _table(settings, "word_source"),
        ("gate_source",): _table(settings, "gate_source"),
    }
    for index, meter in enumerate(meters if isinstance(meters, list) else []):
        made_of["bit_meters", str(index)] = meter if isinstance(meter, dict) else {}
    if not any("link" in table for table in made_of.values()):
        return
    asked: list[tuple[_Where, Mapping[str, object], str, str]] = [((), settings, "gate_v", "max_voltage_v")]
    for name in ("read", "pulse"):
        table = _table(settings, name)
        asked += [((name,), table, "max_v", "max_voltage_v"), ((name,), table, "limit_a", "max_current_a")]
    asked += [(where, meter, "ramp_v_per_s", "max_ramp_v_per_s") for where, meter in made_of.items()]
    for where, values, key, limit_key in asked:
        value, limit = _number(values, key), _number(safety, limit_key)
        if value is not None and limit is not None and abs(value) > limit:
            unit = _unit(key)
            reason = f"{value:g} {unit} exceeds safety.{limit_key} = {limit:g} {unit}"
            yield Fault(("board", "settings", *where, key), reason)


def _looser_faults(
    limits: Mapping[str, object], where: _Where, above: list[tuple[str, Mapping[str, object]]]
) -> Iterator[Fault]:
    """A limit that allows more than one above it would only seem to allow it."""
    for key in limits:
        value = _number(limits, key)
        if value is None:
            continue
        for table, outer in above:
            limit = _number(outer, key)
            if limit is None:
                continue
            looser = value < limit if key.startswith("min_") else value > limit
            if looser:
                unit = _unit(key)
                yield Fault(
                    (*where, key),
                    f"{value:g} {unit} is looser than {table}.{key} = {limit:g} {unit}; "
                    "a limit may only be tighter than the one above it",
                )


def _empty_range_fault(tables: list[tuple[str, Mapping[str, object]]], where: _Where) -> Iterator[Fault]:
    lows = [value for _, table in tables if (value := _number(table, "min_conductance_s")) is not None]
    highs = [value for _, table in tables if (value := _number(table, "max_conductance_s")) is not None]
    if lows and highs and max(lows) >= min(highs):
        yield Fault(where, f"no conductance lies between {max(lows):g} S and {min(highs):g} S")


def _level_faults(
    meter: Mapping[str, object], where: _Where, above: list[tuple[str, Mapping[str, object]]]
) -> Iterator[Fault]:
    level_v, limit_a = _number(meter, "level_voltage_v"), _number(meter, "limit_current_a")
    for table, limits in above:
        max_v, max_a = _number(limits, "max_voltage_v"), _number(limits, "max_current_a")
        max_w = _number(limits, "max_power_w")
        if level_v is not None and max_v is not None and abs(level_v) > max_v:
            yield Fault((*where, "level_voltage_v"), f"{level_v:g} V exceeds {table}.max_voltage_v = {max_v:g} V")
        if limit_a is not None and max_a is not None and limit_a > max_a:
            yield Fault((*where, "limit_current_a"), f"{limit_a:g} A exceeds {table}.max_current_a = {max_a:g} A")
        if level_v is not None and limit_a is not None and max_w is not None and abs(level_v) * limit_a > max_w:
            power = f"{abs(level_v) * limit_a:g} W"
            yield Fault(
                (*where, "limit_current_a"), f"level times limit is {power}, exceeds {table}.max_power_w = {max_w:g} W"
            )


def _axis_faults(axes: Mapping[str, object], meters: Mapping[str, object], drivers: Collection[str]) -> Iterator[Fault]:
    for name, axis in axes.items():
        where = ("axes", name)
        if name == "board":
            yield Fault(where, "this name is taken by the crossbar board")
        if name in meters:
            yield Fault(where, f"this name is taken by source_meters.{name}")
        if isinstance(axis, dict):
            yield from _driver_fault(axis, where, drivers)
            yield from _empty_band_fault(axis, where)


def _condition_faults(
    conditions: Mapping[str, object], axes: Mapping[str, object], *, has_supply: bool
) -> Iterator[Fault]:
    known = [SUPPLY_COMPLIANCE, BOARD_TEMPERATURE, *(f"axes.{name}" for name in axes)]
    compliance: list[str] = []
    for name, condition in conditions.items():
        reads = condition.get("reads") if isinstance(condition, dict) else None
        if not isinstance(condition, dict) or not isinstance(reads, str):
            continue
        where = ("conditions", name)
        if reads not in known:
            yield Fault((*where, "reads"), f"{reads!r} cannot be looked at; there are: {', '.join(known)}")
            continue
        of_band, of_compliance = ("low", "high", "poll_s", "hold_s"), ("retry_s", "retries")
        for key in of_band if reads == SUPPLY_COMPLIANCE else of_compliance:
            if key in condition:
                yield Fault((*where, key), f"has no meaning for {reads}; remove it")
        if reads != SUPPLY_COMPLIANCE:
            if "low" not in condition and "high" not in condition:
                yield Fault((*where, "high"), "is missing, and low too; a band has at least one end")
            yield from _empty_band_fault(condition, where)
            continue
        if not has_supply:
            yield Fault((*where, "reads"), "the rig has no source-meter with the role array-supply")
        if compliance:
            yield Fault((*where, "reads"), f"the compliance of the supply is looked at by {compliance[0]} already")
        compliance.append(name)


def _empty_band_fault(table: Mapping[str, object], where: _Where) -> Iterator[Fault]:
    low, high = _number(table, "low"), _number(table, "high")
    if low is not None and high is not None and low >= high:
        yield Fault((*where, "high"), f"{high:g} is not above low = {low:g}")


def _interlock_faults(interlocks: Mapping[str, object], meters: Mapping[str, object]) -> Iterator[Fault]:
    for name, interlock in interlocks.items():
        instrument = interlock.get("instrument") if isinstance(interlock, dict) else None
        if isinstance(instrument, str) and instrument not in {"board", *meters}:
            known = ", ".join(["board", *meters])
            yield Fault(
                ("interlocks", name, "instrument"), f"the rig has no instrument {instrument!r}; there are: {known}"
            )


def _telemetry_faults(telemetry: Mapping[str, object]) -> Iterator[Fault]:
    broker, encrypted = telemetry.get("broker"), True
    # Another beginning is a fault of the key itself.
    if isinstance(broker, str) and re.match(BROKER_URL, broker):
        try:
            encrypted = broker_address(broker).tls
        except ValueError as error:
            yield Fault(("telemetry", "broker"), str(error))
    if "ca_file" in telemetry and not encrypted:
        yield Fault(("telemetry", "ca_file"), "certificates are for mqtts:// brokers, this one is mqtt://")
    if "password" in telemetry:
        reason = "a rig file holds no password, since every recording repeats it; use password_file or password_env"
        yield Fault(("telemetry", "password"), reason)
    sources = [key for key in ("password_file", "password_env") if key in telemetry]
    if len(sources) == 2:
        yield Fault(("telemetry", sources[1]), "the password comes from one place; password_file names one already")
    if sources and "username" not in telemetry:
        yield Fault(("telemetry", "username"), f"is missing; {sources[0]} needs it")


def _unit(key: str) -> str:
    # The longest ending first: _v_per_s is not _s.
    return next((_UNITS[ending] for ending in sorted(_UNITS, key=len, reverse=True) if key.endswith(ending)), "")


def _table(raw: Mapping[str, object], name: str) -> dict[str, object]:
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


def _number(table: Mapping[str, object], key: str) -> float | None:
    value = table.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
