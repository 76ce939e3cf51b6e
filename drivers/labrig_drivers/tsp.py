"""TSP over a link: expressions that are printed, settings that are checked in the error queue, scripts and buffers.

TSP instruments (Keithley's Series 2600 and others) run Lua 5.0: each line is a chunk of it, and only what it prints
comes back. Numbers are printed as `1.10100e+03`, booleans as `true` and `false`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from labrig_drivers.errors import InstrumentError, LinkError, LinkLostError, ProtocolError, StateError
from labrig_drivers.instrument import Identity
from labrig_drivers.links.base import Link
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.scpi import parse_float
from labrig_drivers.tsp_guard import GuardRule
from labrig_drivers.tsp_session import NEXT_ERRORS, TspSession, parse_errors


class TspChannel:
    """One channel of a TSP instrument: one task at a time, and no answer from before a fault.

    Several channels on one `SharedLink` share the session: recovery, error queue and guard are the instrument's. A
    connection that the peer closed and that another channel made anew raises `LinkLostError` here too, until
    `recover_if_lost()`: the instrument may have been switched off meanwhile.

    Args:
        link: The link; the channel owns it, or its share of it.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange, where a call names no other.
        reconnect: How often and how patiently an idempotent query is asked again after its exchange failed; None
            asks once, like everything else.
        patience_s: How much longer in s the first question may take: an instrument whose last host died may still
            be running the script that switches off.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        timeout_s: float = 5.0,
        reconnect: Reconnect | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self._session = TspSession.on(link, timeout_s)
        self._name = name
        self._reconnect = reconnect
        self._patience_s = patience_s
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[object] | None = None
        self._is_open = False
        self._losses_known = 0

    @property
    def name(self) -> str:
        """What messages call the instrument."""
        return self._name

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._session.address

    @property
    def identity(self) -> Identity:
        """What the instrument answered to `identify()`.

        Raises:
            StateError: It was not asked yet.
        """
        if not self._is_open:
            raise StateError(f"{self._name}: not open; the identity is known after open()")
        return self._session.identity

    @property
    def guarded(self) -> frozenset[str]:
        """The channels of the instrument that a script in it guards right now."""
        return self._session.guarded

    async def open(self) -> None:
        """Opens the link, or takes a share of it."""
        await self._session.open()
        self._is_open = True
        self._losses_known = self._session.losses

    async def close(self) -> None:
        """Closes the link, or gives its share back; harmless when closed."""
        if self._is_open:
            self._is_open = False
            await self._session.close()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Keeps other tasks out of this channel for several calls; may be nested inside one task."""
        task = asyncio.current_task()
        if task is not None and task is self._owner:
            yield
            return
        async with self._lock:
            self._owner = task
            try:
                yield
            finally:
                self._owner = None

    async def identify(self) -> Identity:
        """Asks who the instrument is and remembers the answer for every later recovery.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is no identity.
        """
        async with self.exclusive():
            return await self._session.identify(self._patience_s)

    async def query(self, text: str, *, timeout_s: float | None = None, idempotent: bool = False) -> str:
        """Runs one chunk that prints one line, and returns that line.

        Args:
            text: The chunk, such as `print(smua.source.levelv)`.
            timeout_s: Deadline in s; that of the channel when None.
            idempotent: Asking twice does no harm and gives the same answer, so a `reconnect` may ask again.

        Raises:
            LinkError: The exchange failed, or the link could not be recovered after an earlier failure.
            ProtocolError: The answer is not ASCII.
        """
        async with self.exclusive():
            try:
                self._refuse_after_loss()
                return await self._session.ask([text], timeout_s)
            except LinkError as error:
                if not idempotent or self._reconnect is None:
                    raise
                return await self._ask_again(text, timeout_s, self._reconnect, error)

    async def query_fields(
        self, text: str, *, count: int, timeout_s: float | None = None, idempotent: bool = False
    ) -> list[float]:
        """Runs one chunk that prints `count` numbers or booleans in one line; true is 1 and false is 0.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is not that many of them.
        """
        async with self.exclusive():
            answer = await self.query(text, timeout_s=timeout_s, idempotent=idempotent)
            fields = answer.split("\t")
            if len(fields) != count:
                raise self._session.doubt(f"{text!r} was answered {answer!r}, expected {count} values")
            try:
                return [_value(field) for field in fields]
            except ProtocolError as error:
                raise self._session.doubt(f"{text!r} was answered {answer!r}: {error}") from error

    async def query_flag(self, expression: str, *, idempotent: bool = False) -> bool:
        """Prints one expression that is 0, 1, true or false.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: It is none of them.
        """
        (value,) = await self.query_fields(f"print({expression})", count=1, idempotent=idempotent)
        if value not in {0.0, 1.0}:
            raise self._session.doubt(f"{expression!r} is {value}, expected 0, 1, true or false")
        return value == 1.0

    async def write(self, text: str, *, timeout_s: float | None = None) -> None:
        """Runs one chunk that prints nothing and reads the error queue, in one exchange. Never sent twice.

        Raises:
            InstrumentError: The instrument put an error into its queue.
            LinkError: The exchange failed; whether the setting took place is unknown.
            ProtocolError: The answer is no error queue.
        """
        await self._write([text], text, timeout_s)

    async def write_all(self, texts: Sequence[str]) -> None:
        """Runs chunks one after another, each with the error queue; stops at the first error.

        Raises:
            InstrumentError: The instrument put an error into its queue; the chunks after it were not sent.
            LinkError: An exchange failed.
            ProtocolError: An answer is no error queue.
        """
        async with self.exclusive():
            for text in texts:
                await self.write(text)

    async def run_script(self, lines: Sequence[str], what: str, *, timeout_s: float | None = None) -> None:
        """Runs a script of several lines that prints nothing, waits for its end and reads the error queue.

        Args:
            lines: The script.
            what: What errors call it.
            timeout_s: Deadline in s; that of the channel when None.

        Raises:
            InstrumentError: The instrument put an error into its queue.
            LinkError: The exchange failed; the script may still run, and the next exchange aborts it.
        """
        await self._write(["loadandrunscript", *lines, "endscript"], what, timeout_s)

    async def fetch(self, text: str, *, data_bytes: int, timeout_s: float | None = None) -> bytes:
        """Runs one chunk that answers with a binary block of this length and returns its data.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is no such block.
        """
        async with self.exclusive():
            self._refuse_after_loss()
            return await self._session.fetch(text, data_bytes, timeout_s)

    async def drain_errors(self) -> list[tuple[int, str]]:
        """Empties the error queue, which is the instrument's: (code, text) pairs, oldest first.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is no error queue.
        """
        async with self.exclusive():
            self._refuse_after_loss()
            return self._errors(await self._session.ask([NEXT_ERRORS]))

    async def guard(self, channel: str, rule: GuardRule | None) -> None:
        """Puts a channel of the instrument under guard against the loss of the host, or takes it out (None).

        Raises:
            InstrumentError: The instrument does not take the script.
            LinkError: The exchange failed.
        """
        async with self.exclusive():
            self._refuse_after_loss()
            await self._session.guard(channel, rule)

    async def recover_if_lost(self) -> None:
        """Recovers a connection that the peer closed, whoever noticed first; does nothing while it stands.

        Raises:
            LinkError: The instrument cannot be reached, or does not answer.
            IdentityError: Another instrument answers.
        """
        async with self.exclusive():
            await self._session.recover_if_lost()
            self._losses_known = self._session.losses

    async def _write(self, lines: Sequence[str], what: str, timeout_s: float | None) -> None:
        async with self.exclusive():
            self._refuse_after_loss()
            errors = self._errors(await self._session.ask([*lines, NEXT_ERRORS], timeout_s))
        if errors:
            raise InstrumentError(errors[0][0], "; ".join(text for _, text in errors), what, self._name)

    def _errors(self, answer: str) -> list[tuple[int, str]]:
        try:
            return parse_errors(answer)
        except ProtocolError as error:
            raise self._session.doubt(str(error)) from error

    async def _ask_again(self, text: str, timeout_s: float | None, policy: Reconnect, error: LinkError) -> str:
        """Reconnects and asks, with growing pauses; raises the last failure when patience ends."""
        for pause_s in policy.pauses_s():
            await asyncio.sleep(pause_s)
            try:
                await self._session.recover()
                self._losses_known = self._session.losses
                return await self._session.ask([text], timeout_s)
            except LinkError as again:
                error = again
        raise error

    def _refuse_after_loss(self) -> None:
        if self._losses_known != self._session.losses:
            raise LinkLostError(
                f"{self._name}: the connection was lost and made anew for another channel of this instrument, which "
                "may have been off meanwhile; switch this channel's output off and set it up again"
            )


def _value(field: str) -> float:
    if field in {"true", "false"}:
        return float(field == "true")
    return parse_float(field)
