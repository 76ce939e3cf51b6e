"""Writing a recording: labrig's `RecordingWriter` against bare h5py and against a plain file.

A call of the first cases appends blocks to a file that is open. labrig waits for each block to be acknowledged before
it hands over the next one, which is the strictest way to use it. Bare h5py gets the same data sets, with their space
allocated and filled in advance as labrig's is, chunks of one block, and a flush after each block, so that it survives
the same death of the process; but neither counter, checksums nor journal. The plain file gets the same bytes and
nothing else.

A call of the "whole file" cases makes the file, fills it block by block, and closes it. labrig writes all its space
once before the first row, syncs it, and trims and syncs it in the end; bare h5py does nothing of that.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig.plans.base import StreamCapacity
from labrig.recording.file import Durability
from labrig.recording.header import RecordingHeader
from labrig.recording.writer import RecordingWriter
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult, ProgramReport

SIZE = 128
SEED = 1


@dataclass(frozen=True)
class Block:
    """One block of MVMs, in the form that each way of writing takes."""

    voltage_v: FloatArray
    result: MvmResult
    columns: dict[str, NDArray[np.generic]]
    raw: bytes

    @classmethod
    def of(cls, rows: int) -> Block:
        """A block of random numbers."""
        generator = np.random.default_rng(SEED)
        voltage_v = generator.uniform(-0.3, 0.3, (rows, SIZE)).astype(np.float32).astype(np.float64)
        code = generator.integers(-512, 512, (rows, SIZE), dtype=np.int16)
        result = MvmResult(
            code=code,
            current_a=code.astype(np.float64) * 1e-7,
            saturated=np.abs(code) > 510,
            time_s=np.arange(rows, dtype=np.float64) * 1e-5,
            write_index=0,
        )
        columns: dict[str, NDArray[np.generic]] = {
            "voltage_v": voltage_v.astype(np.float32),
            "current_code": code,
            "saturated": result.saturated.astype(np.uint8),
            "write": np.zeros(rows, dtype=np.int32),
            "kind": np.zeros(rows, dtype=np.int8),
            "time_s": result.time_s,
        }
        return cls(voltage_v, result, columns, b"".join(column.tobytes() for column in columns.values()))


@dataclass
class Run:
    """One call's worth of work: `blocks` times the same block, into a folder."""

    folder: Path
    block: Block
    blocks: int
    _writer: RecordingWriter | None = None
    _bare: tuple[h5py.File, dict[str, h5py.Dataset]] | None = None
    _plain: FileIO | None = None
    _row: int = 0

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return int(self.block.voltage_v.shape[0])

    @property
    def rows(self) -> int:
        """Rows of one call."""
        return self.block_rows * self.blocks

    async def open_labrig(self, calls: int, durability: Durability = "process") -> None:
        """Makes a recording with room for so many calls, and programs the array."""
        await self.close()
        capacity = {0: StreamCapacity(rows=calls * self.rows, writes=1, blocks=calls * self.blocks)}
        path = self.folder / "labrig.h5"
        self._writer = await RecordingWriter.create(
            path, header(), board(), capacity, supply_capacity=1, durability=durability
        )
        await self._writer.append_write(0, np.full((SIZE, SIZE), 1e-5), ProgramReport(0, 0.0, 1, 0.0))

    async def append_labrig(self) -> None:
        """Appends the blocks to the recording that is open."""
        assert self._writer is not None
        for number in range(self.blocks):
            await self._writer.append_mvms(0, 0, self.block.voltage_v, self.block.result, f"{number:032x}")

    async def whole_labrig(self, durability: Durability) -> None:
        """Makes, fills and closes a recording."""
        await self.open_labrig(1, durability)
        await self.append_labrig()
        await self.close()

    async def open_bare(self, calls: int, *, allocated: bool = True) -> None:
        """Makes the data sets with h5py alone."""
        await self.close()
        file = h5py.File(self.folder / "bare.h5", "w")
        sets = {}
        for name, column in self.block.columns.items():
            row = column.shape[1:]
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if allocated:
                properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
            properties.set_chunk((self.block_rows, *row))
            space = h5py.h5s.create_simple((calls * self.rows, *row))
            kind = h5py.h5t.py_create(column.dtype)
            sets[name] = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, properties))
        file.flush()
        self._bare, self._row = (file, sets), 0

    def append_bare(self) -> None:
        """Appends the blocks with h5py alone."""
        assert self._bare is not None
        file, sets = self._bare
        for _ in range(self.blocks):
            start, self._row = self._row, self._row + self.block_rows
            for name, column in self.block.columns.items():
                sets[name][start : self._row] = column
            file.flush()

    async def whole_bare(self) -> None:
        """Makes, fills and closes a file with h5py alone."""
        await self.open_bare(1, allocated=False)
        self.append_bare()
        await self.close()

    async def open_plain(self, calls: int) -> None:
        """Makes a plain file that has all its bytes already."""
        await self.close()
        path = self.folder / "plain.bin"
        path.write_bytes(self.block.raw * (calls * self.blocks))
        self._plain = path.open("r+b", buffering=0)

    def append_plain(self) -> None:
        """Writes the same bytes into a plain file, one system call for each block."""
        assert self._plain is not None
        for _ in range(self.blocks):
            self._plain.write(self.block.raw)

    async def close(self) -> None:
        """Closes and removes whatever is open."""
        if self._writer is not None:
            await self._writer.close()
            self._writer.path.unlink()
            self._writer = None
        if self._bare is not None:
            self._bare[0].close()
            (self.folder / "bare.h5").unlink()
            self._bare = None
        if self._plain is not None:
            self._plain.close()
            (self.folder / "plain.bin").unlink()
            self._plain = None


def header() -> RecordingHeader:
    """What a short run knows of itself."""
    return RecordingHeader(
        rig_name="benchmark",
        rig_toml="",
        plan={"name": "benchmark", "seed": SEED},
        identities={},
        settings={},
        started_utc="2026-01-01T00:00:00.000000+00:00",
        versions={},
    )


def board() -> BoardInfo:
    """A board with one array."""
    return BoardInfo(
        chip_id="BENCHMARK",
        arrays=1,
        rows=SIZE,
        columns=SIZE,
        conductance_min_s=1e-6,
        conductance_max_s=1e-4,
        voltage_min_v=-0.3,
        voltage_max_v=0.3,
        dac_bits=8,
        adc_bits=10,
        adc_full_scale_a=(1e-4,) * SIZE,
        mvm_latency_s=1e-6,
        program_latency_s=1e-3,
    )


def cases(run: Run) -> list[Case]:
    """All ways of writing one run."""
    name = f"blocks of {run.block_rows}"
    bare = f"append, bare h5py, flush each, {name}"
    whole = f"whole file, bare h5py, {name}"
    power = partial(run.open_labrig, durability="power")
    return [
        Case(bare, sync(run.append_bare), run.rows, before=run.open_bare),
        Case(f"append, labrig, process, {name}", run.append_labrig, run.rows, bare, run.open_labrig),
        Case(f"append, labrig, power, {name}", run.append_labrig, run.rows, bare, power),
        Case(f"append, plain file, {name}", sync(run.append_plain), run.rows, bare, run.open_plain),
        Case(whole, run.whole_bare, run.rows),
        Case(f"whole file, labrig, process, {name}", partial(run.whole_labrig, "process"), run.rows, whole),
        Case(f"whole file, labrig, power, {name}", partial(run.whole_labrig, "power"), run.rows, whole),
    ]


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Makes the blocks and a folder that goes with the benchmark."""
    rows = 4096 if quick else 32_768
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(Path(folder), Block.of(block), rows // block) for block in (128, 1024)]
        row_bytes = len(runs[0].block.raw) // runs[0].block_rows
        yield Suite(
            f"{rows} MVMs a call, of {SIZE} x {SIZE}, {row_bytes} bytes each",
            "MVM",
            [case for run in runs for case in cases(run)],
        )
        for run in runs:
            await run.close()


if __name__ == "__main__":
    main(Script("benchmarks.recording", prepare, ("numpy", "h5py")))
