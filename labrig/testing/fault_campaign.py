"""Fault campaigns: many questions over a faulty line, and not one wrong answer.

`run_campaign` drives a `Subject` through a `FaultProxy` and counts what came of each call; `run_cancellations` cancels
a question at each of its suspensions in turn. Both return a report whose `require_kept()` fails with everything that
is needed to see it happen again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import replace
from enum import Enum

from labrig.testing.fault_cancellation import CancelAfter, CancelAt
from labrig.testing.fault_plan import FaultPlan
from labrig.testing.fault_proxy import FaultProxy
from labrig.testing.fault_report import CampaignReport
from labrig.testing.fault_subjects import Subject, WrongAnswerError
from labrig_drivers.errors import LabrigError

# What a loaded machine may add to a deadline: the loop is late, not the driver. A pause of the whole process, in which
# the driver could not do anything either, counts as one tick.
_SLACK_S = 1.0
_TICK_S = 0.1
# So many calls in a row may fail before the driver is closed and opened anew, as a person would.
_PATIENCE = 3


class _Outcome(Enum):
    RIGHT = "right"
    REFUSED = "a typed error"
    BROKEN = "a broken promise"


async def run_campaign(subject: Subject, proxy: FaultProxy, plan: FaultPlan, *, questions: int) -> CampaignReport:
    """Asks `questions` questions over a line with faults.

    The promises: each call returns the right answer or raises a `LabrigError`, before its deadline. When the faults
    have stopped, the driver works again after a few attempts, at the latest after it was closed and opened, and closes.

    Args:
        subject: The driver and its questions, closed; it talks through `proxy`.
        proxy: The line, started.
        plan: The faults; what comes before and after them goes over a clean line. Each time when the driver could
            be opened only over a clean line, the random faults go on with another seed, and the script is over.
        questions: How many questions are asked while there are faults.

    Returns:
        What came of it.
    """
    report = CampaignReport(subject.name)
    start_s, requests, faults = time.monotonic(), proxy.messages("requests"), len(proxy.injected)
    await _Campaign(subject, proxy, plan, report).run(questions)
    report.duration_s = time.monotonic() - start_s
    report.requests = proxy.messages("requests") - requests
    report.injected = Counter(one.planned.fault for one in proxy.injected[faults:])
    report.story = proxy.story() if report.broken else ""
    return report


async def run_cancellations(
    subject: Subject, *, kind: int = 0, turns: bool = False, limit: int | None = None
) -> CampaignReport:
    """Cancels a question at its first suspension, another one at its second, until one ends before it is cancelled.

    The promises: a question that is cancelled ends before its deadline, and the next one has its own right answer.

    Args:
        subject: The driver and its questions, closed; over a line without faults that a driver has to notice. One
            that splits answers makes more suspensions.
        kind: Number of the first question; those that follow are of the same kind.
        turns: True cancels after so many turns of the event loop instead: the first hundred one by one, then in
            growing steps, since a loop that is kept turning turns a thousand times while a slow peer works.
        limit: Most suspensions, or turns, that one question may have; a thousand, or a million turns, when None.

    Returns:
        What came of it.
    """
    report = CampaignReport(f"{subject.name}, cancelled")
    start_s = time.monotonic()
    calls = _Calls(subject, report)
    await calls.must_be_right(calls.open())
    limit = limit or (1_000_000 if turns else 1_000)
    for place in _places(limit, growing=turns):
        number = kind + 2 * subject.period * place
        cancel = CancelAfter(place) if turns else CancelAt(place)
        what = f"question {number}, cancelled {'after turn' if turns else 'at suspension'} {place}"
        await calls.run(what, cancel.run(subject.ask(number)), subject.deadline_s)
        await calls.must_be_right(calls.ask(number + subject.period))
        if not cancel.cancelled:
            break
    else:
        report.broken.append(f"a question had more than {limit} {'turns' if turns else 'suspensions'}")
    await calls.must_be_right(calls.close())
    report.duration_s = time.monotonic() - start_s
    return report


def _places(limit: int, *, growing: bool) -> Iterator[int]:
    """Where to cancel, one place after another."""
    place = 1
    while place <= limit:
        yield place
        place += max(1, place // 50 if growing and place >= 100 else 1)


class _Calls:
    """Makes calls one by one, each with a deadline, and counts what came of them."""

    def __init__(self, subject: Subject, report: CampaignReport, proxy: FaultProxy | None = None) -> None:
        self._subject = subject
        self._report = report
        self._proxy = proxy
        self._said = ""

    async def open(self) -> _Outcome:
        """Opens the driver."""
        return await self.run("opening", self._subject.open(), self._subject.opening_s)

    async def ask(self, number: int) -> _Outcome:
        """Asks one question."""
        return await self.run(f"question {number}", self._subject.ask(number), self._subject.deadline_s)

    async def close(self) -> _Outcome:
        """Closes the driver."""
        return await self.run("closing", self._subject.close(), self._subject.opening_s)

    async def run(self, what: str, call: Coroutine[object, object, None], deadline_s: float) -> _Outcome:
        """Makes one call."""
        report, longest_s = self._report, deadline_s + _SLACK_S
        report.calls += 1
        # A task of its own, so that a call that hangs can be left behind.
        task = asyncio.get_running_loop().create_task(call)
        duration_s = await _wait_for(task, longest_s)
        report.longest_s = max(report.longest_s, duration_s)
        if duration_s >= longest_s:
            task.cancel()
            await asyncio.wait([task], timeout=longest_s)
            if task.done() and not task.cancelled():
                task.exception()  # it came too late to be looked at
            return self._broken(what, f"was not back after {duration_s:.2f} s")
        if task.cancelled():
            report.cancelled += 1
            self._said = f"{what} was cancelled"
            return _Outcome.REFUSED
        error = task.exception()
        if error is None:
            report.right += 1
            return _Outcome.RIGHT
        self._said = f"{what}: {type(error).__name__}: {error}"
        if isinstance(error, LabrigError):
            report.errors[type(error).__name__] += 1
            return _Outcome.REFUSED
        if isinstance(error, WrongAnswerError):
            report.wrong += 1
        return self._broken(what, f"{type(error).__name__}: {error}")

    async def must_be_right(self, call: Awaitable[_Outcome]) -> None:
        """Makes one of these calls, over a clean line: it has no reason to fail."""
        if await call is _Outcome.REFUSED:
            self._broken("over a clean line", f"the last call failed: {self._said}")

    def _broken(self, what: str, why: str) -> _Outcome:
        when = ""
        if self._proxy is not None and self._proxy.injected:
            when = f" (after fault {len(self._proxy.injected) - 1}: {self._proxy.injected[-1]})"
        self._report.broken.append(f"{what}: {why}{when}")
        return _Outcome.BROKEN


async def _wait_for(task: asyncio.Task[None], longest_s: float) -> float:
    """Waits until the task is done, or for `longest_s`; returns how long it was, without pauses of the process."""
    waited_s = 0.0
    while not task.done() and waited_s < longest_s:
        start_s = time.monotonic()
        await asyncio.wait([task], timeout=_TICK_S)
        waited_s += min(time.monotonic() - start_s, 2.0 * _TICK_S)
    return waited_s


class _Campaign:
    """One driver, one line, many questions."""

    def __init__(self, subject: Subject, proxy: FaultProxy, plan: FaultPlan, report: CampaignReport) -> None:
        self._subject = subject
        self._proxy = proxy
        self._plan = plan
        self._report = report
        self._calls = _Calls(subject, report, proxy)

    async def run(self, questions: int) -> None:
        await self._proxy.heal()
        await self._open_clean()
        self._proxy.plan = self._plan
        failed = 0
        for number in range(questions):
            outcome = await self._calls.ask(number)
            failed = 0 if outcome is _Outcome.RIGHT else failed + 1
            if failed == _PATIENCE:
                failed = 0
                await self._reopen()
        await self._proxy.heal()
        await self._work_again(questions)
        await self._close_clean()

    async def _reopen(self) -> None:
        """Closes and opens, over the faulty line if that succeeds in time."""
        self._report.reopened += 1
        for _ in range(_PATIENCE):
            await self._calls.close()
            if await self._calls.open() is _Outcome.RIGHT:
                return
        await self._proxy.heal()
        await self._open_clean()
        self._plan = replace(self._plan, script=(), seed=self._plan.seed + 1)
        self._proxy.plan = self._plan

    async def _work_again(self, number: int) -> None:
        for attempt in range(_PATIENCE):
            if await self._calls.ask(number + attempt) is _Outcome.RIGHT:
                return
        self._report.reopened += 1
        await self._open_clean()
        await self._calls.must_be_right(self._calls.ask(number + _PATIENCE))

    # A line that has no fault any more may still bring what it held back before, and a loaded machine may be late for
    # a short deadline: what has no reason to fail has a few attempts.

    async def _open_clean(self) -> None:
        for _ in range(_PATIENCE):
            await self._calls.close()
            if await self._calls.open() is _Outcome.RIGHT:
                return
        await self._calls.must_be_right(self._calls.close())
        await self._calls.must_be_right(self._calls.open())

    async def _close_clean(self) -> None:
        for _ in range(_PATIENCE):
            if await self._calls.close() is _Outcome.RIGHT:
                return
            # What it could not switch off, the next one has to.
            await self._calls.open()
        await self._calls.must_be_right(self._calls.close())
