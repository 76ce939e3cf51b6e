"""Parts of a study on several processes: nothing goes on computing after Ctrl-C, SIGTERM or SIGKILL of the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labrig.studies.cache import Cache

# A part that ends at once and one that would take an hour; both say which process they are computed in.
PROGRAM = """
import os, sys, time
from pathlib import Path
from labrig.commands.interruptible import interruptible
from labrig.studies import parts
from labrig.studies.cache import Cache

folder = Path(sys.argv[1])


def compute(part):
    (folder / f"pid-{os.getpid()}").touch()
    while part["number"]:
        time.sleep(0.05)
    return {"value": 7.0}


if __name__ == "__main__":
    parts.GRACE_S = 0.2
    with interruptible("nothing is left"):
        cache = Cache(folder / "cache")
        parts.computed(compute, [{"number": 0}, {"number": 1}], cache, 2, lambda done: print(done, flush=True))
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlasts_the_program(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "1\n"
        deadline_s = time.monotonic() + 60.0
        # The short part may have been computed by the process that has the long one now.
        while not (pids := [int(one.name[4:]) for one in tmp_path.glob("pid-*")]):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        program.send_signal(number)
        program.communicate(timeout=60)
    assert program.returncode != 0
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    # What was done is kept.
    assert Cache(tmp_path / "cache").kept({"number": 0}) == {"value": 7.0}
