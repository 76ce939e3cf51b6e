"""The recording's queue: order, groups, room, and what happens when the disk refuses."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labrig.recording.group_commit import GroupCommit
from labrig_drivers.errors import StateError, StorageError


@dataclass
class Log:
    """A file that only notes what is done to it, and stands still while `gate` is closed."""

    lines: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    refuses: str = ""

    def stage(self, number: int) -> Callable[[], int]:
        def work() -> int:
            assert self.gate.wait(10.0)
            self.note(f"stage {number}")
            return number

        return work

    def commit(self) -> None:
        self.note("commit")

    def note(self, line: str) -> None:
        if line == self.refuses:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lines.append(line)


@pytest.fixture
async def log() -> Log:
    return Log()


@pytest.fixture
async def queue(log: Log) -> AsyncIterator[GroupCommit]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield GroupCommit(Path("run.h5"), thread, log.commit, queue=4, group=3)
        log.gate.set()


async def test_jobs_that_wait_are_committed_together_and_in_order(queue: GroupCommit, log: Log) -> None:
    answers = [await queue.put(log.stage(number)) for number in range(4)]
    log.gate.set()
    assert await asyncio.gather(*answers) == [0, 1, 2, 3]
    assert log.lines == ["stage 0", "stage 1", "stage 2", "commit", "stage 3", "commit"]


async def test_nothing_is_staged_after_the_end_of_a_group_before_it_counts(queue: GroupCommit, log: Log) -> None:
    answers = [await queue.put(log.stage(number), ends_group=number == 1) for number in range(3)]
    log.gate.set()
    await asyncio.gather(*answers)
    assert log.lines == ["stage 0", "stage 1", "commit", "stage 2", "commit"]


async def test_whoever_finds_no_room_waits_and_nothing_is_dropped(queue: GroupCommit, log: Log) -> None:
    answers = [await queue.put(log.stage(number)) for number in range(4)]
    fifth = asyncio.create_task(queue.put(log.stage(4)))
    await asyncio.sleep(0.05)
    assert not fifth.done()
    log.gate.set()
    assert await asyncio.gather(*answers, await fifth) == [0, 1, 2, 3, 4]


async def test_fault_of_one_job_is_its_own(queue: GroupCommit, log: Log) -> None:
    def faulty() -> int:
        raise StateError("no such array")

    log.gate.set()
    first = await queue.put(log.stage(0))
    second = await queue.put(faulty)
    third = await queue.put(log.stage(2))
    with pytest.raises(StateError, match="no such array"):
        await second
    assert (await first, await third) == (0, 2)
    assert queue.failure is None


@pytest.mark.parametrize("refuses", ["stage 1", "commit"])
async def test_disk_that_refuses_ends_everything_and_acknowledges_nothing_of_the_group(
    queue: GroupCommit, log: Log, refuses: str
) -> None:
    log.refuses = refuses
    answers = [await queue.put(log.stage(number)) for number in range(3)]
    log.gate.set()
    errors = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(error, StorageError) for error in errors)
    assert sum("No space left on device; the rows before are safe" in str(error) for error in errors) >= 1
    log.refuses = ""
    with pytest.raises(StorageError, match=r"an earlier write failed .*nothing more is written"):
        await (await queue.put(log.stage(9)))
    assert "commit" not in log.lines
    assert "stage 9" not in log.lines
    assert isinstance(queue.failure, OSError)


async def test_closed_queue_does_what_it_has_and_takes_no_more(queue: GroupCommit, log: Log) -> None:
    answer = await queue.put(log.stage(0))
    queue.close()
    with pytest.raises(StorageError, match="closed already"):
        await queue.put(log.stage(1))
    log.gate.set()
    assert await answer == 0
