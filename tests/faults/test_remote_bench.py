"""The program that serves a real bench ends with outputs on, gently or not: they go off, by the bench's own log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from served_rig import remote_rig

from labrig.config import parse_rig
from labrig.remote.addresses import rig_address
from labrig.rig import RigError, open_rig
from labrig.testing.mosquitto import Mosquitto, find_mosquitto
from labrig.testing.plugin import MockRig
from labrig_drivers.crossbar import CrossbarBoard
from labrig_drivers.errors import LinkError, StateError


@contextmanager
def serving(rig_file: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "labrig", "serve", str(rig_file), "--broker", f"mqtt://127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        assert program.stdout is not None
        try:
            assert any("is connected" in line for line in iter(program.stdout.readline, ""))
            yield program
        finally:
            program.kill()


async def measure_for_ever(board: CrossbarBoard) -> None:
    while True:
        await board.mvm(0, np.full((2, board.info.rows), 0.1))
        await asyncio.sleep(0.01)


def outputs(log: Path) -> list[dict[str, object]]:
    """What the bench's source-meter did, in order."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if "output_on" in line]


@pytest.mark.parametrize(("number", "state"), [(signal.SIGINT, "disconnected"), (signal.SIGKILL, "lost")])
async def test_outputs_go_off_with_the_program_that_serves_them(
    number: signal.Signals, state: str, mock_rig: MockRig, broker: Mosquitto
) -> None:
    address = rig_address(f"mqtt://127.0.0.1:{broker.port}/lab/simulated-bench")
    meter = (
        f'[source_meters.supply]\ndriver = "remote-source-meter"\nlink = "{address}"\nrole = "array-supply"\n'
        "level_voltage_v = 1.2\nlimit_current_a = 0.1\nnplc = 0.01\n"
    )
    with serving(mock_rig.rig_file, broker.port) as program:
        far = open_rig(parse_rig(remote_rig(address, meter), Path("far.toml")))
        with contextlib.suppress(RigError):
            async with far as rig:
                await rig.power_up()
                info = rig.board.info
                await rig.board.program(0, np.full((info.rows, info.columns), 2e-5))
                assert len((await rig.board.mvm(0, np.full((2, info.rows), 0.1))).code) == 2
                assert outputs(mock_rig.log)[-1]["output_on"]
                program.send_signal(number)
                # The lease ended, or the rig is gone, whichever is told first.
                with pytest.raises((LinkError, StateError)):
                    await measure_for_ever(rig.board)
        deadline_s = time.monotonic() + 30.0
        while outputs(mock_rig.log)[-1]["output_on"]:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)
        await asyncio.to_thread(program.wait, 30.0)
    # By a ramp.
    levels_v = [line["voltage_v"] for line in outputs(mock_rig.log) if line["output_on"]]
    assert levels_v[-1] == 0.0
    client = find_mosquitto("mosquitto_sub")
    assert client is not None
    listen = [client, "-p", str(broker.port), "-t", f"{address.topic}/state", "-C", "1", "-W", "5"]
    heard = await asyncio.to_thread(subprocess.run, listen, check=True, capture_output=True, text=True)
    assert heard.stdout == f"{state}\n"
