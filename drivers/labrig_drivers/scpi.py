"""SCPI over a link: queries, settings that are checked in the error queue, and recovery after a timeout.

Numbers that SCPI reserves (SCPI-99 volume 1, section 7.2.1.4 and the manuals of the instruments): 9.91e37 means "not
a number", plus or minus 9.9e37 means "beyond the range".
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence

from labrig_drivers.errors import (
    IdentityError,
    InstrumentError,
    LinkDesyncedError,
    LinkError,
    ProtocolError,
    StateError,
)
from labrig_drivers.instrument import Identity
from labrig_drivers.links.base import Link, LinkState
from labrig_drivers.links.framing import BlockFraming, LineFraming
from labrig_drivers.links.reconnect import Reconnect
from labrig_drivers.task_lock import TaskLock

_NAN = 9.91e37
_OVERFLOW = 9.9e37
_MAX_ERRORS = 50
_NEXT_ERROR = ":SYST:ERR?"
_NEXT_ERROR_LINE = b":SYST:ERR?\n"
# A serial port cannot drop the answers to old questions; each attempt throws away what came during the one before.
_RECOVERY_ATTEMPTS = 3

_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_ERROR = re.compile(r'([+-]?\d+)\s*,\s*"?(.*?)"?')
_LINE = LineFraming()
_BLOCK = BlockFraming()


def format_float(value: float) -> str:
    """Text of a number that reads back as the same double.

    Args:
        value: The number, in whatever unit the command takes.

    Raises:
        ValueError: The number is not finite; no instrument has a text for that.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be sent to an instrument")
    return repr(float(value))


def parse_float(text: str) -> float:
    """Reads one number strictly; 9.91e37 becomes NaN, plus or minus 9.9e37 becomes infinite.

    Args:
        text: The answer; space around the number is ignored.

    Raises:
        ProtocolError: The text is not one decimal number.
    """
    stripped = text.strip()
    if not _FLOAT.fullmatch(stripped):
        raise ProtocolError(f"expected a number, got {text!r}")
    value = float(stripped)
    if value == _NAN:
        return math.nan
    if abs(value) == _OVERFLOW:
        return math.copysign(math.inf, value)
    return value


class ScpiChannel:
    """One SCPI instrument on one link: one task at a time, and no answer from before a fault.

    After an exchange that did not complete, or an answer that made no sense, the next call first reopens the link
    and has the identity confirmed; nothing is sent a second time. A connection that the peer closed is different:
    every call raises `LinkLostError` until `recover()` is called, since the instrument may have been switched off.

    Args:
        link: The link; the channel owns it.
        name: What messages call the instrument.
        timeout_s: Deadline in s of one exchange, where a call names no other.
        reconnect: How often and how patiently an idempotent query is asked again after its exchange failed; None
            asks once, like everything else.
    """

    def __init__(self, link: Link, name: str, *, timeout_s: float = 5.0, reconnect: Reconnect | None = None) -> None:
        self._link = link
        self._name = name
        self._timeout_s = timeout_s
        self._lock = TaskLock()
        self._identity: Identity | None = None
        self._in_doubt = False
        self._reconnect = reconnect
        # Sent before the first question of a recovery: ends what keeps the instrument from answering, such as a sweep.
        self.recovery_command: str | None = None

    @property
    def name(self) -> str:
        """What messages call the instrument."""
        return self._name

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._link.address

    @property
    def identity(self) -> Identity:
        """What the instrument answered to `identify()`.

        Raises:
            StateError: It was not asked yet.
        """
        if self._identity is None:
            raise StateError(f"{self._name}: not open; the identity is known after open()")
        return self._identity

    async def open(self) -> None:
        """Opens the link."""
        self._in_doubt = False
        await self._link.open(timeout_s=self._timeout_s)

    async def close(self) -> None:
        """Closes the link and forgets the identity; harmless when closed."""
        self._identity = None
        await self._link.close()

    def exclusive(self) -> TaskLock:
        """Keeps other tasks out for several calls, by `async with`; may be nested inside one task."""
        return self._lock

    async def query(self, text: str, *, timeout_s: float | None = None, idempotent: bool = False) -> str:
        """Sends one query and returns its answer without the line end.

        Args:
            text: The query.
            timeout_s: Deadline in s; that of the channel when None.
            idempotent: Asking twice does no harm and gives the same answer, so a `reconnect` may ask again.

        Raises:
            LinkError: The exchange failed, or the link could not be recovered after an earlier failure.
            ProtocolError: The answer is not ASCII.
        """
        async with self._lock:
            try:
                await self._synchronise()
                return await self._ask(text, timeout_s)
            except LinkError as error:
                if not idempotent or self._reconnect is None:
                    raise
                return await self._ask_again(text, timeout_s, self._reconnect, error)

    async def query_block(self, text: str, *, timeout_s: float | None = None) -> bytes:
        """Sends one query whose answer is an IEEE 488.2 block and returns its data.

        Raises:
            LinkError: The exchange failed, or the link could not be recovered after an earlier failure.
            ProtocolError: The answer is no block.
        """
        async with self._lock:
            await self._synchronise()
            return await self._link.exchange(_encode(text), _BLOCK, timeout_s=timeout_s or self._timeout_s)

    async def query_floats(
        self, text: str, *, count: int, timeout_s: float | None = None, idempotent: bool = False
    ) -> list[float]:
        """Sends one query and returns its answer as `count` numbers, read strictly.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is not that many numbers.
        """
        async with self._lock:
            answer = await self.query(text, timeout_s=timeout_s, idempotent=idempotent)
            fields = answer.split(",")
            if len(fields) != count:
                raise self.distrust(f"{text!r} was answered {answer!r}, expected {count} numbers")
            try:
                return [parse_float(field) for field in fields]
            except ProtocolError as error:
                raise self.distrust(f"{text!r} was answered {answer!r}: {error}") from error

    async def query_flag(self, text: str, *, idempotent: bool = False) -> bool:
        """Sends one query whose answer is 0 or 1.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is neither.
        """
        async with self._lock:
            answer = await self.query(text, idempotent=idempotent)
            if answer.strip() not in {"0", "1"}:
                raise self.distrust(f"{text!r} was answered {answer!r}, expected 0 or 1")
            return answer.strip() == "1"

    async def write(self, text: str, *, answered_by: str | None = None, timeout_s: float | None = None) -> None:
        """Sends one setting, then reads the error queue until it is empty. Never sent twice.

        Args:
            text: The setting.
            answered_by: A query such as `*OPC?` that answers 1 when the setting has ended; waited for before the
                error queue is read.
            timeout_s: Deadline in s; that of the channel when None.

        Raises:
            InstrumentError: The instrument put an error into its queue.
            LinkError: The exchange failed; whether the setting took place is unknown.
            ProtocolError: An answer is no error entry, or the queue does not end.
        """
        async with self._lock:
            await self._synchronise()
            request = _encode(text)
            if answered_by is not None:
                answer = await self._exchange(request + _encode(answered_by), text, timeout_s)
                if answer.strip() != "1":
                    raise self.distrust(f"{answered_by!r} was answered {answer!r}, expected 1")
                request = b""
            # Setting and first look into the queue travel together, as two lines: a lone setting has no answer, and
            # TCP may hold back what follows it until the peer acknowledges.
            await self._raise_errors(await self._exchange(request + _NEXT_ERROR_LINE, text, timeout_s), text)

    async def write_all(self, texts: Sequence[str]) -> None:
        """Sends settings one after another, each with a look into the error queue; stops at the first error.

        Raises:
            InstrumentError: The instrument put an error into its queue; the settings after it were not sent.
            LinkError: An exchange failed.
            ProtocolError: An answer is no error entry, or the queue does not end.
        """
        async with self._lock:
            for text in texts:
                await self.write(text)

    async def _raise_errors(self, answer: str, text: str) -> None:
        errors = await self._errors_from(answer)
        if errors:
            raise InstrumentError(errors[0][0], "; ".join(error[1] for error in errors), text, self._name)

    async def drain_errors(self) -> list[tuple[int, str]]:
        """Reads the error queue until it is empty: (code, text) pairs, oldest first.

        Raises:
            LinkError: An exchange failed.
            ProtocolError: An answer is no error entry, or the queue does not end.
        """
        async with self._lock:
            return await self._errors_from(await self.query(_NEXT_ERROR))

    async def _errors_from(self, answer: str) -> list[tuple[int, str]]:
        errors: list[tuple[int, str]] = []
        while len(errors) < _MAX_ERRORS:
            entry = _ERROR.fullmatch(answer.strip())
            if entry is None:
                raise self.distrust(f"{_NEXT_ERROR!r} was answered {answer!r}, expected a code and a text")
            if int(entry[1]) == 0:
                return errors
            errors.append((int(entry[1]), entry[2]))
            answer = await self._ask(_NEXT_ERROR, None)
        last = f"{errors[-1][0]} ({errors[-1][1]})"
        raise self.distrust(f"{_MAX_ERRORS} errors were read and the queue is not empty, the last is {last}")

    async def identify(self) -> Identity:
        """Asks who the instrument is and remembers the answer for every later recovery.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is no identity.
        """
        async with self._lock:
            identity = Identity.parse(await self._ask("*IDN?", None))
            # A serial line may still bring the identity that somebody before us asked for: ours would come next.
            if (answer := await self._ask("*OPC?", None)).strip() != "1":
                raise self.distrust(f"'*OPC?' was answered {answer!r}, expected 1")
            self._identity = identity
            return identity

    async def recover(self) -> None:
        """Reopens the link and goes on only when the same instrument answers, and nothing old comes after it.

        An instrument answers in the order of the questions: once the identity and then the 1 of `*OPC?` came as
        asked, everything older is gone.

        Raises:
            StateError: The instrument was never identified.
            IdentityError: Another instrument answers.
            LinkError: The link could not be reopened, or no sensible answer came.
        """
        async with self._lock:
            expected = self.identity
            attempt = 1
            while not await self._attempt_recovery(expected, last=attempt == _RECOVERY_ATTEMPTS):
                attempt += 1
            self._in_doubt = False

    async def recover_if_lost(self) -> None:
        """Recovers a connection that the peer closed; does nothing while the connection stands.

        Raises:
            LinkError: The instrument cannot be reached, or does not answer.
            IdentityError: Another instrument answers.
        """
        async with self._lock:
            if self._link.state is LinkState.BROKEN:
                await self.recover()

    async def _attempt_recovery(self, expected: Identity, *, last: bool) -> bool:
        self._in_doubt = True
        await self._link.reopen(timeout_s=self._timeout_s)
        if self.recovery_command is not None:
            await self._link.exchange(_encode(self.recovery_command), None, timeout_s=self._timeout_s)
        try:
            found = Identity.parse(await self._ask("*IDN?", None))
            in_step = found == expected and (await self._ask("*OPC?", None)).strip() == "1"
        except ProtocolError as error:
            if not last:
                return False
            raise LinkDesyncedError(
                f"{self._name} at {self.address} does not come back into step ({error}); switch it off and on"
            ) from error
        if in_step or not last:
            return in_step
        if found != expected:
            raise IdentityError(str(expected), str(found), self.address)
        raise LinkDesyncedError(
            f"{self._name} at {self.address} keeps answering questions of before; switch it off and on"
        )

    async def _ask_again(self, text: str, timeout_s: float | None, policy: Reconnect, error: LinkError) -> str:
        """Reconnects and asks, with growing pauses; raises the last failure when patience ends."""
        for pause_s in policy.pauses_s():
            await asyncio.sleep(pause_s)
            try:
                await self.recover()
                return await self._ask(text, timeout_s)
            except LinkError as again:
                error = again
        raise error

    async def _synchronise(self) -> None:
        if self._in_doubt or self._link.state is LinkState.DESYNCHRONISED:
            await self.recover()

    async def _ask(self, text: str, timeout_s: float | None) -> str:
        return await self._exchange(_encode(text), text, timeout_s)

    async def _exchange(self, request: bytes, text: str, timeout_s: float | None) -> str:
        answer = await self._link.exchange(request, _LINE, timeout_s=timeout_s or self._timeout_s)
        try:
            return answer.decode("ascii")
        except UnicodeDecodeError as error:
            raise self.distrust(f"{text!r} was answered {answer[:60]!r}, which is not ASCII") from error

    def distrust(self, what: str) -> ProtocolError:
        """Notes an answer that makes no sense, so that the next call begins with a recovery.

        Args:
            what: What came and what was expected.

        Returns:
            The error for the caller to raise.
        """
        # It may belong to another question, so the link is not trusted any further.
        self._in_doubt = True
        return ProtocolError(f"{self._name} at {self.address}: {what}")


def _encode(text: str) -> bytes:
    if "\n" in text or not text.isascii():
        raise ValueError(f"one line of ASCII is one command, not {text!r}")
    return text.encode("ascii") + b"\n"
