"""The live page in a browser: what it shows, what survives, what STOP takes, and that everybody can use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from live_served import KEYS, OPEN, OWNER, VIEWER, Served

from labrig.config import shipped_rig
from labrig.events import Message, RunFinished, RunPaused, RunResumed, RunStarted
from labrig.recording import Recording

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = Path(__file__).parent / "axe" / "axe.min.js"
PHONE = {"width": 360, "height": 740}
HOLD_MS = 1250

SHOWN = "() => !document.getElementById('shown').hidden"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a browser of its own; the test fails where the page complains or asks anybody else."""
    contexts, faults = [], list[str]()

    def open_it(url: str, *, lost: bool = False, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type] # what playwright takes
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        own = url.split("#", maxsplit=1)[0]
        page.on(
            "request", lambda request: None if request.url.startswith((own, "data:")) else faults.append(request.url)
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        # A server that is gone is no fault of the page.
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" and not lost else None)
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served(OPEN)
    with one.page:
        yield one


def wait_for(page: Page, element: str, text: str) -> None:
    page.wait_for_function(
        "([id, text]) => document.getElementById(id).textContent.includes(text)", arg=[element, text]
    )


def word(page: Page, wanted: str) -> None:
    wait_for(page, "word", wanted)


# What is shown.


def test_a_sweep_on_the_mock_is_shown_with_its_values_until_it_ends(
    tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    command = [sys.executable, "-m", "labrig", "sweep", str(shipped_rig("mock")), "--plan", "mvm", "-o", "run.h5"]
    command += ["--writes", "1", "--live-at", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as sweep:
        assert sweep.stderr is not None
        url = next(line.split()[-1] for line in sweep.stderr if line.startswith("live page: "))
        page = open_page(url, lost=True)
        word(page, "MEASURING")
        page.wait_for_function(
            "() => /[1-9][0-9,]* of 5,184 MVMs/.test(document.getElementById('headline').textContent)"
        )
        page.wait_for_selector("#cells-canvas:visible")
        page.hover("#cells-canvas", position={"x": 5, "y": 5})
        wait_for(page, "cells-readout", "row 0, column 0")
        assert re.match(r"row 0, column 0: target [\d.]+ µS, found", page.inner_text("#cells-readout"))
        wait_for(page, "transfer", "Fit over all columns: gain 0.")
        word(page, "FINISHED")
        wait_for(page, "facts", "Outputsoff")
        wait_for(page, "contact", "The program ended.")
        _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 0, errors
    with Recording.open(tmp_path / "run.h5") as recording:
        mvms = sum(recording.committed(array) for array in recording.arrays)
    assert f"{mvms:,} of {mvms:,} MVMs" in page.inner_text("#headline")
    assert "finished: 5184 MVMs" in page.inner_text("#log")


def test_a_reload_shows_everything_again(served: Served, open_page: Callable[..., Page]) -> None:
    served.publish(RunStarted("mvm", 100, 1, None), Message("early"))
    page = open_page(served.page.url)
    wait_for(page, "log", "early")
    page.reload()
    word(page, "MEASURING")
    wait_for(page, "log", "early")
    served.publish(Message("late"))
    wait_for(page, "log", "late")
    assert page.inner_text("#log").count("early") == 1


def test_a_server_that_comes_back_is_found_again_and_old_values_go(open_page: Callable[..., Page]) -> None:
    first = Served(OPEN)
    with first.page:
        port = first.port
        first.publish(RunStarted("mvm", 100, 1, None), Message("of the first"))
        page = open_page(first.page.url, lost=True)
        wait_for(page, "log", "of the first")
        first.publish(RunFinished("finished", 100, 1, 1.0, None))
    wait_for(page, "contact", "The program ended.")
    word(page, "FINISHED")
    again = Served(OPEN, port)
    with again.page:
        again.publish(RunStarted("iv", 0, 0, None), Message("of the second"))
        wait_for(page, "log", "of the second")
        word(page, "MEASURING")
        assert "of the first" not in page.inner_text("#log")
        assert page.inner_text("#contact") == ""


DYING = """
import time
from live_served import OPEN, Served
from labrig.events import RunStarted
one = Served(OPEN)
one.page.__enter__()
one.publish(RunStarted("mvm", 100, 1, None))
print(one.page.url, flush=True)
time.sleep(600)
"""


def test_a_program_that_died_shows_as_no_contact_and_not_as_measuring(open_page: Callable[..., Page]) -> None:
    helpers = str(Path(__file__).parents[1] / "helpers")
    command = [sys.executable, "-c", DYING]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": helpers}, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        page = open_page(child.stdout.readline().strip(), lost=True)
        word(page, "MEASURING")
        child.kill()
        child.wait()
    word(page, "NO CONTACT")
    assert "may be old" in page.inner_text("#contact")
    assert page.inner_text("#time-left") == ""


# Stopping and going on.


def holding(served: Served, page: Page) -> None:
    served.publish(RunStarted("mvm", 100, 1, None))
    word(page, "MEASURING")


def test_stop_by_mouse_has_to_be_held(served: Served, open_page: Callable[..., Page]) -> None:
    page = open_page(served.page.url)
    holding(served, page)
    page.fill("#name", "Anna")
    box = page.locator("#stop").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    for _ in range(2):
        page.mouse.down()
        page.wait_for_timeout(200)
        page.mouse.up()
    wait_for(page, "answer", "Not stopped")
    # Moving away while it is held is a change of mind.
    page.mouse.down()
    page.mouse.move(box["x"] - 10, box["y"] - 10)
    page.wait_for_timeout(HOLD_MS)
    page.mouse.up()
    assert served.stops == []
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    wait_for(page, "answer", "STOP was taken")
    page.mouse.up()
    assert len(served.stops) == 1
    word(page, "STOPPING")
    wait_for(page, "alarm", "STOP by Anna (viewer at 127.0.0.1)")


@pytest.mark.parametrize("key", ["Space", "Enter"])
def test_stop_by_keyboard_has_to_be_held(served: Served, open_page: Callable[..., Page], key: str) -> None:
    page = open_page(served.page.url)
    holding(served, page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # to the controls
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press(key)
    wait_for(page, "answer", "Not stopped")
    assert served.stops == []
    page.keyboard.down(key)
    wait_for(page, "answer", "STOP was taken")
    page.keyboard.up(key)
    assert len(served.stops) == 1
    assert not page.is_visible("#confirm")


def test_a_tool_that_only_clicks_is_asked_first(served: Served, open_page: Callable[..., Page]) -> None:
    page = open_page(served.page.url)
    holding(served, page)
    page.evaluate("document.getElementById('stop').click()")
    page.click("#confirm-no")
    assert served.stops == []
    page.evaluate("document.getElementById('stop').click()")
    page.click("#confirm-yes")
    wait_for(page, "answer", "STOP was taken")
    assert len(served.stops) == 1


def test_a_stop_that_does_not_arrive_says_so(open_page: Callable[..., Page]) -> None:
    one = Served(OPEN)
    with one.page:
        page = open_page(one.page.url, lost=True)
        holding(one, page)
        page.route("**/stop", lambda route: route.abort())
        page.focus("#stop")
        page.keyboard.down("Space")
        wait_for(page, "answer", "STOP was NOT taken: no contact with the program. Stop at the rig.")
        page.keyboard.up("Space")


def test_everybody_pauses_and_the_owner_goes_on(served: Served, open_page: Callable[..., Page]) -> None:
    page = open_page(served.page.url)
    holding(served, page)
    page.click("#pause")
    wait_for(page, "log", "pause asked for by somebody (viewer at 127.0.0.1)")
    assert served.control.paused
    served.publish(RunPaused("paused: by somebody"))
    word(page, "PAUSED")
    wait_for(page, "reason", "paused: by somebody")
    wait_for(page, "facts", "Outputsoff")
    assert page.is_disabled("#resume")
    owner = open_page(f"{served.page.url}#key={OWNER}")
    wait_for(owner, "role", "You hold the owner's key")
    assert owner.url == served.page.url
    word(owner, "PAUSED")
    owner.click("#resume")
    wait_for(owner, "log", "going on, asked for by somebody (owner at 127.0.0.1)")
    assert not served.control.paused
    served.publish(RunResumed(2.0))
    word(page, "MEASURING")


def test_a_page_with_keys_asks_for_one_and_a_reload_remembers_it(open_page: Callable[..., Page]) -> None:
    one = Served(KEYS)
    with one.page:
        one.publish(RunStarted("mvm", 100, 1, None), Message("secret"))
        page = open_page(one.page.url, lost=True)
        word(page, "KEY NEEDED")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        wait_for(page, "login-fault", "that is not a key of this page")
        assert "secret" not in page.content()
        page.fill("#key", VIEWER)
        page.press("#key", "Enter")
        wait_for(page, "log", "secret")
        page.reload()
        wait_for(page, "log", "secret")
        assert not page.is_visible("#login")
        page.click("#logout")
        word(page, "KEY NEEDED")


# For everybody.


@pytest.fixture(scope="module")
def filled() -> Iterator[Served]:
    one = Served(OPEN)
    with one.page:
        one.fill()
        yield one


def full(filled: Served, open_page: Callable[..., Page], **options: object) -> Page:
    page = open_page(filled.page.url, **options)
    page.wait_for_function(SHOWN)
    wait_for(page, "array-card", "Fit over all columns")
    for plot in ("transfer", "noise", "accuracy", "gap", "loss", "supply"):
        page.wait_for_selector(f"#{plot} canvas:visible")
    page.wait_for_selector("#cells-canvas:visible")
    return page


def faults_of(page: Page) -> list[str]:
    """What axe finds wrong, each with where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("async (tags) => (await axe.run({ runOnly: tags })).violations", tags)
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


def test_a_phone_shows_everything_without_scrolling_sideways_and_with_targets_to_hit(
    filled: Served, open_page: Callable[..., Page]
) -> None:
    page = full(filled, open_page, viewport=PHONE, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    wide = """() => [...document.querySelectorAll('main *, header *')].filter((one) => !one.closest('.unseen')
        && !one.closest('.skip') && one.getBoundingClientRect().right > innerWidth + 1
        && !one.closest('.scroll')).map((one) => one.id || one.className)"""
    assert page.evaluate(wide) == []
    small = """() => [...document.querySelectorAll('button, input, select')].filter((one) => one.offsetParent
        && one.getBoundingClientRect().height < 40).map((one) => one.id)"""
    assert page.evaluate(small) == []
    size = page.evaluate("parseFloat(getComputedStyle(document.getElementById('word')).fontSize)")
    assert size >= 38
    assert faults_of(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_hard_to_read_or_to_reach_in_both_schemes(
    filled: Served, open_page: Callable[..., Page], scheme: str
) -> None:
    page = full(filled, open_page, color_scheme=scheme, viewport={"width": 1440, "height": 900})
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 23, 42)"
    assert dark is (scheme == "dark")
    assert faults_of(page) == []
    # Readable across the room: a tenth of the screen.
    assert page.evaluate("parseFloat(getComputedStyle(document.getElementById('word')).fontSize)") > 90
    inks = {"light": "rgb(31, 41, 51)", "dark": "rgb(226, 232, 240)"}
    assert page.evaluate("getComputedStyle(document.body).color") == inks[scheme]


def test_words_of_every_state_can_be_read(served: Served, open_page: Callable[..., Page]) -> None:
    page = open_page(served.page.url)
    served.publish(RunStarted("mvm", 100, 1, None))
    word(page, "MEASURING")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for state in (
        "MEASURING",
        "TRAINING",
        "FITTING",
        "PAUSED",
        "STOPPING",
        "STOPPED",
        "FINISHED",
        "ABORTED",
        "NO CONTACT",
    ):
        page.evaluate("(state) => { document.getElementById('banner').dataset.word = state }", state)
        check = "async () => (await axe.run('#banner', { runOnly: ['color-contrast'] })).violations.length"
        assert page.evaluate(check) == 0, state


def test_everything_is_reached_by_keyboard_in_order_and_the_cells_by_arrows(
    filled: Served, open_page: Callable[..., Page]
) -> None:
    page = full(filled, open_page)
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order == [
        "skip", "stop", "pause", "name", "scroll", "array", "cells-canvas", "log-box", *order[8:]
    ]  # fmt: skip
    page.focus("#cells-canvas")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#cells-readout").startswith("row 1, column 2: target ")
    page.select_option("#array", "1")
    wait_for(page, "array-name", "1")
    assert page.get_attribute("#bar", "aria-valuenow") == "15"
    assert "outputs" in page.inner_text("#facts").lower()


def test_nothing_moves_where_motion_is_unwanted(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(served.page.url, reduced_motion="reduce")
    holding(served, page)
    assert page.evaluate("getComputedStyle(document.getElementById('bar-fill')).transitionDuration") == "0s"
    page.focus("#stop")
    page.keyboard.down("Space")
    assert page.evaluate("getComputedStyle(document.querySelector('.stop-fill')).transitionDuration") == "0s"
    page.keyboard.up("Space")


def test_a_colour_scheme_that_changes_is_followed(filled: Served, open_page: Callable[..., Page]) -> None:
    page = full(filled, open_page, color_scheme="light")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => getComputedStyle(document.body).color === 'rgb(226, 232, 240)'")
    assert page.locator("#transfer canvas").count() == 1
