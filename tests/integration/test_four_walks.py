"""The page of the four walks says what the program does: functions are entered in the order in which it lists them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_rig import RIG

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "four-walks.md"

# Prints every function of ours, by file and name, when it is entered first.
WATCHED = """
import os, sys, threading

root, seen = sys.argv.pop(1), set()

# Returns None, so that only entries are traced: no lines, and no functions in C.
def watch(frame, event, _):
    code = frame.f_code
    if code in seen:
        return
    seen.add(code)
    # Bodies of classes and modules are no functions: their code is not optimised.
    if code.co_flags & 1 and code.co_filename.startswith(root):
        # One write each: threads are watched as well.
        os.write(1, f"{code.co_filename.removeprefix(root)} {code.co_qualname}\\n".encode())

threading.settrace(watch)
sys.settrace(watch)
from labrig.cli import main
main()
"""

TRAINING = """
[run]
folder = "run"

[chip]
rig = "rig.toml"
calibration = "chip.safetensors"

[training]
method = "in-loop"
hidden = 4
digital_steps = 20
surrogate_steps = 2
steps = 4

[policy]
name = "adaptive"
passes = 2
"""


def walk(title: str) -> list[str]:
    """The steps under a heading of the page, as `file function`."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [f"{file} {function}" for file, function in re.findall(r"^\d+\. `(\S+)` `(\S+)`", section, re.MULTILINE)]


def entered(folder: Path, *arguments: str) -> list[str]:
    """Functions of ours that a command enters, in order."""
    command = [sys.executable, "-c", WATCHED, f"{ROOT}/", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def out_of_order(steps: list[str], calls: list[str]) -> list[str]:
    """Steps that were not taken, or not after the one before them."""
    places = [calls.index(step) if step in calls else -1 for step in steps]
    faults = [f"never entered: {step}" for step, place in zip(steps, places, strict=True) if place < 0]
    pairs = zip(steps, places, steps[1:], places[1:], strict=False)
    return faults + [f"{later} before {step}" for step, here, later, there in pairs if 0 <= there < here]


@pytest.mark.timeout(600)
def test_each_walk_goes_where_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "rig.toml").write_text(RIG)
    (tmp_path / "train.toml").write_text(TRAINING)
    walks = {
        "A sweep": ("sweep", "rig.toml", "--plan", "mvm", "--writes", "2", "-o", "run.h5"),
        "A calibration": ("calibrate", "run.h5", "-o", "chip.safetensors", "--report", "report.html"),
        "A training step": ("train", "train.toml"),
    }
    for title, arguments in walks.items():
        steps, calls = walk(title), entered(tmp_path, *arguments)
        assert len(steps) > 10
        assert out_of_order(steps, calls) == []
        # The check can fail.
        assert len(out_of_order(steps[::-1], calls)) == len(steps) - 1


def test_what_the_fourth_walk_names_is_there() -> None:
    plugin = (ROOT / "labrig" / "testing" / "plugin.py").read_text()
    assert "def mock_rig" in plugin
    assert (ROOT / "drivers" / "labrig_drivers" / "mock" / "servers.py").is_file()
