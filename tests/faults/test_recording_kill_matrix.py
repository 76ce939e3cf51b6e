"""Sweeps are killed at random moments, of the closing too, and resumed: nothing acknowledged is lost or twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import EventBus
from labrig.plans import OverAxes, Plan, plan_by_name
from labrig.recording import Recording, layout
from labrig_drivers.errors import StorageError

RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = 1
arrays = 2
rows = 8
columns = 4
[axes.lamp]
driver = "mock-axis"
settings = { quantity = "irradiance", unit = "W/m2", low = 0.0, high = 1000.0, tolerance = 5.0 }
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""
# Imports once, and forks one process for each sweep.
NURSERY = """
import asyncio, json, os, sys
from pathlib import Path
from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import BlockCommitted, CurveCommitted, EventBus
from labrig.plans import OverAxes, plan_by_name


def say(text):
    os.write(1, (text + "\\n").encode())


def acknowledge(event):
    if isinstance(event, BlockCommitted):
        say(f"ack entry/array_{event.array} {event.mvms}")
    elif isinstance(event, CurveCommitted):
        say(f"ack entry/curves {event.readings}")


child = 0
for line in sys.stdin:
    path, (name, options, settings), durability, resume = json.loads(line)
    if child:
        os.waitpid(child, 0)
    child = os.fork()
    if child == 0:
        bus = EventBus()
        bus.subscribe(acknowledge)
        rig = parse_rig(Path(sys.argv[1]).read_text(), Path("rig.toml"))
        plan = plan_by_name(name, **options)
        plan = OverAxes(plan, settings) if settings else plan
        asyncio.run(run_sweep(rig, plan, path, bus, durability, resume=resume))
        os._exit(0)
    say(f"pid {child}")
    # It stays a zombie for now, so that a late kill cannot meet another process of the same number.
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    say(f"ended {ended.si_status if ended.si_code == os.CLD_KILLED else -ended.si_status}")
"""
Recipe = tuple[str, Mapping[str, object], list[dict[str, float]]]
"""Name and options of a plan, and at which settings of the axes it is run."""

PLANS: dict[str, Recipe] = {
    "large blocks": ("mvm", {"writes": 2, "seed": 1, "batch": 128}, []),
    "small blocks": ("mvm", {"writes": 2, "seed": 1, "batch": 24}, []),
    "over an axis": ("mvm", {"writes": 1, "seed": 1, "batch": 128}, [{"lamp": 0.0}, {"lamp": 400.0}, {"lamp": 50.0}]),
    "curves": ("iv", {"cells": 6, "levels": 5, "repeats": 3, "program": True, "seed": 1}, []),
    "retention": ("retention", {"last_s": 256.0, "writes": 3, "seed": 1}, []),
}
MATRIX = [(durability, plan) for durability in ("process", "power") for plan in PLANS]


def plan_of(recipe: Recipe) -> Plan:
    name, options, settings = recipe
    plan = plan_by_name(name, **options)
    return OverAxes(plan, settings) if settings else plan


@dataclass
class Nursery:
    """The process that forks sweeps."""

    questions: IO[str]
    answers: IO[str]

    def start(self, path: Path, recipe: Recipe, durability: str, *, resume: bool) -> int:
        """Begins a sweep; returns its process."""
        print(json.dumps([str(path), recipe, durability, resume]), file=self.questions, flush=True)
        return int(self.answers.readline().split()[1])

    def killed(
        self, path: Path, recipe: Recipe, durability: str, after: int, delay_s: float, *, resume: bool
    ) -> tuple[Counter[str], bool]:
        """A sweep that is killed some time after so many acknowledgements; returns the rows of each stream that were
        acknowledged, and whether the kill came before its end."""
        child = self.start(path, recipe, durability, resume=resume)
        rows = Counter[str]()
        acknowledgements = 0
        while True:
            if acknowledgements == after:
                time.sleep(delay_s)
                # A sweep that has ended is still a zombie of the nursery: nobody else has its number.
                os.kill(child, signal.SIGKILL)
            kind, *words = self.answers.readline().split()
            if kind == "ended":
                assert int(words[0]) in (0, signal.SIGKILL)
                return rows, int(words[0]) == signal.SIGKILL
            acknowledgements += 1
            rows[words[0]] += int(words[1])


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    script, rig = folder / "nursery.py", folder / "rig.toml"
    script.write_text(NURSERY)
    rig.write_text(RIG)
    command = [sys.executable, str(script), str(rig)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Nursery(process.stdin, process.stdout)
        process.stdin.close()


def swept(path: Path, recipe: Recipe, *, resume: bool) -> None:
    asyncio.run(run_sweep(parse_rig(RIG, Path("rig.toml")), plan_of(recipe), path, EventBus(), resume=resume))


@dataclass(frozen=True)
class Stream:
    """The rows of one stream with a journal.

    Attributes:
        points: The point of each block, in order.
        asked: What the plan wanted in each row: voltages, and for MVMs what was to be on the array.
        measured: What was answered.
    """

    points: list[str]
    asked: list[NDArray[np.generic]]
    measured: NDArray[np.generic]


def contents(path: Path) -> dict[str, Stream]:
    """Every stream with a journal, all checked."""
    found = {}
    with Recording.open(path) as recording:
        recording.verify()
        for array in recording.arrays:
            rows, targets = recording.mvm_columns(array), recording.write_columns(array)["target_conductance_s"]
            asked = [rows["voltage_v"], targets[rows["write"].astype(np.int64)]]
            found[f"entry/array_{array}"] = Stream(recording.point_hashes(array), asked, rows["current_code"])
        if recording.has_stream(layout.CURVES):
            points = [bytes(one["point"]).hex() for one in recording.journal(layout.CURVES) if one["rows"]]
            levels, current_a = (recording.column(layout.CURVES, name) for name in ("level_v", "current_a"))
            found[layout.CURVES] = Stream(points, [levels], current_a)
    return found


def rows_in(streams: Mapping[str, Stream]) -> int:
    return sum(len(one.measured) for one in streams.values())


def blocks_in(streams: Mapping[str, Stream]) -> int:
    return sum(len(one.points) for one in streams.values())


def trial(children: Nursery, folder: Path, rng: np.random.Generator, durability: str, plan: str) -> Counter[str]:
    """One sweep, killed once or twice and brought to its end; says what happened."""
    recipe, reference = PLANS[plan], contents(folder / f"{plan}.h5")
    path = folder / "run.h5"
    path.unlink(missing_ok=True)
    seen = Counter[str]()
    before: dict[str, Stream] = {}
    for number in range(int(rng.integers(1, 3))):
        left = blocks_in(reference) - blocks_in(before)
        # As often right after the last block, while the file is closed, as anywhere else.
        closing = rng.random() < 0.3
        after = left if closing else int(rng.integers(0, left + 1))
        delay_s = rng.uniform(0.0, 0.01 if closing or after else 0.1)
        rows, was_killed = children.killed(path, recipe, durability, after, delay_s, resume=path.exists())
        # Otherwise the test would see no promise and find it kept.
        all_rows = rows.total() == rows_in(reference) - rows_in(before)
        assert was_killed or all_rows
        seen["killed" if was_killed else "finished"] += 1
        seen[f"killed, {durability}, {plan}"] += was_killed
        seen["acknowledged rows"] += rows.total()
        seen["killed after the last row"] += was_killed and all_rows
        try:
            now = contents(path)
        except StorageError:
            # The kill came while the file was made: then nothing was measured yet.
            assert number == 0
            assert not rows
            seen["no recording yet"] += 1
            path.unlink(missing_ok=True)
            continue
        with h5py.File(path, "r+"):
            pass
        for stream, old in before.items():
            np.testing.assert_array_equal(now[stream].measured[: len(old.measured)], old.measured)
        for stream, count in rows.items():
            already = len(before[stream].measured) if stream in before else 0
            assert len(now[stream].measured) >= already + count
        seen["rows read back"] += rows_in(now) - rows_in(before)
        before = now
    swept(path, recipe, resume=path.exists())
    final = contents(path)
    assert final.keys() == reference.keys()
    for stream, one in final.items():
        assert one.points == reference[stream].points
        for asked, expected in zip(one.asked, reference[stream].asked, strict=True):
            np.testing.assert_array_equal(asked, expected)
        if stream in before:
            kept = before[stream].measured
            np.testing.assert_array_equal(one.measured[: len(kept)], kept)
    return seen


def campaign(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Trials over the whole matrix until there were so many kills."""
    rng, seen = np.random.default_rng(seed), Counter[str]()
    for plan, recipe in PLANS.items():
        swept(folder / f"{plan}.h5", recipe, resume=False)
    with nursery(folder) as children:
        while seen["killed"] < kills:
            for durability, plan in MATRIX:
                seen += trial(children, folder, rng, durability, plan)
    print(dict(seen))
    return seen


def test_killed_sweeps_keep_what_they_acknowledged_and_are_completed(tmp_path: Path) -> None:
    assert campaign(tmp_path, kills=10, seed=0)["killed"] >= 10


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_killed_sweeps_two_hundred_times(tmp_path: Path) -> None:
    seen = campaign(tmp_path, kills=200, seed=1)
    assert seen["killed"] >= 200
    assert all(seen[f"killed, {durability}, {plan}"] >= 10 for durability, plan in MATRIX)
