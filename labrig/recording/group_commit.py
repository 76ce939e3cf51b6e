"""A thread that writes what an event loop hands it, in order, and makes it count in groups."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from labrig.recording.nodes import HDF5_REFUSES, in_words
from labrig_drivers.errors import StorageError

T = TypeVar("T")


@dataclass(frozen=True)
class _Job:
    stage: Callable[[], int]
    ends_group: bool
    answer: asyncio.Future[int]


class GroupCommit:
    """Stages jobs one after another on a thread, commits them, and then answers. Belongs to one event loop.

    Jobs that wait when the thread becomes free are committed together: where a commit costs more than a job, as with
    two fsyncs, a full queue costs little more than one job. After a job or a commit that the disk refused, nothing
    more is written.

    Args:
        path: The file, for messages.
        thread: An executor with one thread.
        commit: Makes count what was staged; called on the thread.
        queue: How many jobs may wait or be in work.
        group: How many jobs are committed together at most.
    """

    def __init__(
        self, path: Path, thread: ThreadPoolExecutor, commit: Callable[[], None], *, queue: int, group: int
    ) -> None:
        self._path = path
        self._thread = thread
        self._commit = commit
        self._group = group
        self._room = asyncio.Semaphore(queue)
        self._jobs: deque[_Job] = deque()
        self._failure: Exception | None = None
        self._closed = False

    @property
    def failure(self) -> Exception | None:
        """What the disk refused with, if it did; final only when no job is left."""
        return self._failure

    def close(self) -> None:
        """Takes no more jobs; those that were put are done."""
        self._closed = True

    async def put(self, stage: Callable[[], int], *, ends_group: bool = False) -> asyncio.Future[int]:
        """Hands over a job as soon as there is room; from then on it is done whatever becomes of the caller.

        Args:
            stage: Writes, without making it count.
            ends_group: Nothing that is put later may be staged before this counts.

        Returns:
            Gets what `stage` returned as soon as that counts, or the error.

        Raises:
            StorageError: It is closed.
        """
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise StorageError(f"{self._path}: the recording is closed already")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(self._answered)
        self._jobs.append(_Job(stage, ends_group, answer))
        self._thread.submit(self._work_off)
        return answer

    def _answered(self, answer: asyncio.Future[int]) -> None:
        self._room.release()
        if not answer.cancelled():
            # Whoever put it may be gone, and that is no news: the next one is told of the failure again.
            answer.exception()

    def _work_off(self) -> None:
        """Does everything that waits; on the thread."""
        group: list[tuple[_Job, int]] = []
        while self._jobs:
            job = self._jobs.popleft()
            try:
                group.append((job, self._guarded(job.stage)))
            except Exception as error:
                _tell([(job, error)])
            if job.ends_group or len(group) >= self._group:
                self._finish(group)
                group = []
        self._finish(group)

    def _finish(self, group: Sequence[tuple[_Job, int]]) -> None:
        if not group:
            return
        try:
            self._guarded(self._commit)
        except Exception as error:
            _tell([(job, error) for job, _ in group])
        else:
            _tell(group)

    def _guarded(self, work: Callable[[], T]) -> T:
        if self._failure is not None:
            raise StorageError(
                f"{self._path}: an earlier write failed ({in_words(self._failure)}), nothing more is written"
            )
        try:
            return work()
        except HDF5_REFUSES as error:
            self._failure = error
            raise StorageError(
                f"{self._path}: cannot be written: {in_words(error)}; the rows before are safe"
            ) from error


def _tell(answers: Sequence[tuple[_Job, int | Exception]]) -> None:
    # The loop may be gone, where a program ends without closing; what counts goes on to count.
    with contextlib.suppress(RuntimeError):
        answers[0][0].answer.get_loop().call_soon_threadsafe(_set_all, answers)


def _set_all(answers: Sequence[tuple[_Job, int | Exception]]) -> None:
    for job, answer in answers:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
