"""One TSP instrument on one link: what all its channels have in common.

Its lock makes an exchange of several lines one exchange, its recovery brings the link back into step for all of its
channels, and its guard (see `tsp_guard`) covers all outputs with one script.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Final

from labrig_drivers import tsp_guard
from labrig_drivers.errors import (
    IdentityError,
    InstrumentError,
    LabrigError,
    LinkDesyncedError,
    LinkTimeoutError,
    ProtocolError,
    StateError,
)
from labrig_drivers.instrument import Identity
from labrig_drivers.links.base import Link, LinkState
from labrig_drivers.links.framing import FixedBlockFraming, LineFraming, PairFraming
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.tsp_guard import GuardRule

NEXT_ERRORS: Final = (
    "do local t = {} for i = 1, errorqueue.count do local c, m = errorqueue.next() "
    "table.insert(t, string.format('%d\\t', c) .. (string.gsub(m, '%c', ' '))) end "
    "print(table.getn(t) .. '\\t' .. table.concat(t, '\\t')) end"
)
"""Prints the whole error queue in one line: the number of errors, then code and text of each, with tabs between."""

_ABORT: Final = "abort"
_UNFINISHED_SCRIPT: Final = (")", "endscript", "errorqueue.clear()")
_LINE: Final = LineFraming()
_RECOVERY_ATTEMPTS: Final = 3
# After an aborted sweep the lines behind it are run, a guard among them; a second abort ends that one too.
_SECOND_ABORT_AFTER_S: Final = 0.05


def parse_errors(answer: str) -> list[tuple[int, str]]:
    """Reads what `NEXT_ERRORS` printed: (code, text) pairs, oldest first.

    Raises:
        ProtocolError: It is no such line.
    """
    number, *fields = answer.split("\t")
    if number == "0" and fields in ([""], []):
        return []
    try:
        errors = [(int(code), text) for code, text in zip(fields[::2], fields[1::2], strict=True)]
        if len(errors) == int(number):
            return errors
    except ValueError:
        pass
    raise ProtocolError(f"expected the error queue, got {answer!r}")


class TspSession:
    """An instrument that speaks TSP, for one or several channels of it.

    After an exchange that did not complete, or an answer that made no sense, the next one first reopens the link,
    aborts whatever script runs and has the identity confirmed; nothing is sent a second time. A connection that the
    peer closed raises `LinkLostError` until `recover()`.

    Args:
        link: The connection; the session owns it.
        timeout_s: Deadline in s of one exchange, where a call names no other.
    """

    def __init__(self, link: Link, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._users = 0
        self._identity: Identity | None = None
        self._in_doubt = False
        self._nonces = count(1)
        self._losses = 0
        self._guarded: dict[str, GuardRule] = {}
        self._guard_runs = False
        self._kicker: asyncio.Task[None] | None = None
        self._no_more_kicks = asyncio.Event()

    @classmethod
    def on(cls, link: Link, timeout_s: float) -> TspSession:
        """The session on this link: the one of all its users when it is shared."""
        if isinstance(link, SharedLink):
            return link.common(cls, lambda shared: cls(shared, timeout_s))
        return cls(link, timeout_s)

    @property
    def address(self) -> str:
        """Where the link goes."""
        return self._link.address

    @property
    def identity(self) -> Identity:
        """What the instrument answered to `identify()`; `StateError` before."""
        if self._identity is None:
            raise StateError(f"{self.address}: not open; the identity is known after open()")
        return self._identity

    @property
    def losses(self) -> int:
        """How often a connection that the peer had closed was made anew: settings may be gone since."""
        return self._losses

    @property
    def guarded(self) -> frozenset[str]:
        """The channels that the script in the instrument guards."""
        return frozenset(self._guarded)

    async def open(self) -> None:
        """Opens the link, for one more user."""
        async with self._lock:
            await self._link.open(timeout_s=self._timeout_s)
            if self._users == 0:
                self._in_doubt, self._identity, self._guarded, self._guard_runs = False, None, {}, False
            self._users += 1

    async def close(self) -> None:
        """Closes the link, for one user; the last one takes the session's knowledge with it."""
        if self._users == 1:
            await self._stop_kicking()
        async with self._lock:
            self._users -= 1
            if self._users == 0:
                self._identity = None
            await self._link.close()

    async def identify(self, patience_s: float) -> Identity:
        """Asks who the instrument is, with so much more time than usual: a script of before may have to end first."""
        async with self._lock:
            if self._identity is not None:
                await self._synchronise()
            elif self._link.state is LinkState.DESYNCHRONISED:
                # Another channel's first question failed; there is nobody to be confirmed yet.
                await self._link.reopen(timeout_s=self._timeout_s)
            if self._identity is None:
                for line in _UNFINISHED_SCRIPT[:2]:
                    await self._link.exchange(_encode(line), None, timeout_s=self._timeout_s)
            answer = await self._exchange(["*IDN?"], _LINE, self._timeout_s + patience_s)
            self._identity = Identity.parse(answer.decode("ascii", errors="replace"))
            return self._identity

    async def ask(self, lines: Sequence[str], timeout_s: float | None = None) -> str:
        """Sends lines of which one prints one line, and returns that.

        Raises:
            LinkError: The exchange failed, or the link could not be recovered after an earlier failure.
            ProtocolError: The answer is not ASCII.
        """
        answer = await self._locked_exchange(lines, _LINE, timeout_s)
        try:
            return answer.decode("ascii")
        except UnicodeDecodeError as error:
            raise self.doubt(f"{lines[-1]!r} was answered {answer[:60]!r}, which is not ASCII") from error

    async def fetch(self, line: str, data_bytes: int, timeout_s: float | None = None) -> bytes:
        """Sends one line that answers with a binary block of this length and returns its data.

        Raises:
            LinkError: The exchange failed.
            ProtocolError: The answer is no such block.
        """
        return await self._locked_exchange([line], FixedBlockFraming(data_bytes), timeout_s)

    async def guard(self, channel: str, rule: GuardRule | None) -> None:
        """Puts a channel under guard, or takes it out (None).

        Raises:
            InstrumentError: The instrument does not take the script.
            LinkError: The exchange failed; the channel's guard is what it was.
        """
        async with self._lock:
            await self._synchronise()
            # Read behind the lock: another channel may have been put under guard meanwhile.
            before = self._guarded
            wanted = {name: one for name, one in before.items() if name != channel}
            if rule is not None:
                wanted[channel] = rule
            try:
                await self._set_guard(wanted)
            except BaseException:
                self._guarded = before
                raise
        if self._guarded and (self._kicker is None or self._kicker.done()):
            self._no_more_kicks = asyncio.Event()
            self._kicker = asyncio.create_task(self._kick_for_ever(self._no_more_kicks))
        elif not self._guarded:
            await self._stop_kicking()

    async def recover(self) -> None:
        """Reopens the link and goes on only when the same instrument answers, and nothing old comes after it.

        Raises:
            StateError: The instrument was never identified.
            IdentityError: Another instrument answers.
            LinkError: The link could not be reopened, or no sensible answer came.
        """
        async with self._lock:
            await self._recover()

    async def recover_if_lost(self) -> None:
        """Recovers a connection that the peer closed; does nothing while the connection stands."""
        async with self._lock:
            if self._link.state is LinkState.BROKEN:
                await self._recover()

    def doubt(self, what: str) -> ProtocolError:
        """The error for an answer that makes no sense; the link is not trusted any further."""
        self._in_doubt = True
        return ProtocolError(f"{self.address}: {what}")

    async def _locked_exchange(
        self, lines: Sequence[str], framing: LineFraming | FixedBlockFraming, timeout_s: float | None
    ) -> bytes:
        async with self._lock:
            await self._synchronise()
            return await self._exchange(lines, framing, timeout_s)

    async def _exchange(
        self, lines: Sequence[str], framing: LineFraming | FixedBlockFraming | None, timeout_s: float | None
    ) -> bytes:
        """Sends lines between the end of the guard and its new beginning; None means that only the guard answers."""
        guards = bool(self._guarded)
        everything = [tsp_guard.KICK] * self._guard_runs + (_with_call(lines) if guards else [*lines])
        request = b"".join(_encode(line) for line in everything)
        timeout_s = timeout_s or self._timeout_s
        if not guards:
            self._guard_runs = False
            return await self._link.exchange(request, framing, timeout_s=timeout_s)
        self._guard_runs = True
        answer = await self._link.exchange(
            request, _LINE if framing is None else PairFraming(framing), timeout_s=timeout_s
        )
        answer, _, said = answer.rpartition(b"\n")
        if said != tsp_guard.SAYS.encode():
            raise self.doubt(f"expected {tsp_guard.SAYS!r} after {lines!r}, got {said[:60]!r}")
        return answer

    async def _set_guard(self, wanted: dict[str, GuardRule]) -> None:
        self._guarded = wanted
        script = ["loadandrunscript", *tsp_guard.guard_script(wanted), "endscript"] if wanted else []
        answer = await self._exchange([*script, NEXT_ERRORS], _LINE, None)
        errors = parse_errors(answer.decode("ascii", errors="replace"))
        if errors:
            raise InstrumentError(errors[0][0], "; ".join(text for _, text in errors), tsp_guard.CALL, self.address)

    async def _kick_for_ever(self, no_more: asyncio.Event) -> None:
        """Lets the instrument hear from the host while nobody asks it anything."""
        while self._guarded:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(rule.kick_every_s for rule in self._guarded.values())):
                    await no_more.wait()
            if no_more.is_set():
                return
            try:
                async with self._lock:
                    await self._synchronise()
                    if self._guarded:
                        await self._exchange([], None, None)
            except LabrigError:
                # Whoever asks next meets the same fault and reports it; the guard does what it is there for.
                continue

    async def _stop_kicking(self) -> None:
        kicker, self._kicker = self._kicker, None
        if kicker is not None:
            # Not cancelled: a kick that is cut short would put the other channel's link out of step.
            self._no_more_kicks.set()
            await asyncio.wait([kicker])

    async def _synchronise(self) -> None:
        if self._in_doubt or self._link.state is LinkState.DESYNCHRONISED:
            await self._recover()

    async def _recover(self) -> None:
        expected = self.identity
        was_lost = self._link.state is LinkState.BROKEN
        for attempt in range(1, _RECOVERY_ATTEMPTS + 1):
            if await self._attempt_recovery(expected, last=attempt == _RECOVERY_ATTEMPTS):
                break
        self._in_doubt = False
        self._losses += was_lost
        if self._guarded:
            # The instrument may have been off meanwhile, and have forgotten the script.
            await self._set_guard(self._guarded)

    async def _attempt_recovery(self, expected: Identity, *, last: bool) -> bool:
        self._in_doubt = True
        await self._link.reopen(timeout_s=self._timeout_s)
        self._guard_runs = False
        await self._link.exchange(_encode(_ABORT), None, timeout_s=self._timeout_s)
        # A script that was cut short on its way is still being collected, and would swallow every line: spoilt so that
        # no part of it runs, then ended. Where none is, these lines only leave errors, which are cleared below.
        for line in _UNFINISHED_SCRIPT:
            await self._link.exchange(_encode(line), None, timeout_s=self._timeout_s)
        if self._guarded:
            await asyncio.sleep(_SECOND_ABORT_AFTER_S)
            await self._link.exchange(_encode(_ABORT), None, timeout_s=self._timeout_s)
        # An instrument answers in the order of the questions: what is older than an echo is gone once it came.
        echo = f"labrig {next(self._nonces)}"
        try:
            found = Identity.parse(await self._plain("*IDN?"))
            in_step = found == expected and await self._plain(f"print('{echo}')") == echo
        except (ProtocolError, LinkTimeoutError) as error:
            if not last:
                return False
            raise LinkDesyncedError(
                f"{self.address} does not come back into step ({error}); switch it off and on"
            ) from error
        if in_step or not last:
            return in_step
        if found != expected:
            raise IdentityError(str(expected), str(found), self.address)
        raise LinkDesyncedError(f"{self.address} keeps answering questions of before; switch it off and on")

    async def _plain(self, line: str) -> str:
        answer = await self._link.exchange(_encode(line), _LINE, timeout_s=self._timeout_s)
        return answer.decode("ascii", errors="replace")


def _with_call(lines: Sequence[str]) -> list[str]:
    """Lines after which the guard starts: in one chunk with the last, so that it starts even when nobody listens."""
    if not lines or lines[-1].startswith("*"):
        return [*lines, tsp_guard.CALL]
    return [*lines[:-1], f"{lines[-1]} {tsp_guard.CALL}"]


def _encode(text: str) -> bytes:
    if "\n" in text or not text.isascii():
        raise ValueError(f"one line of ASCII is one command, not {text!r}")
    return text.encode("ascii") + b"\n"
