"""A signal ends a blocking command: not lost, not twice, and never in the middle of its clean-up."""

import subprocess
import sys
import textwrap

import pytest


def run(body: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own: signals and their timer belong to the whole process."""
    program = """
        import os, signal, time, weakref
        from contextlib import contextmanager
        import typer
        from labrig.commands.interruptible import interruptible

        @contextmanager
        def outputs():
            try:
                yield
            finally:
                print("switching off", flush=True)
                for _ in range(5):
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.1)
                print("outputs are off", flush=True)

        class Thing:
            pass

        try:
            with interruptible(), outputs():
                BODY
                print("lost", flush=True)
        except typer.Exit as stopped:
            print("code", stopped.exit_code, flush=True)
    """
    lines = textwrap.indent(textwrap.dedent(body), " " * 8)
    source = textwrap.dedent(program).replace("        BODY\n", lines)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_block_and_more_of_them_leave_the_clean_up_alone(name: str, code: int) -> None:
    done = run(f"os.kill(os.getpid(), signal.{name})\ntime.sleep(10)\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["switching off", "outputs are off", f"code {code}"]
    assert "outputs are off and files are closed" in done.stderr


def test_an_interrupt_that_hits_a_finaliser_is_raised_again() -> None:
    done = run(
        """\
        thing = Thing()
        watcher = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del thing
        time.sleep(10)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored in" in done.stderr
    assert done.stdout.splitlines() == ["switching off", "outputs are off", "code 130"]
