"""An axis on a real socket when things go wrong: it never arrives, its controller dies, its move is cut short."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from labrig.config import parse_rig
from labrig.rig import RigError, open_rig
from labrig_drivers.axis_motion import AxisSettings
from labrig_drivers.errors import AxisTimeoutError, LinkLostError, SafetyError, StateError
from labrig_drivers.links import TcpLink
from labrig_drivers.mock.axis_controller import AxisControllerServer, SetPointEvent, SimulatedAxisController
from labrig_drivers.scpi_axis import ScpiAxis

SETTINGS = AxisSettings(
    "temperature", "K", 280.0, 400.0, tolerance=0.5, hold_s=0.01, timeout_s=0.3, poll_s=0.002, safe_value=295.0
)
PATIENCE_S = 30.0

RIG = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[axes.chuck]
driver = "scpi-axis"
link = "tcp://127.0.0.1:{port}"
expect_serial = "TC-0001"
high = 360.0
[axes.chuck.settings]
set_command = "SOUR:TEMP {{value}}"
read_query = "MEAS:TEMP?"
quantity = "temperature"
unit = "K"
low = 280.0
high = 400.0
tolerance = 0.5
poll_s = 0.002
{safe}
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.25
"""
SAFE = "safe_value = 295.0\nmax_rate = 500.0"

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from labrig.rig import open_rig

async def main(rig_file, folder):
    async with open_rig(rig_file, lock_folder=Path(folder)) as rig:
        await rig.axes["chuck"].move_to(350.0)
        os.kill(os.getpid(), 9)

asyncio.run(main(*sys.argv[1:]))
"""


class Place:
    """A served controller, and what its set point did."""

    def __init__(self, lag_s: float) -> None:
        self.events: list[SetPointEvent] = []
        self.begun = asyncio.Event()
        self.controller = SimulatedAxisController(
            300.0, low=270.0, high=380.0, lag_s=lag_s, noise=0.01, rng=np.random.default_rng(2), log=self._note
        )
        self.server = AxisControllerServer(self.controller)

    def axis(self, settings: AxisSettings = SETTINGS) -> ScpiAxis:
        link = TcpLink("127.0.0.1", self.server.port)
        return ScpiAxis(link, settings, set_command="SOUR:TEMP {value}", read_query="MEAS:TEMP?", name="chuck")

    def set_points(self) -> list[float]:
        return [event.set_point for event in self.events]

    def _note(self, event: SetPointEvent) -> None:
        self.events.append(event)
        self.begun.set()


@asynccontextmanager
async def place(lag_s: float = 0.005) -> AsyncIterator[Place]:
    made = Place(lag_s)
    async with made.server:
        yield made


async def test_a_broken_heater_is_told_with_where_it_stands() -> None:
    async with place() as bench:
        bench.controller.physics.stick()
        async with bench.axis() as axis:
            with pytest.raises(AxisTimeoutError, match=r"did not come .* it stands at (300|299)") as one:
                await axis.move_to(350.0)
            assert one.value.value == pytest.approx(300.0, abs=0.1)
            assert await axis.errors() == []
        # Whatever went wrong, it is sent to its safe value.
        assert bench.set_points() == [350.0, 295.0]


async def test_a_controller_that_dies_while_it_moves_is_an_error_and_a_call_for_a_person() -> None:
    async with place(lag_s=100.0) as bench:
        axis = bench.axis(replace(SETTINGS, timeout_s=PATIENCE_S))
        await axis.open()
        move = asyncio.create_task(axis.move_to(350.0))
        await bench.begun.wait()
        await bench.server.stop()
        with pytest.raises(LinkLostError):
            await move
        with pytest.raises(StateError, match="could not be sent to its safe value, 295 K; look at it and switch"):
            await axis.close()
        assert bench.set_points() == [350.0]
        await axis.close()


async def test_a_connection_that_was_only_cut_is_made_again_for_the_safe_value() -> None:
    async with place(lag_s=100.0) as bench:
        axis = bench.axis(replace(SETTINGS, timeout_s=PATIENCE_S))
        await axis.open()
        port = bench.server.port
        move = asyncio.create_task(axis.move_to(350.0))
        await bench.begun.wait()
        await bench.server.stop()
        await bench.server.start(port=port)
        with pytest.raises(LinkLostError):
            await move
        await axis.close()
        # The set point of the move was not sent again.
        assert bench.set_points() == [350.0, 295.0]


async def test_moves_that_are_cancelled_anywhere_leave_a_link_that_works() -> None:
    rng = random.Random(9)
    async with place() as bench:
        connections = 0
        serve = bench.server.serve

        async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await serve(reader, writer)

        bench.server.serve = counted  # type: ignore[method-assign]
        port = bench.server.port
        await bench.server.stop()
        await bench.server.start(port=port)
        async with bench.axis(replace(SETTINGS, max_rate=5000.0, timeout_s=PATIENCE_S)) as axis:
            cut = 0
            for trial in range(30):
                target = (350.0, 310.0)[trial % 2]
                move = asyncio.create_task(axis.move_to(target))
                await asyncio.sleep(rng.uniform(0.0, 0.03))
                move.cancel()
                (outcome,) = await asyncio.gather(move, return_exceptions=True)
                cut += isinstance(outcome, asyncio.CancelledError)
                # An answer of the move that was cut is never taken for this one.
                assert 279.0 < (await axis.read()).value < 355.0
            assert cut >= 10
            assert (await axis.move_to(330.0)).value == pytest.approx(330.0, abs=0.5)
        # The exchange in flight was waited for each time: nobody had to connect anew.
        assert connections == 1
        assert all(280.0 <= one <= 350.1 for one in bench.set_points())


async def test_a_rig_locks_guards_and_closes_an_axis_on_a_socket(tmp_path: Path) -> None:
    async with place() as bench:
        config = parse_rig(RIG.format(port=bench.server.port, safe=SAFE), Path("rig.toml"))
        async with open_rig(config, lock_folder=tmp_path) as rig:
            with pytest.raises(StateError, match=r"chuck \(tcp://127\.0\.0\.1"):
                await open_rig(config, lock_folder=tmp_path).open()
            with pytest.raises(SafetyError, match=r"chuck: 370 K exceeds axes\.chuck\.high = 360 K"):
                await rig.axes["chuck"].move_to(370.0)
            assert bench.events == []
            await rig.axes["chuck"].move_to(340.0)
        assert bench.set_points()[-1] == 295.0
        wrong = parse_rig(RIG.format(port=bench.server.port, safe=SAFE).replace("TC-0001", "TC-0002"), Path("rig.toml"))
        with pytest.raises(RigError, match=r"(?s)chuck \(scpi-axis, tcp.*expected serial 'TC-0002'"):
            await open_rig(wrong, lock_folder=tmp_path).open()


@pytest.mark.parametrize("safe", [SAFE, ""], ids=["safe value", "none"])
async def test_a_killed_program_leaves_the_axis_at_its_safe_value_where_it_has_one(tmp_path: Path, safe: str) -> None:
    async with place() as bench:
        rig_file = tmp_path / "rig.toml"
        rig_file.write_text(RIG.format(port=bench.server.port, safe=safe))
        arguments = ["-c", PROGRAM, str(rig_file), str(tmp_path / "locks")]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            # To its end: the watchdog process writes there too.
            report = (await process.stderr.read()).decode()
            assert await process.wait() == -9
        if not safe:
            assert "watchdog" not in report
            assert bench.set_points() == [350.0]
            return
        assert f"chuck (scpi-axis, tcp://127.0.0.1:{bench.server.port}): safe" in report
        assert bench.set_points()[-1] == 295.0
        # By the rate, which the watchdog process keeps too.
        killed = bench.set_points().index(350.0)
        ramp = bench.events[killed + 1 :]
        assert len(ramp) > 10
        for before, after in pairwise(ramp):
            assert abs(after.set_point - before.set_point) <= 500.0 * (after.time_s - before.time_s) + 0.05
            assert after.set_point < before.set_point
