"""The rig's side of its watchdog process: started when the first output is to go on, dismissed when all are off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from labrig.instruments import InstrumentSpec
from labrig.rig_lock import LOCK_FOLDER, RigLock
from labrig.watchdog.messages import ARMED, BYE, DISARM, ERROR, READY, arm, from_line, to_line
from labrig_drivers.errors import StateError

_log = logging.getLogger("labrig.watchdog")

# Far more than it takes, also on a busy machine; an output waits for it.
_START_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0


class Watchdog:
    """Starts, feeds and dismisses the watchdog process of one rig.

    Args:
        lock: The rig's locks; the process inherits them, so that nobody gets the instruments before they are safe.
        folder: Where the process writes what it did.
        patience_s: How long it tries to reach each instrument; None for its default.
    """

    def __init__(
        self, lock: RigLock | None = None, folder: Path = LOCK_FOLDER, patience_s: float | None = None
    ) -> None:
        self._rig_lock = lock
        self._folder = folder
        self._patience_s = patience_s
        self._armed: dict[str, InstrumentSpec] = {}
        self._process: _Process | None = None
        self._busy = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Starts the process before anything needs it.

        Raises:
            StateError: It cannot be started.
        """
        async with self._busy:
            await asyncio.to_thread(self._ready_process)

    async def arm(self, spec: InstrumentSpec) -> None:
        """Gives an instrument into the process's care; it stands ready when this returns.

        Raises:
            StateError: There can be no watchdog process, or it cannot use this instrument; do not switch it on.
        """
        async with self._busy:
            await asyncio.to_thread(self._arm, spec)

    async def disarm(self, section: str) -> None:
        """Takes an instrument out of the process's care, because its output was seen to be off."""
        async with self._busy:
            if self._armed.pop(section, None) is not None and self._process is not None:
                self._process.tell({DISARM: section})

    async def revive(self) -> None:
        """Starts the process again where it has died with instruments in its care, and says so.

        Raises:
            StateError: It cannot be started again.
        """
        if self._process is not None and self._process.is_dead():
            async with self._busy:
                await asyncio.to_thread(self._ready_process)

    async def stop(self) -> None:
        """Dismisses the process and waits for its end; harmless when there is none."""
        async with self._busy:
            self._armed.clear()
            process, self._process = self._process, None
            if process is not None:
                await asyncio.to_thread(process.dismiss)

    def _arm(self, spec: InstrumentSpec) -> None:
        process = self._ready_process()
        try:
            process.arm(spec)
        except _DeadError:
            # Killed between the look at it and the words to it.
            self._ready_process().arm(spec)
        self._armed[spec.section] = spec

    def _ready_process(self) -> _Process:
        dead = self._process
        if dead is not None:
            if not dead.is_dead():
                return dead
            dead.dismiss()
            self._process = None
        fresh = _Process(self._rig_lock, self._folder, self._patience_s)
        try:
            for spec in self._armed.values():
                fresh.arm(spec)
        except BaseException:
            fresh.dismiss()
            raise
        self._process = fresh
        if dead is not None:
            _log.warning(
                "the watchdog process %d was gone (killed?); process %d stands ready in its place", dead.pid, fresh.pid
            )
        return fresh


class _DeadError(StateError):
    """The process does not listen or answer."""


class _Process:
    """One watchdog process; every call blocks."""

    def __init__(self, lock: RigLock | None, folder: Path, patience_s: float | None) -> None:
        locks = () if lock is None else lock.descriptors
        command = [sys.executable, "-P", "-m", "labrig.watchdog", "--parent", str(os.getpid())]
        command += ["--folder", str(folder.absolute())]
        if patience_s is not None:
            command += ["--patience", str(patience_s)]
        command += ["--locks", *map(str, locks)]
        # Drivers come from wherever this process finds them; the matrices of a board's driver need no threads.
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._inbox = b""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # No working directory and no terminal of ours: it must not be stopped or held up by either.
                cwd=os.path.sep,
                start_new_session=True,
                pass_fds=locks,
            )
        except OSError as error:
            raise StateError(f"no watchdog process can be started ({error}); no output was switched on") from error
        try:
            self._expect(READY, _START_TIMEOUT_S)
        except BaseException:
            self.dismiss()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def arm(self, spec: InstrumentSpec) -> None:
        if not self.tell(arm(spec)):
            raise _DeadError(f"the watchdog process {self.pid} is gone; {spec.name} was not switched on")
        self._expect(ARMED, _ANSWER_TIMEOUT_S)

    def tell(self, message: Mapping[str, object]) -> bool:
        """Sends one message; False where nobody listens any more."""
        assert self._process.stdin is not None  # asked for above
        try:
            os.write(self._process.stdin.fileno(), to_line(message))
        except OSError:
            return False
        return True

    def dismiss(self) -> None:
        """Says goodbye and waits; a process that does not go is killed, it has nothing left to do."""
        self.tell({BYE: True})
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _expect(self, key: str, timeout_s: float) -> None:
        message = self._receive(timeout_s)
        if ERROR in message:
            raise StateError(f"the watchdog process cannot switch this off, so it is not switched on: {message[ERROR]}")
        if key not in message:
            raise _DeadError(f"the watchdog process {self.pid} answered {message!r}; no output was switched on")

    def _receive(self, timeout_s: float) -> dict[str, object]:
        assert self._process.stdout is not None  # asked for above
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._inbox:
            ready = poll.poll(1000.0 * max(0.0, deadline_s - time.monotonic()))
            piece = os.read(descriptor, 65536) if ready else b""
            if not piece:
                why = "ended without a word" if ready else f"did not answer within {timeout_s:g} s"
                raise _DeadError(f"the watchdog process {self.pid} {why}; no output was switched on")
            self._inbox += piece
        line, _, self._inbox = self._inbox.partition(b"\n")
        return from_line(line)
