"""A rig: its instruments opened together, owned, and closed safely."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from labrig.config import RigConfig, load_rig
from labrig.guarded_axis import GuardedAxis
from labrig.guarded_board import GuardedBoard
from labrig.guarded_source_meter import GuardedSourceMeter
from labrig.instruments import InstrumentSpec, build_instruments
from labrig.rig_checks import check_axes, check_board, find_interlocks
from labrig.rig_lock import LOCK_FOLDER, RigLock
from labrig.safety import axis_envelope, board_envelope, source_envelope
from labrig.watchdog.client import Watchdog
from labrig_drivers.axis import Axis
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard
from labrig_drivers.errors import ConfigError, LabrigError, StateError
from labrig_drivers.instrument import HostLossProtection, Identity, Instrument, ProtectsItself, ReportsSettings
from labrig_drivers.interlock import InterlockInput
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import SourceMeter
from labrig_drivers.wording import counted

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

    Every request to the board, the source-meters and the axes passes the limits of the rig file first. While the rig
    is open no other labrig on this machine gets its instruments, and before the first output is on, a watchdog process
    stands ready to switch it off should this process be killed.

    Args:
        config: The rig file.
        board: The crossbar board, not yet open.
        source_meters: The source-meters by the names of the rig file, not yet open.
        axes: The axes by the names of the rig file, not yet open.
        lock: Keeps others from the instruments; None for instruments that nobody else can reach.
        watchdog: Switches off when this process is killed; None for instruments that only this process can reach.

    Raises:
        ConfigError: An instrument that should read an interlock cannot, or a limit of an axis is none.
    """

    def __init__(
        self,
        config: RigConfig,
        board: CrossbarBoard,
        source_meters: Mapping[str, SourceMeter],
        *,
        axes: Mapping[str, Axis] | None = None,
        lock: RigLock | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.config = config
        self._lock = lock
        self._watchdog = watchdog
        axes = axes or {}
        self._bare: dict[str, Instrument] = {BOARD_NAME: board, **source_meters, **axes}
        self._interlocks = find_interlocks(config, self._bare)
        check_axes(config, axes)
        specs = {spec.name: spec for spec in instrument_specs(config)}
        board_spec = specs[BOARD_NAME]
        before_drive = partial(self._watch, board_spec) if board_spec.addresses else None
        self._board = GuardedBoard(board, board_envelope(config), before_drive)
        self._source_meters = {
            name: GuardedSourceMeter(
                meter,
                source_envelope(config, name),
                before_on=partial(self._before_on, specs[name]),
                after_off=partial(self._after_off, specs[name]),
            )
            for name, meter in source_meters.items()
        }
        self._axes: dict[str, GuardedAxis] = {}
        for name, axis in axes.items():
            # What stays where it is when its program is gone needs no watch.
            watched = axis.safe_value is not None and specs[name].addresses
            before_move = partial(self._watch, specs[name]) if watched else None
            self._axes[name] = GuardedAxis(axis, axis_envelope(config, name), before_move)

    @property
    def board(self) -> CrossbarBoard:
        """The crossbar board, behind the envelope."""
        return self._board

    @property
    def source_meters(self) -> dict[str, SourceMeter]:
        """The source-meters by name, behind the envelope."""
        return dict(self._source_meters)

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes by name, behind their limits."""
        return dict(self._axes)

    @property
    def supply(self) -> SourceMeter | None:
        """The source-meter with the role `array-supply`, where the rig has one."""
        name = self._supply_name()
        return None if name is None else self._source_meters[name]

    def identities(self) -> dict[str, Identity]:
        """Who each instrument said it is, by name; the crossbar board is `board`."""
        return {name: instrument.identity for name, instrument in self._instruments().items()}

    def host_loss_protection(self) -> dict[str, HostLossProtection | None]:
        """What switches each instrument off when the host is lost, by name; None where nothing does."""
        return {
            name: one.host_loss_protection if isinstance(one, ProtectsItself) else None
            for name, one in self._bare.items()
        }

    async def read_settings(self, name: str) -> dict[str, str]:
        """Asks an instrument how it is set; empty where it cannot be asked.

        Raises:
            LinkError: It does not answer.
        """
        instrument = self._instruments()[name]
        return await undivided(instrument.read_settings()) if isinstance(instrument, ReportsSettings) else {}

    async def open_interlocks(self) -> list[str]:
        """Asks every interlock of the rig file; returns the names of those that are open.

        Raises:
            CapabilityError: An instrument has no interlock after all.
            LinkError: One cannot be asked.
        """
        return [name for name, one in self._interlocks.items() if not await undivided(_closed(one))]

    async def keep_watch(self) -> None:
        """Starts the watchdog process again if it has died; cheap enough to be called before every point."""
        if self._watchdog is not None:
            await undivided(self._watchdog.revive())

    async def open(self) -> None:
        """Opens all instruments in parallel and checks who they are; no output is touched.

        Raises:
            StateError: Somebody else has an instrument; nothing was opened, and the message says who.
            RigError: At least one instrument failed; those that opened were closed again.
            ConfigError: The rig file speaks of an array or a temperature that the board does not have.
        """
        if self._lock is not None:
            self._lock.acquire()
        try:
            await self._open()
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    async def close(self) -> None:
        """Makes the source-meters safe, then the board, then the axes, and disconnects; a cancellation waits for that.

        Raises:
            RigError: An instrument failed to close; the others were closed all the same.
        """
        await undivided(self._close())

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
            await undivided(supply.output_off())

    @asynccontextmanager
    async def powered(self) -> AsyncIterator[None]:
        """Feeds the board as long as the block lasts; however it ends, the array supply is ramped down and off."""
        try:
            await self.power_up()
            yield
        finally:
            await self.power_down()

    async def _open(self) -> None:
        instruments = self._instruments()
        try:
            results = await asyncio.gather(*(one.open() for one in instruments.values()), return_exceptions=True)
        except BaseException:
            await undivided(_close_all(instruments))
            raise
        failures = _failures(instruments, results)
        if failures:
            # What went wrong in opening is the message; no output was touched, so closing has nothing to add.
            await undivided(_close_all(instruments))
            headline = (
                f"rig {self.config.rig.name!r} ({self.config.path}): {len(failures)} of "
                f"{counted(len(instruments), 'instrument')} could not be opened, no output was touched"
            )
            raise RigError(headline, failures, _places(self.config))
        try:
            check_board(self.config, self._board.info)
        except ConfigError:
            await undivided(_close_all(instruments))
            raise

    async def _before_on(self, spec: InstrumentSpec) -> None:
        if names := await self.open_interlocks():
            raise StateError(f"{spec.name}: interlock {', '.join(names)} is open; close it before switching on")
        await self._watch(spec)

    async def _watch(self, spec: InstrumentSpec) -> None:
        if self._watchdog is not None:
            await self._watchdog.arm(spec)

    async def _after_off(self, spec: InstrumentSpec) -> None:
        if self._watchdog is not None:
            await self._watchdog.disarm(spec.section)

    def _instruments(self) -> dict[str, Instrument]:
        return {BOARD_NAME: self._board, **self._source_meters, **self._axes}

    def _supply_name(self) -> str | None:
        for name, settings in self.config.source_meters.items():
            if settings.role == "array-supply":
                return name
        return None

    async def _close(self) -> None:
        # Sources first: a board that lost its lines is safe only when nothing feeds it. Axes may take long.
        failures: dict[str, BaseException] = {}
        groups: list[dict[str, Instrument]] = [{**self._source_meters}, {BOARD_NAME: self._board}, {**self._axes}]
        try:
            for group in groups:
                failures |= await _close_all(group)
        finally:
            if self._watchdog is not None:
                await self._watchdog.stop()
            if self._lock is not None:
                self._lock.release()
        if failures:
            headline = (
                f"rig {self.config.rig.name!r}: {counted(len(failures), 'instrument')} could not be made safe; "
                f"press OUTPUT OFF on {'it' if len(failures) == 1 else 'them'} now"
            )
            raise RigError(headline, failures, _places(self.config))


def instrument_specs(config: RigConfig) -> list[InstrumentSpec]:
    """What it takes to make each instrument of a rig file, the board first."""
    board = config.board
    specs = [InstrumentSpec("board", board.driver, board.link, board.expect_model, board.expect_serial, board.settings)]
    for name, meter in config.source_meters.items():
        ramp_v_per_s = source_envelope(config, name).ramp_v_per_s
        section = f"source_meters.{name}"
        specs.append(
            InstrumentSpec(
                section, meter.driver, meter.link, meter.expect_model, meter.expect_serial, meter.settings, ramp_v_per_s
            )
        )
    for name, axis in config.axes.items():
        section = f"axes.{name}"
        specs.append(
            InstrumentSpec(section, axis.driver, axis.link, axis.expect_model, axis.expect_serial, axis.settings)
        )
    return specs


def open_rig(source: RigConfig | Path | str, *, lock_folder: Path | str = LOCK_FOLDER) -> Rig:
    """Makes the rig of a rig file. It is opened by `async with`, as in the example of `Rig`.

    Args:
        source: The rig file, read or not.
        lock_folder: Where the locks of instruments are; everybody on this machine has to use the same.

    Raises:
        ConfigError: The rig file is wrong, or a driver refuses what it is given; every fault at once.
    """
    config, lock_folder = source if isinstance(source, RigConfig) else load_rig(source), Path(lock_folder)
    specs = instrument_specs(config)
    try:
        built = build_instruments(specs)
    except ConfigError as error:
        lines = str(error).splitlines()
        located = [f"{config.locate(line.partition(':')[0])}: {line}" for line in lines]
        raise ConfigError("\n".join(located)) from error
    # What an entry point makes is known only at run time; the contract tests check it.
    board = cast(CrossbarBoard, built["board"])
    meters = {name: cast(SourceMeter, built[f"source_meters.{name}"]) for name in config.source_meters}
    axes = {name: cast(Axis, built[f"axes.{name}"]) for name in config.axes}
    addresses = {name: address for spec in specs for name, address in spec.addresses.items()}
    if not addresses:
        return Rig(config, board, meters, axes=axes)
    lock = RigLock(addresses, f"rig {config.rig.name!r} ({config.path})", lock_folder)
    return Rig(config, board, meters, axes=axes, lock=lock, watchdog=Watchdog(lock, lock_folder))


async def identify(config: RigConfig) -> tuple[dict[str, Identity], BoardInfo]:
    """Opens a rig, asks who is there, and closes it without touching an output.

    Returns:
        The identity of each instrument by name, and the board's description.

    Raises:
        LabrigError: See `open_rig` and `Rig.open`.
    """
    async with open_rig(config) as rig:
        return rig.identities(), rig.board.info


async def _closed(interlock: InterlockInput) -> bool:
    return await interlock.interlock_closed()


async def _close_all(instruments: Mapping[str, Instrument]) -> dict[str, BaseException]:
    results = await asyncio.gather(*(one.close() for one in instruments.values()), return_exceptions=True)
    return _failures(instruments, results)


def _failures(names: Iterable[str], results: Iterable[object]) -> dict[str, BaseException]:
    pairs = zip(names, results, strict=True)
    return {name: result for name, result in pairs if isinstance(result, BaseException)}


def _places(config: RigConfig) -> dict[str, str]:
    return {spec.name: f"{spec.driver}, {spec.link or 'in this process'}" for spec in instrument_specs(config)}
