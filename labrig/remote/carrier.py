"""The user's side of the broker: requests out, answers in, the connection made again when it breaks."""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from typing import TYPE_CHECKING, Final

from labrig.remote.addresses import RigAddress
from labrig.remote.connection import Connection, Dialect
from labrig.remote.direct_line import DirectLine
from labrig.remote.envelope import Assembler, packets, read_body
from labrig.remote.messages import Answer, Request, read_answer
from labrig.remote.tasks import end_tasks
from labrig.telemetry.broker import Broker, BrokerAwayError, BrokerRefusedError
from labrig.telemetry.topics import STATE
from labrig_drivers.errors import LabrigError, LinkLostError, LinkTimeoutError, ProtocolError

if TYPE_CHECKING:
    from aiomqtt import Client, Message

_FIRST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 2.0
_GONE: Final = {b"lost": "its program died, or its network did", b"disconnected": "its program was ended"}


class Carrier:
    """Carries requests to a served rig and their answers back.

    Args:
        address: The rig.
        broker: Its broker, with the account there.
        client_id: What the broker and the rig call this client.

    Attributes:
        patience_s: How long in s after a connection broke requests wait for the next one; whoever knows how long the
            lease lasts sets it, since nothing is worth waiting for beyond that.
    """

    def __init__(self, address: RigAddress, broker: Broker, client_id: str) -> None:
        self._address = address
        self._topic = address.topic
        self._broker = broker
        self._client_id = client_id
        self._dialect = Dialect()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = itertools.count(secrets.randbits(48))
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self.patience_s = math.inf
        self._away, self._away_since_s = "no connection was made", 0.0
        self._refused = False
        self._gone: str | None = None
        self._working: asyncio.Task[None] | None = None
        self._direct: DirectLine | None = None
        self._on_direct: set[int] = set()

    @property
    def rig_is_gone(self) -> bool:
        """Whether the broker says that nobody serves the rig any more."""
        return self._gone is not None

    async def start(self, within_s: float) -> None:
        """Connects, and keeps connected until `stop`.

        Raises:
            LinkLostError: There is no broker, or it refuses.
        """
        self._refused, self._gone, self._away_since_s = False, None, time.monotonic()
        self._working = asyncio.create_task(self._work(), name="labrig-remote-connection")
        await self._connection_within(within_s)

    @property
    def goes_direct(self) -> bool:
        """Whether what is for an instrument goes past the broker."""
        return self._direct is not None and self._direct.alive

    async def go_direct(self, url: str, token: str) -> None:
        """Sends what is for an instrument past the broker from now on, as long as the direct link lasts.

        Raises:
            LinkLostError: It cannot be reached; everything goes through the broker as before.
        """
        await self._leave_direct()
        line = DirectLine(url, token, self._broker.ca_file, self._deliver, self._direct_ended)
        await line.open()
        self._direct = line

    async def stop(self) -> None:
        """Disconnects; harmless when there is no connection."""
        await self._leave_direct()
        if self._working is not None:
            await end_tasks(self._working)
            self._working = None
        self.fail(LinkLostError(f"{self._address}: the connection was closed"))

    def fail(self, error: LabrigError) -> None:
        """Ends every request that waits for its answer."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(type(error)(*error.args))

    async def exchange(self, request: Request, within_s: float) -> Answer:
        """Sends a request and waits for its answer.

        Raises:
            LinkLostError: The connection broke, or the rig is gone.
            LinkTimeoutError: The broker does not take the request.
            ProtocolError: The request is too long.
        """
        message = request.encoded()
        until_s = time.monotonic() + within_s
        line = self._direct if request.instrument is not None and self.goes_direct else None
        client = await self._connection_within(within_s) if line is None else None
        if self._gone is not None:
            raise LinkLostError(f"{self._address}: nobody serves this rig: {self._gone}; start `labrig serve` there")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request.number] = future
        # A message that waits for its acknowledgement does not notice that the connection is gone; the future does.
        if client is None:
            assert line is not None
            self._on_direct.add(request.number)
            try:
                await line.send(message)
                return await future
            finally:
                self._on_direct.discard(request.number)
                self._forget(request.number)
        sending = asyncio.create_task(self._send(client, request, message, within_s), name="labrig-remote-send")
        try:
            either: list[asyncio.Future[None] | asyncio.Future[Answer]] = [sending, future]
            await asyncio.wait(either, timeout=until_s - time.monotonic(), return_when="FIRST_COMPLETED")
            if sending.done() and not future.done():
                sending.result()
            return await future
        finally:
            self._forget(request.number)
            await end_tasks(sending)

    def _forget(self, number: int) -> None:
        future = self._waiting.pop(number)
        if future.done() and not future.cancelled():
            # Looked at, so that nobody complains that it was not.
            future.exception()

    def _direct_ended(self, why: str) -> None:
        for number in self._on_direct:
            future = self._waiting[number]
            if not future.done():
                text = f"{self._address}: the direct link ended: {why}; what was under way may be carried out"
                future.set_exception(LinkLostError(text))

    async def _leave_direct(self) -> None:
        line, self._direct = self._direct, None
        if line is not None:
            await line.close()

    async def _send(self, client: Client, request: Request, message: bytes, within_s: float) -> None:
        from aiomqtt import MqttError

        verb = request.verb
        about = self._dialect.about(request.number, f"{self._topic}/reply/{self._client_id}", within_s)
        try:
            for packet in packets(message, next(self._numbers)):
                await client.publish(f"{self._topic}/cmd/{verb}", packet, qos=1, properties=about)
        except MqttError as error:
            kind = LinkTimeoutError if str(error) == "Operation timed out" else LinkLostError
            raise kind(f"{self._address}: {verb} could not be sent: {error}") from error

    async def _connection_within(self, within_s: float) -> Client:
        if self._client is None:
            left_s = self._away_since_s + self.patience_s - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(within_s, left_s))):
                    await self._connected.wait()
            except TimeoutError:
                raise LinkLostError(f"{self._address}: the broker {self._away}") from None
        if self._client is None:
            raise LinkLostError(f"{self._address}: the broker {self._away}")
        return self._client

    async def _work(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            since_s = time.monotonic()
            try:
                await self._connection()
            except BrokerAwayError as error:
                self._away = f"is not there: {error}"
            except BrokerRefusedError as error:
                self._away, self._refused = f"refuses: {error}; check account and certificates", True
            finally:
                if self._client is not None:
                    self._away_since_s = time.monotonic()
                self._client = None
                self._connected.clear()
            self.fail(LinkLostError(f"{self._address}: the broker {self._away}; what was under way may be carried out"))
            if self._refused:
                # Asking again would change nothing; whoever waits is told at once.
                self._connected.set()
                return
            if time.monotonic() - since_s > _LONGEST_RETRY_S:
                retry_s = _FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            retry_s = min(2.0 * retry_s, _LONGEST_RETRY_S)

    async def _connection(self) -> None:
        connection = Connection(self._broker, self._client_id, self._dialect)
        async with connection.open() as client:
            await client.subscribe(f"{self._topic}/reply/{self._client_id}", qos=1)
            await client.subscribe(f"{self._topic}/{STATE}", qos=1)
            self._client = client
            self._connected.set()
            assembler = Assembler()
            async for message in client.messages:
                self._take(message, assembler)

    def _take(self, message: Message, assembler: Assembler) -> None:
        payload, topic = message.payload, str(message.topic)
        if not isinstance(payload, bytes):
            return
        if topic == f"{self._topic}/{STATE}":
            self._gone = _GONE.get(payload)
            if self._gone is not None:
                self.fail(LinkLostError(f"{self._address}: the rig is gone: {self._gone}"))
            return
        if topic != f"{self._topic}/reply/{self._client_id}":
            return  # amqtt sends newcomers what others have subscribed to, as far as it is retained
        try:
            whole = assembler.take(payload, time.monotonic())
            if whole is None:
                return
            answer = read_answer(read_body(whole))
        except ProtocolError as error:
            # Which request it was for cannot be told.
            self.fail(ProtocolError(f"{self._address}: an answer that cannot be read: {error}"))
            return
        self._deliver(answer)

    def _deliver(self, answer: Answer) -> None:
        future = self._waiting.get(answer.number)
        if future is not None and not future.done() and answer.client == self._client_id:
            future.set_result(answer)
