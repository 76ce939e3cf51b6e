"""A rig that serves others: leases, queues, deadlines, duplicates. It knows no transport."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from labrig.events import Alarm, EventBus, Message
from labrig.remote.answered import Answered, Seen
from labrig.remote.bench import ServedBench
from labrig.remote.board_verbs import Outcome
from labrig.remote.faults import BusyError, LeaseEndedError, fault_of
from labrig.remote.lease_runs import LeaseRuns
from labrig.remote.lease_words import granted, lease_document, place_values, plain_text, who_asks
from labrig.remote.leases import Lease, LeaseBook, Place
from labrig.remote.manners import Manners
from labrig.remote.messages import PROTOCOL_VERSION, Answer, Request, Values
from labrig.remote.notices import Notices
from labrig.remote.tasks import end_tasks
from labrig_drivers.errors import LabrigError, ProtocolError, StateError
from labrig_drivers.settling import undivided

_log = logging.getLogger(__name__)

Outlet = Callable[[bytes], Awaitable[None]]
"""Takes an encoded answer to whoever asked."""

_LOOKS_PER_LEASE: Final = 40


class DirectOffer(Protocol):
    """A link beside the broker, for the holder of the lease."""

    def offer(self) -> Values:
        """What the holder of the lease is told, so that it can enter."""
        ...

    async def shut(self) -> None:
        """Sends the holder away."""
        ...


@dataclass(frozen=True)
class _Job:
    request: Request
    outlet: Outlet
    size: int


class RigService:
    """Carries out requests for the instruments of one rig, one after another for each instrument.

    Args:
        bench: The instruments.
        notices: What is told everybody.
        say: Gets a line for whoever looks after the rig.
        manners: Bounds.
        bus: Gets what is done under each lease as events of a run; nobody does when None.
    """

    def __init__(
        self,
        bench: ServedBench,
        notices: Notices,
        say: Callable[[str], None],
        manners: Manners | None = None,
        bus: EventBus | None = None,
    ) -> None:
        self._bench = bench
        self._notices = notices
        self._say = say
        self._bus = bus or EventBus()
        self._runs = LeaseRuns(self._bus)
        self.manners = manners or Manners()
        self.instance = secrets.token_hex(8)
        self._book = LeaseBook(self.manners.lease_s, lambda: secrets.token_urlsafe(24))
        self._answered = Answered()
        self._queues: dict[str, asyncio.Queue[_Job]] = {name: asyncio.Queue() for name in bench.names}
        self._under_way: dict[str, int] = dict.fromkeys(bench.names, 0)
        self._queued_bytes = 0
        self._running: set[asyncio.Task[Outcome]] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._turning = asyncio.Lock()
        self._unsafe: tuple[str, ...] = ()
        self._direct: DirectOffer | None = None
        self.requests = 0
        self.refused = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves as long as the block lasts; at its end every instrument is made safe."""
        self._tell_lease()
        self._bus.publish(Message(f"offered to users on other machines: {', '.join(self._bench.names)}"))
        tasks = [asyncio.create_task(self._work(name), name=f"labrig-serve-{name}") for name in self._queues]
        tasks.append(asyncio.create_task(self._watch_lease(), name="labrig-serve-lease"))
        tasks.append(asyncio.create_task(self._tell_traffic(), name="labrig-serve-traffic"))
        try:
            yield
        finally:
            await undivided(self._stop(tasks))

    def offer_direct(self, door: DirectOffer | None) -> None:
        """Has those who get a lease told how to enter the direct link; None offers none any more."""
        self._direct = door

    @property
    def lease_token(self) -> str | None:
        """The token of the lease as it stands."""
        return None if self._book.lease is None else self._book.lease.token

    def standing(self) -> tuple[Lease | None, tuple[str, ...]]:
        """The lease as it stands, and who waits for it; may be asked from another thread."""
        return self._book.lease, self._book.waiting_names(self.now_s())

    def now_s(self) -> float:
        """The rig's clock, which deadlines of requests are told in."""
        return time.monotonic()

    def refuse(self, error: LabrigError, where: str) -> None:
        """Counts and tells what came and was no request."""
        self.refused += 1
        self._notices.event("event/refused", {"kind": type(error).__name__, "text": str(error), "topic": where}, qos=0)

    def switch_off(self, who: str) -> None:
        """Ends the lease, if there is one, and has every output switched off, for somebody at the rig; never waits."""
        self._keep(asyncio.create_task(undivided(self._stopped(who, "at the rig")), name="labrig-serve-stop"))

    def take(self, request: Request, outlet: Outlet) -> None:
        """Takes a request in: answers it, or has it carried out and answered; never waits, never raises."""
        self.requests += 1
        try:
            match request.verb:
                case "hello":
                    self._answer(request, outlet, self._hello())
                case "acquire":
                    self._answer(request, outlet, self._acquire(request))
                case "renew":
                    lease = self._book.renew(request.lease, self.now_s())
                    self._tell_lease()
                    self._answer(request, outlet, {"until_s": lease.until_s, "now_s": self.now_s()})
                case "leave":
                    self._book.leave(request.client)
                    self._answer(request, outlet, {})
                case "release" | "take-over" | "stop":
                    self._keep(asyncio.create_task(self._turn_over(request, outlet), name="labrig-serve-turn"))
                case _:
                    self._queue(request, outlet)
        except LabrigError as error:
            self._refuse(request, outlet, error)

    def _hello(self) -> Values:
        return {
            "protocol": PROTOCOL_VERSION,
            "instance": self.instance,
            "now_s": self.now_s(),
            "lease_s": self.manners.lease_s,
            "window": self.manners.window,
        }

    def _acquire(self, request: Request) -> Values:
        if self._unsafe:
            names = ", ".join(self._unsafe)
            raise StateError(f"{names} could not be made safe; somebody has to look at the rig and start it again")
        before = self._book.lease
        found = self._book.ask(request.client, who_asks(request), self.now_s())
        if isinstance(found, Place):
            self._tell_lease()
            return place_values(found, self.now_s())
        if found.token != (before and before.token):
            self._begin(found, "granted", "")
        direct: Values = {} if self._direct is None else self._direct.offer()
        return {**granted(found, self.now_s()), **direct}

    def _begin(self, lease: Lease, what: str, reason: str) -> None:
        self._answered = Answered()
        self._tell_lease()
        self._notices.event("event/lease", {"what": what, "who": lease.who, "reason": reason})
        self._runs.begin(lease.who)
        self._tell(f"lease: {lease.who} has the rig")

    def _queue(self, request: Request, outlet: Outlet) -> None:
        lease = self._book.check(request.lease)
        if lease.client != request.client:
            raise StateError("this lease belongs to another client")
        # Whoever asks for something is alive.
        self._book.renew(request.lease, self.now_s())
        name = request.instrument
        if name is None or name not in self._queues:
            raise ProtocolError(f"{request.verb}: there is no instrument {name!r}; there are {', '.join(self._queues)}")
        before = self._answered.begin(request.number)
        if isinstance(before, bytes):
            self._send(outlet, before)
            return
        if before is Seen.RUNNING:
            return
        if before is Seen.FORGOTTEN:
            raise StateError(
                f"{request.verb} {request.number} came before and is not carried out again: {before.value}"
            )
        size = sum(one.nbytes for one in request.arrays.values())
        if self._under_way[name] >= self.manners.window or self._queued_bytes + size > self.manners.most_queued_bytes:
            self._answered.forget(request.number)
            raise BusyError(f"busy: {self._under_way[name]} requests for {name} wait already; ask again later")
        self._under_way[name] += 1
        self._queued_bytes += size
        self._queues[name].put_nowait(_Job(request, outlet, size))

    async def _work(self, name: str) -> None:
        while True:
            job = await self._queues[name].get()
            try:
                answer = await self._carried_out(job.request)
            finally:
                self._under_way[name] -= 1
                self._queued_bytes -= job.size
            self._keep(asyncio.create_task(self._answer_job(job, answer), name="labrig-serve-send"))

    async def _answer_job(self, job: _Job, answer: Answer) -> None:
        await asyncio.sleep(0)  # the next request is begun first: the board must not wait while an answer is packed
        try:
            message = answer.encoded()
        except LabrigError as error:
            message = Answer(answer.client, answer.number, fault=fault_of(error)).encoded()
        if job.request.lease == self.lease_token:
            self._answered.end(answer.number, message)
        await _delivered(job.outlet, message)

    async def _carried_out(self, request: Request) -> Answer:
        client, number = request.client, request.number
        try:
            self._book.check(request.lease)
            request.check_deadline(self.now_s())
            outcome = await self._outcome(request)
            self._runs.carried_out(request, outcome)
            return Answer(client, number, outcome.values, outcome.arrays)
        except Exception as error:
            if not isinstance(error, LabrigError):
                _log.exception("%s failed", request.verb)
            return Answer(client, number, fault=fault_of(error))

    async def _outcome(self, request: Request) -> Outcome:
        task = asyncio.create_task(self._bench.carry_out(request), name=f"labrig-serve-{request.verb}")
        self._running.add(task)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await undivided(asyncio.wait([task]))
            raise
        finally:
            self._running.discard(task)
        if task.cancelled():
            self._book.check(request.lease)
            raise StateError(f"{request.verb} was broken off")
        return task.result()

    async def _watch_lease(self) -> None:
        while True:
            await asyncio.sleep(self.manners.lease_s / _LOOKS_PER_LEASE)
            if self._book.overdue(self.now_s()):
                why = (
                    f"the lease ended, as it was not renewed for {self.manners.lease_s:g} s; outputs were switched off"
                )
                try:
                    await undivided(self._end_lease(why, "expired", token=self.lease_token))
                except Exception as error:  # whoever watches must not fall asleep; the next look tries again
                    _log.exception("a lease could not be ended")
                    self._alarm(f"a lease could not be ended: {error}")

    async def _tell_traffic(self) -> None:
        told = 0
        while True:
            await asyncio.sleep(self.manners.traffic_s)
            if self.requests + self.refused != told:
                told = self.requests + self.refused
                under_way = sum(self._under_way.values())
                fields = {"requests": self.requests, "refused": self.refused, "under_way": under_way}
                self._notices.event("telemetry/requests", {**fields, "dropped": self._notices.dropped}, qos=0)

    async def _turn_over(self, request: Request, outlet: Outlet) -> None:
        try:
            values = await undivided(self._turned_over(request))
        except Exception as error:
            if not isinstance(error, LabrigError):
                _log.exception("%s failed", request.verb)
            self._refuse(request, outlet, error)
            return
        self._answer(request, outlet, values)

    async def _turned_over(self, request: Request) -> Values:
        reason = plain_text(request.values.get("reason"))
        if request.verb == "release":
            lease = self._book.check(request.lease)
            await self._end_lease("the lease was given back", "released", token=lease.token)
            return {}
        if not reason.strip():
            raise ProtocolError(f"{request.verb} needs a reason, which everybody can read")
        who = who_asks(request)
        if request.verb == "stop":
            await self._stopped(who, reason)
            if self._unsafe:
                raise StateError(f"{', '.join(self._unsafe)} could not be switched off; press OUTPUT OFF on them now")
            return {}
        self._book.put_first(request.client, who, self.now_s())
        await self._end_lease(f"{who} took the rig over: {reason}", "taken-over", reason)
        return self._acquire(request)

    async def _stopped(self, who: str, reason: str) -> None:
        await self._end_lease(f"{who} switched the outputs off: {reason}", "stopped", reason)

    async def _end_lease(self, why: str, what: str, reason: str = "", token: str | None = None) -> None:
        """Ends the lease, if there is one, and makes everything safe in any case; nothing when `token` has ended."""
        async with self._turning:
            if token is not None and token != self.lease_token:
                return
            lease = self._book.end(why)
            if self._direct is not None and lease is not None:
                self._keep(asyncio.create_task(self._direct.shut(), name="labrig-serve-direct"))
            for queue in self._queues.values():
                while not queue.empty():
                    job = queue.get_nowait()
                    assert job.request.instrument is not None
                    self._under_way[job.request.instrument] -= 1
                    self._queued_bytes -= job.size
                    self._refuse(job.request, job.outlet, LeaseEndedError(why))
            running = set(self._running)
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
            failures = await self._bench.make_safe()
            self._unsafe = tuple(failures)
            self._book.reopen()
            if lease is not None:
                fields = {"what": what, "who": lease.who, "reason": reason or why}
                self._notices.event("event/lease", fields)
                self._tell(f"lease: {lease.who} no longer has the rig: {why}")
            for name, error in failures.items():
                text = f"{name} could not be made safe: {error}; press OUTPUT OFF on it now"
                self._notices.event("event/unsafe", {"text": text})
                self._alarm(text)
            if lease is not None or what == "stopped":
                self._runs.end("aborted" if failures else "finished" if what == "released" else "stopped")
            self._tell_lease()

    def _tell(self, text: str) -> None:
        self._say(text)
        self._bus.publish(Message(text))

    def _alarm(self, text: str) -> None:
        self._say(f"ALARM: {text}")
        self._bus.publish(Alarm(text))

    def _tell_lease(self) -> None:
        lease = self._book.lease
        self._notices.keep("state", b"ready" if lease is None else b"busy")
        self._notices.keep("lease", lease_document(lease, self._book.waiting, self.now_s()))

    def _refuse(self, request: Request, outlet: Outlet, error: Exception) -> None:
        self.refused += isinstance(error, ProtocolError)
        self._send(outlet, Answer(request.client, request.number, fault=fault_of(error)).encoded())

    def _answer(self, request: Request, outlet: Outlet, values: Values) -> None:
        self._send(outlet, Answer(request.client, request.number, values).encoded())

    def _send(self, outlet: Outlet, message: bytes) -> None:
        self._keep(asyncio.create_task(_delivered(outlet, message), name="labrig-serve-send"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        await end_tasks(*tasks)
        await self._end_lease("the rig's program was ended; outputs were switched off", "ended")
        if self._sending:
            _, left = await asyncio.wait(self._sending, timeout=1.0)
            await end_tasks(*left)


async def _delivered(outlet: Outlet, message: bytes) -> None:
    try:
        await outlet(message)
    except Exception as error:  # whoever asked is gone, and asks again or not
        _log.info("an answer could not be delivered: %s", error)
