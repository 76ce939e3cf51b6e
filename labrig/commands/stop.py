"""`labrig stop`: switches a rig on another machine off, whoever has it."""

from __future__ import annotations

from typing import Annotated

import typer

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible
from labrig_drivers.errors import ConfigError


def stop(
    rig: RigArgument,
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="What everybody reads, and whoever has the rig is told.")
    ] = "no reason given",
    within: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Longest wait.")] = 60.0,
) -> None:
    """Switch off all outputs of a rig that `labrig serve` offers, and end the lease of whoever has it.

    That is the safe direction: it needs the account of the rig file, and no lease. It returns when the rig says that
    everything is off; where it does not, press OUTPUT OFF there.

    Example: labrig stop rig_configs/remote.toml --reason "smell of burning"
    """
    from labrig.boards.remote_settings import remote_session
    from labrig.config import load_rig
    from labrig.remote.stopping import stop_rig

    board = load_rig(rig).board
    if board.driver != "remote-board" or board.link is None:
        raise ConfigError(
            f"{rig}: its {board.driver!r} is used from this machine; `labrig stop` is for a remote-board. "
            "A run on this machine ends with Ctrl-C, or with STOP on its page"
        )
    session = remote_session(board.link, board.settings, "board")
    run_interruptible(stop_rig(session.address, session.broker, session.wishes.who, reason, within))
    typer.echo(f"{session.address}: all outputs are off, and nobody has the rig")
