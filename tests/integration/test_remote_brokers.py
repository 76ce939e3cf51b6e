"""Brokers as the guide sets them up: a bridge between sites, and NATS; a remote board works through each."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served_rig import MOCK, broker_at, serving

from labrig.boards.remote import RemoteBoard
from labrig.testing.driver_contract import check_crossbar_board
from labrig.testing.mosquitto import free_port, mosquitto

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "broker.md"
LINE_V = np.random.default_rng(0).uniform(-0.3, 0.3, (15_000, 12))


def file_of_the_guide(title: str) -> str:
    return GUIDE.read_text(encoding="utf-8").split(f"```text title={title}\n")[1].split("```")[0]


async def test_a_rig_of_another_site_is_used_through_a_bridge(broker_folder: Path, tmp_path: Path) -> None:
    far_folder = tmp_path / "site-a"
    far_folder.mkdir()
    with mosquitto(far_folder) as far:
        bridge = file_of_the_guide("bridge").replace("site-a.example:8883", f"127.0.0.1:{far.port}")
        bridge = bridge.replace("labrig/1/site-a/", "labrig/1/lab/")
        # In a network of their own: without accounts and encryption.
        lines = [line for line in bridge.splitlines() if not line.startswith(("bridge_cafile", "remote_"))]
        with mosquitto(broker_folder, "allow_anonymous true", *lines) as near:
            async with serving(MOCK, broker_at(far.port)) as rig:
                session = rig.session(broker_at(near.port), answer_s=10.0)
                session.address = replace(rig.address, broker=broker_at(near.port).address)
                async with RemoteBoard(session) as board:
                    report = await board.program(0, np.full((12, 9), 2e-5))
                    assert report.write_index == 0
                    assert len((await board.mvm(0, LINE_V)).code) == len(LINE_V)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[int]:
    """The MQTT port of a NATS server, set up as the guide says."""
    program = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("needs nats-server (apt-get install nats-server)")
    port = free_port()
    text = file_of_the_guide("nats").replace("4222", str(free_port())).replace("1883", str(port))
    (tmp_path / "nats.conf").write_text(text.replace("/var/lib/nats", str(tmp_path / "store")))
    with (tmp_path / "nats.log").open("wb") as log:
        server = subprocess.Popen([program, "-c", str(tmp_path / "nats.conf")], stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 20.0
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                break
            assert server.poll() is None, (tmp_path / "nats.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        yield port
    finally:
        server.kill()
        server.wait()


async def test_nats_is_a_broker_too(nats: int) -> None:
    async with serving(MOCK, broker_at(nats)) as rig:
        assert rig.side.protocol == "3.1.1"
        await check_crossbar_board(rig.board)
        async with rig.board() as board:
            await board.program(0, np.full((12, 9), 2e-5))
            assert len((await board.mvm(0, LINE_V)).code) == len(LINE_V)
