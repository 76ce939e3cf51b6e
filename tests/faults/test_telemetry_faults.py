"""Brokers that are absent, die, freeze, crawl, refuse or talk nonsense: the run and its recording do not notice."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from labrig.acquisition import RunSummary, run_sweep
from labrig.addresses import BrokerAddress
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus, Message, RunFinished, RunStarted
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.telemetry import Broker, Pace, Telemetry
from labrig.testing.mosquitto import Heard, Mosquitto, free_port, subscribed

RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
settings = { seed = 1, arrays = 1, rows = 8, columns = 4 }
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""
PLAN = MvmCalibrationPlan(writes=1, seed=1, batch=8)
TOPIC = "labrig/1/lab/small"
PACE = Pace(answer_s=0.5, first_retry_s=0.05, longest_retry_s=0.2, flush_s=1.0, max_rate_hz=100.0)


class Watched:
    """A bus with telemetry on it, and what a person was told."""

    def __init__(self, port: int, pace: Pace = PACE, username: str | None = None, password: str | None = None) -> None:
        self.bus = EventBus()
        self.said: list[str] = []
        self.events: list[Event] = []
        self.bus.subscribe(self.events.append)
        broker = Broker(BrokerAddress("127.0.0.1", port, tls=False), username, password)
        self.telemetry = Telemetry(broker, TOPIC, self.say, pace)
        self.bus.subscribe(self.telemetry)

    def say(self, text: str) -> None:
        self.said.append(re.sub(r"mqtt://[0-9.:]+", "BROKER", text))
        self.bus.publish(Message(text))

    def until_said(self, start: str) -> None:
        until(lambda: any(text.startswith(f"telemetry: BROKER {start}") for text in self.said))


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def sweep(path: Path, bus: EventBus) -> RunSummary:
    return asyncio.run(run_sweep(parse_rig(RIG, Path("rig.toml")), PLAN, path, bus))


def digest(path: Path) -> str:
    """Everything measured, but for the clock."""
    with Recording.open(path) as recording:
        recording.verify()
        dataset = recording.dataset(0)
        whole = hashlib.sha256()
        for values in (dataset.voltage_v, dataset.current_a, dataset.pattern, dataset.target_conductance_s):
            whole.update(np.ascontiguousarray(values).tobytes())
        whole.update("".join(recording.point_hashes(0)).encode())
        return whole.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the plan measures without telemetry."""
    path = tmp_path_factory.mktemp("undisturbed") / "run.h5"
    sweep(path, EventBus())
    return digest(path)


@contextmanager
def odd_broker(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """Something that listens on a port and treats every connection as `answer` does."""
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(0.02)
            answer(self.request, ended)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            ended.set()
            server.shutdown()
            thread.join()


class Relay:
    """An answer for `odd_broker`: passes everything on to a broker, and back.

    Attributes:
        port: The broker's.
        most: Bytes that it passes on at once.
        open: While it is not set, connections are ended at once.
        swallows: Connections, by their number from 0, of which nothing is passed on any more, nor that they ended.
    """

    def __init__(self, port: int, most: int = 4096) -> None:
        self.port = port
        self.most = most
        self.open = threading.Event()
        self.open.set()
        self.swallows: set[int] = set()
        self._numbers = iter(range(1000))

    def __call__(self, connection: socket.socket, ended: threading.Event) -> None:
        if not self.open.is_set():
            return
        number = next(self._numbers)
        try:
            with socket.create_connection(("127.0.0.1", self.port)) as onward:
                onward.settimeout(0.02)
                while not ended.is_set():
                    for source, sink in ((connection, onward), (onward, connection)):
                        if number in self.swallows:
                            ended.wait(0.02)
                        elif not self._pass_on(source, sink):
                            return
        except OSError:
            pass

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> bool:
        try:
            data = source.recv(self.most)
        except TimeoutError:
            return True
        sink.sendall(data)
        return bool(data)


def says_nothing(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(60.0)


def hangs_up(connection: socket.socket, ended: threading.Event) -> None:
    pass


def talks_nonsense(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    ended.wait(0.1)


def agrees_and_hangs_up(connection: socket.socket, ended: threading.Event) -> None:
    try:
        if connection.recv(1000):
            connection.sendall(b"\x20\x02\x00\x00")
    except OSError:
        pass


def agrees_and_reads_nothing(connection: socket.socket, ended: threading.Event) -> None:
    try:
        if connection.recv(1000):
            connection.sendall(b"\x20\x02\x00\x00")
            ended.wait(60.0)
    except OSError:
        pass


ODD = [says_nothing, hangs_up, talks_nonsense, agrees_and_hangs_up, agrees_and_reads_nothing]


@pytest.mark.parametrize("answer", ODD, ids=lambda answer: answer.__name__)
def test_run_does_not_notice_an_odd_broker(
    answer: Callable[[socket.socket, threading.Event], None],
    undisturbed: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with odd_broker(answer) as port, caplog.at_level(logging.ERROR, "asyncio"):
        watched = Watched(port)
        with watched.telemetry:
            summary = sweep(tmp_path / "run.h5", watched.bus)
            watched.until_said("")
    assert digest(tmp_path / "run.h5") == undisturbed
    assert watched.telemetry.waiting <= PACE.most_kept + 64
    committed = [event.total_mvms for event in watched.events if isinstance(event, BlockCommitted)]
    assert committed[-1] == summary.mvms
    assert watched.said[-1].endswith("events could not be delivered")
    assert caplog.records == []


def test_absent_broker_is_told_once(undisturbed: str, tmp_path: Path) -> None:
    watched = Watched(free_port())
    with watched.telemetry:
        sweep(tmp_path / "run.h5", watched.bus)
        watched.until_said("cannot be reached")
        time.sleep(3 * PACE.longest_retry_s)
    assert digest(tmp_path / "run.h5") == undisturbed
    first, last = watched.said
    assert first.startswith("telemetry: BROKER cannot be reached: ")
    assert "cannot be reached: Connection refused. The run goes on" in first
    assert last == f"telemetry: {watched.telemetry.waiting} events could not be delivered"


def test_broker_that_dies_and_comes_back(undisturbed: str, broker: Mosquitto, tmp_path: Path) -> None:
    relay = Relay(broker.port)
    killed = threading.Event()

    def kill(event: Event) -> None:
        if isinstance(event, BlockCommitted) and not killed.is_set():
            killed.set()
            relay.open.clear()
            broker.kill()

    with odd_broker(relay) as port:
        watched = Watched(port)
        with watched.telemetry:
            watched.until_said("is connected")
            watched.bus.subscribe(kill)
            summary = sweep(tmp_path / "run.h5", watched.bus)
            watched.until_said("is lost")
            broker.start()
            with subscribed(broker) as listener:
                relay.open.set()
                watched.until_said("is connected again")
                listener.wait_for(lambda heard: '"status":"finished"' in latest(heard, "event/stop"))
                heard = listener.wait_for(lambda heard: '"status":"finished"' in latest(heard, "run"))
            assert latest(heard, "state") == "ready"
    assert digest(tmp_path / "run.h5") == undisturbed
    # What happened while nobody was there comes late, with the latest total.
    assert f'"total_mvms":{summary.mvms}' in latest(heard, "event/block")
    said = [re.split("[:,]", text.removeprefix("telemetry: BROKER "))[0] for text in watched.said]
    assert said == ["is connected", "is lost", "is connected again"]


def test_frozen_broker_holds_up_neither_the_run_nor_its_end(
    undisturbed: str, broker: Mosquitto, tmp_path: Path
) -> None:
    watched = Watched(broker.port)
    with watched.telemetry:
        watched.until_said("is connected")
        broker.freeze()
        sweep(tmp_path / "run.h5", watched.bus)
        watched.until_said("is lost")
        assert watched.said[-1].startswith("telemetry: BROKER is lost: no answer within 0.5 s")
        broker.thaw()
        watched.until_said("is connected again")
        until(lambda: watched.telemetry.waiting == 0)
        broker.freeze()
        watched.bus.publish(Message("nobody hears this"))
    # Left while the broker is frozen: the block above has ended, and says what is missing.
    assert watched.said[-1].endswith("events could not be delivered")
    assert digest(tmp_path / "run.h5") == undisturbed
    broker.thaw()
    with subscribed(broker) as listener:
        # Broken off without a goodbye: nobody is left to take the program for a living one.
        listener.wait_for(lambda heard: latest(heard, "state") == "lost")


def test_crawling_broker_gets_fewer_documents_and_right_sums(broker: Mosquitto, tmp_path: Path) -> None:
    """All documents take turns through a line of a few kB/s: blocks are merged, what is too much is dropped."""

    pace = Pace(answer_s=20.0, most_kept=20, flush_s=20.0, max_rate_hz=1000.0)
    with odd_broker(Relay(broker.port, most=64)) as port, subscribed(broker) as listener:
        watched = Watched(port, pace)
        with watched.telemetry:
            watched.until_said("is connected")
            watched.bus.publish(RunStarted("storm", 100_000, 1, None))
            for number in range(1, 100_001):
                watched.bus.publish(BlockCommitted(0, 0, 1, number))
                if number % 1000 == 0:
                    watched.bus.publish(Message(str(number)))
            watched.bus.publish(RunFinished("finished", 100_000, 1, 1.0, None))
            assert watched.telemetry.waiting <= pace.most_kept + 64
        heard = listener.wait_for(lambda heard: latest(heard, "state") == "disconnected")
    assert watched.telemetry.waiting == 0
    assert f'"dropped":{watched.telemetry.dropped}' in latest(heard, "dropped")
    assert f'"dropped":{watched.telemetry.dropped}' in latest(heard, "run")
    assert '"total_mvms":100000' in latest(heard, "event/block")
    assert '"text":"100000"' in latest(heard, "event/message")
    assert '"status":"finished"' in latest(heard, "event/stop")
    assert len([one for one in heard if one.topic.endswith("event/block")]) < 1000


def test_name_server_that_does_not_answer_does_not_hold_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        answered.wait(60.0)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    said: list[str] = []
    broker = Broker(BrokerAddress("broker.invalid", 1883, tls=False))
    with Telemetry(broker, TOPIC, said.append, Pace(answer_s=30.0, flush_s=0.1)) as telemetry:
        telemetry(Message("one"))
    assert said == ["telemetry: 1 events could not be delivered"]
    assert not answered.is_set()
    answered.set()


def test_listener_is_harmless_before_and_after_its_block(broker: Mosquitto) -> None:
    watched = Watched(broker.port)
    watched.bus.publish(Message("before"))
    with subscribed(broker) as listener, watched.telemetry:
        listener.wait_for(lambda heard: any('"text":"before"' in one.payload for one in heard))
    watched.bus.publish(Message("after"))
    assert watched.telemetry.waiting == 0


def test_sender_that_fails_for_an_unforeseen_reason_goes_on(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiomqtt import Client

    publish = Client.publish
    failures = [RuntimeError("moon phase"), RuntimeError("moon phase")]

    async def failing(self: Client, topic: str, *args: object, **options: object) -> None:
        if "event" in topic and failures:
            raise failures.pop()
        await publish(self, topic, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "publish", failing)
    watched = Watched(broker.port)
    with subscribed(broker) as listener, watched.telemetry:
        watched.bus.publish(Message("in spite of all"))
        listener.wait_for(lambda heard: any("in spite of all" in one.payload for one in heard))
    assert failures == []
    assert any("RuntimeError: moon phase" in text for text in watched.said)


async def test_nothing_of_it_runs_in_the_event_loop_of_the_run(broker: Mosquitto) -> None:
    """So that whatever a broker does, neither measuring nor the recording's queue waits for it."""
    tasks = asyncio.all_tasks()
    threads: set[str] = set()
    watched = Watched(broker.port)
    # What the sender says of the broker is its own, and comes from its own thread.
    watched.bus.subscribe(
        lambda event: threads.add(threading.current_thread().name) if isinstance(event, BlockCommitted) else None
    )
    with watched.telemetry:
        while not watched.said:
            await asyncio.sleep(0.01)
            assert asyncio.all_tasks() == tasks
        broker.freeze()
        threads.clear()
        # In one go: the run's loop does nothing else, and needs nothing else done.
        for number in range(100_000):
            watched.bus.publish(BlockCommitted(0, 0, 1, number + 1))
        assert threads == {threading.current_thread().name}
        assert watched.telemetry.waiting <= 2
        broker.kill()


def test_earlier_connection_that_lingers_does_not_declare_the_rig_lost_later(broker: Mosquitto) -> None:
    """A network that swallows everything leaves a connection at the broker, whose will must not come after ours."""
    relay = Relay(broker.port)
    with odd_broker(relay) as port, subscribed(broker) as listener:
        watched = Watched(port)
        with watched.telemetry:
            listener.wait_for(lambda heard: latest(heard, "state") == "init")
            # Number 0 was the look whether anybody listens.
            relay.swallows = {1}
            watched.bus.publish(Message("into the void"))
            watched.until_said("is connected again")
            heard = listener.wait_for(lambda heard: states(heard)[1:] == ["lost", "init"])
    assert states(heard) == ["init", "lost", "init"]


def states(heard: list[Heard]) -> list[str]:
    return [one.payload for one in heard if one.topic == f"{TOPIC}/state"]


def latest(heard: list[Heard], topic: str) -> str:
    """The last message of a topic; empty where there was none."""
    return next((one.payload for one in reversed(heard) if one.topic == f"{TOPIC}/{topic}"), "")
