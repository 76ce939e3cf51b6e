"""Runs the examples of a page of the documentation, in its order, in a folder."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from command_line import labrig
from page_examples import Command, Example, commands_of, shows


class ExampleError(AssertionError):
    """An example of a page does not do what the page says."""


@dataclass
class PageRun:
    """One page on its way: its folder, and the names that its code has defined so far.

    Attributes:
        folder: Where everything happens; also the working directory of the caller.
        give: Puts the file of a name into the folder; raises KeyError for a name that it does not know.
        names: What the page's code shares.
        tests: The source of its blocks with test functions, one after another.
    """

    folder: Path
    give: Callable[[str, Path], None]
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    tests: str = ""

    def run(self, example: Example) -> None:
        """Runs one example.

        Raises:
            ExampleError: It does not do what the page says; the message says where.
        """
        if example.not_run:
            return
        where = f"{example.page}:{example.line}"
        if example.kind == "given":
            for name in example.text.split():
                self.give(name, self.folder)
        elif example.kind == "file":
            path = self.folder / example.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(example.text)
        elif example.kind == "console":
            for command in commands_of(example.text):
                self.run_command(command, where)
        elif example.kind == "test":
            self.run_tests(example.text, where)
        else:
            self.run_python(example, where)

    def run_python(self, example: Example, where: str) -> None:
        """Runs Python, `await` outside of functions included, as in a notebook."""
        try:
            code = compile(example.text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with contextlib.redirect_stdout(io.StringIO()):
                result = eval(code, self.names)
                if inspect.iscoroutine(result):
                    asyncio.run(result)
        except Exception as error:
            raise ExampleError(f"{where}: {type(error).__name__}: {error}") from error

    def run_command(self, command: Command, where: str) -> None:
        """Runs a command line; `labrig` in this process."""
        words = shlex.split(command.line)
        if words[0] == "labrig":
            done = labrig(self.folder, *words[1:])
        elif words[0] == "python":
            arguments = [sys.executable, *words[1:]]
            done = subprocess.run(arguments, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60)
        else:
            raise ExampleError(f"{where}: only labrig and python are run here, not `{command.line}`")
        if done.returncode != command.exit_code:
            raise ExampleError(f"{where}: `{command.line}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        if not shows(command.output, done.stdout):
            raise ExampleError(f"{where}: `{command.line}` does not print what the page shows, but:\n{done.stdout}")

    def run_tests(self, text: str, where: str) -> None:
        """Runs a block of tests as its reader would, with pytest and the plugin of labrig."""
        self.tests += text
        (self.folder / "test_of_the_page.py").write_text(self.tests)
        options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "--rootdir", "."]
        command = [sys.executable, "-m", "pytest", *options, "test_of_the_page.py"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise ExampleError(f"{where}: {done.stdout}{done.stderr}")

    def close(self) -> None:
        """Closes what the page's code left open, files of xarray for instance."""
        for value in self.names.values():
            close = getattr(value, "close", None)
            if callable(close) and not inspect.isclass(value) and not inspect.iscoroutinefunction(close):
                close()
