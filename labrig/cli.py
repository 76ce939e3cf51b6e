"""The command `labrig`: one function for each verb, in `labrig.commands`, and one place where errors end."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Annotated

import typer

from labrig.commands.config import config_app
from labrig.commands.import_ import import_app
from labrig_drivers.errors import LabrigError

VERBS = (
    "demo",
    "check",
    "simulate",
    "serve",
    "stop",
    "plan",
    "sweep",
    "show",
    "view",
    "verify",
    "recover",
    "compact",
    "export",
    "calibrate",
    "fit-devices",
    "report",
    "train",
    "evaluate",
    "study",
    "doctor",
)

# Errors of the packages that know no LabrigError, each with the module that defines it. None can be raised before
# that module is loaded, so none needs to be imported here.
_FOREIGN_ERRORS = (
    ("labrig_calibration.assumptions", "AssumptionError"),
    ("labrig_calibration.dataset", "DatasetError"),
    ("labrig_calibration.devices.values", "DeviceFitError"),
    ("labrig_calibration.stimulus", "StimulusError"),
    ("labrig_calibration.changes", "ComparisonError"),
    ("labrig_calibration.fit", "CalibrationError"),
    ("labrig_surrogates.errors", "SurrogateError"),
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"labrig {version('labrig')}")
        raise typer.Exit


app = typer.Typer(
    name="labrig",
    help="Closes the loop between an analog in-memory-computing chip and the network trained for it.\n\n"
    "Example: labrig demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _verb in VERBS:
    _name = _verb.replace("-", "_")
    app.command(_verb)(getattr(import_module(f"labrig.commands.{_name}"), _name))


@app.callback()
def _labrig(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.add_typer(config_app, name="config")
app.add_typer(import_app, name="import")


def _flowing(text: str) -> str:
    """A docstring whose lines end where the terminal ends, not where those of the source do."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


for _command in (*app.registered_commands, *config_app.registered_commands, *import_app.registered_commands):
    assert _command.callback is not None
    _command.help = _flowing(_command.callback.__doc__ or "")


def main() -> None:
    """Runs the command line; an error that labrig raises on purpose becomes one message and exit code 2."""
    try:
        app()
    except KeyboardInterrupt:  # before a verb had anything to clean up
        print("labrig: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, (LabrigError, *_foreign_errors())):
            raise
        print(f"labrig: error: {error}", file=sys.stderr)
        sys.exit(2)


def _foreign_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], name) for module, name in _FOREIGN_ERRORS if module in sys.modules]
    return tuple(getattr(module, name) for module, name in loaded)
