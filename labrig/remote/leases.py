"""Who may use a rig: one holder, a queue, an end that comes by itself. No I/O; the caller tells the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from labrig.remote.faults import LeaseEndedError
from labrig_drivers.errors import StateError


@dataclass(frozen=True)
class Lease:
    """The right to use a rig for a while.

    Attributes:
        client: Who has it.
        who: Who that is, for people.
        token: What requests under it carry; a secret between the rig and its holder.
        until_s: When it ends unless it is renewed, by the rig's clock in s.
    """

    client: str
    who: str
    token: str
    until_s: float


@dataclass(frozen=True)
class Place:
    """A place in the queue.

    Attributes:
        position: How many come first, the holder not counted.
        holder: Who has the rig now; None while it is being made safe.
        until_s: When that lease ends unless it is renewed.
    """

    position: int
    holder: str | None
    until_s: float


@dataclass(frozen=True)
class _Waiting:
    client: str
    who: str
    seen_s: float


class LeaseBook:
    """Keeps who has a rig and who waits for it.

    A client that waits asks again and again; who falls silent for longer than a lease loses the place.

    Args:
        lease_s: How long in s a lease lasts when it is not renewed.
        new_token: Makes a token that nobody can guess.
        longest_queue: How many may wait.
    """

    def __init__(self, lease_s: float, new_token: Callable[[], str], longest_queue: int = 32) -> None:
        self._lease_s = lease_s
        self._new_token = new_token
        self._longest_queue = longest_queue
        self._lease: Lease | None = None
        self._queue: list[_Waiting] = []
        self._ends: dict[str, str] = {}
        self._closed = False

    @property
    def lease(self) -> Lease | None:
        """The lease as it stands; None while nobody has one."""
        return self._lease

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def waiting_names(self, now_s: float) -> tuple[str, ...]:
        """Who waits, for people, the next one first; may be asked from another thread."""
        return tuple(one.who for one in list(self._queue) if now_s - one.seen_s <= self._lease_s)

    def ask(self, client: str, who: str, now_s: float) -> Lease | Place:
        """Gives the rig to a client, or a place in the queue.

        Raises:
            StateError: Too many wait.
        """
        self._forget_silent(now_s)
        lease = self._lease
        if lease is not None and lease.client == client:
            # The answer to an earlier request was lost.
            self._lease = replace(lease, until_s=now_s + self._lease_s)
            return self._lease
        names = [one.client for one in self._queue]
        first = not names or names[0] == client
        if lease is None and not self._closed and first:
            self._queue = [one for one in self._queue if one.client != client]
            self._lease = Lease(client, who, self._new_token(), now_s + self._lease_s)
            return self._lease
        if client in names:
            self._queue[names.index(client)] = _Waiting(client, who, now_s)
        elif len(names) >= self._longest_queue:
            raise StateError(f"{len(names)} clients wait for this rig already, which is as many as may; try later")
        else:
            self._queue.append(_Waiting(client, who, now_s))
            names.append(client)
        holder = None if lease is None else lease.who
        return Place(names.index(client), holder, now_s if lease is None else lease.until_s)

    def check(self, token: str | None) -> Lease:
        """The lease that a request is made under.

        Raises:
            StateError: There is no such lease, which was never given.
            LeaseEndedError: There is no such lease any more; the message says what became of it.
        """
        if self._lease is not None and token == self._lease.token:
            return self._lease
        if token is None:
            raise StateError("this needs a lease of the rig; open the board first")
        raise LeaseEndedError(self._ends.get(token, "the lease is not known here; the rig was started again since"))

    def renew(self, token: str | None, now_s: float) -> Lease:
        """Lets a lease begin anew.

        Raises:
            StateError: See `check`.
        """
        self._lease = replace(self.check(token), until_s=now_s + self._lease_s)
        return self._lease

    def leave(self, client: str) -> None:
        """Gives up a place in the queue."""
        self._queue = [one for one in self._queue if one.client != client]

    def overdue(self, now_s: float) -> bool:
        """Whether the lease should have been renewed by now."""
        return self._lease is not None and now_s >= self._lease.until_s

    def end(self, why: str) -> Lease | None:
        """Ends the lease; the rig stays shut until `reopen`, so that it is made safe first.

        Args:
            why: What requests under it are told from now on.

        Returns:
            What was ended; None when there was none.
        """
        lease, self._lease = self._lease, None
        if lease is not None:
            self._ends[lease.token] = why
            for oldest in list(self._ends)[:-16]:
                del self._ends[oldest]
            self._closed = True
        return lease

    def reopen(self) -> None:
        """Lets the next one in."""
        self._closed = False

    def put_first(self, client: str, who: str, now_s: float) -> None:
        """Lets a client be the next one."""
        self._queue = [_Waiting(client, who, now_s), *(one for one in self._queue if one.client != client)]

    def _forget_silent(self, now_s: float) -> None:
        self._queue = [one for one in self._queue if now_s - one.seen_s <= self._lease_s]
