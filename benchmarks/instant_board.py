"""A board that answers at once, behind the board protocol in a process of its own: what is left is the way there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from labrig_drivers.crossbar import (
    BoardInfo,
    FloatArray,
    MvmResult,
    ProgramReport,
    check_mvm_request,
    check_program_request,
)
from labrig_drivers.instrument import Identity
from labrig_drivers.mock.board_server import BoardServer


@dataclass(frozen=True)
class InstantBoard:
    """A `CrossbarBoard` without a chip.

    Attributes:
        info: What it says of itself.
        answer: What every batch is answered, of as many vectors as it holds; None: zeros, for batches of any size.
    """

    info: BoardInfo
    answer: MvmResult | None = None

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return Identity("labrig", "INSTANT", self.info.chip_id, "1.0")

    async def open(self) -> None:
        """Has nothing to open."""

    async def close(self) -> None:
        """Has nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Checks the request, as every board does."""
        check_program_request(self.info, array, conductance_s)
        return ProgramReport(write_index=0, time_s=0.0, pulses=0, rms_error_s=0.0)

    async def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Checks the request and answers."""
        check_mvm_request(self.info, array, voltage_v)
        if self.answer is not None:
            return self.answer
        shape = (voltage_v.shape[0], self.info.columns)
        return MvmResult(
            code=np.zeros(shape, np.int16),
            current_a=np.zeros(shape),
            saturated=np.zeros(shape, np.bool_),
            time_s=np.zeros(shape[0]),
            write_index=0,
        )

    async def read_conductance(self, array: int) -> FloatArray:
        """Answers the lowest conductance for every cell."""
        conductance_s = np.full((self.info.rows, self.info.columns), self.info.conductance_min_s)
        check_program_request(self.info, array, conductance_s)
        return conductance_s


@dataclass(frozen=True)
class InstantBoardProcess:
    """A running server; one of its addresses can be used at a time.

    Attributes:
        tcp: Its link over TCP.
        serial: Its link over a pseudo-terminal.
        pid: Its process id.
    """

    tcp: str
    serial: str
    pid: int


@asynccontextmanager
async def instant_board_process(rows: int, columns: int) -> AsyncIterator[InstantBoardProcess]:
    """Runs the server as a process; it ends with its standard input, also when this process dies."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.instant_board", str(rows), str(columns)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server process has no pipes")
    try:
        tcp, serial = (await process.stdout.readline()).decode().split()
        yield InstantBoardProcess(tcp, serial, process.pid)
    finally:
        process.stdin.close()
        await process.wait()


def board_info(rows: int, columns: int) -> BoardInfo:
    """One array of the given size."""
    return BoardInfo(
        chip_id="INSTANT",
        arrays=1,
        rows=rows,
        columns=columns,
        conductance_min_s=1e-6,
        conductance_max_s=1e-4,
        voltage_min_v=-0.3,
        voltage_max_v=0.3,
        dac_bits=8,
        adc_bits=10,
        adc_full_scale_a=(1e-4,) * columns,
        mvm_latency_s=0.0,
        program_latency_s=0.0,
    )


async def _serve(rows: int, columns: int) -> None:
    async with BoardServer(InstantBoard(board_info(rows, columns))) as server:
        port = await server.start_tcp()
        print(f"tcp://127.0.0.1:{port} serial://{server.start_pty()}", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
