"""Writing a recording: labrig's `RecordingWriter` against bare h5py and against a plain file.

Each call makes one whole file: created, filled block by block, closed. labrig waits for each block to be
acknowledged before it hands over the next one, which is the strictest way to use it. Bare h5py gets the same
data sets, sized in advance, and a flush after each block, so that it survives the same death of the process,
but neither counter, checksums nor metadata. The plain file gets the same bytes and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig.plans.base import StreamCapacity
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


@dataclass(frozen=True)
class Run:
    """One file's worth of work: `blocks` times the same block, into a folder."""

    folder: Path
    block: Block
    blocks: int

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return int(self.block.voltage_v.shape[0])

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return self.block_rows * self.blocks

    async def labrig(self, durability: Literal["process", "power"]) -> None:
        """Writes it with labrig."""
        path = self.folder / "labrig.h5"
        capacity = {0: StreamCapacity(rows=self.rows, writes=1, blocks=self.blocks)}
        writer = await RecordingWriter.create(
            path, header(), board(), capacity, supply_capacity=1, durability=durability
        )
        async with writer:
            target_s = np.full((SIZE, SIZE), 1e-5)
            await writer.append_write(0, target_s, ProgramReport(0, 0.0, 1, 0.0))
            for number in range(self.blocks):
                await writer.append_mvms(0, 0, self.block.voltage_v, self.block.result, f"{number:032x}")
        path.unlink()

    def bare_h5py(self) -> None:
        """Writes it with h5py alone."""
        path = self.folder / "bare.h5"
        with h5py.File(path, "w") as file:
            sets = {}
            for name, column in self.block.columns.items():
                row = column.shape[1:]
                sets[name] = file.create_dataset(name, (self.rows, *row), column.dtype, chunks=(self.block_rows, *row))
            for number in range(self.blocks):
                start = number * self.block_rows
                for name, column in self.block.columns.items():
                    sets[name][start : start + self.block_rows] = column
                file.flush()
        path.unlink()

    def plain_file(self) -> None:
        """Writes the same bytes into a plain file, one system call for each block."""
        path = self.folder / "plain.bin"
        with path.open("wb", buffering=0) as file:
            for _ in range(self.blocks):
                file.write(self.block.raw)
        path.unlink()


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
    bare = f"bare h5py, flush each, {name}"

    def with_labrig(durability: Literal["process", "power"]) -> Callable[[], Awaitable[None]]:
        return lambda: run.labrig(durability)

    return [
        Case(bare, sync(run.bare_h5py), run.rows),
        Case(f"labrig, durability process, {name}", with_labrig("process"), run.rows, bare),
        Case(f"labrig, durability power, {name}", with_labrig("power"), run.rows, bare),
        Case(f"plain file, {name}", sync(run.plain_file), run.rows, bare),
    ]


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Makes the blocks and a folder that goes with the benchmark."""
    rows = 4096 if quick else 32_768
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(Path(folder), Block.of(block), rows // block) for block in (128, 1024)]
        row_bytes = len(runs[0].block.raw) // runs[0].block_rows
        yield Suite(
            f"Whole recordings of {rows} MVMs of {SIZE} x {SIZE}, {row_bytes} bytes each",
            "MVM",
            [case for run in runs for case in cases(run)],
        )


if __name__ == "__main__":
    main(Script("benchmarks.recording", prepare, ("numpy", "h5py")))
