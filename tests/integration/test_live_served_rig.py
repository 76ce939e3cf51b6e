"""The page of a rig that serves others: who has it and who waits, what is measured, and STOP without a lease."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from live_served import OPEN, QUICK, Json, until, watching, word
from served_rig import broker_at, serving, source_meter_rig

from labrig.config import shipped_rig
from labrig.events import EventBus
from labrig.live.feed import LiveFeed
from labrig.live.page import Address, LivePage
from labrig.live.served_rig import READY, ServedRig
from labrig.remote.faults import LeaseEndedError
from labrig.testing.mosquitto import Mosquitto


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


def page_of(bus: EventBus, steering: ServedRig) -> LivePage:
    return LivePage(
        bus,
        steering,
        OPEN,
        title="bench",
        doing="MEASURING",
        address=Address("127.0.0.1", 0),
        rhythm=QUICK,
        feed=LiveFeed(most_samples=50, sample_every_s=0.0),
        between=READY,
    )


def lease_of(sections: Json) -> Json | None:
    rig = sections.get("rig")
    lease = rig["lease"] if isinstance(rig, dict) else None
    assert lease is None or isinstance(lease, dict)
    return lease


def run_of(sections: Json) -> Json:
    run = sections.get("run")
    return run if isinstance(run, dict) else {}


def waiting_in(sections: Json) -> list[str]:
    lease = lease_of(sections)
    return [] if lease is None else list(lease["waiting"])  # type: ignore[call-overload]


async def stop(client: aiohttp.ClientSession, page: LivePage, name: str) -> int:
    headers = {"Content-Type": "application/json", "Origin": page.url.rstrip("/")}
    async with client.post(page.url + "stop", data=json.dumps({"name": name}), headers=headers) as answer:
        return answer.status


async def test_who_has_the_rig_who_waits_and_stop_by_a_viewer_without_a_lease(
    broker: Mosquitto, client: aiohttp.ClientSession
) -> None:
    bus = EventBus()
    steering = ServedRig(bus)
    with page_of(bus, steering) as page:
        async with source_meter_rig() as (rig, outputs), serving(rig, broker_at(broker.port), bus=bus) as far:
            steering.serve(far.service)
            async with watching(client, page) as viewer:
                sections = await until(viewer, lambda said: word(said) == "READY")
                assert lease_of(sections) is None
                assert run_of(sections)["heading"] is None
                assert run_of(sections)["over"] is False
                session = far.session(who="anna")
                async with far.board(session) as board, far.meter(session) as meter:
                    await board.program(0, np.full((12, 9), 2e-5))
                    await board.mvm(0, np.full((7, 12), 0.1))
                    await meter.configure(source="voltage")
                    await meter.set_limit(current_a=0.01)
                    await meter.set_level(voltage_v=0.5)
                    await meter.output_on()
                    sections = await until(
                        viewer, lambda said: word(said) == "MEASURING" and "array/0" in said and "rig" in said
                    )
                    lease = lease_of(sections)
                    assert lease is not None
                    assert run_of(sections)["heading"] == "used by anna"
                    assert lease["holder"] == "anna"
                    assert lease["expires_unix_s"] is not None
                    progress = run_of(sections)["progress"]
                    assert isinstance(progress, dict)
                    assert (progress["done"], progress["unit"]) == (7, "MVMs")
                    second = far.board(far.session(who="bob", queue_s=20.0))
                    opening = asyncio.create_task(second.open())
                    await until(viewer, lambda said: waiting_in(said) == ["bob"])
                    assert outputs[-1].output_on
                    assert await stop(client, page, "Cy") == 200
                    sections = await until(viewer, lambda said: (lease_of(said) or {}).get("holder") == "bob")
                    assert not outputs[-1].output_on
                    with pytest.raises(LeaseEndedError, match=r"Cy .*switched the outputs off"):
                        await board.mvm(0, np.full((1, 12), 0.1))
                await opening
                await second.close()
                sections = await until(viewer, lambda said: word(said) == "READY" and run_of(said)["outputs"] == "off")
                assert run_of(sections)["over"] is False
            steering.serve(None)
    assert any("Cy" in text for text in far.said)


async def test_stop_while_nobody_has_the_rig_says_so_and_the_rig_stays_ready(
    broker: Mosquitto, client: aiohttp.ClientSession
) -> None:
    bus = EventBus()
    steering = ServedRig(bus)
    with page_of(bus, steering) as page:
        # Nothing is served yet: there is nothing to switch off.
        assert await stop(client, page, "Cy") == 200
        async with source_meter_rig() as (rig, _), serving(rig, broker_at(broker.port), bus=bus) as far:
            steering.serve(far.service)
            assert await stop(client, page, "Cy") == 200
            async with watching(client, page) as viewer:
                await until(viewer, lambda said: word(said) == "READY")
            async with far.board() as board:
                await board.program(0, np.full((12, 9), 2e-5))
            steering.serve(None)


async def test_the_command_serves_the_page_and_its_end_is_seen(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    command = [sys.executable, "-m", "labrig", "serve", str(shipped_rig("mock")), "--broker", "embedded"]
    command += ["--listen", "127.0.0.1:0", "--live-at", "127.0.0.1:0"]
    serving = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        assert serving.stderr is not None
        url = ""
        while not url:
            line = (await serving.stderr.readline()).decode()
            assert line, "the program ended without a page"
            url = line.split()[-1] if line.startswith("live page: ") else ""
        async with client.ws_connect(url + "live", headers={"Origin": url.rstrip("/")}) as viewer:
            await until(viewer, lambda said: word(said) == "READY")
            serving.send_signal(signal.SIGTERM)
            sections = await until(viewer, lambda said: run_of(said).get("ended") is True)
            assert word(sections) == "ENDED"
        await asyncio.wait_for(serving.communicate(), 30)
    finally:
        if serving.returncode is None:
            serving.kill()
            await serving.wait()
    assert serving.returncode == 143
