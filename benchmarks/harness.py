"""How every benchmark here is measured.

The cases are run one after another in each round, in an order that rotates from round to round, so that a
slow phase of the machine meets all of them. Each round gives one ratio to the reference case; medians and
quartiles are taken over rounds. A round during which other programs took more than 12 % of a core is measured
again.
"""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

DISTURBED_CORES = 0.12
"""Work of other programs, in cores, above which a round does not count."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: What the table calls it.
        run: Does the work once. For plain functions, `sync(function)`.
        units: How many units of work one call does, such as MVMs or rows.
        reference: Name of the case that this one is compared with; None for a case that stands alone.
        before: Awaited before the calls of each round, outside the measured time, with the number of calls to come.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    units: float = 1.0
    reference: str | None = None
    before: Callable[[int], Awaitable[None]] | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: Rounds that count.
        case_s: Time in s that a case should take in one round; its calls are repeated to reach it.
        most_repeats: How many disturbed rounds may be measured again before they are kept all the same.
        repeat_s: Time in s after the warm-up from which on no round is measured again; a run on a machine that does not
            become quiet ends with rounds that count as disturbed.
    """

    rounds: int
    case_s: float
    most_repeats: int
    repeat_s: float = math.inf

    @classmethod
    def of(cls, *, quick: bool, rounds: int, repeat_s: float = math.inf) -> Effort:
        """The usual effort with so many rounds, or the one that only shows that the benchmark works."""
        return cls(3, 0.05, 3, repeat_s) if quick else cls(rounds, 0.3, 3 * rounds, repeat_s)


class LoadMeter(Protocol):
    """Tells how much other programs used the machine."""

    def start(self) -> None:
        """Begins a round."""
        ...

    def other_cores(self) -> float:
        """Cores that other programs kept busy, on average, since `start()`."""
        ...


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles; all three are the value itself where there is only one."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    @property
    def half_iqr(self) -> float:
        """Half the interquartile range, relative to the median."""
        return (self.upper - self.lower) / 2.0 / self.median


@dataclass(frozen=True)
class CaseResult:
    """What was measured of one case.

    Attributes:
        name: The case.
        reference: What `ratio` compares with, None for a case that stands alone.
        calls: Calls in each round.
        seconds: Time of one call in s, one value for each round.
        cpu_seconds: Processor time of one call in s, all threads of this process, one value for each round.
        rate: Units per second.
        ratio: Rate over the reference's rate in the same round.
    """

    name: str
    reference: str | None
    calls: int
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    rate: Spread
    ratio: Spread | None


@dataclass(frozen=True)
class Measurement:
    """A whole run.

    Attributes:
        cases: One result for each case, in the order given.
        repeated: Rounds that were measured again because of other load.
        disturbed: Rounds that count although they were disturbed, because the machine did not become quiet.
    """

    cases: tuple[CaseResult, ...]
    repeated: int
    disturbed: int


@dataclass
class _Rounds:
    """Wall and processor times of one call in s, a list for each case, and what happened to the rounds."""

    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    repeated: int = 0
    disturbed: int = 0


def sync(function: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    """Makes a case's `run` of a plain function; awaiting it adds well under a microsecond."""

    async def run() -> None:
        function()

    return run


async def measure(
    cases: Sequence[Case], effort: Effort, load: LoadMeter, clock: Callable[[], float] = time.perf_counter
) -> Measurement:
    """Measures all cases in interleaved rounds.

    Args:
        cases: At least one case; references must name cases of this run.
        effort: How long.
        load: Tells which rounds are disturbed.
        clock: Seconds, monotonic.

    Raises:
        ValueError: Two cases have one name, or a reference names no case.
    """
    _check(cases)
    calls = {case.name: await _warm_up(case, effort.case_s, clock) for case in cases}
    rounds = _Rounds({case.name: [] for case in cases})
    repeats_end_s = clock() + effort.repeat_s
    while len(rounds.seconds[cases[0].name]) < effort.rounds:
        done = len(rounds.seconds[cases[0].name])
        start = done % len(cases)
        load.start()
        seconds = {case.name: await _time(case, calls[case.name], clock) for case in [*cases[start:], *cases[:start]]}
        disturbed = load.other_cores() > DISTURBED_CORES
        if disturbed and rounds.repeated < effort.most_repeats and clock() < repeats_end_s:
            rounds.repeated += 1
            continue
        rounds.disturbed += disturbed
        for name, value in seconds.items():
            rounds.seconds[name].append(value)
    results = tuple(_result(case, calls[case.name], cases, rounds.seconds) for case in cases)
    return Measurement(results, rounds.repeated, rounds.disturbed)


def _check(cases: Sequence[Case]) -> None:
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(f"every case needs a name of its own; given {names}")
    unknown = sorted({case.reference for case in cases if case.reference is not None} - set(names))
    if unknown:
        raise ValueError(f"reference {unknown} is no case of this run; there are {names}")


async def _warm_up(case: Case, case_s: float, clock: Callable[[], float]) -> int:
    """Runs a case until it is warm; returns how many calls fill `case_s`."""
    # The first call pays for imports, caches and connections, so that it must not decide the number of calls; but one
    # that takes a hundred times as long as wanted does not have to be made twice to know that once is enough.
    if case.before is not None:
        await case.before(1)
    began_s = clock()
    await case.run()
    if clock() - began_s > 100.0 * case_s:
        return 1
    calls = 1
    while (per_call_s := (await _time(case, calls, clock))[0]) * calls < case_s / 4.0:
        calls *= 2
    return max(1, round(case_s / per_call_s))


async def _time(case: Case, calls: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Mean wall and processor time of one call in s."""
    if case.before is not None:
        await case.before(calls)
    # Whatever the case before left for the collector is not this case's to pay.
    gc.collect()
    await asyncio.sleep(0)
    start, cpu_start = clock(), time.process_time()
    for _ in range(calls):
        await case.run()
    return (clock() - start) / calls, (time.process_time() - cpu_start) / calls


def _result(case: Case, calls: int, cases: Sequence[Case], seconds: dict[str, list[tuple[float, float]]]) -> CaseResult:
    own = [case.units / value for value, _ in seconds[case.name]]
    ratio = None
    if case.reference is not None:
        units = next(other.units for other in cases if other.name == case.reference)
        theirs = [units / value for value, _ in seconds[case.reference]]
        ratio = Spread.of([mine / their for mine, their in zip(own, theirs, strict=True)])
    walls, cpus = zip(*seconds[case.name], strict=True)
    return CaseResult(case.name, case.reference, calls, walls, cpus, Spread.of(own), ratio)
