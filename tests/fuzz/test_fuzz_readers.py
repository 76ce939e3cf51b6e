"""Whatever bytes come, a reader takes them or refuses them by its own error: no crash, no hang, no flood of memory.

A few hundred inputs in every run, 100,000 for each reader at night (`pytest -m nightly tests/fuzz`).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
from fuzz_campaign import MEMORY_BYTES, Reader, input_of, run_campaign
from fuzz_readers import READERS, rig_files

SEED = 20_260_101
FEW = 60
MANY = 100_000


@pytest.mark.parametrize("name", READERS)
def test_a_few_damaged_inputs_do_no_harm(name: str, tmp_path: Path) -> None:
    outcome = run_campaign(READERS[name], tmp_path, inputs=FEW, seed=SEED)
    outcome.require_none()
    # Some of them are so little damaged that they still count, and some are not.
    assert 0 < outcome.accepted < outcome.inputs == FEW


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_inputs_do_no_harm(name: str, tmp_path: Path) -> None:
    outcome = run_campaign(READERS[name], tmp_path, inputs=MANY, seed=SEED)
    print(f"{name}: {outcome.accepted} of {outcome.inputs} taken, slowest {outcome.slowest_s:.2f} s")
    outcome.require_none()


def careless(deed: str) -> Reader:
    """A reader that does something bad with every fourth input or so."""

    def read(content: bytes, _: Path) -> None:
        if len(content) % 4 == 0:
            return
        if deed == "raise":
            json.loads("{")
        elif deed == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif deed == "swell":
            bytearray(2 * MEMORY_BYTES)
        elif deed == "refuse":
            raise ProcessLookupError

    return Reader(lambda _: [(b"four",)], read, (ProcessLookupError,))


@pytest.mark.parametrize(
    ("deed", "told"),
    [("raise", "JSONDecodeError"), ("die", "ended with -11"), ("swell", "MemoryError"), ("refuse", None)],
)
def test_a_careless_reader_is_found(deed: str, told: str | None, tmp_path: Path) -> None:
    outcome = run_campaign(functools.partial(careless, deed), tmp_path, inputs=6, seed=1)
    if told is None:
        outcome.require_none()
        return
    with pytest.raises(AssertionError, match=told):
        outcome.require_none()


def sleeper() -> Reader:
    """A reader that comes to no end, in spite of an `except Exception`."""

    def read(content: bytes, _: Path) -> None:
        while content != b"valid":
            try:
                time.sleep(0.1)
            except Exception:
                continue

    return Reader(lambda _: [(b"valid",)], read, ())


def test_a_reader_that_hangs_is_found(tmp_path: Path) -> None:
    outcome = run_campaign(sleeper, tmp_path, inputs=1, seed=1, patience_s=0.5)
    with pytest.raises(AssertionError, match="HangError"):
        outcome.require_none()


def test_an_input_is_made_again_by_its_number() -> None:
    reader = rig_files()
    seeds = [(b'[rig]\nname = "one"\n',), (b"[board]\n",)]
    inputs = [input_of(reader, seeds, 3, number) for number in range(200)]
    assert inputs == [input_of(reader, seeds, 3, number) for number in range(200)]
    assert inputs != [input_of(reader, seeds, 4, number) for number in range(200)]
    assert len(set(inputs)) > 150
