"""`SimulatedBench`: a crossbar board and the source-meter that feeds it, on real sockets and a pseudo-terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from labrig_drivers.errors import StateError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.clock import ChipClock, WallClock
from labrig_drivers.mock.event_log import BoardEvent, EventLog
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.output_event import OutputEvent

_MOMENT_S: Final = 1e-3


@dataclass(frozen=True)
class BenchSettings:
    """What a simulated bench is made of and where it listens.

    Attributes:
        chip: The chip on the board.
        host: Address to listen on.
        board_port: TCP port of the board; 0 takes a free one.
        meter_port: TCP port of the source-meter; 0 takes a free one.
        minimum_supply_v: Below this array supply in V the board refuses to program and to measure.
        log: JSON-lines file for every event, or None.
    """

    chip: ChipSettings = field(default_factory=ChipSettings)
    host: str = "127.0.0.1"
    board_port: int = 0
    meter_port: int = 0
    minimum_supply_v: float = 1.0
    log: Path | None = None


@dataclass(frozen=True)
class BenchAddresses:
    """Where a running bench is reached; each is a `link` of a rig file.

    Attributes:
        board: The board over TCP.
        board_serial: The same board over its pseudo-terminal.
        meter: The source-meter through VISA.
        meter_tcp: The source-meter over plain TCP.
    """

    board: str
    board_serial: str
    meter: str
    meter_tcp: str


class SimulatedBench:
    """One simulated board behind TCP and a pseudo-terminal, and a Keithley 2400 that feeds its array.

    What the source-meter puts out is what the board's supply pin sees, and what the chip does is what the
    source-meter measures. All times, also those in the log, count from the making of the bench.
    """

    def __init__(self, settings: BenchSettings | None = None) -> None:
        self.settings = settings or BenchSettings()
        self._log: EventLog | None = None
        clock = WallClock()
        minimum_v = self.settings.minimum_supply_v
        board = MockBoard(self.settings.chip, clock=ChipClock(clock), minimum_supply_v=minimum_v)
        supply = _ArraySupply(board, minimum_v)
        self._server = BoardServer(board, self._note_board, now_s=clock.now_s, supply_is_on=supply.is_on)
        self._meter = InstrumentServer(
            SimulatedKeithley2400(supply, serial="SIM-2400", log=self._note_meter, clock=clock.now_s)
        )
        self._addresses: BenchAddresses | None = None

    @property
    def addresses(self) -> BenchAddresses:
        """Where the bench is reached; `StateError` unless it runs."""
        if self._addresses is None:
            raise StateError("the simulated bench does not run; call start() first")
        return self._addresses

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> BenchAddresses:
        """Starts both servers.

        Raises:
            LinkError: A port is in use.
            StorageError: The log cannot be written.
        """
        host = self.settings.host
        if self.settings.log is not None:
            self._log = EventLog(self.settings.log)
        try:
            board_port = await self._server.start_tcp(host, self.settings.board_port)
            device = self._server.start_pty()
            await self._meter.start(host, self.settings.meter_port)
            meter_port = self._meter.port
        except BaseException:
            await self.stop()
            raise
        self._addresses = BenchAddresses(
            board=f"tcp://{host}:{board_port}",
            board_serial=f"serial://{device}",
            meter=f"visa://TCPIP::{host}::{meter_port}::SOCKET",
            meter_tcp=f"tcp://{host}:{meter_port}",
        )
        return self._addresses

    async def stop(self) -> None:
        """Disconnects everybody, switches off and frees the addresses, for good; harmless when stopped."""
        self._addresses = None
        try:
            await self._server.stop()
            await self._meter.stop()
        finally:
            if self._log is not None:
                self._log.close()
                self._log = None

    def _note_board(self, event: BoardEvent) -> None:
        if self._log is not None:
            self._log.write(asdict(event))

    def _note_meter(self, event: OutputEvent) -> None:
        if self._log is not None:
            self._log.write({"what": "output", **asdict(event)})


class _ArraySupply:
    """The wire from the source-meter to the supply pin of the board; a `Load` of the source-meter."""

    def __init__(self, board: MockBoard, minimum_supply_v: float) -> None:
        self._board = board
        self._minimum_supply_v = minimum_supply_v
        self._voltage_v = 0.0

    def is_on(self) -> bool:
        """Whether the array has its supply."""
        return self._voltage_v >= self._minimum_supply_v

    def current_a(self, voltage_v: float, start_s: float, stop_s: float) -> float:
        """Mean current in A that the board draws."""
        # The board knows charge over a time, so a moment has to last a little.
        return self._board.supply_current_a(voltage_v, min(start_s, stop_s - _MOMENT_S), stop_s)

    def supply_changed(self, voltage_v: float, time_s: float) -> None:  # noqa: ARG002 - the contract names it
        """Passes the output voltage on to the pin."""
        self._voltage_v = voltage_v
        self._board.set_supply_voltage(voltage_v)


async def serve_bench(
    settings: BenchSettings, announce: Callable[[BenchAddresses], None], *, stop_with_parent: bool = False
) -> None:
    """Runs a bench until SIGINT or SIGTERM comes.

    Args:
        settings: What to run.
        announce: Called once with the addresses, when everything listens.
        stop_with_parent: Stop also when standard input, a pipe that the parent process holds, reaches its end.

    Raises:
        LinkError: A port is in use.
        StorageError: The log cannot be written.
    """
    stop = asyncio.Event()
    with _stopped_by_signals(stop):
        async with SimulatedBench(settings) as bench:
            announce(bench.addresses)
            if stop_with_parent:
                with _stopped_by_end_of_input(stop):
                    await stop.wait()
            else:
                await stop.wait()


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _stopped_by_end_of_input(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop.set()

    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
