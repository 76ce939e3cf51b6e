"""What the live page costs a run: nobody looking, and twenty viewers in a process of their own.

The sweeps are runs of `acquire` with a board in process that answers from memory, so that nothing is waited for and
each millisecond of the page shows; on a bench, where the board takes its time, the page works meanwhile. The machine
needs a core for the viewers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.acquisition import Bench, ManyBlocks, remembered_rig
from benchmarks.harness import Case
from benchmarks.recording import Block
from benchmarks.report import Script, Suite, main
from labrig.events import EventBus
from labrig.live.access import Access
from labrig.live.page import Address, LivePage
from labrig.live.steering import ThisProgram

BATCH = 128
VIEWERS = 20
ALONE = "sweep, no page"


@contextmanager
def page(bus: EventBus) -> Iterator[LivePage]:
    """The page of a bus, at any free port."""
    steering = ThisProgram(bus, "labrig sweep")
    address = Address("127.0.0.1", 0)
    with LivePage(
        bus, steering, Access("benchmark-" * 3), title="benchmark", doing="MEASURING", address=address
    ) as one:
        yield one


@contextmanager
def viewers(url: str, count: int) -> Iterator[int]:
    """Has viewers read a page in another process; gives its pid."""
    command = [sys.executable, "-m", "benchmarks.live_viewers", url, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            if child.stdout.readline().strip() != "ready":
                raise RuntimeError("the viewers did not get to see the page")
            yield child.pid
        finally:
            child.stdin.close()
            child.wait()


@dataclass
class Metered:
    """Runs of one bench, and the time that the thread of its page computed meanwhile.

    Attributes:
        bench: The runs.
        thread: The thread's id.
        computed_s: Time in s that it computed.
        lasted_s: Time in s that the runs lasted.
    """

    bench: Bench
    thread: int
    computed_s: float = 0.0
    lasted_s: float = 0.0

    async def acquire(self) -> None:
        """One run."""
        began_s, computed_s = time.monotonic(), computed_by(self.thread)
        await self.bench.acquire()
        self.computed_s += computed_by(self.thread) - computed_s
        self.lasted_s += time.monotonic() - began_s


def computed_by(thread: int) -> float:
    """Time in s that a thread of this process computed so far."""
    text = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


def page_threads() -> set[int]:
    """The threads of all pages."""
    return {one.native_id for one in threading.enumerate() if one.name == "labrig-live" and one.native_id is not None}


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Serves the pages, starts the viewers, and opens a rig for each kind of sweep."""
    block = Block.of(BATCH)
    # Long enough that pictures are drawn several times in each run.
    plan = ManyBlocks(block, 64 if quick else 2048)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        buses = {ALONE: EventBus(), "sweep, page nobody looks at": EventBus(), f"sweep, {VIEWERS} viewers": EventBus()}
        pages, threads = [], list[int]()
        for bus in list(buses.values())[1:]:
            before = page_threads()
            pages.append(stack.enter_context(page(bus)))
            threads += page_threads() - before
        pid = stack.enter_context(viewers(pages[-1].url, VIEWERS))
        async with remembered_rig(block) as rig:
            cases, metered = [], []
            for name, bus, thread in zip(buses, buses.values(), (threading.get_native_id(), *threads), strict=True):
                (folder / name).mkdir()
                one = Metered(Bench(folder / name, plan, rig, _bus=bus), thread)
                metered.append(one)
                reference = None if name == ALONE else ALONE
                cases.append(Case(name, one.acquire, plan.blocks, reference, before=one.bench.make_room))
            title = f"A run with its live page, blocks of {BATCH} MVMs of 128 x 128, the board in process"
            yield Suite(title, "block", cases, [pid])
            for name, one in list(zip(buses, metered, strict=True))[1:]:
                print(f"{name}: the page's thread computed for {one.computed_s / one.lasted_s:.2%} of the runs' time")
            for one in metered:
                await one.bench.close()
        print(f"viewers: {pages[-1].viewers}; pictures overtaken on their way: {pages[-1].dropped}")
        print(f"events that the page was too slow for: {pages[-1].missed}")


if __name__ == "__main__":
    main(Script("benchmarks.live", prepare, ("aiohttp",)))
