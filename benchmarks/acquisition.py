"""The whole of acquisition: plan, envelope, board contract, queue, writer thread and events, with a board in process.

The board answers from memory, so that what is left is labrig. `acquire` gets a recording that is open; `run_sweep`
makes one: structure, space filled and synced, records, trimmed and synced. QCoDeS, where it is installed, gets the same
records one at a time, into a database that is there already.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.harness import Case, sync
from benchmarks.instant_board import InstantBoard, board_info
from benchmarks.qcodes_sink import qcodes_is_there, qcodes_sink
from benchmarks.recording import Block
from benchmarks.report import Script, Suite, main
from labrig.acquisition import RunSummary, acquire, run_sweep
from labrig.config import parse_rig
from labrig.events import BlockCommitted, Event, EventBus
from labrig.plans import MvmPoint, ProgramPoint, StreamCapacity
from labrig.plans.base import Points
from labrig.recording import RecordingHeader, RecordingWriter
from labrig.rig import Rig
from labrig_drivers.crossbar import (
    BoardInfo,
)

SIZE = 128
RIG = """\
[rig]
name = "benchmark"
[board]
driver = "mock-board"
[safety]
max_voltage_v = 1.0
max_current_a = 0.1
max_power_w = 0.1
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""


@dataclass(frozen=True)
class ManyBlocks:
    """A plan: one write, then the same vectors again and again, each time a point of its own.

    Attributes:
        block: The vectors.
        blocks: How often.
    """

    block: Block
    blocks: int
    name: str = "many-blocks"

    def describe(self) -> dict[str, object]:
        """How often."""
        return {"name": self.name, "blocks": self.blocks}

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """Room for every vector; `info` does not matter."""
        del info
        return {0: StreamCapacity(rows=self.blocks * len(self.block.voltage_v), writes=1, blocks=self.blocks)}

    async def points(self, info: BoardInfo) -> Points:
        """The points."""
        yield ProgramPoint(0, 0, np.full((info.rows, info.columns), info.conductance_min_s))
        for number in range(self.blocks):
            yield MvmPoint(0, 0, number, 0, self.block.voltage_v)


@dataclass
class Bench:
    """A rig around a remembered board, and one recording for many runs.

    Attributes:
        folder: Where recordings go.
        plan: One run.
        rig: The rig, open.
        committed: Records that the last run's events told of.
        summary: Of the last run.
    """

    folder: Path
    plan: ManyBlocks
    rig: Rig
    committed: int = 0
    summary: RunSummary | None = None
    _writer: RecordingWriter | None = None
    _bus: EventBus = field(default_factory=EventBus)

    def __post_init__(self) -> None:
        self._bus.subscribe(self._note)

    async def make_room(self, runs: int) -> None:
        """Opens a new recording with room for so many runs."""
        await self.close()
        (one,) = self.plan.capacity(self.rig.board.info).values()
        capacity = {0: StreamCapacity(rows=runs * one.rows, writes=runs, blocks=runs * one.blocks)}
        header = RecordingHeader.for_rig(self.rig, self.plan.describe())
        path = self.folder / "runs.h5"
        self._writer = await RecordingWriter.create(path, header, self.rig.board.info, capacity)

    async def acquire(self) -> None:
        """One run into the recording that is open."""
        if self._writer is None:
            raise RuntimeError("make_room() comes first")
        self.summary = await acquire(self.rig, self.plan, self._writer, self._bus)
        self._check()

    async def sweep(self) -> None:
        """One run with a recording of its own."""
        path = self.folder / "sweep.h5"
        rig = Rig(self.rig.config, InstantBoard(board_info(SIZE, SIZE), self.plan.block.result), {})
        self.summary = await run_sweep(rig, self.plan, path, self._bus)
        path.unlink()
        self._check()

    async def close(self) -> None:
        """Closes and removes the recording."""
        if self._writer is not None:
            await self._writer.close()
            self._writer.path.unlink()
            self._writer = None

    def _note(self, event: Event) -> None:
        if isinstance(event, BlockCommitted):
            self.committed = event.total_mvms

    def _check(self) -> None:
        wanted = self.plan.blocks * len(self.plan.block.voltage_v)
        if self.summary is None or not self.summary.mvms == self.committed == wanted:
            raise RuntimeError(f"{wanted} records were measured, the run's events told of {self.committed}")


def remembered_rig(block: Block) -> Rig:
    """A rig around a remembered board."""
    config = parse_rig(RIG, Path("benchmark.toml"), drivers={"mock-board"})
    return Rig(config, InstantBoard(board_info(SIZE, SIZE), block.result), {})


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Opens the rig, and makes a folder that goes with the benchmark."""
    block = Block.of(1024)
    blocks = 4 if quick else 64
    async with remembered_rig(block) as rig:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), ManyBlocks(block, blocks), rig)
            rows = blocks * len(block.voltage_v)
            name = "labrig, acquire, batches of 1024"
            cases = [
                Case(name, bench.acquire, rows, before=bench.make_room),
                Case("labrig, run_sweep, a file each", bench.sweep, rows, name),
            ]
            peer = "QCoDeS is not installed"
            if qcodes_is_there():
                records = 64
                inputs, outputs = (
                    one[:records].astype(np.float32) for one in (block.voltage_v, block.result.current_a)
                )
                cases.append(
                    Case("QCoDeS, add_result", sync(qcodes_sink(Path(folder), inputs, outputs)), records, name)
                )
                peer = "QCoDeS beside it"
            yield Suite(f"Acquisition of MVMs of {SIZE} x {SIZE} with a board in process; {peer}", "MVM", cases)
            await bench.make_room(1)
            await bench.acquire()
            if bench.summary is not None:
                print(idle(bench.summary))
            await bench.close()


def idle(summary: RunSummary) -> str:
    """How much of a run the board had nothing to do."""
    busy, waited = 1.0 - summary.idle_share, summary.queueing_s / summary.seconds
    return (
        f"One more run of {summary.mvms} MVMs: board busy {busy:.1%}, idle {summary.idle_share:.1%} of the time; "
        f"{waited:.1%} of the time handing over to the queue and waiting for room in it\n"
    )


if __name__ == "__main__":
    main(Script("benchmarks.acquisition", prepare, ("numpy", "h5py")))
