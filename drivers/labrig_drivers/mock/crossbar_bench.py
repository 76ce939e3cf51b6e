"""`CrossbarBench`: simulated source-meters, a simulated switch matrix and a bare crossbar, on real sockets."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from labrig_drivers.bench_settings import BenchGeometry
from labrig_drivers.mock.bare_crossbar import BareCrossbar
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.servers import InstrumentServer, SimulatedKeithley2400
from labrig_drivers.mock.switch_matrix import SimulatedSwitchMatrix, SwitchEvent, SwitchMatrixServer
from labrig_drivers.mock.wired_crossbar import WiredCrossbar
from labrig_drivers.scpi_switch import ChannelNumbers

NUMBERS = ChannelNumbers(1101)
"""Channel numbers of the simulated card: slot 1 of a mainframe that counts `srcc`."""


class CrossbarBench:
    """Everything that a bench crossbar needs, simulated. Use as `async with CrossbarBench(...) as bench:`.

    Args:
        crossbar: The cells.
        geometry: The wiring; the matrix gets as many rows and columns as it names.
        time_scale: Readings and relays take this many times their nominal duration.
        operate_s: Time in s that relays take to move.
        reads_contacts: Whether the matrix reports its contacts or only what was commanded.

    Attributes:
        events: Every change of an output and every relay that moved, in the order that they happened.
        matrix: The simulated mainframe, to break its relays.
        wired: The circuit.
    """

    def __init__(
        self,
        crossbar: BareCrossbar,
        geometry: BenchGeometry,
        *,
        time_scale: float = 1.0,
        operate_s: float = 4e-3,
        reads_contacts: bool = True,
    ) -> None:
        self.events: list[OutputEvent | SwitchEvent] = []
        self.geometry = geometry
        self.crossbar = crossbar
        rows = {"word": geometry.source_row}
        rows |= {f"bit{index}": row for index, row in enumerate(geometry.meter_rows)}
        if geometry.gate_row is not None:
            rows["gate"] = geometry.gate_row
        self.wired = WiredCrossbar(crossbar, geometry, rows)
        columns = max(*geometry.word_columns, *geometry.bit_columns, *geometry.gate_columns)
        self.matrix = SimulatedSwitchMatrix(
            max(geometry.matrix_rows),
            columns,
            numbers=NUMBERS,
            operate_s=operate_s,
            reads_contacts=reads_contacts,
            log=self._relay_moved,
        )
        self._matrix_server = SwitchMatrixServer(self.matrix, time_scale=time_scale)
        self._meter_servers = {
            serial: InstrumentServer(
                SimulatedKeithley2400(self.wired.load(serial), serial=serial, log=self._output_changed),
                time_scale=time_scale,
            )
            for serial in rows
        }
        self._stack = AsyncExitStack()

    @property
    def matrix_port(self) -> int:
        """TCP port of the switch matrix."""
        return self._matrix_server.port

    @property
    def word_port(self) -> int:
        """TCP port of the word source."""
        return self._meter_servers["word"].port

    @property
    def gate_port(self) -> int:
        """TCP port of the gate source; `KeyError` on a passive crossbar."""
        return self._meter_servers["gate"].port

    @property
    def bit_ports(self) -> list[int]:
        """TCP ports of the bit meters, in the order of `geometry.meter_rows`."""
        return [self._meter_servers[f"bit{index}"].port for index in range(len(self.geometry.meter_rows))]

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._matrix_server)
        for server in self._meter_servers.values():
            await self._stack.enter_async_context(server)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def stop_meters(self) -> None:
        """Takes the source-meters off the network, as a pulled cable does; they stay as they are."""
        for server in self._meter_servers.values():
            await server.stop()

    async def start_meters(self, ports: list[int]) -> None:
        """Puts the source-meters back on the network: the word source, the bit meters, the gate source."""
        for server, port in zip(self._meter_servers.values(), ports, strict=True):
            await server.start(port=port)

    def is_safe(self) -> bool:
        """Whether every output is off and every relay open, by the log alone."""
        outputs = {event.instrument: event.output_on for event in self.events if isinstance(event, OutputEvent)}
        relays = {(event.row, event.column): event.closed for event in self.events if isinstance(event, SwitchEvent)}
        return not any(outputs.values()) and not any(relays.values())

    def _output_changed(self, event: OutputEvent) -> None:
        self.events.append(event)
        self.wired.output_changed(event)

    def _relay_moved(self, event: SwitchEvent) -> None:
        self.events.append(event)
        self.wired.relay_moved(event)
