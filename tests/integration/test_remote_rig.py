"""A rig on another machine keeps every contract, at a real broker and at the embedded one, and measures the same."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiomqtt import Message, ProtocolVersion
from command_line import labrig
from served_rig import MOCK, ServedRig, broker_at, remote_rig, serving, source_meter_rig

from labrig.acquisition import run_sweep
from labrig.boards.remote import RemoteBoard
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.remote.embedded import EmbeddedSettings, embedded_broker
from labrig.remote.manners import Manners
from labrig.remote.stopping import stop_rig
from labrig.telemetry.broker import Broker, connected
from labrig.testing.driver_contract import check_crossbar_board, check_source_meter
from labrig.testing.mosquitto import Mosquitto, subscribed
from labrig_drivers.errors import CapabilityError, IdentityError, LinkLostError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

TOPIC = "labrig/1/lab/bench"
RIG_CLIENT = "the-rig-itself"
# What people read; requests and answers are bytes.
NO_BYTES = ("-T", "labrig/1/+/+/cmd/#", "-T", "labrig/1/+/+/reply/#")


@asynccontextmanager
async def some_broker(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    if kind == "mosquitto":
        yield broker_at(request.getfixturevalue("broker").port)
        return
    async with embedded_broker(EmbeddedSettings(port=0), TOPIC, RIG_CLIENT) as embedded:
        yield embedded


@pytest.fixture(params=["mosquitto", "embedded"])
async def mock(request: pytest.FixtureRequest) -> AsyncIterator[ServedRig]:
    """A served mock, at either broker."""
    async with some_broker(request.param, request) as broker, serving(MOCK, broker, client_id=RIG_CLIENT) as rig:
        yield rig


async def test_the_board_keeps_the_contract(mock: ServedRig) -> None:
    await check_crossbar_board(mock.board)


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_the_source_meter_keeps_the_contract(kind: str, request: pytest.FixtureRequest) -> None:
    async with (
        some_broker(kind, request) as broker,
        source_meter_rig() as (rig, events),
        serving(rig, broker, client_id=RIG_CLIENT) as served,
    ):
        await check_source_meter(served.meter)
        assert any(event.output_on for event in events)
        assert not events[-1].output_on


async def test_a_sweep_from_afar_is_equal_to_one_on_the_rig(mock: ServedRig, tmp_path: Path) -> None:
    plan = MvmCalibrationPlan(writes=1, batch=128)
    far = parse_rig(remote_rig(mock.address), tmp_path / "far.toml")
    await run_sweep(parse_rig(MOCK, tmp_path / "here.toml"), plan, tmp_path / "here.h5", EventBus())
    await run_sweep(far, plan, tmp_path / "far.h5", EventBus())
    with Recording.open(tmp_path / "here.h5") as here, Recording.open(tmp_path / "far.h5") as there:
        assert here.arrays == there.arrays == (0, 1)
        for array in here.arrays:
            one, other = here.dataset(array), there.dataset(array)
            for name in ("voltage_v", "current_a", "pattern", "target_conductance_s", "time_s"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert here.point_hashes(array) == there.point_hashes(array)
        assert there.header.identities["board"] == here.header.identities["board"]


async def test_a_sweep_that_lost_its_rig_is_resumed_and_equal_to_one_that_did_not(
    broker: Mosquitto, tmp_path: Path
) -> None:
    plan = MvmCalibrationPlan(writes=1, batch=64)
    await run_sweep(parse_rig(MOCK, tmp_path / "here.toml"), plan, tmp_path / "here.h5", EventBus())
    async with serving(MOCK, broker_at(broker.port)) as rig:
        far = parse_rig(remote_rig(rig.address), tmp_path / "far.toml")
        bus, blocks, stops = EventBus(), list[Event](), list[asyncio.Task[None]]()

        def count(event: Event) -> None:
            blocks.extend([event] if isinstance(event, BlockCommitted) else [])
            if len(blocks) >= 10 and not stops:
                stops.append(asyncio.create_task(stop_rig(rig.address, rig.broker, "eve", "lunch")))

        bus.subscribe(count)
        with pytest.raises(StateError, match="eve switched the outputs off: lunch"):
            await run_sweep(far, plan, tmp_path / "far.h5", bus)
        await stops[0]
        await run_sweep(far, plan, tmp_path / "far.h5", EventBus(), resume=True)
    with Recording.open(tmp_path / "here.h5") as here, Recording.open(tmp_path / "far.h5") as there:
        for array in here.arrays:
            assert here.point_hashes(array) == there.point_hashes(array)
            for name in ("voltage_v", "current_a", "target_conductance_s", "time_s"):
                wanted, found = getattr(here.dataset(array), name), getattr(there.dataset(array), name)
                np.testing.assert_array_equal(found, wanted)


async def test_what_is_told_counts_writes_by_lease_as_recordings_do(broker: Mosquitto) -> None:
    bus, told, drawn = EventBus(), list[tuple[int, int, int]](), list[int]()
    bus.subscribe(
        lambda one: told.append((one.array, one.write, one.mvms)) if isinstance(one, BlockCommitted) else None
    )
    bus.subscribe_blocks(lambda block: drawn.append(block.write))
    async with serving(MOCK, broker_at(broker.port), bus=bus) as rig:
        for _ in range(2):
            async with rig.board() as board:
                await board.program(0, np.full((12, 9), 2e-5))
                await board.mvm(0, np.full((3, 12), 0.1))
                await board.program(1, np.full((12, 9), 2e-5))
                await board.program(0, np.full((12, 9), 3e-5))
                for array in (0, 1):
                    await board.mvm(array, np.full((1, 12), 0.1))
        async with rig.board() as board:
            await board.mvm(0, np.full((2, 12), 0.1))
    assert told == [(0, 0, 3), (0, 1, 1), (1, 0, 1)] * 2 + [(0, -1, 2)]
    assert drawn == [write for _, write, _ in told]


async def test_the_command_switches_a_rig_off_that_somebody_else_has(broker: Mosquitto, tmp_path: Path) -> None:
    async with source_meter_rig() as (rig, outputs), serving(rig, broker_at(broker.port)) as served:
        (tmp_path / "far.toml").write_text(remote_rig(served.address))
        session = served.session()
        async with served.board(session) as board, served.meter(session) as meter:
            await meter.configure(source="voltage")
            await meter.set_limit(current_a=0.01)
            await meter.set_level(voltage_v=0.5)
            await meter.output_on()
            command = [sys.executable, "-m", "labrig", "stop", "far.toml", "--reason", "smell of burning"]
            stopping = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
            said, _ = await asyncio.wait_for(stopping.communicate(), 60)
            assert stopping.returncode == 0
            assert said.decode() == f"{served.address}: all outputs are off, and nobody has the rig\n"
            assert not outputs[-1].output_on
            with pytest.raises(StateError, match="switched the outputs off: smell of burning"):
                await board.mvm(0, np.full((1, 12), 0.1))


def test_a_rig_of_this_machine_is_not_stopped_from_afar(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(MOCK)
    refused = labrig(tmp_path, "stop", "rig.toml")
    assert refused.returncode == 2
    assert "its 'mock-board' is used from this machine" in refused.stderr


async def test_a_batch_of_megabytes_goes_in_parts_and_comes_back_whole(mock: ServedRig) -> None:
    rng = np.random.default_rng(0)
    line_v = rng.uniform(-0.3, 0.3, (15_000, 12))
    target_s = rng.uniform(4e-6, 50e-6, (12, 9))
    local = MockBoard(ChipSettings(seed=1, arrays=2, rows=12, columns=9))
    async with mock.board() as board, local:
        assert await board.program(1, target_s) == await local.program(1, target_s)
        far, here = await board.mvm(1, line_v), await local.mvm(1, line_v)
        for name in ("code", "current_a", "saturated", "time_s"):
            np.testing.assert_array_equal(getattr(far, name), getattr(here, name))
        with pytest.raises(CapabilityError, match="send at most"):
            await board.mvm(1, np.zeros((700_000, 12)))


async def test_the_envelope_of_the_rig_holds_whatever_the_user_says(mock: ServedRig) -> None:
    session = mock.session()
    async with RemoteBoard(session) as board:
        wild_v = np.full((1, 12), 0.29)
        wild_v[0, 3] = 0.31
        values, arrays = {"array": 0}, {"voltage_v": wild_v}
        with pytest.raises(SafetyError, match=r"safety.max_read_voltage_v = 0\.3 V") as caught:
            # Past the checks of this side.
            await session.ask("mvm", "board", values, arrays)
        assert len(caught.value.reasons) == 2
        with pytest.raises(SafetyError):
            await board.program(0, np.full((12, 9), 1.0))


async def test_another_board_than_expected_is_refused_and_the_rig_is_free_again(mock: ServedRig) -> None:
    with pytest.raises(IdentityError, match="SIM-0001"):
        await RemoteBoard(mock.session(), expected=ExpectedIdentity(serial="SIM-0002")).open()
    async with mock.board() as board:
        assert board.host_loss_protection.silence_s == mock.service.manners.lease_s


async def test_no_connection_waits_for_nagle(mock: ServedRig) -> None:
    from aiomqtt import Client

    options = list[int]()
    publish = Client.publish

    async def looking(self: Client, *args: object, **named: object) -> None:
        connection = self._client.socket()
        assert isinstance(connection, socket.socket)
        options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await publish(self, *args, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "publish", looking)
        async with mock.board():
            pass
    # Requests of the user and answers of the rig.
    assert len(options) > 6
    assert all(options)


async def test_the_embedded_broker_answers_without_nagle_and_speaks_3_1_1() -> None:
    seen = list[int]()
    from labrig.remote import embedded_door

    first_bytes = embedded_door.first_bytes

    async def looking(reader: object, writer: object) -> bytes | None:
        connection = writer.get_extra_info("socket")  # type: ignore[attr-defined]
        seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return await first_bytes(reader, writer)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_door, "first_bytes", looking)
        async with (
            embedded_broker(EmbeddedSettings(port=0), TOPIC, RIG_CLIENT) as broker,
            serving(MOCK, broker, client_id=RIG_CLIENT) as rig,
        ):
            assert rig.side.protocol == "3.1.1"
    assert len(seen) >= 2
    assert all(seen)


async def test_everybody_can_read_how_the_rig_stands(broker: Mosquitto) -> None:
    with subscribed(broker, *NO_BYTES) as listener:
        async with serving(MOCK, broker_at(broker.port), Manners(traffic_s=0.05)) as rig:
            assert rig.side.protocol == "5"
            async with rig.board(rig.session(who="ada@lab")):
                await asyncio.to_thread(listener.wait_for, lambda heard: any("granted" in one.payload for one in heard))
                await asyncio.to_thread(
                    listener.wait_for, lambda heard: any(one.topic == f"{TOPIC}/telemetry/requests" for one in heard)
                )
                with subscribed(broker, *NO_BYTES) as newcomer:
                    later = await asyncio.to_thread(newcomer.wait_for, lambda heard: len(heard) >= 3)
        heard = await asyncio.to_thread(listener.wait_for, lambda heard: heard[-1].payload == "disconnected")
    kept = {one.topic.removeprefix(f"{TOPIC}/"): one for one in later if one.retained}
    assert {"state", "info", "lease"} <= set(kept)
    info = json.loads(kept["info"].payload)
    assert (info["protocol"], info["instruments"]["board"]["info"]["rows"]) == ({"min": 1, "max": 1}, 12)
    assert info["safety"]["max_read_voltage_v"] == 0.3
    lease = json.loads(kept["lease"].payload)
    assert (lease["who"], lease["waiting"]) == ("ada@lab", 0)
    states = [one.payload for one in heard if one.topic == f"{TOPIC}/state"]
    assert [one for one, last in zip(states, ["", *states], strict=False) if one != last] == [
        "ready",
        "busy",
        "ready",
        "disconnected",
    ]
    events = [json.loads(one.payload) for one in heard if one.topic == f"{TOPIC}/event/lease"]
    traffic = [json.loads(one.payload) for one in heard if one.topic == f"{TOPIC}/telemetry/requests"]
    assert traffic[-1]["requests"] >= 3
    assert (traffic[-1]["refused"], traffic[-1]["dropped"]) == (0, 0)
    assert [(one["what"], one["who"]) for one in events] == [("granted", "ada@lab"), ("released", "ada@lab")]


def words(message: Message) -> dict[str, Any]:
    """What MQTT 5 says about a message."""
    assert message.properties is not None
    said: dict[str, Any] = message.properties.json()  # type: ignore[no-untyped-call]
    return said


async def test_on_mqtt_5_other_tools_see_whose_answer_is_whose(broker: Mosquitto) -> None:
    far = broker_at(broker.port)
    async with serving(MOCK, far) as rig, connected(far, "tool", None, 5.0, 5, protocol=ProtocolVersion.V5) as tool:
        await tool.subscribe(f"{TOPIC}/cmd/mvm", qos=1)
        await tool.subscribe(f"{TOPIC}/reply/#", qos=1)
        async with rig.board(rig.session()) as board:
            await board.program(0, np.full((12, 9), 2e-5))
            await board.mvm(0, np.zeros((1, 12)))
            seen = [await anext(aiter(tool.messages)) for _ in range(len(tool.messages))]
    asked = next(one for one in seen if str(one.topic) == f"{TOPIC}/cmd/mvm")
    told = {str(one.topic): words(one) for one in seen if one is not asked and one.properties}
    wanted = words(asked)
    assert told[wanted["ResponseTopic"]]["CorrelationData"] == wanted["CorrelationData"]
    assert wanted["MessageExpiryInterval"] >= 1


async def test_a_rig_that_nobody_serves_is_told_at_once(broker: Mosquitto) -> None:
    async with serving(MOCK, broker_at(broker.port)) as rig:
        pass
    with pytest.raises(LinkLostError, match="its program was ended"):
        await rig.board().open()
    broker.kill()
    with pytest.raises(LinkLostError, match="Connection refused"):
        await rig.board(rig.session(answer_s=0.3)).open()


async def test_a_closed_instrument_stays_closed_until_it_is_opened_again(mock: ServedRig) -> None:
    session = mock.session()
    async with RemoteBoard(session) as board:
        await session.ask("close", "board")
        with pytest.raises(StateError, match="not open"):
            await board.mvm(0, np.zeros((1, 12)))
        await session.ask("open", "board")
        with pytest.raises(StateError, match="never programmed"):
            await board.mvm(0, np.zeros((1, 12)))
