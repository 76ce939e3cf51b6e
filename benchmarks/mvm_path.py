"""The way of an MVM: from an array of voltages to an array of currents, along each path that labrig has.

Each path is measured with requests of one vector, as a careless loop sends them, and of 128, as plans and
layers do. The reference is a bare asyncio exchange of the same numbers of bytes with another process: no
checks, no checksum, no chip. "Instant board" speaks the whole protocol but has no chip, as hardware does not
need the time that a simulation takes; "simulated bench" is what `labrig simulate` runs, and "in this process" is the
same chip without a link. Client and servers share one core.

A long batch, which the driver cuts into requests and sends ahead, is compared with a bare client that sends the same
frames with the same window to the same instant board and looks at no answer: with the board's process on the core of
the client, on another one (as a board has a processor of its own), and behind a line that takes 2 ms each way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np

from benchmarks.byte_server import bare_exchange, byte_server
from benchmarks.harness import Case
from benchmarks.instant_board import instant_board_process
from benchmarks.pipelined import pipelined_cases
from benchmarks.report import Script, Suite, main
from labrig_drivers.board_messages import Mvm, MvmAnswer
from labrig_drivers.board_protocol import encode
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, FloatArray, MvmResult
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import link_from_url
from labrig_drivers.mock.bench_process import start_bench_process
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.wire_board import WireBoard

BATCHES = (1, 128)
SUPPLY_V = 1.2
SUPPLY_LIMIT_A = 0.1
SEED = 1


async def powered_board(stack: AsyncExitStack, *, serial: bool) -> tuple[WireBoard, int]:
    """Starts a bench, switches its supply on and opens its board; returns board and process id."""
    bench = stack.enter_context(start_bench_process(seed=SEED))
    meter = await stack.enter_async_context(Keithley2400(link_from_url(bench.addresses.meter_tcp)))
    await meter.configure(source="voltage")
    await meter.set_limit(current_a=SUPPLY_LIMIT_A)
    await meter.set_level(voltage_v=SUPPLY_V)
    await meter.output_on()
    address = bench.addresses.board_serial if serial else bench.addresses.board
    board = await stack.enter_async_context(WireBoard(link_from_url(address)))
    return board, bench.pid


def vectors(info: BoardInfo, batch: int) -> FloatArray:
    """Random inputs over the whole range, `[batch, rows]`."""
    generator = np.random.default_rng(SEED)
    return generator.uniform(info.voltage_min_v, info.voltage_max_v, (batch, info.rows))


def bytes_of(voltage_v: FloatArray, answer: MvmResult) -> tuple[bytes, int]:
    """The request as it goes over the wire, and the number of bytes of its answer."""
    request = encode(Mvm(0, voltage_v.astype(np.float32)), 1)
    reply = MvmAnswer(answer.write_index, answer.time_s, answer.code, answer.saturated)
    return request, len(encode(reply, 1))


def mvm(board: CrossbarBoard, voltage_v: FloatArray) -> Callable[[], Awaitable[None]]:
    """One request to a board."""

    async def run() -> None:
        await board.mvm(0, voltage_v)

    return run


async def open_boards(stack: AsyncExitStack, direct: CrossbarBoard) -> tuple[dict[str, CrossbarBoard], list[int]]:
    """Every board by the name of its path, open and programmed, and the process ids of their servers."""
    # A board serves one host at a time, so each path gets a server of its own.
    boards, helpers = {"MockBoard in this process": direct}, []
    for serial, path in ((False, "TCP"), (True, "a pty")):
        instant = await stack.enter_async_context(instant_board_process(direct.info.rows, direct.info.columns))
        link = link_from_url(instant.serial if serial else instant.tcp)
        boards[f"instant board over {path}"] = await stack.enter_async_context(WireBoard(link))
        simulated, pid = await powered_board(stack, serial=serial)
        boards[f"simulated bench over {path}"] = simulated
        helpers += [instant.pid, pid]
    for board in boards.values():
        info = board.info
        await board.program(0, np.full((info.rows, info.columns), info.conductance_max_s / 2.0))
    return boards, helpers


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:  # noqa: ARG001 - the effort alone makes a run quick
    """Starts the servers, and programs every board with the same pattern."""
    async with AsyncExitStack() as stack:
        direct = await stack.enter_async_context(MockBoard())
        boards, helpers = await open_boards(stack, direct)
        cases: list[Case] = []
        for batch in BATCHES:
            voltage_v = vectors(direct.info, batch)
            request, answer_bytes = bytes_of(voltage_v, await direct.mvm(0, voltage_v))
            server = await stack.enter_async_context(byte_server(len(request), answer_bytes))
            helpers.append(server.pid)
            exchange = await stack.enter_async_context(bare_exchange(server, request, answer_bytes))
            bare = f"bare exchange of {len(request)} + {answer_bytes} bytes, batch {batch}"
            cases.append(Case(bare, exchange.run, batch))
            for name, board in sorted(boards.items(), key=lambda item: item[0].lower()):
                cases.append(Case(f"{name}, batch {batch}", mvm(board, voltage_v), batch, bare))
        long_cases, long_helpers = await pipelined_cases(stack, direct.info.rows, direct.info.columns, SEED)
        cases += long_cases
        helpers += long_helpers
        yield Suite(f"MVMs of {direct.info.rows} x {direct.info.columns}", "MVM", cases, helpers)


if __name__ == "__main__":
    main(Script("benchmarks.mvm_path", prepare, ("numpy", "pyserial"), pin_one_core=True))
