"""The live page as its clients meet it: who is let in, who is refused, what a run costs, what STOP does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType
from command_line import labrig
from live_served import KEYS, OPEN, OWNER, VIEWER, Json, Served, until, watching, word
from small_rig import RIG

from labrig.acquisition import run_sweep
from labrig.config import parse_rig, shipped_rig
from labrig.events import Alarm, EventBus, Message, RunFinished, RunStarted
from labrig.live.page import Address, LivePage
from labrig.live.steering import Lease, ThisProgram
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.simulated import RunningBench, simulated_bench
from labrig_drivers.errors import ConfigError
from labrig_drivers.mock.event_log import read_events


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served(KEYS)
    with one.page:
        yield one


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    # Cookies of addresses, not only of names.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def post(
    client: aiohttp.ClientSession, served: Served, verb: str, content: object = None, **headers: str
) -> tuple[int, str]:
    body = json.dumps({} if content is None else content)
    all_headers = {"Content-Type": "application/json", **served.origin, **headers}
    async with client.post(served.page.url + verb, data=body, headers=all_headers) as answer:
        return answer.status, await answer.text()


async def logged_in(client: aiohttp.ClientSession, served: Served, key: str) -> None:
    assert (await post(client, served, "login", {"key": key}))[0] == 200


async def seen_by(page: LivePage, viewers: int) -> None:
    """Waits until so many watch: a viewer is greeted a moment before it counts."""
    async with asyncio.timeout(20):
        while page.viewers != viewers:  # noqa: ASYNC110 # a property of another thread
            await asyncio.sleep(0.01)


# Who is let in.


async def test_without_a_key_nobody_sees_or_asks_for_anything(served: Served, client: aiohttp.ClientSession) -> None:
    async with client.get(served.page.url + "whoami") as answer:
        assert await answer.json() == {"role": "nobody"}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with watching(client, served.page):
            pass
    assert refused.value.status == 403
    for verb in ("stop", "pause", "resume"):
        assert (await post(client, served, verb))[0] == 403
    assert (await post(client, served, "login", {"key": VIEWER + "x"}))[0] == 403
    assert (await post(client, served, "login", {"key": 7}))[0] == 403
    assert served.stops == []
    assert not served.control.paused


async def test_what_is_no_object_is_refused(served: Served, client: aiohttp.ClientSession) -> None:
    for body in ("3", "{", "[" * 900):
        headers = {"Content-Type": "application/json", **served.origin}
        async with client.post(served.page.url + "login", data=body, headers=headers) as answer:
            assert (answer.status, await answer.text()) == (400, "expected a JSON object\n")


async def test_a_viewer_may_stop_and_pause_and_the_owner_may_go_on(
    served: Served, client: aiohttp.ClientSession
) -> None:
    await logged_in(client, served, VIEWER)
    status, text = await post(client, served, "pause", {"name": "Anna\n"})
    assert (status, json.loads(text)["who"]) == (200, "Anna (viewer at 127.0.0.1)")
    assert served.control.paused
    assert await post(client, served, "resume") == (403, "going on needs the owner's key\n")
    assert served.control.paused
    assert (await post(client, served, "stop", {"name": "Anna" + "x" * 100}))[0] == 200
    assert len(served.stops) == 1
    alarm = served.heard[-1]
    assert isinstance(alarm, Alarm)
    assert re.fullmatch(r"STOP by Annax{36} \(viewer at 127\.0\.0\.1\): .*", alarm.text)
    await logged_in(client, served, OWNER)
    assert (await post(client, served, "resume"))[0] == 200
    assert not served.control.paused
    assert (await post(client, served, "logout"))[0] == 200
    assert (await post(client, served, "pause"))[0] == 403


async def test_the_cookie_is_for_this_site_and_no_script(served: Served, client: aiohttp.ClientSession) -> None:
    body = json.dumps({"key": VIEWER})
    headers = {"Content-Type": "application/json", **served.origin}
    async with client.post(served.page.url + "login", data=body, headers=headers) as answer:
        cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert VIEWER not in cookie


async def test_what_another_site_makes_a_browser_ask_is_refused(served: Served, client: aiohttp.ClientSession) -> None:
    await logged_in(client, served, VIEWER)
    for origin in ("http://evil.example", "null", "", "http://127.0.0.1:1"):
        assert (await post(client, served, "stop", Origin=origin))[0] == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with client.ws_connect(served.page.url + "live", headers={"Origin": origin}):
                pass
        assert refused.value.status == 403
    async with client.post(served.page.url + "stop", data="{}", headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 403  # no origin at all
    # What a form can send.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert (await post(client, served, "stop", **{"Content-Type": kind}))[0] == 415
    # A name that somebody else had point here.
    port = served.page.url.rsplit(":", 1)[1].rstrip("/")
    evil = f"evil.example:{port}"
    assert (await post(client, served, "stop", Host=evil, Origin=f"http://{evil}"))[0] == 403
    async with client.get(served.page.url, headers={"Host": evil}) as answer:
        assert answer.status == 403
    assert served.stops == []


async def test_bodies_are_small_json_objects_and_messages_of_viewers_unwelcome(
    served: Served, client: aiohttp.ClientSession
) -> None:
    await logged_in(client, served, VIEWER)
    headers = {"Content-Type": "application/json", **served.origin}
    for body, status in (("[]", 400), ("{", 400), ("\udcff".encode("utf-8", "surrogatepass").decode("latin1"), 400)):
        async with client.post(served.page.url + "pause", data=body, headers=headers) as answer:
            assert answer.status == status
    assert (await post(client, served, "pause", {"name": "x" * 5000}))[0] == 413
    assert not served.control.paused
    async with watching(client, served.page) as viewer:
        await viewer.receive()
        await viewer.send_str("x" * 10_000)
        async with asyncio.timeout(5):
            while (await viewer.receive()).type is WSMsgType.TEXT:
                pass
        assert viewer.closed


async def test_wrong_keys_are_counted(served: Served, client: aiohttp.ClientSession) -> None:
    statuses = [(await post(client, served, "login", {"key": "wrong"}))[0] for _ in range(21)]
    assert statuses == [403] * 20 + [429]
    # Also the right one has to wait.
    assert (await post(client, served, "login", {"key": VIEWER}))[0] == 429


async def test_every_answer_has_the_headers_and_the_page_no_script_of_its_own(
    served: Served, client: aiohttp.ClientSession
) -> None:
    for path in ("", "whoami", "static/main.js", "nothing", "static/uplot/LICENSE"):
        async with client.get(served.page.url + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["X-Frame-Options"] == "DENY"
            text = await answer.text()
        if path == "":
            assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|https?://", text) == []
    async with client.get(served.page.url + "static/../app.py") as answer:
        assert answer.status == 404


async def test_viewers_have_a_limit(client: aiohttp.ClientSession) -> None:
    one = Served(OPEN)
    with one.page, contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(closing(asleep(one.page)))
        await seen_by(one.page, 64)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with watching(client, one.page):
                pass
        assert refused.value.status == 503


def test_an_address_in_use_is_refused_with_it(served: Served) -> None:
    port = int(served.page.url.rsplit(":", 1)[1].rstrip("/"))
    other = Served(OPEN)
    other.page = LivePage(
        other.bus, ThisProgram(other.bus, "x"), OPEN, title="x", doing="X", address=Address("127.0.0.1", port)
    )
    with pytest.raises(ConfigError, match=f"cannot be served at 127.0.0.1:{port}"), other.page:
        pass


def test_the_usual_port_makes_way_for_the_next_one() -> None:
    first, second = Served(OPEN), Served(OPEN)
    for one in (first, second):
        steering = ThisProgram(one.bus, "x")
        one.page = LivePage(one.bus, steering, OPEN, title="x", doing="X", address=Address("127.0.0.1"))
    with first.page, second.page:
        assert first.page.url != second.page.url


# What viewers see.


async def test_a_newcomer_gets_everything_and_then_what_changes(client: aiohttp.ClientSession) -> None:
    one = Served(OPEN)
    with one.page:
        one.bus.publish(RunStarted("mvm", 100, 1, Path("run.h5")))
        one.bus.publish(Message("before anybody looked"))
        async with watching(client, one.page) as viewer:
            first = await until(viewer, lambda sections: word(sections) == "MEASURING")
            assert "before anybody looked" in json.dumps(first["log"])
            assert isinstance(first["rig"], dict)
            assert "labrig sweep" in first["rig"]["lease"]["holder"]
            one.bus.publish(Message("now"))
            await until(viewer, lambda sections: "now" in json.dumps(sections.get("log")))
        # A reload is a newcomer.
        async with watching(client, one.page) as viewer:
            again = await until(viewer, lambda sections: "log" in sections)
            assert "before anybody looked" in json.dumps(again["log"])


async def test_viewers_get_the_end_before_the_page_goes(client: aiohttp.ClientSession) -> None:
    one = Served(OPEN)
    with one.page:
        async with watching(client, one.page) as viewer:
            await viewer.receive()
            one.bus.publish(RunStarted("mvm", 100, 1, None))
            one.bus.publish(RunFinished("finished", 100, 1, 2.0, None))
            leaving = asyncio.create_task(asyncio.to_thread(one.page.__exit__, None, None, None))
            last = await until(viewer, lambda sections: isinstance(run := sections.get("run"), dict) and run["ended"])
            assert word(last) == "FINISHED"
            assert isinstance(last["run"], dict)
            assert last["run"]["outputs"] == "off"
            await leaving
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(one.page.url)


PLAN = MvmCalibrationPlan(writes=6, seed=1, batch=64)


async def test_a_sweep_is_shown_with_its_numbers_and_goes_on_with_twenty_viewers_one_of_them_asleep(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    one = Served(OPEN)
    rig = parse_rig(RIG, Path("rig.toml"))
    with one.page, closing(asleep(one.page)):
        viewers = [await client.ws_connect(one.page.url + "live", headers=one.origin) for _ in range(19)]
        await seen_by(one.page, 20)
        one.control.pause("until everybody looks")
        sweep = asyncio.create_task(run_sweep(rig, PLAN, tmp_path / "run.h5", one.bus, control=one.control))
        # Far more than a network takes for somebody who does not listen.
        for number in range(300):
            one.bus.publish(Message(f"{number} " + "x" * 400))
            await asyncio.sleep(0.001)
        one.control.resume()
        seen = [await until(viewer, lambda sections: word(sections) == "FINISHED") for viewer in viewers]
        summary = await sweep
        assert summary.status == "finished"
        for sections in seen:
            run = sections["run"]
            assert isinstance(run, dict)
            assert run["run"]["mvms"] == summary.mvms
            assert run["missed"] == 0
        viewer = viewers[0]
        async with watching(client, one.page) as newcomer:
            everything = await until(newcomer, lambda sections: "array/0" in sections and "array/1" in sections)
        for viewer in viewers:
            await viewer.close()
        array = everything["array/0"]
        assert isinstance(array, dict)
        assert array["cells"]["rows"] == 8
        assert array["fit"]["gain"] > 0.3
        assert array["measured"] == summary.mvms / 2
    assert one.page.missed == 0
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()
        assert sum(recording.committed(one) for one in recording.arrays) == summary.mvms


class Hanging(ThisProgram):
    """Keeps the page's own thread waiting for ever."""

    def __init__(self, bus: EventBus) -> None:
        super().__init__(bus, "labrig sweep", None, lambda: None)
        self.free, self.asked = threading.Event(), threading.Event()

    def lease(self) -> Lease:
        self.asked.set()
        self.free.wait(30)
        return super().lease()


async def test_a_page_that_hangs_delays_no_run_and_its_feed_stays_bounded(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    bus = EventBus()
    steering = Hanging(bus)
    with LivePage(bus, steering, OPEN, title="x", doing="X", address=Address("127.0.0.1", 0)) as page:
        looking = asyncio.create_task(client.ws_connect(page.url + "live", headers={"Origin": page.url.rstrip("/")}))
        assert await asyncio.to_thread(steering.asked.wait, 10)
        summary = await run_sweep(parse_rig(RIG, Path("rig.toml")), PLAN, tmp_path / "run.h5", bus)
        for number in range(5000):
            bus.publish(Message(str(number)))
        assert summary.status == "finished"
        assert 2900 < page.missed < 5200
        steering.free.set()
        viewer = await looking
        await until(viewer, lambda sections: "4999" in json.dumps(sections.get("log")))
        await viewer.close()


def test_a_page_that_breaks_says_so_once_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no more")

    one, said = Served(OPEN), threading.Event()
    monkeypatch.setattr("labrig.live.view.LiveView.note", broken)
    one.bus.subscribe(lambda event: said.set() if "the live page ended" in str(event) else None)
    with one.page:
        one.bus.publish(Message("x"))
        assert said.wait(10)
        one.bus.publish(Message("y"))
    texts = [event.text for event in one.heard if isinstance(event, Message)]
    assert texts == ["x", "the live page ended, the run goes on: RuntimeError: no more", "y"]


def asleep(page: LivePage) -> socket.socket:
    """A viewer that never reads."""
    host, port = "127.0.0.1", int(page.url.rsplit(":", 1)[1].rstrip("/"))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((host, port))
    request = (
        f"GET /live HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    connection.sendall(request.encode())
    assert connection.recv(12) == b"HTTP/1.1 101"
    return connection


async def test_what_a_sleeping_viewer_misses_is_counted_and_bounded(client: aiohttp.ClientSession) -> None:
    one = Served(OPEN)
    with one.page, closing(asleep(one.page)):
        async with asyncio.timeout(20):
            number = 0
            # The network in between has to fill first.
            while one.page.dropped == 0:
                for _ in range(200):
                    number += 1
                    one.bus.publish(Message(f"{number} " + "x" * 400))
                await asyncio.sleep(0.02)
        async with watching(client, one.page) as viewer:
            await until(viewer, lambda sections: "log" in sections)
    assert one.page.missed == 0


# The command line.


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[RunningBench]:
    with simulated_bench(tmp_path) as running:
        yield running


def test_stop_on_the_page_turns_the_outputs_off_by_the_simulators_log(bench: RunningBench) -> None:
    command = [sys.executable, "-m", "labrig", "sweep", str(bench.rig_file), "--plan", "mvm", "--writes", "20"]
    command += ["-o", "run.h5", "--live-at", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=bench.rig_file.parent, stderr=subprocess.PIPE, text=True) as sweep:
        assert sweep.stderr is not None
        url = next(line.split()[-1] for line in sweep.stderr if line.startswith("live page: "))
        for line in sweep.stderr:
            if line.startswith("MVMs:"):
                break
        outputs = [event["output_on"] for event in read_events(bench.log) if event["what"] == "output"]
        assert outputs[-1] is True
        status = asyncio.run(_stop(url))
        _, errors = sweep.communicate(timeout=60)
    assert status == 200
    assert sweep.returncode == 143, errors
    assert "ALARM: STOP by Anna (viewer at 127.0.0.1)" in errors
    assert (
        "labrig: stopped; outputs are off and the file is closed; the same command with --resume run.h5 goes" in errors
    )
    assert "Traceback" not in errors
    outputs = [event["output_on"] for event in read_events(bench.log) if event["what"] == "output"]
    assert outputs[-1] is False
    with Recording.open(bench.rig_file.with_name("run.h5")) as recording:
        recording.verify()
        assert recording.status == "aborted"


async def _stop(url: str) -> int:
    headers = {"Content-Type": "application/json", "Origin": url.rstrip("/")}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "stop", data=json.dumps({"name": "Anna"}), headers=headers) as answer,
    ):
        return answer.status


def test_addresses_that_others_reach_are_refused_before_anything_moves(tmp_path: Path) -> None:
    mock = str(shipped_rig("mock"))
    (tmp_path / "readings.csv").write_text("time_s,current_a\n0,1e-6\n1,1e-6\n")
    verbs = (
        ("sweep", mock, "--plan", "mvm"),
        ("serve", mock, "--broker", "embedded"),
        ("fit-devices", "noise", "readings.csv"),
        ("demo",),
    )
    for verb in verbs:
        refused = labrig(tmp_path, *verb, "--live-at", "0.0.0.0:0")
        assert refused.returncode == 2
        assert "could stop the run: give a file with keys" in refused.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["readings.csv"]


@pytest.mark.parametrize("verb", [["sweep", "rig.toml", "--plan", "mvm", "--live"], ["view", "run.h5"]])
def test_without_aiohttp_one_line_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    (tmp_path / "rig.toml").write_text(RIG)
    monkeypatch.setattr("labrig.extras.find_spec", lambda name: None)
    refused = labrig(tmp_path, *verb)
    assert refused.returncode == 2
    assert refused.stderr.endswith("needs aiohttp, not installed here; run: pip install 'labrig[live]'\n")
    assert [one.name for one in tmp_path.iterdir()] == ["rig.toml"]


def test_view_of_a_recording_and_of_nothing(tmp_path: Path, record: Callable[..., Path]) -> None:
    path = record(tmp_path / "run.h5", supply=4)
    command = [sys.executable, "-m", "labrig", "view", str(path), "--live-at", "127.0.0.1:0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as view:
        assert view.stdout is not None
        url = view.stdout.readline().strip()
        sections = asyncio.run(_seen(url))
        found = labrig(tmp_path, "view", "--url", url, "--no-browser")
        view.send_signal(signal.SIGINT)
        _, errors = view.communicate(timeout=30)
    assert view.returncode == 130
    assert "the recording was only read" in errors
    assert "Traceback" not in errors
    run, rig = sections["run"], sections["rig"]
    assert isinstance(run, dict)
    assert isinstance(rig, dict)
    assert (run["word"], run["run"]["mvms"], run["outputs"]) == ("FINISHED", 16, None)
    assert (rig["can_stop"], rig["lease"]) == (False, None)
    assert asyncio.run(_refused(url)) == 1
    assert (found.returncode, found.stdout.strip()) == (0, url)
    nothing = labrig(tmp_path, "view", "--url", url, "--no-browser")
    assert nothing.returncode == 2
    assert "no page of labrig answers there" in nothing.stderr
    assert nothing.stderr.endswith("(Connection refused)\n")
    for no_url in ("file:///run.h5", "http://[::1", "http://127.0.0.1:99999"):
        wrong = labrig(tmp_path, "view", "--url", no_url)
        assert "expected an address such as" in wrong.stderr
    missing = labrig(tmp_path, "view", "nothing.h5", "--no-browser")
    assert (missing.returncode, missing.stderr.startswith("labrig: error: nothing.h5")) == (2, True)


async def _seen(url: str) -> Json:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url + "live", headers={"Origin": url.rstrip("/")}) as viewer,
    ):
        return await until(viewer, lambda sections: "array/0" in sections and word(sections) == "FINISHED")


async def _refused(url: str) -> int:
    async with aiohttp.ClientSession() as session:
        try:
            await session.get(url)
        except aiohttp.ClientConnectorError:
            return 1
    return 0
