"""Memory of a sweep: how much of it a process takes for a million records, and for ten million.

Each sweep is the whole of acquisition with a board in process, as in `benchmarks.acquisition`, in a process of its own:
`run_sweep` makes the recording, measures, and closes it. Three peaks of the resident memory are told, over what the
process had before: while the file is made, while records come in, and until the process ends. The largest sweep takes
ten gigabytes of disk for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.acquisition import ManyBlocks, remembered_rig
from benchmarks.machine import Machine, settle
from benchmarks.recording import Block
from labrig.acquisition import run_sweep
from labrig.events import BlockCommitted, Event, EventBus, RunFinished

MODULE = "benchmarks.memory"
BATCH = 1024
RECORDS = (1_000_000, 10_000_000)
QUICK = (10_240, 102_400)
_MB = 1e6


@dataclass(frozen=True)
class Peaks:
    """What one sweep took.

    Attributes:
        records: Records that were committed.
        seconds: Wall time in s of the sweep, with making and closing the file.
        before_mb: Resident memory before the sweep in MB.
        made_mb: Highest resident memory until the first records were committed, in MB.
        measured_mb: The same until the last ones were.
        ended_mb: The same until the recording was closed.
        file_mb: Size of the recording in MB.
    """

    records: int
    seconds: float
    before_mb: float
    made_mb: float
    measured_mb: float
    ended_mb: float
    file_mb: float


def peak_mb() -> float:
    """Highest resident memory of this process since `forget_peak` in MB (`man 5 proc`, VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith("VmHWM:")]
    return float(line.split()[1]) * 1024 / _MB


def forget_peak() -> None:
    """Begins a new peak at what is resident now (`man 5 proc`, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


async def sweep(records: int, folder: Path) -> Peaks:
    """One sweep in this process."""
    block = Block.of(BATCH)
    path, bus, made_mb, measured_mb = folder / "memory.h5", EventBus(), list[float](), list[float]()

    def hear(event: Event) -> None:
        if isinstance(event, BlockCommitted) and not made_mb:
            made_mb.append(peak_mb())
            forget_peak()
        elif isinstance(event, RunFinished):
            measured_mb.append(peak_mb())
            forget_peak()

    bus.subscribe(hear)
    plan = ManyBlocks(block, -(-records // BATCH))
    forget_peak()
    before_mb, started_s = peak_mb(), time.perf_counter()
    summary = await run_sweep(remembered_rig(block), plan, path, bus)
    seconds = time.perf_counter() - started_s
    return Peaks(summary.mvms, seconds, before_mb, made_mb[0], measured_mb[0], peak_mb(), path.stat().st_size / _MB)


def in_child(records: int) -> Peaks:
    """One sweep in a process of its own."""
    command = [sys.executable, "-m", MODULE, "--child", str(records)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Peaks(**json.loads(done.stdout))


def table(peaks: Sequence[Peaks], machine: Machine, *, quick: bool) -> str:
    """The sweeps as text."""
    lines = [
        "Resident memory of a sweep of 128 x 128, over what the process had before"
        + (" (quick: a check, not a result)" if quick else ""),
        f"{machine.processor}, {machine.cores} cores; {machine.system}; Python {machine.python}",
        f"commit {machine.commit}",
        "",
        f"{'records':>12}{'file MB':>10}{'s':>8}{'before MB':>11}{'making':>9}{'measuring':>11}{'closing':>9}",
    ]
    for one in peaks:
        over = (f"{value - one.before_mb:+.1f}" for value in (one.made_mb, one.measured_mb, one.ended_mb))
        lines.append(
            f"{one.records:>12,}{one.file_mb:>10,.0f}{one.seconds:>8.1f}{one.before_mb:>11.1f}"
            "{:>9}{:>11}{:>9}".format(*over)
        )
    return "\n".join(lines)


def main() -> None:
    """Parses the command line, measures, prints the table and writes the JSON file where one is asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("--quick", action="store_true", help="small sweeps: shows that it works, proves nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    parser.add_argument("--child", type=int, metavar="RECORDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settle(module=MODULE, threads=1, pin_one_core=False)
    if options.child is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(asyncio.run(sweep(options.child, Path(folder))))))
        return
    peaks = [in_child(records) for records in (QUICK if options.quick else RECORDS)]
    machine = Machine.read(("numpy", "h5py"))
    print(table(peaks, machine, quick=options.quick))
    if options.json is not None:
        numbers = {"quick": options.quick, "machine": asdict(machine), "sweeps": [asdict(one) for one in peaks]}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
