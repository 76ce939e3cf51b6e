"""Telemetry at a real broker, heard by mosquitto's own client: topics, states, accounts, encryption, `sweep --mqtt`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from labrig.acquisition import run_sweep
from labrig.addresses import BrokerAddress
from labrig.commands.mqtt import published
from labrig.config import parse_rig
from labrig.events import Alarm, BlockCommitted, Event, EventBus, Message, RunStarted, StepDone
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.run_control import RunControl
from labrig.telemetry import Broker, Pace, Telemetry
from labrig.telemetry.documents import (
    DOCUMENTS,
    BlockDocument,
    Document,
    StartDocument,
    StopDocument,
    decoded,
    event_of,
)
from labrig.testing.mosquitto import Heard, Mosquitto, find_mosquitto, mosquitto, subscribed
from labrig.training.config import TrainConfig
from labrig.training.ledger import Ledger
from labrig.training.ranks import Ranks
from labrig_drivers.errors import ConfigError

RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
settings = { seed = 1, arrays = 2, rows = 8, columns = 4 }
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""
PLAN = MvmCalibrationPlan(writes=1, batch=32)
TOPIC = "labrig/1/lab/small"
PASSWORD = "not-in-any-file"


def documents(heard: list[Heard]) -> list[Document]:
    """What was heard, read back; the words of the state left out."""
    below = [(one.topic.removeprefix(f"{TOPIC}/"), one.payload) for one in heard]
    return [decoded(topic, payload.encode()) for topic, payload in below if topic != "state"]


def states(heard: list[Heard]) -> list[str]:
    return [one.payload for one in heard if one.topic == f"{TOPIC}/state"]


def broker_at(port: int) -> Broker:
    return Broker(BrokerAddress("127.0.0.1", port, tls=False))


async def test_sweep_is_told_from_start_to_end(broker: Mosquitto, tmp_path: Path) -> None:
    bus = EventBus()
    connected, on_the_bus = list[str](), list[Event]()
    bus.subscribe(on_the_bus.append)
    with subscribed(broker) as listener:
        with Telemetry(broker_at(broker.port), TOPIC, connected.append) as telemetry:
            bus.subscribe(telemetry)
            listener.wait_for(lambda heard: states(heard) == ["init"])
            summary = await run_sweep(parse_rig(RIG, Path("rig.toml")), PLAN, tmp_path / "run.h5", bus)
        heard = listener.wait_for(lambda heard: states(heard)[-1] == "disconnected")
    assert states(heard) == ["init", "busy", "ready", "disconnected"]
    assert connected == [f"telemetry: mqtt://127.0.0.1:{broker.port} is connected, events are published under {TOPIC}/"]
    told = documents(heard)
    starts = [one for one in told if isinstance(one, StartDocument)]
    assert [(one.planned_mvms, one.planned_writes) for one in starts] == [(summary.mvms, 2)]
    blocks = [one for one in told if isinstance(one, BlockDocument)]
    assert sum(one.mvms for one in blocks) == blocks[-1].total_mvms == summary.mvms
    assert sum(one.blocks for one in blocks) == sum(isinstance(event, BlockCommitted) for event in on_the_bus)
    stops = [one for one in told if isinstance(one, StopDocument)]
    assert [(one.status, one.mvms, one.writes) for one in stops] == [("finished", summary.mvms, 2)]
    with h5py.File(tmp_path / "run.h5") as file:
        run_id = file.attrs["run_id"].decode()
        assert file["entry/entry_identifier_uuid"][()].decode() == run_id == str(uuid.UUID(run_id, version=4))
    assert {one.run_id for one in [*starts, *blocks, *stops]} == {run_id}
    kinds = {kind.topic: kind for kind in DOCUMENTS}
    for one in heard:
        topic = one.topic.removeprefix(f"{TOPIC}/")
        assert one.qos == (1 if topic == "state" else kinds[topic].qos)
        assert not one.retained
    # Whoever comes later finds the end of it.
    with subscribed(broker) as newcomer:
        later = newcomer.wait_for(lambda heard: len(heard) == 2)
    assert all(one.retained for one in later)
    assert states(later) == ["disconnected"]
    run = json.loads(next(one.payload for one in later if one.topic == f"{TOPIC}/run"))
    assert (run["status"], run["mvms"], run["dropped"]) == ("finished", summary.mvms, 0)
    assert (run["recording"], run["run_id"]) == (str(tmp_path / "run.h5"), run_id)


def test_connection_has_no_nagle_delay(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiomqtt import Client

    publish = Client.publish
    options = list[int]()

    async def looking(self: Client, *args: object, **named: object) -> None:
        connection = self._client.socket()
        assert isinstance(connection, socket.socket)
        options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await publish(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "publish", looking)
    with subscribed(broker) as listener, Telemetry(broker_at(broker.port), TOPIC, print) as telemetry:
        telemetry(Message("hello"))
        listener.wait_for(lambda heard: any("hello" in one.payload for one in heard))
    assert len(options) >= 2
    assert all(options)


def test_alarms_are_counted_for_newcomers(broker: Mosquitto) -> None:
    with Telemetry(broker_at(broker.port), TOPIC, print, Pace(max_rate_hz=100.0)) as telemetry:
        telemetry(RunStarted("mvm", 1, 1, None))
        telemetry(Alarm("hot"))
        telemetry(Alarm("hotter"))
        with subscribed(broker) as newcomer:
            heard = newcomer.wait_for(lambda heard: any('"alarms":2' in one.payload for one in heard))
    (run,) = [json.loads(one.payload) for one in heard if '"alarms":2' in one.payload]
    assert run["last_alarm"] == "hotter"


@pytest.fixture
def guarded(broker_folder: Path) -> Iterator[Mosquitto]:
    """A broker with one account."""
    program = find_mosquitto("mosquitto_passwd")
    assert program is not None
    passwords = broker_folder / "passwords"
    subprocess.run([program, "-b", "-c", str(passwords), "bench", PASSWORD], check=True, capture_output=True)
    with mosquitto(broker_folder, "allow_anonymous false", f"password_file {passwords}") as running:
        yield running


def account(port: int) -> str:
    return f'[telemetry]\nbroker = "mqtt://127.0.0.1:{port}"\nusername = "bench"\npassword_env = "LABRIG_TEST_PW"\n'


async def test_refused_account_is_told_once_and_the_run_goes_on(
    guarded: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_rig(RIG + account(guarded.port), Path("rig.toml"))
    monkeypatch.setenv("LABRIG_TEST_PW", "something else")
    bus, events = EventBus(), list[Event]()
    bus.subscribe(events.append)

    def said() -> list[str]:
        return [event.text for event in events if isinstance(event, Message)]

    with published(config, bus, "mqtt://127.0.0.1:1", off=False):
        pass
    assert "cannot be reached" in said()[0]
    events.clear()
    with published(config, bus, off=True):
        await run_sweep(config, PLAN, tmp_path / "off.h5", bus)
    assert said() == []
    with published(config, bus):
        await run_sweep(config, PLAN, tmp_path / "run.h5", bus)
        async with asyncio.timeout(20.0):
            while not said():  # noqa: ASYNC110 - it is said in another thread
                await asyncio.sleep(0.01)
    first, last = said()
    assert "refuses the connection: Not authorized; check account and certificates" in first
    assert last.endswith("events could not be delivered")
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()


def start(folder: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "labrig", "sweep", "rig.toml", "--plan", "mvm", "-o", "run.h5", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **variables}, stdout=pipe, stderr=pipe, text=True)


def test_account_of_the_rig_file_on_the_command_line(guarded: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(RIG + account(guarded.port))
    with subscribed(guarded, "-u", "bench", "-P", PASSWORD) as listener:
        with start(tmp_path, "--writes", "1", LABRIG_TEST_PW=PASSWORD) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert errors.count("is connected, events are published under") == 1
        heard = listener.wait_for(lambda heard: states(heard)[-1:] == ["disconnected"])
    assert any(isinstance(one, StopDocument) for one in documents(heard))
    assert PASSWORD.encode() not in (tmp_path / "run.h5").read_bytes()


def test_what_cannot_be_used_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(RIG)
    with start(tmp_path, "--mqtt", "127.0.0.1") as process:
        _, errors = process.communicate()
    assert (process.returncode, errors) == (
        2,
        "labrig: error: --mqtt: expected mqtt://HOST:PORT or mqtts://HOST:PORT\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rig.toml"]
    config = parse_rig(RIG, Path("rig.toml"))
    with pytest.raises(ConfigError, match="give one of them"), published(config, EventBus(), "mqtt://a", off=True):
        pass


@pytest.mark.parametrize(
    ("number", "status", "state"),
    [(signal.SIGKILL, "running", "lost"), (signal.SIGINT, "stopped", "disconnected")],
)
def test_how_a_sweep_ended_stands_at_the_broker(
    number: signal.Signals, status: str, state: str, broker: Mosquitto, tmp_path: Path
) -> None:
    (tmp_path / "rig.toml").write_text(RIG)
    with subscribed(broker) as listener:
        with start(tmp_path, "--writes", "30", "--mqtt", f"mqtt://127.0.0.1:{broker.port}") as process:
            listener.wait_for(lambda heard: any(one.topic == f"{TOPIC}/event/block" for one in heard))
            process.send_signal(number)
            process.communicate()
        heard = listener.wait_for(lambda heard: states(heard)[-1] == state)
        runs = [json.loads(one.payload) for one in heard if one.topic == f"{TOPIC}/run"]
    assert runs[-1]["status"] == status
    assert "lost" in states(heard) or number is signal.SIGINT


def test_trainings_publish_where_their_rig_file_says(
    broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labrig.commands.train import train
    from labrig.training import run

    def short(config: TrainConfig, bus: EventBus, ranks: Ranks, control: RunControl | None) -> run.RunResult:
        del ranks, control
        bus.publish(StepDone("digital", 1, 1, 0.5))
        return run.RunResult(config, 0.9, Ledger())

    monkeypatch.setattr(run, "train_run", short)
    (tmp_path / "rig.toml").write_text(f'{RIG}[telemetry]\nbroker = "mqtt://127.0.0.1:{broker.port}"\n')
    file = tmp_path / "train.toml"
    file.write_text('[run]\nfolder = "run"\n[chip]\nrig = "rig.toml"\n[training]\nmethod = "digital"\n')
    with subscribed(broker) as listener:
        train(file)
        heard = listener.wait_for(lambda heard: states(heard)[-1:] == ["disconnected"])
    assert [event_of(one) for one in documents(heard) if one.topic == "event/step"] == [StepDone("digital", 1, 1, 0.5)]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(made)]
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([openssl, *new, *subject, *files], check=True, capture_output=True)
    return made, key


def test_encrypted_broker_is_checked_with_its_certificate(broker_folder: Path) -> None:
    made, key = certificate(broker_folder, "broker")
    other, _ = certificate(broker_folder, "other")
    said = list[str]()
    with mosquitto(broker_folder, "allow_anonymous true", f"certfile {made}", f"keyfile {key}") as broker:
        address = BrokerAddress("127.0.0.1", broker.port, tls=True)
        with subscribed(broker, "--cafile", str(made)) as listener:
            with Telemetry(Broker(address, ca_file=str(other)), TOPIC, said.append, Pace(first_retry_s=0.1)) as wrong:
                wrong(Message("not for everybody"))
            with Telemetry(Broker(address, ca_file=str(made)), TOPIC, said.append) as right:
                right(Message("hello"))
            heard = listener.wait_for(lambda heard: "disconnected" in states(heard))
    assert any("hello" in one.payload for one in heard)
    assert not any("not for everybody" in one.payload for one in heard)
    where = f"telemetry: mqtts://127.0.0.1:{broker.port}"
    assert re.match(rf"{where} refuses the connection: no encrypted connection \(self.signed certificate", said[0])
    assert said[1:] == [
        "telemetry: 1 events could not be delivered",
        f"{where} is connected, events are published under {TOPIC}/",
    ]
