"""The way of an MVM: from an array of voltages to an array of currents, along each path that labrig has.

Each path is measured with requests of one vector, as a careless loop sends them, and of 128, as plans and
layers do. The reference is a bare asyncio exchange of the same numbers of bytes with another process: no checks,
no checksum, no chip. The simulated chip takes time of its own, which the case "in this process" shows; a board
made of silicon does not. Client and server share one core.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np

from benchmarks.byte_server import bare_exchange, byte_server
from benchmarks.harness import Case
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


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:  # noqa: ARG001 - the effort alone makes a run quick
    """Starts two benches and the bare server, and programs every board with the same pattern."""
    async with AsyncExitStack() as stack:
        # A board serves one host at a time, so each path gets a bench of its own.
        over_tcp, tcp_pid = await powered_board(stack, serial=False)
        over_pty, pty_pid = await powered_board(stack, serial=True)
        direct = await stack.enter_async_context(MockBoard())
        info = direct.info
        target_s = np.full((info.rows, info.columns), (info.conductance_min_s + info.conductance_max_s) / 2.0)
        for board in (direct, over_tcp, over_pty):
            await board.program(0, target_s)
        cases: list[Case] = []
        helpers = [tcp_pid, pty_pid]
        for batch in BATCHES:
            voltage_v = vectors(info, batch)
            request, answer_bytes = bytes_of(voltage_v, await direct.mvm(0, voltage_v))
            server = await stack.enter_async_context(byte_server(len(request), answer_bytes))
            helpers.append(server.pid)
            exchange = await stack.enter_async_context(bare_exchange(server, request, answer_bytes))
            bare = f"bare exchange of {len(request)} + {answer_bytes} bytes, batch {batch}"
            cases += [
                Case(bare, exchange.run, batch),
                Case(f"MockBoard in this process, batch {batch}", mvm(direct, voltage_v), batch, bare),
                Case(f"WireBoard over TCP, batch {batch}", mvm(over_tcp, voltage_v), batch, bare),
                Case(f"WireBoard over a pty, batch {batch}", mvm(over_pty, voltage_v), batch, bare),
            ]
        yield Suite(f"MVMs of {info.rows} x {info.columns} by each path", "MVM", cases, helpers)


if __name__ == "__main__":
    main(Script("benchmarks.mvm_path", prepare, ("numpy", "pyserial"), pin_one_core=True))
