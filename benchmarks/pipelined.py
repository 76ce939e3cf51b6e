"""Long batches over a connection that keeps several requests under way, beside the barest client of the same board."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import numpy as np

from benchmarks.bare_frames import bare_frames
from benchmarks.harness import Case
from benchmarks.instant_board import InstantBoardProcess, board_info, instant_board_process
from benchmarks.slow_line import slow_line
from labrig_drivers.board_batches import pieces, vectors_per_request
from labrig_drivers.board_messages import Mvm, MvmAnswer, Welcome
from labrig_drivers.board_protocol import encode
from labrig_drivers.crossbar import FloatArray
from labrig_drivers.instrument import Identity
from labrig_drivers.links import link_from_url
from labrig_drivers.wire_board import WireBoard

VECTORS = 4096
WINDOW = 16
DELAY_S = 2e-3


async def pipelined_cases(stack: AsyncExitStack, rows: int, columns: int, seed: int) -> tuple[list[Case], list[int]]:
    """Cases over a plain loopback and over a line with latency, and the process ids of their servers."""
    info = board_info(rows, columns)
    voltage_v = np.random.default_rng(seed).uniform(info.voltage_min_v, info.voltage_max_v, (VECTORS, rows))
    # What a server of this window says of itself; only the limits matter for how a batch is cut.
    limits = Welcome(1, 1, 4 * 2**20, WINDOW, 0.0, Identity("", "", "", ""), "")
    step = vectors_per_request(info, limits, VECTORS)
    parts = list(pieces(voltage_v, step))
    frames = [encode(Mvm(0, part.astype(np.float32)), index) for index, part in enumerate(parts, start=1)]
    answers = [_answer_bytes(len(part), columns) for part in parts]
    cases, helpers = [], []
    for place, delay_s in (("own core", 0.0), ("same core", 0.0), (f"{1e3 * DELAY_S:g} ms each way", DELAY_S)):
        addresses = []
        for _ in range(4 if delay_s else 2):
            board = await stack.enter_async_context(instant_board_process(rows, columns))
            helpers.append(board.pid)
            if place != "same core":
                _move_away(board)
            addresses.append(board.tcp)
            if delay_s:
                line = await stack.enter_async_context(slow_line(board.tcp, delay_s))
                helpers.append(line.pid)
                addresses[-1] = line.address
        bare = await stack.enter_async_context(bare_frames(addresses[0], info, frames, answers, WINDOW))
        reference = f"bare client, {len(frames)} frames, {WINDOW} ahead, {place}"
        cases.append(Case(reference, bare.run, VECTORS))
        wire = await stack.enter_async_context(WireBoard(link_from_url(addresses[1])))
        await _program(wire)
        cases.append(Case(f"WireBoard, {place}", _batch(wire, [voltage_v]), VECTORS, reference))
        if delay_s:
            one = await stack.enter_async_context(bare_frames(addresses[2], info, frames, answers, 1))
            cases.append(Case(f"bare client, one at a time, {place}", one.run, VECTORS, reference))
            turns = await stack.enter_async_context(WireBoard(link_from_url(addresses[3])))
            await _program(turns)
            cases.append(Case(f"WireBoard, one at a time, {place}", _batch(turns, parts), VECTORS, reference))
    return cases, helpers


def _batch(board: WireBoard, batches: list[FloatArray]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        for voltage_v in batches:
            await board.mvm(0, voltage_v)

    return run


async def _program(board: WireBoard) -> None:
    info = board.info
    await board.program(0, np.full((info.rows, info.columns), info.conductance_max_s / 2.0))


def _answer_bytes(vectors: int, columns: int) -> int:
    code = np.zeros((vectors, columns), np.int16)
    return len(encode(MvmAnswer(0, np.zeros(vectors), code, code > 0), 1))


def _move_away(board: InstantBoardProcess) -> None:
    """Gives a server the cores that this process does not use, as a board has a processor of its own."""
    others = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
    if others:
        os.sched_setaffinity(board.pid, others)
