"""What passes through a `FaultProxy`: the traffic of all connections, and one connection that carries it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine

from labrig.testing.fault_ends import LineEnd
from labrig.testing.fault_lane import Cutter, End, EndKind, FaultLane, Freeze, LaneCount, Send, Step, Wait
from labrig.testing.fault_plan import CLEAN, DIRECTIONS, Direction, FaultPlan, Injected


class Traffic:
    """Plan, counts and record of all connections of one proxy.

    Args:
        cutters: Where messages end, each way.
        refuse_for: Lets nobody connect for some seconds; 0 is until the proxy is healed.

    Attributes:
        cutters: As given.
        refuse_for: As given.
        injected: Every fault that was injected, in order.
        moving: Set while bytes may move.
    """

    def __init__(self, cutters: dict[Direction, Cutter], refuse_for: Callable[[float], None]) -> None:
        self.cutters = cutters
        self.refuse_for = refuse_for
        self.injected: list[Injected] = []
        self.moving = asyncio.Event()
        self.moving.set()
        self._plan = CLEAN
        self._counts = {way: LaneCount() for way in DIRECTIONS}
        self._before = dict.fromkeys(DIRECTIONS, 0)

    @property
    def plan(self) -> FaultPlan:
        """Which faults come when; setting it starts the counting anew."""
        return self._plan

    @plan.setter
    def plan(self, plan: FaultPlan) -> None:
        self._before = {way: self.messages(way) for way in DIRECTIONS}
        self._counts = {way: LaneCount() for way in DIRECTIONS}
        self._plan = plan

    def messages(self, direction: Direction) -> int:
        """How many messages have come this way, whatever the plan."""
        return self._before[direction] + self._counts[direction].messages

    def steps_of(self, lane: FaultLane, data: bytes | None) -> list[Step]:
        """What to do with bytes that arrived; None gives up waiting, empty is the end."""
        if data is None:
            return lane.release()
        count = self._counts[lane.direction]
        return lane.feed(data, self._plan, count) if data else lane.finish(self._plan, count)


class OverError(Exception):
    """The connection is over; `reset` says how."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("the connection is over")
        self.reset = reset


class Connection:
    """Both ways between one host and the instrument.

    Args:
        traffic: What passes through the proxy as a whole.
        host: One side; the caller closes both.
        instrument: The other side.
        number: Number of the connection, for the record.

    Attributes:
        moving: Set while bytes of this connection may move.
    """

    def __init__(self, traffic: Traffic, host: LineEnd, instrument: LineEnd, number: int) -> None:
        self.moving = asyncio.Event()
        self.moving.set()
        self._traffic = traffic
        self._host, self._instrument = host, instrument
        self._number = number
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._host_left = False
        self._requests_stall = False

    def pumps(self) -> list[Coroutine[object, object, None]]:
        """What has to run; each raises `OverError` when the connection is over."""
        return [
            self._listen(),
            self._pump("requests", self._heard.get, self._instrument, self._traffic.cutters["requests"]),
            self._pump("answers", self._instrument.receive, self._host, self._traffic.cutters["answers"]),
        ]

    async def _listen(self) -> None:
        """Hears the host also while requests stall, so that one that leaves is noticed."""
        while data := await self._host.receive():
            self._heard.put_nowait(data)
        self._host_left = True
        if self._requests_stall:
            raise OverError(reset=False)
        self._heard.put_nowait(b"")

    async def _pump(
        self, way: Direction, receive: Callable[[], Awaitable[bytes]], sink: LineEnd, cutter: Cutter
    ) -> None:
        lane = FaultLane(way, cutter, self._number, self._traffic.injected.append)
        is_open = True
        while True:
            data: bytes | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lane.patience_s):
                    data = await receive()
            if data == b"" and way == "requests":
                raise OverError(reset=False)
            for step in self._traffic.steps_of(lane, data):
                await self._until_moving(way)
                is_open = is_open and await self._take(step, way, sink)
            if data == b"":
                return

    async def _take(self, step: Step, way: Direction, sink: LineEnd) -> bool:
        """Does one step; returns whether this way is still open."""
        match step:
            case Send(data):
                try:
                    await sink.send(data)
                except OSError:
                    return False
            case Wait(duration_s):
                await self._stall(way, asyncio.sleep(duration_s))
            case Freeze(duration_s):
                self.moving.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(duration_s or None):
                        await self._until_moving(way)
                self.moving.set()
            case End(EndKind.HALF_CLOSE):
                sink.shut()
                return False
            case End(kind, refuse_s):
                if refuse_s is not None:
                    self._traffic.refuse_for(refuse_s)
                raise OverError(reset=kind is EndKind.RESET)
        return True

    async def _until_moving(self, way: Direction) -> None:
        for moving in (self.moving, self._traffic.moving):
            if not moving.is_set():
                await self._stall(way, moving.wait())

    async def _stall(self, way: Direction, pause: Coroutine[object, object, object]) -> None:
        if way == "answers":
            await pause
            return
        if self._host_left:
            pause.close()
            raise OverError(reset=False)
        self._requests_stall = True
        try:
            await pause
        finally:
            self._requests_stall = False
