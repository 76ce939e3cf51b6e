"""A connection to an MQTT broker as labrig needs it: MQTT 3.1.1, no Nagle delay, every wait bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from labrig.addresses import BrokerAddress
from labrig_drivers.links.words import system_words

if TYPE_CHECKING:
    from aiomqtt import Client, ProtocolVersion, Will

NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
"""Without it an acknowledged message takes 44 to 88 ms in place of 0.5 ms; the broker needs `set_tcp_nodelay true`."""

# What the client has to say is said by whoever uses it, once.
_log = logging.getLogger("labrig.mqtt")
_log.addHandler(logging.NullHandler())

_CLOSING_S = 0.2
_LOOKS = 20


@dataclass(frozen=True)
class Broker:
    """A broker and the account there.

    Attributes:
        address: Where it listens.
        username: The account; None where anybody may publish.
        password: Its password.
        ca_file: Certificates that it is checked with; those of the system when None.
    """

    address: BrokerAddress
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None


class BrokerAwayError(Exception):
    """There is no broker at the address, it does not answer, or the connection broke."""


class BrokerRefusedError(Exception):
    """The broker answered, and does not want us: account, certificate, protocol."""


@asynccontextmanager
async def connected(
    broker: Broker,
    client_id: str,
    will: Will | None,
    answer_s: float,
    keep_alive_s: int,
    *,
    protocol: ProtocolVersion | None = None,
    incoming: int = 0,
) -> AsyncIterator[Client]:
    """A connection; leaving it with an error, or cancelled, breaks it off, so that the broker publishes the will.

    Args:
        broker: The broker.
        client_id: How the broker tells clients apart. Equal for each attempt to connect: the broker then ends what is
            left of an earlier connection, and publishes its will, before it takes the new one.
        will: What it publishes when this connection breaks off; None has it publish nothing.
        answer_s: Longest wait in s for each of its answers.
        keep_alive_s: Time in s after which broker and client ask for a sign of life.
        protocol: Version of MQTT; 3.1.1, which every broker speaks, when None.
        incoming: How many messages wait at most for whoever reads them, further ones are lost; 0 has no limit.

    Raises:
        BrokerAwayError: There is no connection (any more).
        BrokerRefusedError: The broker refused it.
    """
    from aiomqtt import Client, MqttError
    from aiomqtt.exceptions import MqttConnectError

    try:
        tls = await _reach(broker, answer_s)
        # A new client for each attempt: one that lost its connection takes the next one for made before the broker
        # has agreed.
        client = Client(
            broker.address.host,
            broker.address.port,
            username=broker.username,
            password=broker.password,
            identifier=client_id,
            logger=_log,
            protocol=protocol,
            max_queued_incoming_messages=incoming,
            will=will,
            timeout=answer_s,
            keepalive=keep_alive_s,
            tls_context=tls,
            socket_options=[NO_DELAY],
        )
        try:
            await client.__aenter__()
            yield client
            await client.__aexit__(None, None, None)
        except BaseException:
            await _break_off(client)
            raise
    except MqttConnectError as error:
        raise BrokerRefusedError(_plain(error, answer_s)) from error
    except (MqttError, OSError) as error:
        raise BrokerAwayError(_plain(error, answer_s)) from error


async def gone(client: Client) -> None:
    """Returns when the connection is no longer there; nothing is subscribed to."""
    from aiomqtt import MqttError

    with contextlib.suppress(MqttError):
        async for _ in client.messages:
            pass


async def _reach(broker: Broker, answer_s: float) -> ssl.SSLContext | None:
    """Looks whether anything listens, in a way that can be cancelled: the client connects in a thread, which cannot.

    Returns:
        What the connection is encrypted with; None where it is not.
    """
    address = broker.address
    context = ssl.create_default_context(cafile=broker.ca_file) if address.tls else None
    try:
        async with asyncio.timeout(answer_s):
            _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            writer.transport.abort()
    except TimeoutError:
        raise BrokerAwayError(f"no answer within {answer_s:g} s") from None
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        raise BrokerRefusedError(f"no encrypted connection ({reason})") from error
    return context


async def _break_off(client: Client) -> None:
    """Closes the connection without a goodbye. aiomqtt has no call for this, and leaves one that got no answer open."""
    paho = client._client
    connection = paho.socket()
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    for _ in range(_LOOKS):
        if paho.socket() is None:
            break
        await asyncio.sleep(_CLOSING_S / _LOOKS)
    # Takes the error that the client keeps for whoever asks, and that asyncio would otherwise complain about, now or
    # when it comes.
    client._disconnected.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


def _plain(error: Exception, answer_s: float) -> str:
    """An error in the words of the system, without the brackets, numbers and addresses of libraries."""
    text = system_words(error)
    if text == "Operation timed out":
        return f"no answer within {answer_s:g} s"
    return text.partition("] ")[2] if text.startswith("[code:") else text or type(error).__name__
