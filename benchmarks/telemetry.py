"""What telemetry costs a run: one event on the run's side, and a whole run with and without a listener.

The first cases publish events on a bus and nothing else. A block is merged into the one that waits, a message waits
in order and drops the oldest. The sweeps are runs of `acquire` with a board in process, into a recording that is open:
without telemetry, with a mosquitto that takes everything, and with a broker that accepts connections and never answers.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from benchmarks.acquisition import Bench, ManyBlocks, remembered_rig
from benchmarks.harness import Case, sync
from benchmarks.recording import Block
from benchmarks.report import Script, Suite, main
from labrig.addresses import BrokerAddress
from labrig.events import BlockCommitted, Event, EventBus, Message
from labrig.telemetry import Broker, Telemetry
from labrig.testing.mosquitto import Mosquitto, find_mosquitto, mosquitto

BATCH = 128
EVENTS = 1000


def publisher(bus: EventBus, events: list[Event]) -> Case:
    """Publishes all events once; named by its caller."""

    def publish() -> None:
        for event in events:
            bus.publish(event)

    return Case("", sync(publish), len(events))


@contextmanager
def telemetry_at(port: int) -> Iterator[EventBus]:
    """A bus whose events go to a broker on this machine; what it has to say of the broker is not printed."""
    bus = EventBus()
    broker = Broker(BrokerAddress("127.0.0.1", port, tls=False))
    with Telemetry(broker, "labrig/1/lab/benchmark", lambda _: None) as telemetry:
        bus.subscribe(telemetry)
        yield bus


@contextmanager
def silent_broker() -> Iterator[int]:
    """The port of a broker that never answers: the system accepts the connections, nobody reads them."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield int(server.getsockname()[1])


def event_cases(ports: dict[str, int], stack: ExitStack) -> list[Case]:
    """One event, on a bus without listeners and with telemetry."""
    blocks: list[Event] = [BlockCommitted(0, 0, BATCH, BATCH * number) for number in range(1, EVENTS + 1)]
    messages: list[Event] = [Message(f"message {number}") for number in range(EVENTS)]
    alone = "bus alone"
    cases = [Case(alone, publisher(EventBus(), blocks).run, EVENTS)]
    for name, port in ports.items():
        bus = stack.enter_context(telemetry_at(port))
        cases.append(Case(f"block, {name}", publisher(bus, blocks).run, EVENTS, alone))
        cases.append(Case(f"message, {name}", publisher(bus, messages).run, EVENTS, alone))
    return cases


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Starts the brokers, and opens a rig for each kind of sweep."""
    block = Block.of(BATCH)
    plan = ManyBlocks(block, 8 if quick else 512)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {"broker silent": stack.enter_context(silent_broker())}
        broker: Mosquitto | None = None
        if find_mosquitto() is not None:
            (folder / "broker").mkdir()
            broker = stack.enter_context(mosquitto(folder / "broker"))
            ports = {"mosquitto": broker.port, **ports}
        cases = event_cases(ports, stack)
        async with remembered_rig(block) as rig:
            buses = {"no telemetry": EventBus()}
            buses |= {name: stack.enter_context(telemetry_at(port)) for name, port in ports.items()}
            benches = []
            for name, bus in buses.items():
                (folder / name).mkdir()
                bench = Bench(folder / name, plan, rig, _bus=bus)
                benches.append(bench)
                reference = None if name == "no telemetry" else "sweep, no telemetry"
                cases.append(Case(f"sweep, {name}", bench.acquire, plan.blocks, reference, before=bench.make_room))
            said = (
                "mosquitto and a silent broker" if broker is not None else "a silent broker; mosquitto is not installed"
            )
            title = f"Events of a run over MQTT, blocks of {BATCH} MVMs of 128 x 128, {said}"
            yield Suite(title, "event", cases, [] if broker is None else [broker.pid])
            for name, bench in zip(buses, benches, strict=True):
                if bench.summary is not None:
                    waited = bench.summary.queueing_s / bench.summary.seconds
                    print(f"sweep, {name}: {waited:.1%} of the last run's time went into the recording's queue")
                await bench.close()


if __name__ == "__main__":
    main(Script("benchmarks.telemetry", prepare, ("aiomqtt", "paho-mqtt")))
