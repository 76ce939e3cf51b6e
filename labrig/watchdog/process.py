"""The watchdog process itself: waits in the kernel for words of its parent, or for its end.

It loads each driver when an instrument is given into its care, not when it is needed: by then the disk may be full,
or the environment another one. Nothing here imports h5py, torch, rich or typer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from labrig.instruments import InstrumentSpec, build_instruments
from labrig.rig_lock import LOCK_FOLDER, Holder, release_descriptors, write_holder
from labrig.watchdog.messages import ARM, ARMED, BYE, DISARM, ERROR, READY, armed_spec, from_line, to_line
from labrig.watchdog.rescue import Report, rescue
from labrig_drivers.errors import LabrigError

PATIENCE_S = 60.0
"""How long it tries to reach an instrument that is still busy with the connection of the killed process."""

# What links import when they are opened.
_LIBRARIES = {"visa": ("pyvisa", "pyvisa_py"), "serial": ("serial",)}
_STANDARD_INPUT, _STANDARD_OUTPUT = 0, 1


class Watch:
    """What the parent has said so far, and the instruments in care.

    Args:
        input_descriptor: Where its words come from.
        output_descriptor: Where the answers go.
    """

    def __init__(self, input_descriptor: int, output_descriptor: int) -> None:
        self._input = input_descriptor
        self._output = output_descriptor
        self._buffer = b""
        self.armed: dict[str, InstrumentSpec] = {}
        self.dismissed = False

    def read(self) -> bool:
        """Takes what has come, after waiting for it; False at the end of the input."""
        piece = os.read(self._input, 65536)
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        for line in lines:
            self._take(line)
        return bool(piece)

    def read_rest(self) -> None:
        """Takes what the parent said last, without waiting for more; half a line was never answered, so nothing."""
        os.set_blocking(self._input, False)
        with contextlib.suppress(BlockingIOError):
            while self.read():
                continue

    def _take(self, line: bytes) -> None:
        message = from_line(line)
        if ARM in message:
            self._say(self._arm(armed_spec(message)))
        elif DISARM in message:
            self.armed.pop(str(message[DISARM]), None)
        elif BYE in message:
            self.dismissed = True

    def _arm(self, spec: InstrumentSpec) -> dict[str, object]:
        try:
            # Made once now, so that what cannot work is told while somebody is there to be told.
            build_instruments([spec])
            for address in spec.addresses.values():
                for library in _LIBRARIES.get(address.partition("://")[0], ()):
                    import_module(library)
        except (LabrigError, ImportError) as error:
            return {ERROR: f"{spec.section}: {error}"}
        self.armed[spec.section] = spec
        return {ARMED: spec.section}

    def _say(self, message: dict[str, object]) -> None:
        # A parent that is gone hears nothing, and that is found out by its end.
        with contextlib.suppress(OSError):
            os.write(self._output, to_line(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Watches over the parent until it says goodbye or dies; returns the exit code, 1 where an output may be on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    options = _options(arguments)
    watch = Watch(_STANDARD_INPUT, _STANDARD_OUTPUT)
    with contextlib.suppress(OSError):
        os.write(_STANDARD_OUTPUT, to_line({READY: os.getpid()}))
    _wait(watch, options.parent)
    died_s = time.monotonic()
    if watch.dismissed:
        # The locks are the parent's still: unlocking them here would unlock them there.
        return 0
    if not watch.armed:
        release_descriptors(options.locks)
        return 0
    entry = f"watchdog of process {options.parent}, which was killed: switching off what it left on"
    write_holder(options.locks, Holder.this_process(entry))
    with Report(options.folder, options.parent) as report:
        try:
            safe = asyncio.run(rescue(list(watch.armed.values()), report.say, options.patience, died_s))
        finally:
            release_descriptors(options.locks)
    return 0 if safe else 1


def _wait(watch: Watch, parent: int) -> None:
    """Returns when the parent has said goodbye, or is dead."""
    poll = select.poll()
    poll.register(_STANDARD_INPUT, select.POLLIN)
    descriptor = _process_descriptor(parent)
    if descriptor is not None:
        # The end of the pipe alone would not do: a child that the parent forked without exec holds it open.
        poll.register(descriptor, select.POLLIN)
    # Only from here on is it certain that the descriptor is the parent's, and not that of a later process.
    alive = os.getppid() == parent
    while alive and not watch.dismissed:
        ready = [ready for ready, _ in poll.poll()]
        if _STANDARD_INPUT in ready:
            # Its end without a goodbye counts as death also where the process lives on as another program.
            alive = watch.read()
        elif descriptor in ready:
            alive = False
    watch.read_rest()


def _process_descriptor(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, or the parent is gone already
        return None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m labrig.watchdog", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process to watch over, which starts this one")
    parser.add_argument("--locks", type=int, nargs="*", default=[], help="inherited descriptors of locked files")
    parser.add_argument("--folder", type=Path, default=LOCK_FOLDER, help="where to write what was done")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds to try for each instrument")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
