"""The user's side: one connection and one lease for all instruments of one served rig."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
import time
from dataclasses import dataclass
from typing import Final

from labrig.remote.addresses import RigAddress
from labrig.remote.carrier import Carrier
from labrig.remote.envelope import Arrays
from labrig.remote.faults import BusyError, LeaseEndedError, error_of
from labrig.remote.messages import PROTOCOL_VERSION, Answer, Request, Values
from labrig.remote.results import number, text, whole
from labrig.remote.tasks import end_tasks
from labrig.telemetry.broker import Broker
from labrig_drivers.errors import LabrigError, LinkError, LinkLostError, LinkTimeoutError, ProtocolError, StateError
from labrig_drivers.settling import undivided

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_FIRST_BUSY_S: Final = 0.02
_RENEWALS_PER_LEASE: Final = 4
_RELEASE_S: Final = 3.0


@dataclass(frozen=True)
class Wishes:
    """How a client behaves.

    Attributes:
        who: What others read while it has the rig.
        answer_s: Longest wait in s for an answer, where a request does not take longer by itself.
        queue_s: Longest wait in s for the rig while somebody else has it.
        take_over: Why the rig is taken from whoever has it; None waits.
        direct: Whether the direct link is used where the rig offers one.
    """

    who: str
    answer_s: float = 10.0
    queue_s: float = 30.0
    take_over: str | None = None
    direct: bool = True


class RemoteSession:
    """Connection and lease, for as many instruments as enter it; the first one begins it, the last one ends it.

    While it lasts the connection is made again when it breaks, and the lease is renewed; requests that were under way
    then fail, and nothing is ever sent twice.

    Args:
        address: The rig.
        broker: Its broker, with the account there.
        wishes: How this client behaves.
    """

    def __init__(self, address: RigAddress, broker: Broker, wishes: Wishes) -> None:
        self.address = address
        self.broker = broker
        self.wishes = wishes
        self._client_id = f"labrig-{secrets.token_hex(8)}"
        self._carrier = Carrier(address, broker, self._client_id)
        self._turn = asyncio.Lock()
        self._users = 0
        self._numbers = itertools.count()
        self._lease: str | None = None
        self._ended: LabrigError | None = None
        self._lease_s = 0.0
        self._rig_ahead_s = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._window = asyncio.Semaphore(1)

    @property
    def lease_s(self) -> float:
        """How long in s after its last sign of life the rig switches this client's outputs off."""
        return self._lease_s

    @property
    def rig_is_gone(self) -> bool:
        """Whether the broker says that nobody serves the rig any more."""
        return self._carrier.rig_is_gone

    async def enter(self) -> None:
        """Connects and gets the lease, unless another instrument has done so.

        Raises:
            LinkError: No connection, or nobody serves the rig.
            ProtocolError: What serves it speaks another version.
            StateError: Somebody else has the rig.
        """
        async with self._turn:
            if not self._users:
                try:
                    await self._begin()
                except BaseException:
                    await undivided(self._end())
                    raise
            self._users += 1

    async def leave(self) -> None:
        """Gives the lease back when no other instrument is in it; a cancellation waits for that."""
        await undivided(self._leave())

    async def ask(
        self,
        verb: str,
        instrument: str | None = None,
        values: Values | None = None,
        arrays: Arrays | None = None,
        *,
        takes_s: float = 0.0,
        answer_s: float | None = None,
    ) -> Answer:
        """Has the rig do something.

        Args:
            verb: What.
            instrument: Which instrument does it.
            values: Plain values by name.
            arrays: Arrays by name.
            takes_s: How long in s it may take at the rig itself.
            answer_s: Longest wait in s besides; what this client waits usually when None.

        Raises:
            LabrigError: What the instrument raises there.
            LinkLostError: The connection broke, or the rig is gone; whether it was carried out is not known.
            LinkTimeoutError: No answer came in time; whether it was carried out is not known.
            StateError: The lease has ended.
        """
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args)
        within_s = (self.wishes.answer_s if answer_s is None else answer_s) + takes_s
        until_s = time.monotonic() + within_s
        pause_s = _FIRST_BUSY_S
        try:
            # What keeps the lease must not wait for what uses it.
            async with asyncio.timeout(within_s), contextlib.nullcontext() if instrument is None else self._window:
                while True:
                    answer = await self._exchange(verb, instrument, values or {}, arrays or {}, until_s)
                    if answer.fault is None:
                        return answer
                    error = error_of(answer.fault)
                    if isinstance(error, LeaseEndedError):
                        self._ended = error
                    if not isinstance(error, BusyError):
                        raise error
                    # Nothing was done, so that it may be asked again.
                    await asyncio.sleep(pause_s)
                    pause_s *= 2.0
        except TimeoutError:
            raise LinkTimeoutError(
                f"{self.address}: no answer to {verb} within {within_s:g} s; whether it was carried out is not known"
            ) from None

    async def _exchange(
        self, verb: str, instrument: str | None, values: Values, arrays: Arrays, until_s: float
    ) -> Answer:
        request = Request(
            verb=verb,
            client=self._client_id,
            number=next(self._numbers),
            lease=self._lease,
            start_by_s=None if instrument is None else until_s + self._rig_ahead_s,
            instrument=instrument,
            values=values,
            arrays=arrays,
        )
        return await self._carrier.exchange(request, until_s - time.monotonic())

    async def _begin(self) -> None:
        self._ended, self._lease = None, None
        self._carrier.patience_s = math.inf
        await self._carrier.start(self.wishes.answer_s)
        hello = await self.ask("hello")
        self._note_clock(hello)
        if (version := whole(hello.values, "protocol")) != PROTOCOL_VERSION:
            raise ProtocolError(
                f"{self.address}: the rig speaks version {version} of the protocol, this labrig {PROTOCOL_VERSION}; "
                "install equal versions of labrig on both sides"
            )
        self._lease_s = self._carrier.patience_s = number(hello.values, "lease_s")
        self._window = asyncio.Semaphore(max(1, whole(hello.values, "window")))
        granted = await self._acquire()
        self._lease = text(granted.values, "lease")
        self._note_clock(granted)
        await self._go_direct(granted)
        self._renewing = asyncio.create_task(self._renew(), name="labrig-remote-lease")

    @property
    def goes_direct(self) -> bool:
        """Whether requests go past the broker, on a link of their own."""
        return self._carrier.goes_direct

    async def _go_direct(self, granted: Answer) -> None:
        url, token = granted.values.get("direct"), granted.values.get("direct_token")
        if not self.wishes.direct or not isinstance(url, str) or not isinstance(token, str):
            return
        try:
            await self._carrier.go_direct(url, token)
        except LinkLostError as error:
            # The broker is there; it is slower and no worse.
            _log.info("%s", error)

    async def _acquire(self) -> Answer:
        who = {"who": self.wishes.who}
        if self.wishes.take_over is not None:
            return await self.ask("take-over", values={**who, "reason": self.wishes.take_over}, takes_s=60.0)
        until_s = time.monotonic() + self.wishes.queue_s
        while True:
            answer = await self.ask("acquire", values=who)
            if answer.values.get("granted") is True:
                return answer
            if time.monotonic() >= until_s:
                with contextlib.suppress(LabrigError):
                    await self.ask("leave")
                raise StateError(f"{self.address}: {_place(answer.values)}; ask them, wait longer, or take it over")
            await asyncio.sleep(_POLL_S)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS_PER_LEASE)
            try:
                self._note_clock(await self.ask("renew", answer_s=self._lease_s / _RENEWALS_PER_LEASE))
            except LinkError:
                continue  # the connection is being made again; the lease may have survived that
            except LabrigError as error:
                self._ended = error
                self._carrier.fail(error)
                return

    def _note_clock(self, answer: Answer) -> None:
        # Taken when the answer came, so that it errs towards an earlier deadline: nobody waits for what is begun late.
        self._rig_ahead_s = number(answer.values, "now_s") - time.monotonic()

    async def _leave(self) -> None:
        async with self._turn:
            self._users -= 1
            if not self._users:
                await self._end()

    async def _end(self) -> None:
        if self._renewing is not None:
            await end_tasks(self._renewing)
            self._renewing = None
        if self._lease is not None and self._ended is None:
            # Should it not arrive, the lease ends by itself.
            with contextlib.suppress(LabrigError, TimeoutError):
                async with asyncio.timeout(_RELEASE_S):
                    await self.ask("release")
        self._lease = None
        await self._carrier.stop()


def _place(values: Values) -> str:
    holder = values.get("holder")
    if not isinstance(holder, str):
        return "the rig is being made safe after its last user"
    left_s = number(values, "until_s") - number(values, "now_s")
    before = whole(values, "position")
    queue = f" and {before} wait before you" if before else ""
    return f"{holder} has the rig (its lease lasts {max(0.0, left_s):.1f} s more unless it is renewed){queue}"
