"""Waiting for another thread: results, errors, and signals that nothing wakes the waiting thread for."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import Future

import pytest

from labrig.portal import LoopPortal
from labrig.waiting import result_of


def signal_to_another_thread() -> threading.Timer:
    """SIGINT a moment from now, taken by the thread of the timer, so that no wait of the main thread ends by it."""
    return threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))


def test_results_and_errors_are_handed_on() -> None:
    answer: Future[int] = Future()
    threading.Timer(0.3, lambda: answer.set_result(7)).start()
    assert result_of(answer) == 7
    late: Future[int] = Future()
    late.set_exception(TimeoutError("the instrument's own"))
    with pytest.raises(TimeoutError, match="own"):
        result_of(late)


def test_a_signal_that_wakes_nobody_is_heard() -> None:
    timer = signal_to_another_thread()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        result_of(Future[int]())
    timer.join()


def test_a_portal_hears_it_and_cleans_up() -> None:
    cleaned: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    timer = signal_to_another_thread()
    with LoopPortal() as portal:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            portal.call(forever())
        assert cleaned == ["up"]
    timer.join()


def test_a_call_that_was_begun_goes_on_while_its_caller_computes() -> None:
    began, gates = threading.Event(), []

    async def busy() -> int:
        gates.append(asyncio.Event())
        began.set()
        await gates[0].wait()
        return 7

    async def open_gate() -> None:
        gates[0].set()

    async def broken() -> int:
        raise ValueError("the instrument's own")

    with LoopPortal() as portal:
        pending = portal.begin(busy())
        assert began.wait(10.0)  # this thread is free meanwhile
        portal.call(open_gate())
        assert pending.result() == 7
        failed = portal.begin(broken())
        with pytest.raises(ValueError, match="own"):
            failed.result()


def test_a_call_that_is_abandoned_has_cleaned_up() -> None:
    cleaned: list[str] = []

    async def forever(error: str = "") -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")
            if error:
                raise OSError(error)

    async def nothing() -> None:
        """What was begun before it is under way once this is done."""

    with LoopPortal() as portal:
        portal.begin(forever()).abandon()
        cleaned.clear()  # it may not even have started
        pending = portal.begin(forever())
        portal.call(nothing())
        pending.abandon()
        assert cleaned == ["up"]
        pending = portal.begin(forever("still on"))
        portal.call(nothing())
        with pytest.raises(OSError, match="still on"):
            pending.abandon()
        timer = signal_to_another_thread()
        pending = portal.begin(forever())
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pending.result()
        assert len(cleaned) == 3
    timer.join()
