"""The options of long verbs that show a page, and what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from labrig_drivers.errors import LabrigError

if TYPE_CHECKING:
    from labrig.events import EventBus
    from labrig.live.steering import Steering
    from labrig.run_control import RunControl

LiveOption = Annotated[
    bool, typer.Option("--live", help="Serve a page to watch and stop this run, for a browser on this machine.")
]
LiveAtOption = Annotated[
    str | None,
    typer.Option(
        "--live-at",
        metavar="HOST:PORT",
        help="Serve the page at another address than 127.0.0.1:8600.",
        show_default=False,
    ),
]
LiveAccessOption = Annotated[
    str | None,
    typer.Option(
        "--live-access",
        metavar="FILE|open",
        help="The page's keys: a TOML file with viewer and owner; or the word open.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class LiveOptions:
    """What the user chose.

    Attributes:
        on: Whether a page is served at the usual address.
        at: Another address.
        access: A file with keys, or `open`.
    """

    on: bool = False
    at: str | None = None
    access: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether a page is served at all."""
        return self.on or self.at is not None or self.access is not None


@contextmanager
def shown_live(
    bus: EventBus,
    options: LiveOptions,
    verb: str,
    *,
    title: str,
    doing: str,
    control: RunControl | None = None,
    say: Callable[[str], None] | None = None,
    steering: Steering | None = None,
    between: str | None = None,
) -> Iterator[None]:
    """Serves a page of what happens inside the block, where the options ask for one.

    Args:
        bus: The events.
        options: What the user chose.
        verb: The verb, such as `sweep`.
        title: What runs.
        doing: The word for it while it goes on.
        control: Pauses the run, where it can be paused.
        say: Gets the addresses; by default they go to standard error.
        steering: What the page may do; by default pause and end this program.
        between: The word between two runs, for a program that outlasts them; see `LivePage`.

    Raises:
        ConfigError: The page cannot be served so.
        MissingExtraError: What it needs is not installed.
    """
    if not options.wanted:
        yield
        return
    from labrig.extras import demand_extra

    demand_extra(f"{verb} --live", "live")
    from labrig.live.access import access_for
    from labrig.live.page import Address, LivePage
    from labrig.live.steering import ThisProgram

    address = Address() if options.at is None else Address.parse(options.at)
    access = access_for(address.host, options.access)
    steering = steering or ThisProgram(bus, f"labrig {verb}", control)
    tell = say or (lambda text: typer.echo(text, err=True))
    with LivePage(bus, steering, access, title=title, doing=doing, address=address, between=between) as page:
        tell(f"live page: {page.url}")
        if steering.can_pause and access.viewer is None:
            tell(f"to go on after a pause, too: {page.url}#key={access.owner}")
        try:
            yield
        except typer.Exit:
            raise
        except LabrigError as error:
            page.failed(str(error))
            raise
        except Exception as error:
            page.failed(f"{type(error).__name__}: {error}")
            raise
