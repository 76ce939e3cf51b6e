"""What a remote board costs beside the bare line: request and answer over mosquitto, embedded broker and direct link.

Each remote case is one `mvm` of a `RemoteBoard` on a rig that is served in the same event loop, with a board that
answers at once. Beside it stands the bare line: aiomqtt at the same broker, or an aiohttp WebSocket, with requests and
answers of as many bytes, both ways in the same loop too, without packing, checking, leases or queues. What the ratio
shows is the price of those.

The last cases are what a training epoch asks: batches of 64 KiB, the next one on its way while the board measures, on a
board that takes 5 ms for each; the same board on this machine is their reference.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aiohttp import ClientSession, WSMsgType, web
from aiomqtt import Client

from benchmarks.harness import Case
from benchmarks.instant_board import InstantBoard
from benchmarks.report import Script, Suite, main
from labrig.addresses import BrokerAddress
from labrig.boards.remote import RemoteBoard
from labrig.config import parse_rig
from labrig.remote.addresses import RigAddress
from labrig.remote.broker_side import rig_client_id
from labrig.remote.connection import Connection, Dialect
from labrig.remote.direct import DirectSettings
from labrig.remote.direct_limits import LONGEST_PACKET_BYTES
from labrig.remote.embedded import EmbeddedSettings, embedded_broker
from labrig.remote.messages import Answer, Request
from labrig.remote.results import mvm_parts
from labrig.remote.serving import served
from labrig.remote.session import RemoteSession, Wishes
from labrig.rig import Rig
from labrig.telemetry.broker import Broker
from labrig.testing.mosquitto import find_mosquitto, mosquitto
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, FloatArray, MvmResult

LINES = 128
VECTORS = {"1 KiB": 1, "1 MiB": 1024}
"""Batches by the size of their voltages."""
EPOCH_VECTORS, EPOCH_BATCHES, CHIP_S = 64, 20, 5e-3
INFO = BoardInfo("BENCH", 1, LINES, LINES, 0.0, 1e-4, -0.3, 0.3, 8, 10, (1e-4,) * LINES, 0.0, 0.0)
TOPIC = "labrig/1/lab/instant"
RIG = """\
[rig]
name = "instant"
[board]
driver = "mock-board"
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""


@dataclass(frozen=True)
class SlowBoard(InstantBoard):
    """The same with the time that a chip takes for a batch."""

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Answers zeros, after `CHIP_S`."""
        await asyncio.sleep(CHIP_S)
        return await super().mvm(array, voltage_v)


async def epoch(board: CrossbarBoard) -> None:
    """Batches in order, two of them under way at a time."""
    line_v = np.zeros((EPOCH_VECTORS, LINES))
    under_way = [asyncio.ensure_future(board.mvm(0, line_v)) for _ in range(2)]
    for number in range(EPOCH_BATCHES):
        await under_way[number % 2]
        if number + 2 < EPOCH_BATCHES:
            under_way[number % 2] = asyncio.ensure_future(board.mvm(0, line_v))


async def one_at_a_time(board: CrossbarBoard) -> None:
    """The same batches on a board of this machine, which measures one after another."""
    for _ in range(EPOCH_BATCHES):
        await board.mvm(0, np.zeros((EPOCH_VECTORS, LINES)))


async def epochs(broker: Broker, stack: AsyncExitStack) -> list[Case]:
    """An epoch here, and one from afar, at a rig of its own."""
    board = SlowBoard(INFO)
    topic = TOPIC.replace("instant", "slow")
    rig = Rig(parse_rig(RIG.replace("instant", "slow"), Path("rig.toml")), SlowBoard(INFO), {})
    await stack.enter_async_context(rig)
    _, side = await stack.enter_async_context(served(rig, broker, topic, lambda _: None))
    await side.connected.wait()
    session = RemoteSession(RigAddress(broker.address, "lab", "slow"), broker, Wishes("benchmark"))
    far = await stack.enter_async_context(RemoteBoard(session))
    local = f"{EPOCH_BATCHES} batches of 64 KiB, board of {1e3 * CHIP_S:g} ms, local"
    return [
        Case(local, lambda: one_at_a_time(board), EPOCH_BATCHES),
        Case(local.replace("local", "remote"), lambda: epoch(far), EPOCH_BATCHES, local),
    ]


async def sizes(vectors: int) -> tuple[int, int]:
    """Bytes of a request for so many vectors, and of its answer."""
    line_v = np.zeros((vectors, LINES))
    request = Request("mvm", "c" * 23, 1, "t" * 32, 1.0, "board", {"array": 0}, {"voltage_v": line_v})
    answer = Answer("c" * 23, 1, *mvm_parts(await InstantBoard(INFO).mvm(0, line_v), INFO.adc_lsb_a))
    return len(request.encoded()), len(answer.encoded())


async def echo(client: Client, answers: dict[int, bytes]) -> None:
    """Answers each message with as many bytes as its length asks for."""
    async for message in client.messages:
        assert isinstance(message.payload, bytes)
        await client.publish("bare/answer", answers[len(message.payload)], qos=1)


async def bare_mqtt(name: str, broker: Broker, stack: AsyncExitStack) -> list[Case]:
    """The bare line at a broker."""
    answers: dict[int, bytes] = {}
    # In the newest version that the broker speaks, as the remote board does it.
    far = await stack.enter_async_context(Connection(broker, "bare-far", Dialect()).open())
    near = await stack.enter_async_context(Connection(broker, "bare-near", Dialect()).open())
    await far.subscribe("bare/request", qos=1)
    await near.subscribe("bare/answer", qos=1)
    answering = asyncio.create_task(echo(far, answers))
    stack.push_async_callback(end, answering)
    cases = []
    for size, vectors in VECTORS.items():
        asked, answered = await sizes(vectors)
        answers[asked] = bytes(answered)
        request = bytes(asked)

        async def ask(request: bytes = request) -> None:
            await near.publish("bare/request", request, qos=1)
            await anext(aiter(near.messages))

        cases.append(Case(f"bare aiomqtt, {name}, {size}", ask))
    return cases


async def bare_socket(stack: AsyncExitStack) -> list[Case]:
    """The bare WebSocket."""
    answers: dict[int, bytes] = {}

    async def serve(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=LONGEST_PACKET_BYTES, compress=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(answers[len(message.data)])
        return socket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    http = await stack.enter_async_context(ClientSession())
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    socket = await http.ws_connect(url, max_msg_size=LONGEST_PACKET_BYTES, compress=0)
    stack.push_async_callback(socket.close)
    cases = []
    for size, vectors in VECTORS.items():
        asked, answered = await sizes(vectors)
        answers[asked] = bytes(answered)
        request = bytes(asked)

        async def ask(request: bytes = request) -> None:
            await socket.send_bytes(request)
            await socket.receive()

        cases.append(Case(f"bare WebSocket, {size}", ask))
    return cases


async def remote(name: str, bare: str, broker: Broker, direct: bool, stack: AsyncExitStack) -> list[Case]:
    """A remote board at a broker, or past it."""
    session = RemoteSession(RigAddress(broker.address, "lab", "instant"), broker, Wishes("benchmark", direct=direct))
    # The lease goes back before the next case asks for the rig.
    board = RemoteBoard(session)
    cases = []
    for size, vectors in VECTORS.items():
        line_v = np.zeros((vectors, LINES))

        async def ask(line_v: np.ndarray = line_v) -> None:
            if not session.goes_direct and direct:
                raise RuntimeError("the direct link is not there")
            await board.mvm(0, line_v)

        cases.append(Case(f"remote board, {name}, {size}", ask, reference=f"{bare}, {size}"))
    await stack.enter_async_context(board)
    return cases


async def rig_at(broker: Broker, client_id: str, stack: AsyncExitStack) -> None:
    """A rig that is served at a broker, its direct link on this machine."""
    rig = Rig(parse_rig(RIG, Path("rig.toml")), InstantBoard(INFO), {})
    await stack.enter_async_context(rig)
    offered = served(rig, broker, TOPIC, lambda _: None, client_id=client_id, direct=DirectSettings())
    _, side = await stack.enter_async_context(offered)
    await side.connected.wait()


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Starts a broker of each kind, and one more for the direct link, as a rig has one user at a time."""
    del quick
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cases: list[Case] = []
        pids: list[int] = []
        if find_mosquitto() is not None:
            running = stack.enter_context(mosquitto(folder))
            pids.append(running.pid)
            broker = Broker(BrokerAddress("127.0.0.1", running.port, tls=False))
            cases += await bare_mqtt("mosquitto", broker, stack)
            await rig_at(broker, rig_client_id(), stack)
            cases += await remote("mosquitto", "bare aiomqtt, mosquitto", broker, False, stack)
            cases += await epochs(broker, stack)
        for name, direct in (("embedded", False), ("direct", True)):
            client_id = rig_client_id()
            embedded = await stack.enter_async_context(embedded_broker(EmbeddedSettings(port=0), TOPIC, client_id))
            cases += await bare_socket(stack) if direct else await bare_mqtt(name, embedded, stack)
            await rig_at(embedded, client_id, stack)
            bare = "bare WebSocket" if direct else f"bare aiomqtt, {name}"
            cases += await remote(name, bare, embedded, direct, stack)
        title = f"One MVM request of a remote board of {LINES} x {LINES} and its answer, both ends in one event loop"
        yield Suite(title, "request", cases, pids)


if __name__ == "__main__":
    main(Script("benchmarks.remote", prepare, ("aiomqtt", "paho-mqtt", "amqtt", "aiohttp", "safetensors")))
