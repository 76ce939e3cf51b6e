"""What the live page costs a run: nobody looking, and twenty viewers in a process of their own.

The sweeps are runs of `acquire` with a board in process that answers from memory, so that nothing is waited for and
each millisecond of the page shows; on a bench, where the board takes its time, the page works meanwhile. The machine
needs a core for the viewers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
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


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Serves the pages, starts the viewers, and opens a rig for each kind of sweep."""
    block = Block.of(BATCH)
    # Long enough that pictures are drawn several times in each run.
    plan = ManyBlocks(block, 64 if quick else 2048)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        buses = {ALONE: EventBus(), "sweep, page nobody looks at": EventBus(), f"sweep, {VIEWERS} viewers": EventBus()}
        pages = [stack.enter_context(page(bus)) for bus in list(buses.values())[1:]]
        pid = stack.enter_context(viewers(pages[-1].url, VIEWERS))
        async with remembered_rig(block) as rig:
            cases, benches = [], []
            for name, bus in buses.items():
                (folder / name).mkdir()
                bench = Bench(folder / name, plan, rig, _bus=bus)
                benches.append(bench)
                reference = None if name == ALONE else ALONE
                cases.append(Case(name, bench.acquire, plan.blocks, reference, before=bench.make_room))
            title = f"A run with its live page, blocks of {BATCH} MVMs of 128 x 128, the board in process"
            yield Suite(title, "block", cases, [pid])
            for bench in benches:
                await bench.close()
        print(f"viewers: {pages[-1].viewers}; pictures overtaken on their way: {pages[-1].dropped}")
        print(f"events that the page was too slow for: {pages[-1].missed}")


if __name__ == "__main__":
    main(Script("benchmarks.live", prepare, ("aiohttp",)))
