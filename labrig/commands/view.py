"""`labrig view`: a recording, or a run that goes on, in a browser."""

from __future__ import annotations

import json
import time
import urllib.request
import webbrowser
from http.client import HTTPException
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from labrig.commands.interruptible import interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption
from labrig.extras import demand_extra
from labrig_drivers.errors import ConfigError, LinkError

_LOOK_EVERY_S = 0.5
_ANSWER_S = 5.0
_USUAL = "http://127.0.0.1:8600/"


def view(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="RUN.h5", help="A recording, finished or still being written.", show_default=False),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The page of a run, as its --live printed it.", show_default=False),
    ] = None,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Watch a recording in a browser, or a run that serves its page.

    A recording is read without a lock, also while another program writes it; that page can stop nothing. The page of
    the run itself, which can, is served by --live of sweep, train and others; without arguments this one looks for
    it at the usual address. Ctrl-C ends it.

    Example: labrig view run.h5

    Example: labrig view --url http://127.0.0.1:8600/
    """
    if file is not None and url is not None:
        raise ConfigError("RUN.h5 is a recording and --url the page of a run; give one of them")
    if file is None:
        _open_page(url or _USUAL, browser=browser, usual=url is None)
        return
    demand_extra("view", "live")
    _serve(file, live_at, live_access, browser=browser)


def _open_page(url: str, *, browser: bool, usual: bool) -> None:
    expected = f"--url {url}: expected an address such as {_USUAL}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # brackets without an end, a port that is none
        raise ConfigError(expected) from error
    if not usable:
        raise ConfigError(expected)
    try:
        with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc}/whoami", timeout=_ANSWER_S) as answer:
            role = json.loads(answer.read(1000)).get("role")
    except (OSError, ValueError, AttributeError, RecursionError, HTTPException) as error:
        # What the system refused with lies inside urllib's own error; anything else came from what answered.
        reason = getattr(error, "reason", error)
        said = f" ({reason.strerror or reason})" if isinstance(reason, OSError) else ", but something else does"
        advice = "; start the run with --live, or name a recording: labrig view RUN.h5" if usual else ""
        raise LinkError(f"{url}: no page of labrig answers there{said}{advice}") from error
    typer.echo(f"{url}{' (it will ask for a key)' if role == 'nobody' else ''}")
    if browser:
        webbrowser.open(url)


def _serve(file: Path, at: str | None, access: str | None, *, browser: bool) -> None:
    from labrig.events import EventBus
    from labrig.live.access import access_for
    from labrig.live.feed import LiveFeed
    from labrig.live.file_watch import FileWatch
    from labrig.live.page import Address, LivePage
    from labrig.live.steering import OnlyWatching
    from labrig.recording.trusted import open_recording

    address = Address() if at is None else Address.parse(at)
    keys = access_for(address.host, access)
    # Of a file everything is there at once; nothing has to be passed over for a run's sake.
    feed = LiveFeed(most_samples=2000, sample_every_s=0.0, merge_supply=False)
    with (
        interruptible("the recording was only read"),
        open_recording(file) as recording,
        LivePage(
            EventBus(), OnlyWatching(), keys, title=file.name, doing="MEASURING", address=address, feed=feed
        ) as page,
    ):
        watch = FileWatch(recording, feed.put, feed.take_block)
        watch.begin(time.time())
        typer.echo(page.url)
        if browser:
            webbrowser.open(page.url)
        more = True
        while True:
            time.sleep(_LOOK_EVERY_S)
            more = more and watch.look(time.time())
