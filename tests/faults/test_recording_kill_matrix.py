"""Sweeps are killed at random moments, of the closing too, and resumed: nothing acknowledged is lost or twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import pytest

from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import EventBus
from labrig.plans import MvmCalibrationPlan
from labrig.recording import Recording
from labrig.recording.rows import RecordedArray, read_rows
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
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""
# Imports once, and forks one process for each sweep.
NURSERY = """
import asyncio, os, sys
from pathlib import Path
from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import BlockCommitted, EventBus
from labrig.plans import MvmCalibrationPlan


def say(text):
    os.write(1, (text + "\\n").encode())


def acknowledge(event):
    if isinstance(event, BlockCommitted):
        say(f"ack {event.array} {event.mvms}")


child = 0
for line in sys.stdin:
    path, batch, durability, resume = line.split()
    if child:
        os.waitpid(child, 0)
    child = os.fork()
    if child == 0:
        bus = EventBus()
        bus.subscribe(acknowledge)
        rig = parse_rig(Path(sys.argv[1]).read_text(), Path("rig.toml"))
        plan = MvmCalibrationPlan(writes=2, seed=1, batch=int(batch))
        asyncio.run(run_sweep(rig, plan, path, bus, durability, resume=resume == "True"))
        os._exit(0)
    say(f"pid {child}")
    # It stays a zombie for now, so that a late kill cannot meet another process of the same number.
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    say(f"ended {ended.si_status if ended.si_code == os.CLD_KILLED else -ended.si_status}")
"""
MATRIX = [(durability, batch) for durability in ("process", "power") for batch in (128, 24)]


@dataclass
class Nursery:
    """The process that forks sweeps."""

    questions: IO[str]
    answers: IO[str]

    def start(self, path: Path, batch: int, durability: str, *, resume: bool) -> int:
        """Begins a sweep; returns its process."""
        print(path, batch, durability, resume, file=self.questions, flush=True)
        return int(self.answers.readline().split()[1])

    def killed(
        self, path: Path, batch: int, durability: str, after: int, delay_s: float, *, resume: bool
    ) -> tuple[Counter[int], bool]:
        """A sweep that is killed some time after so many acknowledgements; returns the rows of each array that were
        acknowledged, and whether the kill came before its end."""
        child = self.start(path, batch, durability, resume=resume)
        rows = Counter[int]()
        acknowledgements = 0
        while True:
            if acknowledgements == after:
                time.sleep(delay_s)
                # A sweep that has ended is still a zombie of the nursery: nobody else has its number.
                os.kill(child, signal.SIGKILL)
            kind, *numbers = self.answers.readline().split()
            if kind == "ended":
                assert int(numbers[0]) in (0, signal.SIGKILL)
                return rows, int(numbers[0]) == signal.SIGKILL
            acknowledgements += 1
            rows[int(numbers[0])] += int(numbers[1])


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


def swept(path: Path, batch: int, *, resume: bool) -> None:
    plan = MvmCalibrationPlan(writes=2, seed=1, batch=batch)
    asyncio.run(run_sweep(parse_rig(RIG, Path("rig.toml")), plan, path, EventBus(), resume=resume))


def contents(path: Path) -> tuple[dict[int, RecordedArray], dict[int, list[str]]]:
    """Rows and point hashes of each array, all checked."""
    with Recording.open(path) as recording:
        recording.verify()
        rows = {array: read_rows(recording, array) for array in recording.arrays}
        return rows, {array: recording.point_hashes(array) for array in recording.arrays}


def total_rows(arrays: dict[int, RecordedArray]) -> int:
    return sum(len(one.code) for one in arrays.values())


def trial(children: Nursery, folder: Path, rng: np.random.Generator, durability: str, batch: int) -> Counter[str]:
    """One sweep, killed once or twice and brought to its end; says what happened."""
    reference, reference_points = contents(folder / f"reference-{batch}.h5")
    blocks = sum(len(one) for one in reference_points.values())
    path = folder / "run.h5"
    path.unlink(missing_ok=True)
    seen = Counter[str]()
    before: dict[int, RecordedArray] = {}
    for number in range(int(rng.integers(1, 3))):
        left = blocks - sum(len(points) for points in contents(path)[1].values()) if path.exists() else blocks
        # As often right after the last block, while the file is closed, as anywhere else.
        closing = rng.random() < 0.3
        after = left if closing else int(rng.integers(0, left + 1))
        delay_s = rng.uniform(0.0, 0.01 if closing or after else 0.1)
        rows, was_killed = children.killed(path, batch, durability, after, delay_s, resume=path.exists())
        # Otherwise the test would see no promise and find it kept.
        assert was_killed or rows.total() == total_rows(reference) - total_rows(before)
        seen["killed" if was_killed else "finished"] += 1
        seen["acknowledged rows"] += rows.total()
        seen["killed after the last row"] += was_killed and rows.total() == total_rows(reference) - total_rows(before)
        try:
            with Recording.open(path) as recording:
                recording.verify()
        except StorageError:
            # The kill came while the file was made: then nothing was measured yet.
            assert number == 0
            assert not rows
            seen["no recording yet"] += 1
            path.unlink(missing_ok=True)
            continue
        with h5py.File(path, "r+"):
            pass
        now, _ = contents(path)
        for array, old in before.items():
            np.testing.assert_array_equal(now[array].code[: len(old.code)], old.code)
        for array, count in rows.items():
            already = len(before[array].code) if array in before else 0
            assert len(now[array].code) >= already + count
        before = now
    swept(path, batch, resume=path.exists())
    final, points = contents(path)
    assert points == reference_points
    for array, rows_of_array in final.items():
        np.testing.assert_array_equal(rows_of_array.voltage_v, reference[array].voltage_v)
        targets = rows_of_array.target_conductance_s[rows_of_array.write]
        expected = reference[array].target_conductance_s[reference[array].write]
        np.testing.assert_array_equal(targets, expected)
        if array in before:
            kept = before[array].code
            np.testing.assert_array_equal(rows_of_array.code[: len(kept)], kept)
    return seen


def campaign(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Trials over the whole matrix until there were so many kills."""
    rng, seen = np.random.default_rng(seed), Counter[str]()
    for _, batch in MATRIX[:2]:
        swept(folder / f"reference-{batch}.h5", batch, resume=False)
    with nursery(folder) as children:
        while seen["killed"] < kills:
            for durability, batch in MATRIX:
                seen += trial(children, folder, rng, durability, batch)
    print(dict(seen))
    return seen


def test_killed_sweeps_keep_what_they_acknowledged_and_are_completed(tmp_path: Path) -> None:
    assert campaign(tmp_path, kills=20, seed=0)["killed"] >= 20


@pytest.mark.nightly
def test_killed_sweeps_two_hundred_times(tmp_path: Path) -> None:
    assert campaign(tmp_path, kills=200, seed=1)["killed"] >= 200
