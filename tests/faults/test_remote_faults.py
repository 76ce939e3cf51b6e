"""Lines that break, brokers that die, messages that come twice, users that vanish: a typed error, and outputs off."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from served_rig import MOCK, ServedRig, broker_at, remote_rig, serving, source_meter_rig

from labrig.boards.remote import RemoteBoard
from labrig.boards.remote_source_meter import RemoteSourceMeter
from labrig.remote.direct import DirectDoor, DirectSettings
from labrig.remote.envelope import Assembler, packets, read_body
from labrig.remote.manners import Manners
from labrig.remote.messages import Answer, Request, read_answer
from labrig.remote.stopping import stop_rig
from labrig.telemetry.broker import connected
from labrig.testing.fault_lane import cut_pieces
from labrig.testing.fault_plan import Direction, Fault, FaultPlan, PlannedFault
from labrig.testing.fault_proxy import FaultProxy
from labrig.testing.mosquitto import Mosquitto, find_mosquitto
from labrig_drivers.errors import (
    LabrigError,
    LinkError,
    LinkLostError,
    LinkTimeoutError,
    ProtocolError,
    StateError,
)

TARGET_S = np.full((12, 9), 2e-5)
LINE_V = np.full((3, 12), 0.1)
# Long enough for a machine that is busy, short enough to wait for.
LEASE_S = 2.0


@pytest.fixture
async def rig(broker: Mosquitto) -> AsyncIterator[ServedRig]:
    async with serving(MOCK, broker_at(broker.port), Manners(lease_s=LEASE_S)) as served:
        yield served


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():  # noqa: ASYNC110 - it becomes true in another task or process
            await asyncio.sleep(0.01)


async def until_connected(board: RemoteBoard) -> None:
    """Asks until the line is there again."""
    for _ in range(100):
        try:
            await board.mvm(0, LINE_V)
        except LinkError:
            await asyncio.sleep(0.05)
        else:
            return


class Bare:
    """A client that sends what it likes, in the order and as often as it likes."""

    def __init__(self, rig: ServedRig, name: str = "bare") -> None:
        self.rig, self.name = rig, name
        self.answers: list[Answer] = []
        self.lease: str | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Bare]:
        async with connected(self.rig.broker, self.name, None, 5.0, 5) as self.client:
            await self.client.subscribe(f"{self.rig.address.topic}/reply/{self.name}", qos=1)
            reading = asyncio.create_task(self._read())
            try:
                self.lease = str((await self.ask("acquire", 1_000_000)).values["lease"])
                yield self
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        assembler = Assembler()
        async for message in self.client.messages:
            assert isinstance(message.payload, bytes)
            if (whole := assembler.take(message.payload, 0.0)) is not None:
                self.answers.append(read_answer(read_body(whole)))

    def request(self, verb: str, number: int, **fields: object) -> Request:
        instrument = None if verb in {"acquire", "renew", "hello", "take-over", "stop", "release"} else "board"
        usual: dict[str, object] = {"lease": self.lease, "instrument": instrument}
        return Request(verb, self.name, number, **(usual | fields))  # type: ignore[arg-type]

    async def send(self, request: Request) -> None:
        for packet in packets(request.encoded(), time.monotonic_ns()):
            await self.client.publish(f"{self.rig.address.topic}/cmd/{request.verb}", packet, qos=1)

    async def ask(self, verb: str, number: int, **fields: object) -> Answer:
        await self.send(self.request(verb, number, **fields))
        await until(lambda: any(one.number == number for one in self.answers))
        return next(one for one in self.answers if one.number == number)


async def test_a_duplicate_never_programs_twice_and_gets_the_same_answer(rig: ServedRig) -> None:
    async with Bare(rig).open() as bare:
        program = {"values": {"array": 0}, "arrays": {"conductance_s": TARGET_S}}
        request = bare.request("program", 1, **program)
        await bare.send(request)
        await bare.send(request)
        # Also when it comes long after the first was answered.
        await until(lambda: sum(one.number == 1 for one in bare.answers) >= 1)
        await bare.send(request)
        await until(lambda: sum(one.number == 1 for one in bare.answers) >= 2)
        found = [one.values for one in bare.answers if one.number == 1]
        assert all(one == found[0] for one in found)
        assert found[0]["write_index"] == 0
        assert (await bare.ask("program", 2, **program)).values["write_index"] == 1


async def test_a_request_after_its_deadline_is_not_carried_out(rig: ServedRig) -> None:
    async with Bare(rig).open() as bare:
        program: dict[str, object] = {"values": {"array": 0}, "arrays": {"conductance_s": TARGET_S}}
        late = await bare.ask("program", 1, start_by_s=rig.service.now_s() - 0.01, **program)
        assert late.fault is not None
        assert (late.fault.kind, "after its deadline" in late.fault.text) == ("LinkTimeoutError", True)
        in_time = await bare.ask("program", 2, start_by_s=rig.service.now_s() + 10.0, **program)
        assert in_time.values["write_index"] == 0


async def test_more_requests_than_the_rig_takes_are_told_that_it_is_busy(rig: ServedRig) -> None:
    async with Bare(rig).open() as bare:
        await bare.ask("program", 0, values={"array": 0}, arrays={"conductance_s": TARGET_S})
        window = rig.service.manners.window
        # All in one turn of the loop, so that none is carried out in between.
        done = asyncio.Event()
        answers: list[bytes] = []

        async def outlet(message: bytes) -> None:
            answers.append(message)
            if len(answers) == window + 4:
                done.set()

        for number in range(1, window + 5):
            rig.service.take(bare.request("mvm", number, values={"array": 0}, arrays={"voltage_v": LINE_V}), outlet)
        await done.wait()
        read = [read_answer(read_body(one)) for one in answers]
        assert sorted(one.number for one in read if one.fault is not None) == list(range(window + 1, window + 5))
        assert {one.fault.kind for one in read if one.fault is not None} == {"BusyError"}
        # What was turned away may come again.
        again = await bare.ask("mvm", window + 1, values={"array": 0}, arrays={"voltage_v": LINE_V})
        assert again.fault is None


async def test_a_user_with_many_requests_never_meets_the_limit(rig: ServedRig) -> None:
    async with rig.board() as board:
        await board.program(0, TARGET_S)
        results = await asyncio.gather(*(board.mvm(0, LINE_V) for _ in range(5 * rig.service.manners.window)))
        assert all(len(one.code) == 3 for one in results)


async def test_two_users_race_for_the_rig_and_one_has_it_at_a_time(rig: ServedRig) -> None:
    held = 0

    async def use() -> int:
        nonlocal held
        async with rig.board(rig.session(queue_s=20.0)) as board:
            held += 1
            assert held == 1
            report = await board.program(0, TARGET_S)
            await asyncio.sleep(0.02)
            held -= 1
            return report.write_index

    assert sorted(await asyncio.gather(*(use() for _ in range(4)))) == [0, 1, 2, 3]
    async with rig.board(rig.session(who="ada")):
        with pytest.raises(StateError, match=r"ada has the rig \(its lease lasts .* s more unless it is renewed\)"):
            await rig.board(rig.session(queue_s=0.0)).open()


async def test_taking_over_needs_a_reason_and_tells_it_to_whoever_had_the_rig(rig: ServedRig) -> None:
    async with rig.board(rig.session(who="ada")) as first:
        await first.program(0, TARGET_S)
        with pytest.raises(ProtocolError, match="needs a reason"):
            await rig.board(rig.session(take_over=" ")).open()
        async with rig.board(rig.session(who="bob", take_over="the chip is too hot")) as second:
            with pytest.raises(StateError, match="bob took the rig over: the chip is too hot"):
                await first.mvm(0, LINE_V)
            await second.mvm(0, LINE_V)
        # Who lost the rig may ask for it again.
        await first.close()
        await first.open()
        assert (await first.mvm(0, LINE_V)).write_index == 0
    assert any("ada no longer has the rig: bob took the rig over" in text for text in rig.said)


async def test_a_broker_that_is_started_again_finds_the_rig_and_its_user_again(
    rig: ServedRig, broker: Mosquitto
) -> None:
    async with rig.board() as board:
        await board.program(0, TARGET_S)
        broker.kill()
        with pytest.raises(LinkError):
            await asyncio.wait_for(board.mvm(0, LINE_V), 10.0)
        broker.start()
        await rig.side.connected.wait()
        # The lease was not renewed meanwhile: either it lasted, or the rig says that it ended.
        try:
            assert len((await board.mvm(0, LINE_V)).code) == 3
        except StateError as error:
            assert "lease ended" in str(error)  # noqa: PT017
    async with rig.board() as board:
        assert (await board.program(0, TARGET_S)).write_index == 1


async def test_a_line_that_is_cut_fails_what_is_under_way_and_comes_back(rig: ServedRig, broker: Mosquitto) -> None:
    async with FaultProxy(broker.port, answers=cut_pieces) as proxy:
        far = broker_at(proxy.port)
        async with rig.board(rig.session(far)) as board:
            await board.program(0, TARGET_S)
            proxy.freeze()
            under_way = asyncio.create_task(board.mvm(0, LINE_V))
            await asyncio.sleep(0.05)
            await proxy.refuse()
            with pytest.raises(LinkLostError, match=r"may be carried out"):
                await asyncio.wait_for(under_way, 10.0)
            await proxy.heal()
            assert (await board.mvm(0, LINE_V)).write_index == 0


async def test_a_partition_that_lasts_ends_the_lease_on_the_rig(rig: ServedRig, broker: Mosquitto) -> None:
    async with FaultProxy(broker.port, answers=cut_pieces) as proxy:
        session = rig.session(broker_at(proxy.port), answer_s=0.5)
        async with RemoteBoard(session) as board:
            await board.program(0, TARGET_S)
            proxy.freeze()
            with pytest.raises(LinkTimeoutError, match="whether it was carried out is not known"):
                await board.mvm(0, LINE_V)
            await until(lambda: any("was not renewed" in text for text in rig.said))
            # Somebody else can go on, although the first one never said goodbye.
            async with rig.board() as other:
                await other.program(0, TARGET_S)
            await proxy.heal()
            with pytest.raises(StateError, match="outputs were switched off"):
                await until_connected(board)


async def test_a_line_that_delays_and_breaks_off_gives_right_answers_or_typed_errors(
    rig: ServedRig, broker: Mosquitto
) -> None:
    directions: tuple[Direction, ...] = ("requests", "answers")
    faults = [
        PlannedFault(Fault.DELAY, direction, message=number, duration_s=0.02)
        for direction in directions
        for number in range(20, 200, 9)
    ]
    # In the middle of a message, and between two.
    faults += [PlannedFault(Fault.CUT, "answers", message=60, offset=5), PlannedFault(Fault.RESET, message=85)]
    async with FaultProxy(broker.port, FaultPlan.of(*faults), answers=cut_pieces) as proxy:
        right = failed = 0
        session = rig.session(broker_at(proxy.port), answer_s=3.0)
        async with RemoteBoard(session) as board:
            await board.program(0, TARGET_S)
            for step in range(60):
                line_v = np.full((1 + step % 5, 12), 0.1)
                try:
                    right += len((await board.mvm(0, line_v)).code) == 1 + step % 5
                except LabrigError as error:
                    assert isinstance(error, LinkError), error  # noqa: PT017
                    failed += 1
        assert right + failed == 60
        assert right >= 50
        assert (proxy.kinds[Fault.CUT], proxy.kinds[Fault.RESET]) == (1, 1)


@pytest.mark.parametrize("last", [Fault.CUT, Fault.RESET])
async def test_a_direct_link_on_a_bad_line_gives_right_answers_or_typed_errors_and_then_the_broker_serves(
    last: Fault, broker: Mosquitto
) -> None:
    delays = [
        PlannedFault(Fault.DELAY, direction, message=number, duration_s=0.02)
        for direction in ("requests", "answers")
        for number in range(5, 40, 4)
    ]
    end = PlannedFault(last, "answers", message=40, offset=5) if last is Fault.CUT else PlannedFault(last, message=40)
    async with serving(MOCK, broker_at(broker.port), direct=DirectSettings()) as rig:
        door = rig.service._direct
        assert isinstance(door, DirectDoor)
        port = int(urlsplit(door.url).netloc.rpartition(":")[2])
        async with FaultProxy(port, FaultPlan.of(*delays, end), answers=cut_pieces) as proxy:
            door.url = door.url.replace(f":{port}", f":{proxy.port}")
            session = rig.session(answer_s=3.0)
            async with RemoteBoard(session) as board:
                assert session.goes_direct
                await board.program(0, TARGET_S)
                right = failed = 0
                for step in range(60):
                    line_v = np.full((1 + step % 5, 12), 0.1)
                    try:
                        right += len((await board.mvm(0, line_v)).code) == 1 + step % 5
                    except LabrigError as error:
                        assert isinstance(error, LinkError), error  # noqa: PT017
                        failed += 1
                assert right + failed == 60
                # What was under way at the break; what followed went through the broker.
                assert failed <= 1
                assert proxy.kinds[last] == 1
                assert not session.goes_direct


async def test_a_rig_that_dies_fails_its_users_at_once(rig: ServedRig) -> None:
    session = rig.session()
    board = RemoteBoard(session)
    await board.open()
    # The will of the broker, as when the process was killed.
    async with connected(rig.broker, "undertaker", None, 5.0, 5) as client:
        await client.publish(f"{rig.address.topic}/state", "lost", qos=1)
        await until(lambda: session.rig_is_gone)
    with pytest.raises(LinkLostError, match="its program died"):
        await board.mvm(0, LINE_V)
    await board.close()


async def test_whoever_may_come_in_may_stop_and_nobody_goes_on_without_a_lease(broker: Mosquitto) -> None:
    async with source_meter_rig() as (bench, events), serving(bench, broker_at(broker.port)) as served:
        session = served.session(who="ada")
        async with RemoteSourceMeter(session, "supply") as meter:
            await meter.configure(source="voltage", nplc=0.1)
            await meter.set_limit(current_a=0.01)
            await meter.set_level(voltage_v=0.5)
            await meter.output_on()
            assert events[-1].output_on
            with pytest.raises(ProtocolError, match="needs a reason"):
                await stop_rig(served.address, served.broker, "eve", "")
            assert events[-1].output_on
            await stop_rig(served.address, served.broker, "eve", "smoke\x1b[2J")
            assert not events[-1].output_on
            # Nothing that a terminal would obey.
            assert served.said[-1].endswith("eve switched the outputs off: smoke?[2J")
            with pytest.raises(StateError, match="eve switched the outputs off: smoke"):
                await meter.measure()


USER = """
import asyncio, sys
from labrig.rig import open_rig

async def main():
    async with open_rig(sys.argv[1]) as rig:
        await rig.power_up()
        print("on", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_outputs_are_off_within_the_lease_when_their_user_is_killed(broker: Mosquitto, tmp_path: Path) -> None:
    async with (
        source_meter_rig() as (bench, events),
        serving(bench, broker_at(broker.port), Manners(lease_s=LEASE_S)) as rig,
    ):
        meter = (
            f'[source_meters.supply]\ndriver = "remote-source-meter"\nlink = "{rig.address}"\n'
            'role = "array-supply"\nlevel_voltage_v = 0.5\nlimit_current_a = 0.01\nnplc = 0.1\n'
        )
        rig_file = tmp_path / "far.toml"
        rig_file.write_text(remote_rig(rig.address, meter))
        program = tmp_path / "user.py"
        program.write_text(USER)
        user = await asyncio.create_subprocess_exec(sys.executable, str(program), str(rig_file), stdout=subprocess.PIPE)
        assert user.stdout is not None
        assert (await user.stdout.readline()).strip() == b"on"
        assert events[-1].output_on
        assert events[-1].voltage_v == 0.5
        user.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        await user.wait()
        await until(lambda: not events[-1].output_on)
        off_s = time.monotonic() - killed_s
        # By a ramp, and not before the lease could have been renewed.
        assert events[-2].voltage_v == 0.0
        assert off_s < 2.0 * LEASE_S
        async with rig.board() as board:
            assert board.info.rows == 12
    assert any("was not renewed" in text for text in rig.said)


async def test_an_output_that_could_not_be_switched_off_from_here_is_told_and_goes_off_there(broker: Mosquitto) -> None:
    async with (
        source_meter_rig() as (bench, events),
        serving(bench, broker_at(broker.port), Manners(lease_s=LEASE_S)) as rig,
        FaultProxy(broker.port, answers=cut_pieces) as proxy,
    ):
        meter = RemoteSourceMeter(rig.session(broker_at(proxy.port), answer_s=0.3), "supply")
        await meter.open()
        await meter.configure(source="voltage", nplc=0.1)
        await meter.set_limit(current_a=0.01)
        await meter.set_level(voltage_v=0.5)
        await meter.output_on()
        await proxy.refuse()
        with pytest.raises(LinkLostError):
            await meter.measure()
        # Closing may take the rig a minute; waiting for a line that is dead, longer than a lease, helps nobody.
        async with asyncio.timeout(LEASE_S + 10.0):
            with pytest.raises(LinkLostError, match="the rig itself switches it off when the lease ends, in 2 s"):
                await meter.close()
        await until(lambda: not events[-1].output_on)


def test_ctrl_c_leaves_outputs_off_and_the_rig_disconnected(broker: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(MOCK)
    command = [sys.executable, "-m", "labrig", "serve", "rig.toml", "--broker", f"mqtt://127.0.0.1:{broker.port}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        while "is connected" not in served.stdout.readline():
            pass
        served.send_signal(signal.SIGINT)
        _, errors = served.communicate(timeout=30)
    assert (served.returncode, errors) == (130, "labrig: stopped; outputs are off and files are closed\n")
    client = find_mosquitto("mosquitto_sub")
    assert client is not None
    listen = [client, "-p", str(broker.port), "-t", "labrig/1/lab/bench/state", "-C", "1", "-W", "5"]
    assert subprocess.run(listen, check=True, capture_output=True, text=True).stdout == "disconnected\n"
