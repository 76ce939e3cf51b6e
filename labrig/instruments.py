"""Makes drivers by the name of their entry point, as rig files name them. Light: the watchdog process imports it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from labrig.addresses import same_instrument
from labrig_drivers.errors import ConfigError, SafetyError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links import link_from_url
from labrig_drivers.links.base import Link
from labrig_drivers.links.shared import SharedLink

DRIVER_GROUP = "labrig.drivers"

_SERVED = ("mqtt://", "mqtts://")


@dataclass(frozen=True)
class InstrumentSpec:
    """All that it takes to make one instrument.

    Attributes:
        section: Its table in the rig file, such as `board` or `source_meters.supply`; `board` is a board.
        driver: Entry point in the group `labrig.drivers`.
        link: Address; None for a driver that runs in this process.
        expect_model: Text that the reported model must contain.
        expect_serial: Serial number that must be reported.
        settings: Settings of the driver's own.
        ramp_v_per_s: Fastest change in V/s of an output that is on; None where nothing limits it.
    """

    section: str
    driver: str
    link: str | None = None
    expect_model: str | None = None
    expect_serial: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    ramp_v_per_s: float | None = None

    @property
    def name(self) -> str:
        """What messages call the instrument."""
        return self.section.rpartition(".")[2]

    @property
    def addresses(self) -> dict[str, str]:
        """Every address behind it, by a name for messages: its own, and those that its settings name as `link`.

        A board that is made of instruments runs in this process and has no link itself. Empty for a simulated one, and
        for one behind an MQTT broker: the program that serves it keeps others out, and switches it off.
        """
        own = {} if self.link is None or self.link.startswith(_SERVED) else {self.name: self.link}
        return own | dict(_links_in(self.settings, self.name))


def _links_in(value: object, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "link" and isinstance(inner, str):
                yield where, inner
            else:
                yield from _links_in(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _links_in(inner, f"{where}.{index}")


def installed_drivers() -> dict[str, EntryPoint]:
    """The drivers of this Python environment by entry point name (group `labrig.drivers`)."""
    return {point.name: point for point in sorted(entry_points(group=DRIVER_GROUP))}


def build_instruments(specs: Sequence[InstrumentSpec]) -> dict[str, object]:
    """Makes the instruments, none of them open.

    Instruments at one address get one link object, where their driver shares links (its `shares_link` is True).

    Returns:
        What each driver made, by section.

    Raises:
        ConfigError: A driver is missing or refuses what it is given; every fault, a line each as `key: reason`.
    """
    built: dict[str, object] = {}
    faults: list[str] = []
    links = _Links(specs)
    for spec in specs:
        try:
            built[spec.section] = _build(spec, links)
        except ConfigError as error:
            # A driver names the keys of its own settings; what names no key is about the link.
            lines = str(error).splitlines()
            faults += [line if line.startswith(spec.section) else f"{spec.section}.link: {line}" for line in lines]
        except SafetyError as error:
            faults += [f"{spec.section}.settings: {reason}" for reason in error.reasons]
    if faults:
        raise ConfigError("\n".join(faults))
    return built


# Sections of a rig file, and a verb that only drivers of such instruments have.
_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "board": ("a crossbar board", "mvm"),
    "source_meters": ("a source-meter", "output_on"),
    "axes": ("an axis", "move_to"),
    "matrix": ("a switch matrix", "connect"),
}


class _Links:
    """One link for each address."""

    def __init__(self, specs: Sequence[InstrumentSpec]) -> None:
        self._users = Counter(same_instrument(spec.link) for spec in specs if spec.link is not None)
        self._made: dict[str, tuple[InstrumentSpec, Link]] = {}
        self._own: dict[tuple[str, object], object] = {}
        self._settings: dict[str, list[Mapping[str, object]]] = {}

    def own_link(self, spec: InstrumentSpec, address: str, make_link: Callable[..., object]) -> object:
        """What the first driver with this `make_link(address, settings, section)` makes for an address, for all."""
        key = (same_instrument(address), make_link)
        if key not in self._own:
            self._own[key] = make_link(address, spec.settings, spec.section)
        return self._own[key]

    def link_for(self, spec: InstrumentSpec, address: str, driver: object) -> Link:
        key = same_instrument(address)
        if key not in self._made:
            shared = self._users[key] > 1 and getattr(driver, "shares_link", False) is True
            link = link_from_url(address)
            self._made[key] = (spec, SharedLink(link) if shared else link)
        first, link = self._made[key]
        # Two drivers on one link would take each other's answers, unless they were written for it.
        if first is not spec and (first.driver != spec.driver or not isinstance(link, SharedLink)):
            raise ConfigError(
                f"{spec.section}.link: {address} is the address of {first.section} too; "
                f"the driver {spec.driver!r} cannot share one connection between two instruments"
            )
        taken = self._settings.setdefault(key, [])
        if spec.settings in taken:
            raise ConfigError(
                f"{spec.section}.settings: the same as those of another instrument at {address}; "
                "say which channel each of them is"
            )
        taken.append(spec.settings)
        return link


def _build(spec: InstrumentSpec, links: _Links) -> object:
    """Calls `from_settings(link, expected, name)`, or `(settings, expected, name)` where there is no link.

    A driver with a link may also take the keywords `settings` and `ramp_v_per_s`, and make its link itself.
    """
    driver = _load_driver(spec)
    try:
        make: Callable[..., object] = driver.from_settings
    except AttributeError as error:
        raise ConfigError(f"{spec.section}.driver: {spec.driver!r} is no driver: it has no from_settings") from error
    _demand_kind(spec, driver)
    expected = ExpectedIdentity(spec.expect_model, spec.expect_serial)
    takes = inspect.signature(make).parameters
    if "link" not in takes:
        if spec.link is not None:
            raise ConfigError(f"{spec.section}.link: the driver {spec.driver!r} runs in this process and takes no link")
        return make(spec.settings, expected, spec.name)
    if spec.link is None:
        raise ConfigError(f"{spec.section}.link: is missing; the driver {spec.driver!r} needs it")
    make_link = getattr(driver, "make_link", None)
    keywords: dict[str, object] = {}
    if "settings" in takes:
        keywords["settings"] = spec.settings
    elif spec.settings and make_link is None:
        raise ConfigError(f"{spec.section}.settings: the driver {spec.driver!r} has no settings of its own; remove it")
    if "ramp_v_per_s" in takes:
        keywords["ramp_v_per_s"] = spec.ramp_v_per_s
    if make_link is not None:
        return make(links.own_link(spec, spec.link, make_link), expected, spec.name, **keywords)
    return make(links.link_for(spec, spec.link, driver), expected, spec.name, **keywords)


def _demand_kind(spec: InstrumentSpec, driver: object) -> None:
    """Refuses what drives another kind of instrument than the section is for."""
    wanted = spec.section.partition(".")[0]
    found = [kind for kind, (_, verb) in _KINDS.items() if hasattr(driver, verb)]
    if found and wanted not in found:
        raise ConfigError(
            f"{spec.section}.driver: {spec.driver!r} drives {_KINDS[found[0]][0]}; this section is for "
            f"{_KINDS[wanted][0]}"
        )


def _load_driver(spec: InstrumentSpec) -> Any:  # what an entry point names is known only at run time
    point = installed_drivers().get(spec.driver)
    if point is None:
        raise ConfigError(f"{spec.section}.driver: no driver named {spec.driver!r} is installed")
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{spec.section}.driver: {spec.driver!r} ({point.value}) cannot be loaded: {error}"
        ) from error
