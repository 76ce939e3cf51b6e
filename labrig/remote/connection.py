"""One connection to a broker, in the newest version of MQTT that the broker speaks."""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from labrig.telemetry.broker import Broker, BrokerAwayError, BrokerRefusedError, connected

if TYPE_CHECKING:
    from aiomqtt import Client
    from paho.mqtt.properties import Properties

_MOST_INCOMING: Final = 512
_MOST_KEPT: Final = 16
_FIRST_ANSWER_S: Final = 2.0
ANSWER_S: Final = 10.0
"""Longest wait in s for an answer of the broker itself."""
KEEP_ALIVE_S: Final = 5
"""Time in s after which broker and client ask each other for a sign of life."""


@dataclass
class Dialect:
    """Which version of MQTT a broker was found to speak.

    Attributes:
        newest: True while version 5 is worth a try.
    """

    newest: bool = True
    _made: dict[tuple[str | None, int | None], Properties] = field(default_factory=dict, init=False, repr=False)

    def about(self, number: int, reply_to: str | None = None, expires_s: float | None = None) -> Properties | None:
        """What MQTT 5 says about a message besides its content, for tools that know no labrig; None for 3.1.1.

        Nothing in labrig needs it: the same stands in the message.

        Args:
            number: Of the request, which its answer repeats.
            reply_to: Topic of the answer; None for an answer.
            expires_s: Time in s after which a broker that still holds it may forget it.
        """
        if not self.newest:
            return None
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        seconds = None if expires_s is None else max(1, math.ceil(expires_s))
        made = self._made.get((reply_to, seconds))
        if made is None:
            made = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if reply_to is not None:
                made.ResponseTopic = reply_to
            if seconds is not None:
                made.MessageExpiryInterval = seconds
            self._made[reply_to, seconds] = made
            for oldest in list(self._made)[:-_MOST_KEPT]:
                del self._made[oldest]
        # A copy, as a client may hold it back for a while; making it anew each time costs three times as much.
        own = copy.copy(made)
        own.CorrelationData = number.to_bytes(8, "little")
        return own


@dataclass(frozen=True)
class Connection:
    """What it takes to connect.

    Attributes:
        broker: The broker.
        client_id: How it tells clients apart.
        dialect: What is known of the versions that it speaks; kept from one connection to the next.
        will: Topic and payload that it publishes, retained, when the connection breaks.
    """

    broker: Broker
    client_id: str
    dialect: Dialect
    will: tuple[str, bytes] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        """A connection; leaving it with an error breaks it off, so that the broker publishes the will.

        Raises:
            BrokerAwayError: There is no connection (any more).
            BrokerRefusedError: The broker refused it.
        """
        from aiomqtt import ProtocolVersion, Will

        will = None if self.will is None else Will(self.will[0], self.will[1], qos=1, retain=True)
        broker, client_id = self.broker, self.client_id
        if self.dialect.newest:
            entered = False
            newest = connected(
                broker,
                client_id,
                will,
                _FIRST_ANSWER_S,
                KEEP_ALIVE_S,
                protocol=ProtocolVersion.V5,
                incoming=_MOST_INCOMING,
            )
            try:
                async with newest as client:
                    entered, client.timeout = True, ANSWER_S
                    yield client
            except (BrokerAwayError, BrokerRefusedError) as error:
                # Some brokers answer a version that they do not speak by silence, or by hanging up.
                if entered or not (isinstance(error, BrokerAwayError) or _speaks_older(error)):
                    raise
                self.dialect.newest = False
            else:
                return
        entered = False
        try:
            async with connected(broker, client_id, will, ANSWER_S, KEEP_ALIVE_S, incoming=_MOST_INCOMING) as client:
                entered = True
                yield client
        except BrokerAwayError:
            # Perhaps it was not the version.
            self.dialect.newest = self.dialect.newest or not entered
            raise


def _speaks_older(error: BrokerRefusedError) -> bool:
    """Whether a broker refused the version and not the client: code 132, or 1 as version 3.1.1 has it."""
    cause = error.__cause__
    code = getattr(cause, "rc", None)
    value = getattr(code, "value", code)
    return value in {1, 132}
