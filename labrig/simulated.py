"""A simulated bench in a process of its own, with the rig file to reach it by: for the demo and for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labrig.config import load_rig, shipped_rig
from labrig_drivers.errors import LinkError
from labrig_drivers.mock.bench_process import BenchProcess, start_bench_process

# The ports and the chip of rig_configs/simulated_bench.toml.
_BOARD_PORT, _METER_PORT, _SEED = 15731, 15025, 1


@dataclass(frozen=True)
class RunningBench:
    """A bench that runs now.

    Attributes:
        rig_file: Rig file with its addresses.
        serial_device: The board's link over its pty, for rig files.
        log: JSON lines of every event on the bench.
        pid: Process id of the bench.
    """

    rig_file: Path
    serial_device: str
    log: Path
    pid: int


@contextmanager
def simulated_bench(folder: Path, *, seed: int = _SEED, standard_ports: bool = False) -> Iterator[RunningBench]:
    """Runs a bench as long as the block lasts.

    Args:
        folder: Gets `rig.toml` (the shipped rig file, with this bench's addresses) and `bench.log`.
        seed: Seed of the chip.
        standard_ports: Whether to take the ports of the shipped rig file where they are free.

    Raises:
        LinkError: The bench did not start.
    """
    log = folder / "bench.log"
    with _start(seed, log, standard_ports) as bench:
        shipped = load_rig(shipped_rig("simulated_bench"))
        text = shipped.source_text
        replacements = {
            str(shipped.board.link): bench.addresses.board,
            shipped.source_meters["supply"].link: bench.addresses.meter,
            f"SIM-{_SEED:04d}": f"SIM-{seed:04d}",
        }
        for old, new in replacements.items():
            text = text.replace(old, new)
        rig_file = folder / "rig.toml"
        rig_file.write_text(text, encoding="utf-8")
        yield RunningBench(rig_file, bench.addresses.board_serial, log, bench.pid)


def _start(seed: int, log: Path, standard_ports: bool) -> BenchProcess:
    if standard_ports:
        try:
            return start_bench_process(seed=seed, board_port=_BOARD_PORT, meter_port=_METER_PORT, log=log)
        except LinkError:
            # Another bench runs there: free ports do as well, and the rig file beside the results names them.
            log.unlink(missing_ok=True)
    return start_bench_process(seed=seed, log=log)
