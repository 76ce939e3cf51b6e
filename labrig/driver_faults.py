"""What drivers refuse of a rig file that is wrong already, so that all of it comes in one error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from labrig.instruments import InstrumentSpec, build_instruments, installed_drivers
from labrig.toml_models import Fault
from labrig_drivers.errors import ConfigError


def driver_faults(raw: Mapping[str, object]) -> Iterator[Fault]:
    """Yields what the drivers say of their own settings and links; nothing is opened.

    Args:
        raw: The parsed text of a rig file. Sections that name no installed driver are left out.
    """
    specs = [spec for section, table in _instruments(raw) if (spec := _spec(section, table)) is not None]
    try:
        build_instruments(specs)
    except ConfigError as error:
        for line in str(error).splitlines():
            key, _, reason = line.partition(": ")
            yield Fault(tuple(key.split(".")), reason)


def _instruments(raw: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    board = raw.get("board")
    if isinstance(board, dict):
        yield "board", board
    for group in ("source_meters", "axes"):
        named = raw.get(group)
        for name, table in named.items() if isinstance(named, dict) else ():
            if isinstance(table, dict):
                yield f"{group}.{name}", table


def _spec(section: str, table: Mapping[str, object]) -> InstrumentSpec | None:
    driver, link, settings = table.get("driver"), table.get("link"), table.get("settings", {})
    if not isinstance(driver, str) or driver not in installed_drivers():
        return None
    if not isinstance(link, str | None) or not isinstance(settings, dict):
        return None
    return InstrumentSpec(section, driver, link, settings=settings)
