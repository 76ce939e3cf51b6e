"""What a remote board and a remote source-meter have in common: entering a session, opening and closing there."""

from __future__ import annotations

import asyncio
import contextlib

from labrig.remote.faults import LeaseEndedError
from labrig.remote.messages import Values
from labrig.remote.results import identity_from, texts
from labrig.remote.session import RemoteSession
from labrig_drivers.errors import LabrigError, LinkError, StateError
from labrig_drivers.instrument import ExpectedIdentity, HostLossProtection, Identity
from labrig_drivers.settling import undivided


class RemoteInstrument:
    """One instrument of a served rig, as its user sees it.

    Args:
        session: Connection and lease.
        instrument: What the rig calls it.
        expected: Identity that `open()` demands.
        name: How messages call it.
    """

    def __init__(self, session: RemoteSession, instrument: str, expected: ExpectedIdentity, name: str) -> None:
        self.session = session
        self.instrument = instrument
        self._expected = expected
        self._name = name
        self._turn = asyncio.Lock()
        self._identity: Identity | None = None

    @property
    def where(self) -> str:
        """How messages call it and where it is."""
        return f"{self._name} ({self.session.address})"

    @property
    def is_open(self) -> bool:
        """Whether it is open here."""
        return self._identity is not None

    @property
    def identity(self) -> Identity:
        """Who it said it is; `StateError` before `open()`."""
        if self._identity is None:
            raise StateError(f"{self.where} is not open; use `async with` or call open() first")
        return self._identity

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What the rig does when this program or its network is gone; `StateError` before `open()`."""
        lease_s = self.session.lease_s if self.identity else 0.0
        text = f"the rig makes its instruments safe when the lease is not renewed for {lease_s:g} s"
        return HostLossProtection(lease_s, text)

    async def open(self) -> Values:
        """Gets the rig and has the instrument opened there.

        Returns:
            What the rig says of it.

        Raises:
            IdentityError: It is another one than the rig file names.
            LabrigError: See `RemoteSession`.
            StateError: Already open.
        """
        async with self._turn:
            if self._identity is not None:
                raise StateError(f"{self.where} is already open")
            await self.session.enter()
            try:
                answer = await self.session.ask("open", self.instrument, takes_s=60.0)
                identity = identity_from(texts(answer.values, "identity"))
                self._expected.check(identity, self.where)
            except BaseException:
                await self.session.leave()
                raise
            self._identity = identity
            return answer.values

    async def close(self, *, must_arrive: bool = False) -> None:
        """Has it made safe, and leaves the rig; harmless when it is closed. A cancellation waits for that.

        Args:
            must_arrive: Whether an error on the way to the rig is raised: the output may be on until the lease ends.
        """
        await undivided(self._close(must_arrive))

    async def _close(self, must_arrive: bool) -> None:
        async with self._turn:
            if self._identity is None:
                return
            self._identity = None
            # A lease that has ended left everything safe.
            harmless = LeaseEndedError if must_arrive else LabrigError
            try:
                with contextlib.suppress(harmless):
                    await self.session.ask("close", self.instrument, takes_s=60.0)
            except LinkError as error:
                lease_s = self.session.lease_s
                raise type(error)(
                    f"{error}; the rig itself switches it off when the lease ends, in {lease_s:g} s"
                ) from error
            finally:
                await self.session.leave()
