"""A broker inside the program that serves a rig, so that one command suffices: amqtt, MQTT 3.1.1."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from labrig.addresses import BrokerAddress, bind_reason
from labrig.remote.embedded_subscriptions import Subscriptions
from labrig.telemetry.broker import Broker
from labrig_drivers.errors import ConfigError, LinkLostError

DEFAULT_PORT: Final = 1883
_MOST_CONNECTIONS: Final = 200
_CLOSING_S: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedSettings:
    """How the embedded broker listens.

    Attributes:
        host: Address that it binds to; loopback by default.
        port: Its port; 0 takes a free one.
        username: Account that everybody needs; None lets everybody in.
        password: Its password.
        cert_file: Certificate (PEM) for an encrypted listener, with `key_file`.
        key_file: Its key.
        ca_file: What the rig's own connection checks the certificate with; those of the system when None.
        let_everybody_in: Whether an address that others can reach may do without an account.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    let_everybody_in: bool = False

    def check(self) -> None:
        """Refuses what is not safe, or cannot be.

        Raises:
            ConfigError: Every fault at once.
        """
        faults = []
        try:
            reachable = not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            reachable = False
            faults.append(f"{self.host!r} is no IP address; the embedded broker binds to one, such as 127.0.0.1")
        if reachable and self.username is None and not self.let_everybody_in:
            faults.append(
                f"the broker would listen on {self.host}, where others can reach it, and let everybody in; name an "
                "account in the section [telemetry] of the rig file, or say --open-broker"
            )
        if reachable and self.username is not None and self.cert_file is None and not self.let_everybody_in:
            faults.append(
                f"passwords would travel to {self.host} in the clear; give a certificate (--cert and --key), or say "
                "--open-broker"
            )
        if self.username is not None and not self.password:
            faults.append("the account of the broker has no password")
        if (self.cert_file is None) != (self.key_file is None):
            faults.append("a certificate needs its key, and a key its certificate (--cert and --key)")
        else:
            try:
                self.tls_context()
            except OSError as error:  # what is no certificate is an OSError, too
                reason = error.strerror or error
                faults.append(f"{self.cert_file}: cannot be used as a certificate with {self.key_file}: {reason}")
        if faults:
            raise ConfigError("\n".join(faults))

    def tls_context(self) -> ssl.SSLContext | None:
        """What connections are encrypted with; None where they are not.

        Raises:
            OSError: The certificate or its key cannot be read, or is none.
        """
        if self.cert_file is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


@asynccontextmanager
async def embedded_broker(settings: EmbeddedSettings, root: str, rig_client: str) -> AsyncIterator[Broker]:
    """Runs a broker in this event loop as long as the block lasts.

    asyncio switches Nagle's delay off on every connection that it takes, so that answers do not wait for it.

    Args:
        settings: How it listens.
        root: What the topics of the rig begin with; nobody else publishes what the rig says of itself.
        rig_client: How the rig calls itself there.

    Yields:
        The broker, as the rig connects to it.

    Raises:
        ConfigError: The settings are not safe, or amqtt is not installed.
        LinkLostError: The port is taken, or may not be listened on.
    """
    settings.check()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what amqtt will change
            from amqtt.adapters import ReaderAdapter, StreamWriterAdapter
            from amqtt.broker import Broker as AmqttBroker

            from labrig.remote.embedded_door import Begun, first_bytes
    except ImportError as error:
        raise ConfigError(f"the embedded broker needs amqtt ({error}); run: pip install 'labrig[remote]'") from None
    # What it logs as warnings and errors are clients that come and go.
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    account = {"username": settings.username, "password": settings.password}
    config = {
        # The connections are taken here, and closed here whatever they turn out to be.
        "listeners": {"default": {"type": "external", "max_connections": _MOST_CONNECTIONS}},
        "plugins": {
            "labrig.remote.embedded_rules.OneAccount": account,
            "labrig.remote.embedded_rules.OwnTopics": {"root": root, "rig_client": rig_client},
        },
    }
    broker = AmqttBroker(config)
    broker._subscriptions = Subscriptions()
    await broker.start()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (beginning := await first_bytes(reader, writer)) is not None:
                # What amqtt asks of a reader is less than its class promises.
                begun = cast(ReaderAdapter, Begun(reader, beginning))
                await broker.external_connected(begun, StreamWriterAdapter(writer), "default")
        except Exception as error:  # whatever a client sends, the broker goes on
            _log.info("a connection failed: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer), name="labrig-broker-client")
        serving.add(task)
        task.add_done_callback(serving.discard)

    try:
        server = await asyncio.start_server(accept, settings.host, settings.port, ssl=settings.tls_context())
    except OSError as error:
        await broker.shutdown()
        where = f"{settings.host}:{settings.port}"
        raise LinkLostError(f"the embedded broker cannot listen on {where}: {bind_reason(error)}") from None
    port: int = server.sockets[0].getsockname()[1]
    # The rig itself goes through the loopback where it can.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    address = BrokerAddress(host, port, tls=settings.cert_file is not None)
    ca_file = None if settings.ca_file is None else str(settings.ca_file)
    try:
        yield Broker(address, settings.username, settings.password, ca_file)
    finally:
        server.close()
        await broker.shutdown()
        if serving:
            _, left = await asyncio.wait(serving, timeout=_CLOSING_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
