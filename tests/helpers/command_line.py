"""The command `labrig` in this process: as its own process it says the same, a second later."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from labrig.cli import main


def labrig(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command says and ends with, run in a folder, on a terminal of 80 columns."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", ["labrig", *arguments]),
        mock.patch.dict(os.environ, COLUMNS="80"),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(["labrig", *arguments], code, out.getvalue(), errors.getvalue())
