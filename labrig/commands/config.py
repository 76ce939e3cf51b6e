"""`labrig config`: help with rig files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.outputs import SCHEMA, demand_outputs

config_app = typer.Typer(no_args_is_help=True)


@config_app.callback()
def config() -> None:
    """Help with rig files.

    Example: labrig config schema -o rig_configs/labrig.schema.json
    """


@config_app.command()
def schema(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; by default it is printed."),
    ] = None,
) -> None:
    """Write the JSON schema of rig files, by which an editor completes and checks them.

    Example: labrig config schema -o rig_configs/labrig.schema.json
    """
    from labrig.config import rig_schema
    from labrig_drivers.errors import StorageError

    text = json.dumps(rig_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    demand_outputs((output, SCHEMA))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {error.strerror}") from error
    typer.echo(output)
