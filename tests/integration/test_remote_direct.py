"""The direct link: same contract and lease, past the broker; and back to the broker when it is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from aiohttp import ClientSession, ClientWSTimeout, WSMsgType
from served_rig import MOCK, ServedRig, broker_at, serving, source_meter_rig

from labrig.boards.remote import RemoteBoard
from labrig.remote.direct import DirectSettings
from labrig.remote.manners import Manners
from labrig.testing.driver_contract import check_crossbar_board, check_source_meter
from labrig.testing.mosquitto import Mosquitto
from labrig_drivers.errors import ConfigError, LinkLostError, SafetyError, StateError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

TARGET_S = np.full((12, 9), 2e-5)
LINE_V = np.full((3, 12), 0.1)


@pytest.fixture
async def rig(broker: Mosquitto) -> AsyncIterator[ServedRig]:
    async with serving(MOCK, broker_at(broker.port), Manners(lease_s=2.0), direct=DirectSettings()) as served:
        yield served


async def test_the_board_keeps_the_contract(rig: ServedRig) -> None:
    before = rig.service.requests
    await check_crossbar_board(rig.board)
    assert rig.service.requests > before


async def test_the_source_meter_keeps_the_contract(broker: Mosquitto) -> None:
    async with (
        source_meter_rig() as (rig, events),
        serving(rig, broker_at(broker.port), direct=DirectSettings()) as served,
    ):
        session = served.session()
        async with served.meter(session):
            assert session.goes_direct
        await check_source_meter(served.meter)
        assert any(event.output_on for event in events)
        assert not events[-1].output_on


async def test_megabytes_are_equal_and_nothing_of_them_goes_through_the_broker(rig: ServedRig) -> None:
    from aiomqtt import Client

    line_v = np.random.default_rng(0).uniform(-0.3, 0.3, (15_000, 12))
    local = MockBoard(ChipSettings(seed=1, arrays=2, rows=12, columns=9))
    published = list[int]()
    publish = Client.publish

    async def counted(self: Client, topic: str, payload: bytes, *args: object, **named: object) -> None:
        published.append(len(payload))
        await publish(self, topic, payload, *args, **named)  # type: ignore[arg-type]

    session = rig.session()
    async with RemoteBoard(session) as board, local:
        assert session.goes_direct
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "publish", counted)
            assert await board.program(1, TARGET_S) == await local.program(1, TARGET_S)
            far, here = await board.mvm(1, line_v), await local.mvm(1, line_v)
        for name in ("code", "current_a", "saturated", "time_s"):
            np.testing.assert_array_equal(getattr(far, name), getattr(here, name))
        # Renewals at most.
        assert sum(published) < 10_000
        with pytest.raises(SafetyError):
            await session.ask("mvm", "board", {"array": 0}, {"voltage_v": np.full((1, 12), 0.31)})


async def test_many_requests_at_once_each_get_their_own_answer(rig: ServedRig) -> None:
    async with rig.board() as board:
        await board.program(0, TARGET_S)
        sizes = [1 + index % 7 for index in range(40)]
        results = await asyncio.gather(*(board.mvm(0, np.full((size, 12), 0.1)) for size in sizes))
        assert [len(one.code) for one in results] == sizes


async def test_only_the_token_of_the_lease_opens_it_and_only_once(rig: ServedRig) -> None:
    granted = None
    session = rig.session()
    ask = session.ask

    async def listening(verb: str, *args: object, **named: object) -> object:
        nonlocal granted
        answer = await ask(verb, *args, **named)  # type: ignore[arg-type]
        if verb == "acquire":
            granted = answer
        return answer

    session.ask = listening  # type: ignore[method-assign, assignment]
    async with RemoteBoard(session), ClientSession() as http:
        assert session.goes_direct
        assert granted is not None
        url, token = str(granted.values["direct"]), granted.values["direct_token"]
        for headers in ({}, {"Authorization": "Bearer guessed"}, {"Authorization": f"Bearer {token}"}):
            async with http.get(url, headers=headers) as response:
                assert response.status == 403


async def test_nonsense_ends_the_link_and_not_the_service(rig: ServedRig) -> None:
    token = rig.service._direct.offer()  # type: ignore[union-attr]
    async with ClientSession() as http:
        headers = {"Authorization": f"Bearer {token['direct_token']}"}
        async with http.ws_connect(str(token["direct"]), headers=headers) as socket:
            await socket.send_bytes(b"\x80\x04\x95 no packet")
            assert (await socket.receive(5.0)).type in {WSMsgType.CLOSE, WSMsgType.CLOSED}
    assert rig.service.refused == 1
    async with rig.board() as board:
        await board.program(0, TARGET_S)


async def test_a_lease_that_is_taken_over_ends_its_link(rig: ServedRig) -> None:
    first = rig.session(who="ada")
    async with RemoteBoard(first) as board:
        await board.program(0, TARGET_S)
        async with rig.board(rig.session(who="bob", take_over="mine")) as other:
            await other.mvm(0, LINE_V)
            with pytest.raises((StateError, LinkLostError)):
                await board.mvm(0, LINE_V)
            with pytest.raises(StateError, match="bob took the rig over: mine"):
                await board.mvm(0, LINE_V)


async def test_without_a_way_to_it_everything_goes_through_the_broker(rig: ServedRig) -> None:
    door = rig.service._direct
    door.url = "ws://127.0.0.1:1/labrig/1"  # type: ignore[union-attr]
    session = rig.session()
    async with RemoteBoard(session) as board:
        assert not session.goes_direct
        await board.program(0, TARGET_S)
    wanted = rig.session(direct=False)
    async with RemoteBoard(wanted):
        assert not wanted.goes_direct


async def test_a_link_that_breaks_fails_what_is_under_way_and_the_broker_takes_over(rig: ServedRig) -> None:
    session = rig.session()
    async with RemoteBoard(session) as board:
        await board.program(0, TARGET_S)
        await rig.service._direct.shut()  # type: ignore[union-attr]
        async with asyncio.timeout(10.0):
            while session.goes_direct:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await board.mvm(0, LINE_V)).write_index == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (DirectSettings(host="0.0.0.0"), "no address that users could be told"),
        (DirectSettings(host="192.0.2.1"), "in the clear"),
        (DirectSettings(host="bench"), "no IP address"),
    ],
)
def test_what_is_not_safe_never_listens(settings: DirectSettings, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings.check()


async def test_a_user_that_asks_and_never_listens_holds_nobody_up(rig: ServedRig) -> None:
    """Its answers wait in its own connection, bounded by its window; the rig can be taken from it."""
    from labrig.remote.envelope import packets
    from labrig.remote.messages import Request

    session = rig.session(who="deaf")
    async with RemoteBoard(session) as board, ClientSession() as http:
        await board.program(0, TARGET_S)
        token = rig.service._direct.offer()  # type: ignore[union-attr]
        headers = {"Authorization": f"Bearer {token['direct_token']}"}
        soon = ClientWSTimeout(ws_close=0.1)
        async with http.ws_connect(str(token["direct"]), headers=headers, timeout=soon) as deaf:
            # It stops to read, so that soon nothing more fits into the connection.
            deaf._reader._protocol.pause_reading()
            client, lease, line_v = session._client_id, session._lease, np.zeros((40_000, 12))
            for number in range(1000, 1012):
                request = Request("mvm", client, number, lease, None, "board", {"array": 0}, {"voltage_v": line_v})
                for packet in packets(request.encoded(), number, None):
                    await deaf.send_bytes(packet)
            async with rig.board(rig.session(who="bob", take_over="deaf", answer_s=20.0)) as other:
                assert len((await other.mvm(0, LINE_V)).code) == 3
