"""What a benchmark ran on, how busy that machine was, and how a benchmark gets a quiet corner of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """Conditions of a run, printed above its table and written into its JSON file."""

    processor: str
    cores: int
    pinned_to: tuple[int, ...]
    system: str
    python: str
    commit: str
    versions: Mapping[str, str]

    @classmethod
    def read(cls, packages: Sequence[str]) -> Machine:
        """Reads them; `packages` are the distributions whose versions matter to this benchmark."""
        versions = {"labrig": _version("labrig"), **{name: _version(name) for name in packages}}
        return cls(
            processor=_processor(),
            cores=os.cpu_count() or 1,
            pinned_to=tuple(sorted(os.sched_getaffinity(0))),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            commit=_commit(),
            versions=versions,
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Commit of the checkout, with a mark where files differ from it; `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def settle(*, module: str, threads: int, pin_one_core: bool) -> None:
    """Fixes the number of BLAS threads and, for timings of links, one core for both ends.

    BLAS libraries read their thread count when they are loaded, so the benchmark is started anew with it in
    its environment.
    """
    if pin_one_core:
        # Two processes that wake one another up are steadier on one core than across two.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    wanted = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **wanted})


def _machine_busy_s() -> float:
    """Time in s that all cores together worked since the machine started (`man 5 proc`, /proc/stat)."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _process_busy_s(pid: int) -> float:
    """Processor time in s of another process, 0 when it is gone (/proc/PID/stat, fields 14 and 15)."""
    try:
        # The second field is the command in parentheses and may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class OtherLoad:
    """Measures the work of programs that are no part of the benchmark.

    Attributes:
        helpers: Process ids that belong to the benchmark, such as the simulated bench.
    """

    helpers: Sequence[int] = ()
    clock: Callable[[], float] = time.perf_counter
    _started: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    def start(self) -> None:
        """Begins a round."""
        self._started = (self.clock(), self._others_s())

    def other_cores(self) -> float:
        """Cores kept busy by other programs since `start()`; the kernel counts in steps of 10 ms."""
        then_s, others_s = self._started
        return max(0.0, self._others_s() - others_s) / max(self.clock() - then_s, 1e-9)

    def _others_s(self) -> float:
        own_s = time.process_time() + sum(_process_busy_s(pid) for pid in self.helpers)
        return _machine_busy_s() - own_s
