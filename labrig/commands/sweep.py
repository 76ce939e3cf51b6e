"""`labrig sweep`: run a plan on a rig and record it."""

from __future__ import annotations

import json
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.commands.mqtt import MqttOption, NoMqttOption, published
from labrig.commands.over import OverOptions, over_axes
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.plans import Plan
    from labrig.recording import Durability


_INSTEAD = {"seed": "use --seed", "max_voltage_v": "the limit stands in the rig file"}


class DurabilityChoice(Enum):
    """What an acknowledged row survives."""

    PROCESS = "process"
    POWER = "power"


def sweep(
    rig: RigArgument,
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            metavar="NAME",
            help="What to measure: canary, energy, iv, mvm, noise, retention, transfer or writes, or a plan of one's "
            "own as FILE.py:NAME, or a plan file as labrig plan writes it.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The recording; by default sweep-DATE-TIME.h5."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Go on with an interrupted recording of the same rig, plan and chip, in place of a new one.",
        ),
    ] = None,
    durability: Annotated[
        DurabilityChoice,
        typer.Option(help="A committed row survives the death of the process, or of the machine (slower)."),
    ] = DurabilityChoice.PROCESS,
    seed: Annotated[int, typer.Option(min=0, help="Determines every random choice of the plan.")] = 0,
    writes: Annotated[
        int | None, typer.Option(min=1, help="Programmings of each array, where the plan lets one choose.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="An option of the plan, such as --set batch=64; repeatable."
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=VALUES",
            help="Run the plan at each value of an axis of the rig: NAME=A,B,C or NAME=FIRST:LAST:COUNT; with more "
            "than one axis at every combination.",
        ),
    ] = None,
    visits: Annotated[int, typer.Option(min=1, help="With --over: times that each setting is visited.")] = 1,
    random_order: Annotated[
        bool, typer.Option("--random-order", help="With --over: settings in random order.")
    ] = False,
    settle_s: Annotated[
        float, typer.Option("--settle", min=0.0, metavar="SECONDS", help="With --over: pause after the axes arrived.")
    ] = 0.0,
    one_write: Annotated[
        bool, typer.Option("--one-write", help="With --over: measure one write at all settings, not a new one at each.")
    ] = False,
    mqtt: MqttOption = None,
    no_mqtt: NoMqttOption = False,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Run a plan on a rig and record it.

    Ctrl-C ends it after the block in hand, a second one at once; either way outputs go off and the file is closed, and
    --resume goes on from there. Ctrl-Z pauses it after the block in hand, with the array supply off; a second one goes
    on.

    Example: labrig sweep rig_configs/mock.toml --plan mvm --writes 8 -o run.h5

    Example: labrig sweep rig.toml --plan transfer --over temperature=293:353:4 --settle 60 -o warm.h5
    """
    from labrig.acquisition import run_sweep
    from labrig.config import load_rig
    from labrig.events import EventBus, Message
    from labrig.progress import ProgressListener
    from labrig.run_control import RunControl

    if resume is not None and output is not None:
        raise ConfigError("--output names a new recording and --resume an old one; give one of them")
    config = load_rig(rig)
    usual: dict[str, object] = {"seed": seed, "max_voltage_v": config.max_read_voltage_v}
    chosen = over_axes(
        _plan(plan, usual, options or [] if writes is None else [f"writes={writes}", *(options or [])]),
        OverOptions(over or [], visits, random_order, settle_s, one_write, seed),
    )
    path = resume or output or Path(f"sweep-{datetime.now().astimezone():%Y%m%d-%H%M%S}.h5")
    survives: Durability = "power" if durability is DurabilityChoice.POWER else "process"
    bus = EventBus()
    control = RunControl()

    def stop() -> None:
        bus.publish(Message("stopping after the block in hand; Ctrl-C again stops at once"))
        control.stop()

    def suspend() -> None:
        if control.paused:
            control.resume()
        else:
            bus.publish(Message("pausing after the block in hand; Ctrl-Z again goes on"))
            control.pause("by Ctrl-Z")

    with ProgressListener() as progress:
        bus.subscribe(progress)
        page = LiveOptions(live, live_at, live_access)
        with (
            published(config, bus, mqtt, off=no_mqtt),
            shown_live(bus, page, "sweep", title=config.rig.name, doing="MEASURING", control=control),
        ):
            run_interruptible(
                run_sweep(config, chosen, path, bus, survives, resume=resume is not None, control=control),
                stop,
                suspend,
                f"outputs are off and the file is closed; the same command with --resume {path} goes on",
            )
    typer.echo(path)


def _plan(name: str, usual: dict[str, object], texts: list[str]) -> Plan:
    """The plan, with the options that were given and those of the usual ones that it takes."""
    from labrig.plans import options_of, plan_by_name

    known = options_of(name)
    given = {key: value for key, value in usual.items() if key in known}
    faults = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            faults.append(f"--set {text}: expected OPTION=VALUE")
        elif key in usual:
            faults.append(f"--set {text}: {_INSTEAD[key]}")
        elif key in given:
            faults.append(f"--set {text}: {key} was given twice")
        else:
            given[key] = _value(value)
    if faults:
        raise ConfigError("; ".join(faults))
    return plan_by_name(name, **given)


def _value(text: str) -> object:
    """A number, true, false, null or a list as JSON has them; any other text as it is."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
