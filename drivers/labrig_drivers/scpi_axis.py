"""Temperature controllers, field supplies and whatever else is set by one SCPI command and read by one query.

What differs between them is in the settings: the command with `{value}` in place of the number, and the query, such as
`"SOUR:TEMP {value}"` and `"MEAS:TEMP?"`. The instrument has to answer `*IDN?`, `*OPC?` and `:SYST:ERR?` as SCPI-99
demands; the error queue is read after every set point.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import ClassVar, Final, Self

from labrig_drivers.axis import AxisReading
from labrig_drivers.axis_motion import AxisMotion, AxisSettings, Wait
from labrig_drivers.errors import LabrigError, ProtocolError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity, Identity
from labrig_drivers.links.base import Link
from labrig_drivers.links.link_user import LinkUser
from labrig_drivers.links.shared import SharedLink
from labrig_drivers.scpi import ScpiChannel, format_float
from labrig_drivers.settings_table import SettingsTable
from labrig_drivers.settling import settle, undivided

_VALUE: Final = "{value}"


class ScpiAxis:
    """One quantity behind one SCPI instrument; keeps the `Axis` contract.

    A cancelled call waits for the exchange in flight, so that the link stays in step. The loops of one controller are
    axes of their own on one connection: give all of them the same `SharedLink`. Their error queue is one.

    Args:
        link: Where the instrument is; this object owns it from now on, or shares a `SharedLink` with others.
        settings: What is moved, and how.
        set_command: Sets the quantity; `{value}` stands for the number.
        read_query: Asks for it; the answer is one number.
        expected: Identity to insist on.
        name: What messages call the axis.
        timeout_s: Deadline in s of one exchange.
    """

    shares_link: ClassVar[bool] = True

    def __init__(
        self,
        link: Link,
        settings: AxisSettings,
        *,
        set_command: str,
        read_query: str,
        expected: ExpectedIdentity | None = None,
        name: str = "axis",
        timeout_s: float = 5.0,
    ) -> None:
        own = LinkUser(link) if isinstance(link, SharedLink) else link
        self._channel = ScpiChannel(own, name, timeout_s=timeout_s)
        self._settings = settings
        self._set_command = set_command
        self._read_query = read_query
        self._expected = expected or ExpectedIdentity()
        self._name = name
        self._utc_offset_s = time.time() - time.monotonic()
        self._is_open = False
        # True from before the first set point goes out.
        self._moved = False
        self._moving = asyncio.Lock()
        self._ending = asyncio.Event()

    @classmethod
    def from_settings(
        cls, link: Link, expected: ExpectedIdentity, name: str, settings: Mapping[str, object] | None = None
    ) -> ScpiAxis:
        """Makes the axis that a rig file describes.

        Settings: `set_command`, `read_query` and the fields of `AxisSettings`, of which `quantity`, `unit`, `low`,
        `high` and `tolerance` have no default.

        Raises:
            ConfigError: A key is missing, unknown or has a wrong value; every fault at once.
        """
        table = SettingsTable(settings or {}, f"axes.{name}.settings")
        set_command, read_query = table.text("set_command"), table.text("read_query")
        own = AxisSettings.from_table(table)
        for key, text in (("set_command", set_command), ("read_query", read_query)):
            if "\n" in text or not text.isascii():
                table.faults.append(f"{table.where}.{key}: {text!r} is not one line of ASCII")
        if set_command and set_command.count(_VALUE) != 1:
            table.faults.append(f"{table.where}.set_command: {set_command!r} does not hold {_VALUE} exactly once")
        if read_query and "?" not in read_query:
            table.faults.append(f"{table.where}.read_query: {read_query!r} asks nothing; a query has a question mark")
        table.finish()
        return cls(link, own, set_command=set_command, read_query=read_query, expected=expected, name=name)

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is; `StateError` before `open()`."""
        return self._channel.identity

    @property
    def quantity(self) -> str:
        """What is moved; see `Axis.quantity`."""
        return self._settings.quantity

    @property
    def unit(self) -> str:
        """Unit of every value."""
        return self._settings.unit

    @property
    def low(self) -> float:
        """Lowest value that can be set."""
        return self._settings.low

    @property
    def high(self) -> float:
        """Highest value that can be set."""
        return self._settings.high

    @property
    def safe_value(self) -> float | None:
        """Where it goes when nobody looks after it any more; None where it stays as it is."""
        return self._settings.safe_value

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects, checks the identity and empties the error queue; moves nothing.

        Raises:
            IdentityError: Another instrument is there; the link is closed again.
            LinkError: It cannot be reached, or does not answer.
            StateError: Open already.
        """
        if self._is_open:
            raise StateError(f"{self._name}: open already")
        await self._channel.open()
        try:
            self._expected.check(await self._channel.identify(), self._channel.address)
            # Errors of an earlier session would be blamed on our first set point.
            await self._channel.drain_errors()
        except BaseException:
            await self._channel.close()
            raise
        self._moved = False
        self._ending.clear()
        self._is_open = True

    async def close(self) -> None:
        """Ends a move, sends a moved axis to its safe value, and disconnects; harmless when closed, also cancelled.

        With a `max_rate` it takes as long as the ramp to the safe value.

        Raises:
            StateError: The safe value could not be set: a person must look.
        """
        if not self._is_open:
            return
        ending = asyncio.ensure_future(self._end())
        cancelled = await settle(ending)
        ending.result()
        if cancelled is not None:
            raise cancelled

    async def move_to(self, value: float) -> AxisReading:
        """Sets the quantity and waits for it; see `Axis.move_to`.

        Raises:
            InstrumentError: The instrument refused a set point.
            LinkError: It does not answer; whether the last set point arrived is unknown.
        """
        self._require_open()
        if reasons := self._settings.reasons(value, self._name):
            raise SafetyError(reasons)
        if self._moving.locked() or self._ending.is_set():
            raise StateError(f"{self._name}: moving already; wait for that move, or cancel it, first")
        async with self._moving:
            return await self._motion(self._wait).arrive(float(value))

    async def read(self) -> AxisReading:
        """Reads the quantity.

        Raises:
            LinkError: The instrument does not answer.
            ProtocolError: The answer is not one finite number.
        """
        self._require_open()
        return await undivided(self._read())

    async def make_safe(self) -> None:
        """Ends a move and sends the axis to its safe value; see `Axis.make_safe`."""
        self._require_open()
        if self.safe_value is not None:
            await undivided(self._go_safe(self.safe_value))

    async def errors(self) -> list[tuple[int, str]]:
        """Reads the instrument's error queue until it is empty: (code, text) pairs, oldest first."""
        self._require_open()
        return await undivided(self._channel.drain_errors())

    def _motion(self, wait: Wait) -> AxisMotion:
        return AxisMotion(self._settings, self._name, self._send, self.read, wait, time.monotonic)

    async def _send(self, value: float) -> None:
        self._moved = True
        await undivided(self._channel.write(self._set_command.replace(_VALUE, format_float(value))))

    async def _read(self) -> AxisReading:
        start_s = time.monotonic()
        (value,) = await self._channel.query_floats(self._read_query, count=1, idempotent=True)
        middle_s = 0.5 * (start_s + time.monotonic())
        if not math.isfinite(value):
            raise ProtocolError(
                f"{self._name}: {self._read_query!r} was answered {value}; look whether its sensor is connected"
            )
        return AxisReading(value, self._utc_offset_s + middle_s)

    async def _wait(self, duration_s: float) -> None:
        try:
            async with asyncio.timeout(duration_s):
                await self._ending.wait()
        except TimeoutError:
            return
        raise StateError(f"{self._name}: closed or made safe while it moved")

    async def _go_safe(self, value: float) -> None:
        self._ending.set()
        async with self._moving:
            self._ending.clear()
            await self._motion(asyncio.sleep).go(value)
            self._moved = False

    async def _end(self) -> None:
        self._ending.set()
        try:
            async with self._moving:
                pass
            if self._moved and self.safe_value is not None:
                try:
                    # A safe value that is sent twice does no harm, so a lost connection is opened once more for it.
                    await self._channel.recover_if_lost()
                    await self._go_safe(self.safe_value)
                except LabrigError as error:
                    raise StateError(
                        f"{self._name} at {self._channel.address}: could not be sent to its safe value, "
                        f"{self.safe_value:g} {self.unit}; look at it and switch it off by hand: {error}"
                    ) from error
        finally:
            self._is_open = False
            await self._channel.close()

    def _require_open(self) -> None:
        if not self._is_open:
            raise StateError(f"{self._name}: not open; use `async with` or call open() first")
