"""`FaultProxy`: stands between a driver and its instrument, and spoils what passes as a `FaultPlan` says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from types import TracebackType
from typing import Self

from labrig.testing.fault_connection import Connection, OverError, Traffic
from labrig.testing.fault_ends import HostLine, InstrumentLine, LineEnd, TcpEnd, connect_tcp
from labrig.testing.fault_lane import Cutter, cut_lines, cut_pieces
from labrig.testing.fault_plan import CLEAN, CONNECTION_FAULTS, Direction, Fault, FaultPlan, Injected
from labrig_drivers.errors import LinkLostError, StateError
from labrig_drivers.settling import settle

_LOOPBACK = "127.0.0.1"
_BACKLOG = 64


class FaultProxy:
    r"""A line with faults, TCP or serial, both ways and down to the single byte; use it with `async with`.

    Without a fault it passes every byte as it comes. A host that closes its side has left: what it sent and what is
    on its way to it is dropped with its connection, as in a cable that was pulled.

    Args:
        instrument: TCP port of the instrument on this machine, or the path of its serial device.
        plan: Which faults come when.
        serial: True offers the host a serial device instead of a TCP port.
        requests: Where messages to the instrument end; by default what arrives at once is one message.
        answers: Where messages of the instrument end; by default at a line feed. For the board protocol, `cut_frames`.

    Attributes:
        instrument: As given; may be changed for the connections to come.
        connections: How many connections there were.

    Raises:
        ValueError: The plan breaks connections, and a serial line has none.
    """

    def __init__(
        self,
        instrument: int | str,
        plan: FaultPlan = CLEAN,
        *,
        serial: bool = False,
        requests: Cutter = cut_pieces,
        answers: Cutter = cut_lines,
    ) -> None:
        self.instrument = instrument
        self.connections = 0
        self._serial = serial
        self._traffic = Traffic({"requests": requests, "answers": answers}, self._refuse_for)
        self._plans: list[FaultPlan] = []
        self.plan = plan
        self._line: HostLine | None = None
        self._port = 0
        self._live: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._absence: asyncio.Task[None] | None = None
        self._bugs: list[BaseException] = []
        self._wanted = asyncio.Event()

    @property
    def plan(self) -> FaultPlan:
        """Which faults come when; setting it starts the counting of messages and bytes anew."""
        return self._traffic.plan

    @plan.setter
    def plan(self, plan: FaultPlan) -> None:
        broken = sorted(fault.value for fault in plan.kinds & CONNECTION_FAULTS)
        if self._serial and broken:
            raise ValueError(f"a serial line has no connection, so these faults cannot be: {', '.join(broken)}")
        self._traffic.plan = plan
        if plan != CLEAN:
            self._plans.append(plan)

    @property
    def port(self) -> int:
        """TCP port for the host.

        Raises:
            StateError: Not started, or the host's side is a serial device.
        """
        if not self._port:
            raise StateError("the proxy has no TCP port: it is not started, or it offers a serial device")
        return self._port

    @property
    def device(self) -> str:
        """Serial device for the host.

        Raises:
            StateError: Not started, or the host's side is a TCP port.
        """
        if self._line is None:
            raise StateError("the proxy has no serial device: it is not started, or it offers a TCP port")
        return self._line.device

    @property
    def injected(self) -> list[Injected]:
        """Every fault that was injected, in order; `FaultPlan.replay(proxy.injected)` repeats them."""
        return self._traffic.injected

    @property
    def kinds(self) -> Counter[Fault]:
        """How many faults of each kind were injected."""
        return Counter(one.planned.fault for one in self.injected)

    def messages(self, direction: Direction) -> int:
        """How many messages have come this way since the proxy was made."""
        return self._traffic.messages(direction)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Opens the host's side; a serial one is connected to the instrument at once.

        Raises:
            LinkLostError: The instrument behind a serial line cannot be reached.
        """
        if not self._serial:
            self._listen(0)
            return
        try:
            instrument = await self._connect()
        except OSError as error:
            raise LinkLostError(f"the proxy cannot reach the instrument at {self.instrument} ({error})") from error
        self._line = HostLine()
        self.connections = 1
        self._keep(self._carry(self._line, instrument, 1))

    async def stop(self) -> None:
        """Ends every connection and frees the port; harmless when stopped.

        Raises:
            Exception: The first error of a cutter that is no fault of the line.
        """
        self._stop_listening()
        await self._end_tasks()
        self._port, self._line = 0, None
        bugs, self._bugs = self._bugs, []
        if bugs:
            raise bugs[0]

    async def heal(self) -> None:
        """Ends every fault: a clean plan, what is frozen moves on, and everybody can connect."""
        self.plan = CLEAN
        self.thaw()
        self._wanted.set()
        if self._absence is not None:
            await asyncio.wait([self._absence])

    def freeze(self) -> None:
        """Lets nothing move, in any connection, until `thaw()`; connecting still succeeds."""
        self._traffic.moving.clear()

    def thaw(self) -> None:
        """Lets everything move again."""
        self._traffic.moving.set()
        for connection in self._live:
            connection.moving.set()

    async def refuse(self) -> None:
        """Resets every connection and lets nobody connect until `heal()`."""
        self._refuse_for(0.0)
        ending = [task for task in self._tasks if task is not self._absence]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def story(self, last: int = 100) -> str:
        """What a person needs to repeat a failure: the plans, and the `last` faults that were injected."""
        plans = [f"  {plan}" for plan in self._plans] or ["  none"]
        first = max(0, len(self.injected) - last)
        faults = [f"  {number}: {one}" for number, one in enumerate(self.injected[first:], first)] or ["  none"]
        if first:
            faults.insert(0, f"  ({first} before)")
        return "\n".join(["plans, in order:", *plans, "faults injected:", *faults, ""])

    def _listen(self, port: int) -> None:
        listener = socket.socket()
        # The same port has to be free at once when the listener comes back.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener
        # Not `loop.sock_accept`: cancelled at the wrong moment, it loses a connection that it has accepted.
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            # The host changed its mind.
            return
        host = TcpEnd(connection)
        self.connections += 1
        # A task that is cancelled before its first step could not close it.
        self._keep(self._serve(host, self.connections)).add_done_callback(partial(_close, host))

    async def _be_absent(self, duration_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(duration_s or None):
                await self._wanted.wait()
        self._listen(self._port)

    def _keep(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bugs.append(error)

    async def _end_tasks(self) -> None:
        # A task that ends may just have started another one.
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self) -> LineEnd:
        if isinstance(self.instrument, str):
            return InstrumentLine(self.instrument)
        return await connect_tcp(_LOOPBACK, self.instrument)

    async def _serve(self, host: TcpEnd, number: int) -> None:
        try:
            instrument = await self._connect()
        except BaseException as error:
            host.close(reset=True)
            if isinstance(error, OSError):
                return
            raise
        await self._carry(host, instrument, number)

    async def _carry(self, host: LineEnd, instrument: LineEnd, number: int) -> None:
        """Carries bytes both ways until the host leaves or a fault ends the connection."""
        connection = Connection(self._traffic, host, instrument, number)
        self._live.add(connection)
        pumps = [asyncio.ensure_future(pump) for pump in connection.pumps()]
        reset = True
        try:
            ended, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for pump in ended if (error := pump.exception()) is not None]
            reset = any(isinstance(error, OverError) and error.reset for error in errors)
            for error in errors:
                if not isinstance(error, OverError):
                    raise error
        finally:
            self._live.discard(connection)
            for pump in pumps:
                pump.cancel()
            # No socket is closed while the loop still watches it, even when `stop()` comes in the middle of this.
            cancelled = await settle(asyncio.gather(*pumps, return_exceptions=True))
            host.close(reset=reset)
            instrument.close(reset=reset)
            if cancelled is not None:
                raise cancelled

    def _refuse_for(self, duration_s: float) -> None:
        """Lets nobody connect for `duration_s`; 0 is until `heal()`."""
        absent = self._absence if self._absence is not None and not self._absence.done() else None
        if self._listener is None and (absent is None or duration_s > 0.0):
            return  # stopped, or refusing already
        if absent is not None:
            absent.cancel()  # the longer one counts
        self._stop_listening()
        self._wanted.clear()
        self._absence = self._keep(self._be_absent(duration_s))


def _close(end: TcpEnd, _: asyncio.Task[None]) -> None:
    end.close(reset=True)
