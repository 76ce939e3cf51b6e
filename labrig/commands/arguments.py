"""Arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RigArgument = Annotated[Path, typer.Argument(metavar="RIG", help="Rig file (TOML).", show_default=False)]
