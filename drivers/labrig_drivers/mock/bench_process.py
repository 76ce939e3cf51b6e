"""The simulated bench as a process of its own: `python -m labrig_drivers.mock.bench_process`, and its parent's side.

The process prints one line of JSON: its addresses when everything listens, or `{"error": ...}` and exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from labrig_drivers.errors import LabrigError, LinkError
from labrig_drivers.mock.bench import BenchAddresses, BenchSettings, serve_bench
from labrig_drivers.mock.chip import ChipSettings


class BenchProcess:
    """A running bench in a child process; a context manager that never leaves it behind.

    Made by `start_bench_process`. The child also ends by itself when this process dies, however it dies.
    """

    def __init__(self, process: subprocess.Popen[bytes], addresses: BenchAddresses) -> None:
        self._process = process
        self._addresses = addresses

    @property
    def addresses(self) -> BenchAddresses:
        """Where the bench is reached."""
        return self._addresses

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def stop(self, *, timeout_s: float = 10.0) -> int:
        """Ends the child and waits for it; harmless when it has ended.

        Args:
            timeout_s: How long the child may take to stop cleanly until it is killed.

        Returns:
            Its exit code, 0 after a clean stop.
        """
        return _end(self._process, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()


def start_bench_process(
    *,
    seed: int = 1,
    board_port: int = 0,
    meter_port: int = 0,
    log: Path | None = None,
    timeout_s: float = 30.0,
) -> BenchProcess:
    """Starts a bench in a session of its own, so that Ctrl-C in the terminal does not reach it before its host.

    Args:
        seed: Seed of the chip.
        board_port: TCP port of the board; 0 takes a free one.
        meter_port: TCP port of the source-meter; 0 takes a free one.
        log: JSON-lines file for every event, or None.
        timeout_s: Longest wait for the bench to listen.

    Returns:
        The running bench.

    Raises:
        LinkError: It did not start, for example because a port is in use; nothing is left behind.
    """
    command = [sys.executable, "-m", "labrig_drivers.mock.bench_process", "--stop-with-parent"]
    command += ["--seed", str(seed), "--board-port", str(board_port), "--meter-port", str(meter_port)]
    if log is not None:
        command += ["--log", str(log)]
    # The matrices of one array are too small for threads, which would only fight the host's for the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=environment
    )
    try:
        return BenchProcess(process, _read_addresses(process, timeout_s))
    except BaseException:
        _end(process, 1.0)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a bench in this process until SIGINT or SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m labrig_drivers.mock.bench_process", description=__doc__)
    parser.add_argument("--board-port", type=int, default=0, help="TCP port of the board; 0 takes a free one")
    parser.add_argument("--meter-port", type=int, default=0, help="TCP port of the source-meter; 0 takes a free one")
    parser.add_argument("--seed", type=int, default=1, help="seed of the chip")
    parser.add_argument("--log", type=Path, help="JSON-lines file for every event")
    parser.add_argument(
        "--stop-with-parent", action="store_true", help="stop at the end of standard input, which is a pipe"
    )
    options = parser.parse_args(arguments)
    settings = BenchSettings(
        chip=ChipSettings(seed=options.seed),
        board_port=options.board_port,
        meter_port=options.meter_port,
        log=options.log,
    )
    try:
        asyncio.run(serve_bench(settings, _announce, stop_with_parent=options.stop_with_parent))
    except LabrigError as error:
        _print_line({"error": str(error)})
        return 2
    return 0


def _announce(addresses: BenchAddresses) -> None:
    _print_line(asdict(addresses))


def _print_line(values: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _read_addresses(process: subprocess.Popen[bytes], timeout_s: float) -> BenchAddresses:
    line = _read_line(_pipe(process.stdout), timeout_s)
    try:
        values = json.loads(line)
    except ValueError:
        raise LinkError(f"the simulated bench did not start: it said {line!r}") from None
    if "error" in values:
        raise LinkError(f"the simulated bench did not start: {values['error']}")
    return BenchAddresses(**values)


def _read_line(pipe: IO[bytes], timeout_s: float) -> bytes:
    deadline_s = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise LinkError(f"the simulated bench did not start: no address within {timeout_s:g} s")
        piece = os.read(pipe.fileno(), 4096)
        if not piece:
            raise LinkError("the simulated bench did not start: it ended without a word on standard output")
        line += piece
    return line


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    try:
        process.terminate()
        # The end of its input stops it too.
        with contextlib.suppress(BrokenPipeError):
            _pipe(process.stdin).close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    finally:
        # Also when the waiting was interrupted: a child is never left behind.
        if process.poll() is None:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()
    return process.returncode


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # both were asked for
    return stream


if __name__ == "__main__":
    sys.exit(main())
