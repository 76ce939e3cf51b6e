"""Writing HDF5 files so that neither a full disk nor a Ctrl-C brings HDF5 down.

HDF5 (2.0, measured) ends the process with a segmentation fault some time after the disk refused a compressed chunk. So
it is given a file that never refuses: the failure is kept, and raised between two blocks by whoever writes them. Such a
file is written by Python, where a Ctrl-C could be raised in the middle of a write; so a thread does it, and the main
thread, which alone gets signals, waits.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from labrig.waiting import result_of

T = TypeVar("T")

_STOPPING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name))


class StoppedError(Exception):
    """The main thread was interrupted, and work for it ends."""


class OutputFile(io.RawIOBase):
    """A file object for HDF5 whose writes always succeed, or seem to.

    Args:
        path: A file that is there; what was in it is overwritten.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._position = 0
        self._failure: OSError | None = None

    def check(self) -> None:
        """Says whether all that was written until now is in the file.

        Raises:
            OSError: What the disk refused with, the first time.
        """
        if self._failure is not None:
            raise self._failure

    def readable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to a place in the file; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        self._position = (os.fstat(self._descriptor).st_size if start is None else start) + offset
        return self._position

    def tell(self) -> int:
        """The present place."""
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Reads from the present place on; returns how many bytes there were."""
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        """Writes at the present place; after a failure nothing more."""
        left = memoryview(data).cast("B")
        place, self._position = self._position, self._position + len(left)
        try:
            while left and self._failure is None:
                count = os.pwrite(self._descriptor, left, place)
                left, place = left[count:], place + count
        except OSError as error:
            self._failure = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        """Cuts or lengthens the file."""
        length = self._position if size is None else size
        try:
            if self._failure is None:
                os.ftruncate(self._descriptor, length)
        except OSError as error:
            self._failure = error
        return length

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """Runs `work` on a thread that no signal interrupts, and waits for it.

    Args:
        work: Calls its argument often, between two steps; that raises `StoppedError` when it has to end.

    Raises:
        KeyboardInterrupt: As it came to the waiting thread, after `work` has ended.
    """
    stopped = Event()
    answer: Future[T] = Future()

    def check() -> None:
        if stopped.is_set():
            raise StoppedError

    def run() -> None:
        try:
            answer.set_result(work(check))
        except BaseException as error:
            answer.set_exception(error)

    thread = Thread(target=run, name="labrig-output")
    try:
        # A signal that came while the thread starts would leave nobody to wait for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return result_of(answer)
    except BaseException:
        stopped.set()
        raise
    finally:
        if thread.ident is not None:
            thread.join()
