"""A rig: its instruments opened together, owned, and closed safely."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from labrig.cleanup import finish
from labrig.config import BoardConfig, RigConfig, SourceMeterConfig, installed_drivers, load_rig
from labrig.safety import Envelope, GuardedBoard, GuardedSourceMeter
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard
from labrig_drivers.errors import ConfigError, LabrigError
from labrig_drivers.instrument import ExpectedIdentity, Identity, Instrument
from labrig_drivers.links import link_from_url
from labrig_drivers.source_meter import SourceMeter

BOARD_NAME = "board"


class RigError(LabrigError):
    """One or more instruments of a rig failed together; the message is a tree that names each of them.

    Attributes:
        failures: What happened to each instrument, by name.
    """

    def __init__(self, headline: str, failures: Mapping[str, BaseException], places: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        lines = [headline]
        for name, error in failures.items():
            text = str(error) if isinstance(error, LabrigError) else f"{type(error).__name__}: {error}"
            lines.append(f"  {name} ({places.get(name, '')}):")
            lines += [f"    {line}" for line in text.splitlines()]
        super().__init__("\n".join(lines))


class Rig:
    """The instruments of one rig. Use as `async with open_rig("rig.toml") as rig:`.

    Every request to the board and the source-meters passes the envelope of the rig file first.

    Args:
        config: The rig file.
        board: The crossbar board, not yet open.
        source_meters: The source-meters by the names of the rig file, not yet open.
    """

    def __init__(self, config: RigConfig, board: CrossbarBoard, source_meters: Mapping[str, SourceMeter]) -> None:
        envelope = Envelope.from_config(config.safety)
        self.config = config
        self._board = GuardedBoard(board, envelope)
        self._source_meters = {name: GuardedSourceMeter(meter, envelope, name) for name, meter in source_meters.items()}

    @property
    def board(self) -> CrossbarBoard:
        """The crossbar board, behind the envelope."""
        return self._board

    @property
    def source_meters(self) -> dict[str, SourceMeter]:
        """The source-meters by name, behind the envelope."""
        return dict(self._source_meters)

    @property
    def supply(self) -> SourceMeter | None:
        """The source-meter with the role `array-supply`, where the rig has one."""
        name = self._supply_name()
        return None if name is None else self._source_meters[name]

    def identities(self) -> dict[str, Identity]:
        """Who each instrument said it is, by name; the crossbar board is `board`."""
        return {name: instrument.identity for name, instrument in self._instruments().items()}

    async def open(self) -> None:
        """Opens all instruments in parallel and checks who they are; no output is touched.

        Raises:
            RigError: At least one instrument failed; those that opened were closed again.
        """
        instruments = self._instruments()
        try:
            results = await asyncio.gather(*(one.open() for one in instruments.values()), return_exceptions=True)
        except BaseException:
            await finish(_close_all(instruments))
            raise
        failures = _failures(instruments, results)
        if failures:
            # What went wrong in opening is the message; no output was touched, so closing has nothing to add.
            await finish(_close_all(instruments))
            headline = (
                f"rig {self.config.rig.name!r} ({self.config.path}): {len(failures)} of {len(instruments)} "
                "instruments could not be opened, no output was touched"
            )
            raise RigError(headline, failures, _places(self.config))

    async def close(self) -> None:
        """Makes the source-meters safe, then the board, and disconnects; a cancellation waits for that.

        Raises:
            RigError: An instrument failed to close; the others were closed all the same.
        """
        await finish(self._close())

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def power_up(self) -> None:
        """Feeds the board: configure, limit, level, output on, by a ramp; nothing without an array supply."""
        name = self._supply_name()
        if name is None:
            return
        supply = self._source_meters[name]
        settings = self.config.source_meters[name]
        if await supply.output_is_on():
            # Left on by somebody else, at a level that nobody here has chosen.
            await supply.output_off()
        await supply.configure(source="voltage", nplc=settings.nplc)
        await supply.set_limit(current_a=settings.limit_current_a)
        await supply.set_level(voltage_v=settings.level_voltage_v)
        await supply.output_on()

    async def power_down(self) -> None:
        """Ramps the array supply to zero and switches it off; a cancellation waits until this is done."""
        supply = self.supply
        if supply is not None:
            await finish(supply.output_off())

    @asynccontextmanager
    async def powered(self) -> AsyncIterator[None]:
        """Feeds the board as long as the block lasts; however it ends, the array supply is ramped down and off."""
        try:
            await self.power_up()
            yield
        finally:
            await self.power_down()

    def _instruments(self) -> dict[str, Instrument]:
        return {BOARD_NAME: self._board, **self._source_meters}

    def _supply_name(self) -> str | None:
        for name, settings in self.config.source_meters.items():
            if settings.role == "array-supply":
                return name
        return None

    async def _close(self) -> None:
        # Sources first: a board that lost its lines is safe only when nothing feeds it.
        failures: dict[str, BaseException] = {}
        for group in (dict(self._source_meters), {BOARD_NAME: self._board}):
            failures |= await _close_all(group)
        if failures:
            headline = (
                f"rig {self.config.rig.name!r}: {len(failures)} instruments could not be made safe; "
                "press OUTPUT OFF on them now"
            )
            raise RigError(headline, failures, _places(self.config))


def open_rig(source: RigConfig | Path | str) -> Rig:
    """Makes the rig of a rig file. It is opened by `async with`, as in the example of `Rig`.

    Raises:
        ConfigError: The rig file is wrong, or a driver refuses what it is given; every fault at once.
    """
    config = source if isinstance(source, RigConfig) else load_rig(source)
    faults: list[str] = []
    board: CrossbarBoard | None = _try_build("board", config.board, config, faults)
    meters: dict[str, SourceMeter] = {
        name: _try_build(f"source_meters.{name}", settings, config, faults)
        for name, settings in config.source_meters.items()
    }
    if faults or board is None:
        raise ConfigError("\n".join(faults))
    return Rig(config, board, meters)


async def identify(config: RigConfig) -> tuple[dict[str, Identity], BoardInfo]:
    """Opens a rig, asks who is there, and closes it without touching an output.

    Returns:
        The identity of each instrument by name, and the board's description.

    Raises:
        LabrigError: See `open_rig` and `Rig.open`.
    """
    async with open_rig(config) as rig:
        return rig.identities(), rig.board.info


def _try_build(
    section: str, settings: BoardConfig | SourceMeterConfig, config: RigConfig, faults: list[str]
) -> Any:  # what an entry point makes is known only at run time; the contract tests check it
    try:
        return _build(section, settings)
    except ConfigError as error:
        for line in str(error).splitlines():
            # A driver names the keys of its own settings; what names no key is about the link.
            text = line if line.startswith(section) else f"{section}.link: {line}"
            faults.append(f"{config.locate(text.partition(':')[0])}: {text}")
        return None


def _build(section: str, settings: BoardConfig | SourceMeterConfig) -> object:
    """Calls `from_settings(link, expected, name)`, or `(settings, expected, name)` where there is no link."""
    make = _load_driver(section, settings.driver)
    expected = ExpectedIdentity(settings.expect_model, settings.expect_serial)
    name = section.rpartition(".")[2]
    if "link" in inspect.signature(make).parameters:
        if settings.link is None:
            raise ConfigError(f"{section}.link: is missing; the driver {settings.driver!r} needs it")
        return make(link_from_url(settings.link), expected, name)
    if settings.link is not None:
        raise ConfigError(f"{section}.link: the driver {settings.driver!r} runs in this process and takes no link")
    return make(settings.settings if isinstance(settings, BoardConfig) else {}, expected, name)


def _load_driver(section: str, driver: str) -> Callable[..., object]:
    point = installed_drivers().get(driver)
    if point is None:
        raise ConfigError(f"{section}.driver: no driver named {driver!r} is installed")
    try:
        make: Callable[..., object] = point.load().from_settings
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{section}.driver: {driver!r} ({point.value}) cannot be loaded: {error}") from error
    return make


async def _close_all(instruments: Mapping[str, Instrument]) -> dict[str, BaseException]:
    results = await asyncio.gather(*(one.close() for one in instruments.values()), return_exceptions=True)
    return _failures(instruments, results)


def _failures(names: Iterable[str], results: Iterable[object]) -> dict[str, BaseException]:
    pairs = zip(names, results, strict=True)
    return {name: result for name, result in pairs if isinstance(result, BaseException)}


def _places(config: RigConfig) -> dict[str, str]:
    places = {BOARD_NAME: f"{config.board.driver}, {config.board.link or 'in this process'}"}
    return places | {name: f"{one.driver}, {one.link}" for name, one in config.source_meters.items()}
