"""The rig's side of the broker: takes requests in, tells how the rig stands, and connects again when it must."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from labrig.remote.connection import Connection, Dialect
from labrig.remote.envelope import Assembler, packets, read_body
from labrig.remote.messages import read_request
from labrig.remote.notices import Notices
from labrig.remote.service import RigService
from labrig.remote.tasks import end_tasks
from labrig.telemetry.broker import Broker, BrokerAwayError, BrokerRefusedError
from labrig.telemetry.topics import STATE
from labrig_drivers.errors import LabrigError, ProtocolError

if TYPE_CHECKING:
    from aiomqtt import Client, Message

_FIRST_RETRY_S: Final = 0.2
_LONGEST_RETRY_S: Final = 5.0
_GOODBYE_S: Final = 2.0


def rig_client_id() -> str:
    """How one program that serves a rig is told from others, as nobody can guess."""
    return f"labrig-rig-{secrets.token_hex(12)}"


class BrokerSide:
    """Serves at one broker.

    Args:
        broker: The broker.
        topic: What the topics of the rig begin with.
        service: Carries requests out.
        notices: What is told everybody.
        say: Gets a line when the broker comes, goes or refuses.
        client_id: How the broker tells it from others; a new one when None.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        service: RigService,
        notices: Notices,
        say: Callable[[str], None],
        client_id: str | None = None,
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._service = service
        self._notices = notices
        self._say = say
        self._client_id = client_id or rig_client_id()
        self._dialect = Dialect()
        self._numbers = itertools.count(secrets.randbits(48))
        self._condition = ""
        self._ending = False
        self._told = asyncio.Event()
        self._client: Client | None = None
        self.connected = asyncio.Event()

    @property
    def protocol(self) -> str:
        """The version of MQTT that was found to work."""
        return "5" if self._dialect.newest else "3.1.1"

    async def run(self) -> None:
        """Serves until it is cancelled; a broker that is away or refuses is tried again."""
        retry_s = _FIRST_RETRY_S
        while True:
            since_s = time.monotonic()
            try:
                await self._connection()
            except BrokerAwayError as error:
                if self._ending:
                    return
                self._tell("away", f"is not there: {error}; trying again. A lease that is not renewed ends meanwhile")
            except BrokerRefusedError as error:
                self._tell("refused", f"refuses: {error}; check account and certificates. Trying again")
            if time.monotonic() - since_s > _LONGEST_RETRY_S:
                retry_s = _FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            retry_s = min(2.0 * retry_s, _LONGEST_RETRY_S)

    async def say_goodbye(self) -> None:
        """Tells what is left to tell, and that nobody serves the rig any more; `run` ends then.

        Without a connection it does nothing: the broker has published the will.
        """
        self._ending = True
        client = self._client
        if client is None:
            return
        self._told.clear()
        self._notices.keep(STATE, b"disconnected")
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_GOODBYE_S):
                await self._told.wait()
                # A broker that is left like this publishes no will.
                await client.__aexit__(None, None, None)

    async def _connection(self) -> None:
        connection = Connection(self._broker, self._client_id, self._dialect, (f"{self._topic}/{STATE}", b"lost"))
        async with connection.open() as client:
            await client.subscribe(f"{self._topic}/cmd/+", qos=1)
            self._tell("connected", f"is connected; this rig is {self._topic} there")
            self._client = client
            self._notices.renew()
            self.connected.set()
            telling = asyncio.create_task(self._publish_notices(client), name="labrig-serve-notices")
            try:
                assembler = Assembler()
                async for message in client.messages:
                    self._take(message, assembler)
                    if telling.done():
                        break
            finally:
                self._client = None
                self.connected.clear()
                await end_tasks(telling)

    def _take(self, message: Message, assembler: Assembler) -> None:
        topic = str(message.topic)
        if not topic.startswith(f"{self._topic}/cmd/"):
            return  # amqtt sends newcomers what others have subscribed to, as far as it is retained
        try:
            payload = message.payload
            if not isinstance(payload, bytes):
                raise ProtocolError("a request without content")
            whole = assembler.take(payload, time.monotonic())
            if whole is None:
                return
            request = read_request(read_body(whole))
            if topic != f"{self._topic}/cmd/{request.verb}":
                raise ProtocolError(f"{request.verb} came under another topic than its own")
        except LabrigError as error:
            self._service.refuse(error, topic.removeprefix(f"{self._topic}/"))
            return
        reply_to = f"{self._topic}/reply/{request.client}"

        async def outlet(answer: bytes) -> None:
            await self._send(reply_to, request.number, answer)

        self._service.take(request, outlet)

    async def _send(self, reply_to: str, number: int, answer: bytes) -> None:
        client = self._client
        if client is None:
            raise BrokerAwayError("the broker is away")
        about = self._dialect.about(number)
        for packet in packets(answer, next(self._numbers)):
            await client.publish(reply_to, packet, qos=1, properties=about)

    async def _publish_notices(self, client: Client) -> None:
        while True:
            while (notice := self._notices.take()) is not None:
                topic = f"{self._topic}/{notice.topic}"
                await client.publish(topic, notice.payload, qos=notice.qos, retain=notice.retained)
            self._told.set()
            await self._notices.wait()

    def _tell(self, condition: str, text: str) -> None:
        if condition != self._condition:
            self._condition = condition
            self._say(f"broker {self._broker.address} {text}")
