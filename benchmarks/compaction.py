"""Compact copies and exports: against h5py that copies the same rows, with and without the same compression.

The recording is a sweep of the simulated chip, so that it compresses as recordings do. Bare h5py reads every dataset a
few chunks at a time and writes it into a new file, as `h5repack` does: no check before, none after, no hash, no sync.
labrig checks every row before, hashes what it reads, reads the compact copy back, and syncs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig.acquisition import run_sweep
from labrig.config import load_rig, shipped_rig
from labrig.events import EventBus
from labrig.export import export_recording
from labrig.plans import plan_by_name
from labrig.recording import Recording
from labrig.recording.compaction import compact

_BLOCK_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024


@dataclass
class Copies:
    """Copies of one recording; each is removed as soon as it is made.

    Attributes:
        run: The recording.
        size_bytes: How large each kind of copy became.
    """

    run: Path
    size_bytes: dict[str, int]

    def made(self, name: str, suffix: str, make: Callable[[Path], object]) -> None:
        """Makes one copy, notes its size, and removes it."""
        make(self.run.with_name(f"copy{suffix}"))
        paths = list(self.run.parent.glob("copy*"))
        self.size_bytes[name] = sum(path.stat().st_size for path in paths)
        for path in paths:
            path.unlink()

    def bare(self, path: Path, *, compressed: bool) -> None:
        """Copies every dataset with h5py alone."""
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compressed else {}
        with h5py.File(self.run, "r") as source, h5py.File(path, "w") as target:

            def copy(name: str, node: h5py.Group | h5py.Dataset) -> None:
                if isinstance(node, h5py.Group):
                    return
                if not node.chunks or not len(node):
                    source.copy(node, target, name)
                    return
                row_bytes = node.dtype.itemsize * int(np.prod(node.shape[1:]))
                chunk = max(1, min(len(node), _CHUNK_BYTES // row_bytes))
                made = target.create_dataset(name, node.shape, node.dtype, chunks=(chunk, *node.shape[1:]), **options)
                step = chunk * max(1, _BLOCK_BYTES // _CHUNK_BYTES)
                for start in range(0, len(node), step):
                    made[start : start + step] = node[start : start + step]

            source.visititems(copy)

    def read(self) -> None:
        """Checks the recording, as every copy of labrig does first."""
        with Recording.open(self.run) as recording:
            recording.verify()


def cases(copies: Copies, rows: int) -> list[Case]:
    """All ways to make a copy."""
    plain, packed = "bare h5py, as it is", "bare h5py, gzip-1 and shuffle"
    made = copies.made
    found = [
        Case(plain, sync(partial(made, plain, ".h5", partial(copies.bare, compressed=False))), rows),
        Case(packed, sync(partial(made, packed, ".h5", partial(copies.bare, compressed=True))), rows, plain),
        Case("labrig, checksums only", sync(copies.read), rows, plain),
        Case(
            "labrig compact", sync(partial(made, "labrig compact", ".h5", partial(compact, copies.run))), rows, packed
        ),
    ]
    for suffix in (".nc", ".parquet", ".npz", ".csv"):
        name = f"labrig export, {suffix}"
        work = partial(made, name, suffix, partial(export_recording, copies.run))
        found.append(Case(name, sync(work), rows, packed))
    return found


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Sweeps the simulated chip into a folder that goes with the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.h5"
        plan = plan_by_name("mvm", writes=1 if quick else 8, seed=1)
        await run_sweep(load_rig(shipped_rig("mock")), plan, run, EventBus())
        with Recording.open(run) as recording:
            info = recording.info
            rows = sum(recording.summary().mvms.values())
        copies = Copies(run, {})
        size_mb = run.stat().st_size / 1e6
        yield Suite(
            f"a recording of {rows} MVMs of {info.rows} x {info.columns}, {size_mb:.1f} MB", "MVM", cases(copies, rows)
        )
        for name, size in copies.size_bytes.items():
            print(f"{name}: {size / 1e6:.2f} MB, {size / run.stat().st_size:.3f} of the recording")


if __name__ == "__main__":
    main(Script("benchmarks.compaction", prepare, ("numpy", "h5py", "h5netcdf", "pyarrow")))
