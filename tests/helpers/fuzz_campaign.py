"""A campaign of damaged inputs against one reader, in child processes: crashes, hangs and memory are all found.

Input number `n` of a campaign depends on its seed and on `n` alone, so a finding is repeated by `input_of`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType

from fuzz_mutations import Join, Parts, make_input

MEMORY_BYTES = 200 * 2**20
"""How much more address space than after a valid input it may take."""
_CHUNK = 5_000


@dataclass(frozen=True)
class Reader:
    """Something that reads what others wrote.

    Attributes:
        seeds: Makes valid inputs, in a folder of its own.
        read: Reads one; the folder is for files.
        typed: Errors by which it refuses; anything else is a crash.
        join: Puts the parts of an input together.
    """

    seeds: Callable[[Path], Sequence[Parts]]
    read: Callable[[bytes, Path], None]
    typed: tuple[type[Exception], ...]
    join: Join = b"".join


@dataclass
class Finding:
    """What a reader may not do.

    Attributes:
        what: The error, or what happened.
        where: The last lines of the traceback.
        first: Number of the first input that did it.
        count: How many did.
    """

    what: str
    where: str
    first: int
    count: int = 1


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        inputs: How many were read.
        accepted: How many of them were taken for valid.
        slowest_s: Longest time that one took.
        peak_bytes: Most memory that a process held, above what it held after the valid inputs.
        findings: By what and where.
    """

    inputs: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    def add(self, what: str, where: str, number: int) -> None:
        """Counts a finding."""
        known = self.findings.get((what, where))
        if known is None:
            self.findings[what, where] = Finding(what, where, number)
        else:
            known.count += 1

    def require_none(self) -> None:
        """Fails with every finding."""
        told = [f"input {one.first} ({one.count} like it): {one.what}\n{one.where}" for one in self.findings.values()]
        assert not told, "\n".join(told)


class HangError(BaseException):
    """An input took too long; no `except Exception` may keep it."""


def input_of(reader: Reader, seeds: Sequence[Parts], seed: int, number: int) -> bytes:
    """The input with a number."""
    return make_input(random.Random(f"{seed}:{number}"), seeds, reader.join)


def run_campaign(
    find: Callable[[], Reader], folder: Path, *, inputs: int, seed: int, start: int = 0, patience_s: float = 10.0
) -> Outcome:
    """Has a reader read many inputs.

    Args:
        find: Gives the reader; a function of a module, since a child process calls it too.
        folder: For files.
        inputs: How many.
        seed: Of all of them.
        start: Number of the first.
        patience_s: How long in s the reader may take for one; six times as long where nothing can interrupt it.
    """
    outcome = Outcome()
    context = multiprocessing.get_context("spawn")
    number, end = start, start + inputs
    while number < end:
        stop = min(number + _CHUNK, end)
        place: Synchronized[int] = context.Value("q", -1)
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(find, folder, seed, number, stop, patience_s, place, theirs))
        child.start()
        theirs.close()
        _follow(ours, place, child, 6 * patience_s, outcome)
        child.join()
        ours.close()
        if place.value < 0:
            raise RuntimeError("a child process did not come as far as the first input: see what it printed")
        if place.value < stop:
            # It died, or was ended, at this input; the next child goes on behind it.
            outcome.add(f"the process ended with {child.exitcode}", "", place.value)
            number = place.value + 1
        else:
            number = stop
        child.close()
    outcome.inputs = inputs
    return outcome


def _follow(
    ours: Connection,
    place: Synchronized[int],
    child: multiprocessing.context.SpawnProcess,
    longest_s: float,
    outcome: Outcome,
) -> None:
    """Takes in what a child says until it ends; one that stands still is ended."""
    seen, since = -1, time.monotonic()
    while True:
        if ours.poll(1.0):
            try:
                kind, *rest = ours.recv()
            except EOFError:
                return
            if kind == "finding":
                outcome.add(*rest)
            else:
                accepted, slowest_s, peak_bytes = rest
                outcome.accepted += accepted
                outcome.slowest_s = max(outcome.slowest_s, slowest_s)
                outcome.peak_bytes = max(outcome.peak_bytes, peak_bytes)
        if place.value != seen:
            seen, since = place.value, time.monotonic()
        elif seen >= 0 and time.monotonic() - since > longest_s:
            child.kill()


def _work(
    find: Callable[[], Reader],
    folder: Path,
    seed: int,
    start: int,
    stop: int,
    patience_s: float,
    place: Synchronized[int],
    theirs: Connection,
) -> None:
    """Reads the inputs from `start` to `stop` in a process of its own."""
    warnings.simplefilter("ignore")
    reader = find()
    seeds = list(reader.seeds(_emptied(folder / "seeds")))
    here = _emptied(folder / "here")
    for valid in seeds:
        reader.read(reader.join(valid), here)
    before_bytes = _resident_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_bytes() + MEMORY_BYTES, hard))
    signal.signal(signal.SIGALRM, _too_long)
    accepted, slowest_s = 0, 0.0
    place.value = start
    for number in range(start, stop):
        content = input_of(reader, seeds, seed, number)
        began = time.perf_counter()
        try:
            with _deadline(patience_s):
                reader.read(content, here)
            accepted += 1
        except reader.typed:
            pass
        except BaseException as error:
            theirs.send(("finding", f"{type(error).__name__}: {str(error)[:200]}", _last_lines(error), number))
        slowest_s = max(slowest_s, time.perf_counter() - began)
        place.value = number + 1
        if number + 1 == stop or (number + 1) % 100 == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes
            theirs.send(("done", accepted, slowest_s, peak))
            accepted = 0
    theirs.close()


@contextmanager
def _deadline(patience_s: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    # Where C code does not come back, no exception is raised: the process then says where it is, and ends.
    faulthandler.dump_traceback_later(3 * patience_s, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        faulthandler.cancel_dump_traceback_later()


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise HangError("it took too long")


def _last_lines(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return "\n".join(f"  {Path(one.filename).name}:{one.lineno} {one.line}" for one in frames)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
