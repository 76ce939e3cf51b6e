"""One contract, every board: in this process, over TCP, over a serial line. The checks find broken ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.testing.driver_contract import check_crossbar_board
from labrig_drivers.capabilities import STREAMING, TEMPERATURE
from labrig_drivers.commanded import COMMANDED
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, MvmResult, ProgramReport
from labrig_drivers.instrument import Identity
from labrig_drivers.links.serial import SerialLink
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.wire_board import WireBoard

SETTINGS = ChipSettings(seed=3, arrays=2, rows=12, columns=9)


@pytest.fixture
async def server() -> AsyncIterator[BoardServer]:
    # Small frames, so that the long batch of the checks goes in several.
    async with BoardServer(MockBoard(SETTINGS), max_payload_bytes=16_384) as running:
        yield running


async def test_the_board_in_this_process_keeps_the_contract() -> None:
    board = MockBoard(SETTINGS)
    fresh = iter([MockBoard(SETTINGS), board, MockBoard(SETTINGS)])
    await check_crossbar_board(lambda: next(fresh))


async def test_the_board_over_tcp_keeps_the_contract(server: BoardServer) -> None:
    port = await server.start_tcp()
    await check_crossbar_board(lambda: WireBoard(TcpLink("127.0.0.1", port)))


async def test_the_board_over_a_serial_line_keeps_the_contract(server: BoardServer) -> None:
    device = server.start_pty()
    await check_crossbar_board(lambda: WireBoard(SerialLink(device)))


async def test_wire_and_process_give_the_same_codes(server: BoardServer) -> None:
    rng = np.random.default_rng(5)
    # Numbers that float32 holds exactly, as the wire carries no more.
    target_s = rng.uniform(4e-6, 50e-6, (12, 9)).astype(np.float32).astype(np.float64)
    line_v = rng.uniform(-0.3, 0.3, (100, 12)).astype(np.float32).astype(np.float64)
    async with (
        MockBoard(SETTINGS) as board,
        WireBoard(TcpLink("127.0.0.1", await server.start_tcp())) as wire,
    ):
        # The line adds streaming, whatever board is behind it, and has no message for temperature or clock.
        capabilities = board.info.capabilities - {TEMPERATURE, COMMANDED} | {STREAMING}
        assert wire.info == replace(board.info, capabilities=capabilities)
        assert wire.identity == board.identity
        assert await wire.program(1, target_s) == await board.program(1, target_s)
        over_wire, here = await wire.mvm(1, line_v), await board.mvm(1, line_v)
        np.testing.assert_array_equal(over_wire.code, here.code)
        np.testing.assert_array_equal(over_wire.current_a, here.current_a)
        np.testing.assert_array_equal(over_wire.saturated, here.saturated)
        np.testing.assert_array_equal(over_wire.time_s, here.time_s)
        assert over_wire.write_index == here.write_index


def _reversed_order(result: MvmResult) -> MvmResult:
    return replace(result, code=result.code[::-1], current_a=result.current_a[::-1], saturated=result.saturated[::-1])


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (lambda result: replace(result, current_a=2.0 * result.current_a), "code times"),
        (lambda result: replace(result, code=result.code.astype(np.int32)), "code is int16"),
        (lambda result: replace(result, code=result.code[:1]), "shape"),
        (lambda result: replace(result, saturated=~result.saturated), "saturated"),
        (lambda result: replace(result, time_s=result.time_s[::-1]), "time_s"),
        (lambda result: replace(result, write_index=result.write_index + 1), "write_index"),
        (_reversed_order, "order"),
    ],
)
async def test_the_checks_find_a_broken_answer(broken: Callable[[MvmResult], MvmResult], promise: str) -> None:
    with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
        await check_crossbar_board(lambda: _Spoiled(MockBoard(SETTINGS), spoil_mvm=broken))


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (lambda read_s: read_s.T, "shape"),
        (lambda read_s: np.flip(read_s, axis=0), "each in its place"),
        (lambda read_s: read_s.astype(np.float32), "float64"),
    ],
)
async def test_the_checks_find_misplaced_cells(
    broken: Callable[[NDArray[np.float64]], NDArray[np.float64]], promise: str
) -> None:
    with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
        await check_crossbar_board(lambda: _Spoiled(MockBoard(SETTINGS), spoil_read=broken))


async def test_the_checks_find_a_board_that_sends_anything() -> None:
    with pytest.raises(AssertionError, match=r"broken promise: program\(\) .*nothing was raised"):
        await check_crossbar_board(lambda: _Spoiled(MockBoard(SETTINGS), obedient=True))


async def test_the_checks_find_a_wrong_kind_of_refusal() -> None:
    class Blunt(_Spoiled):
        async def mvm(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
            raise IndexError("array")

    with pytest.raises(AssertionError, match=r"mvm\(\) before open\(\): StateError, not IndexError"):
        await check_crossbar_board(lambda: Blunt(MockBoard(SETTINGS)))


class _Spoiled:
    """A good board whose answers are spoiled on the way."""

    def __init__(
        self,
        board: CrossbarBoard,
        *,
        spoil_mvm: Callable[[MvmResult], MvmResult] = lambda result: result,
        spoil_read: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda read_s: read_s,
        obedient: bool = False,
    ) -> None:
        self._board = board
        self._spoil_mvm = spoil_mvm
        self._spoil_read = spoil_read
        self._obedient = obedient

    @property
    def identity(self) -> Identity:
        return self._board.identity

    @property
    def info(self) -> BoardInfo:
        return self._board.info

    async def open(self) -> None:
        await self._board.open()

    async def close(self) -> None:
        await self._board.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def program(self, array: int, conductance_s: NDArray[np.float64]) -> ProgramReport:
        # Refuses only while it is closed.
        if self._obedient and self._board.info.rows:
            return ProgramReport(0, 0.0, 0, 0.0)
        return await self._board.program(array, conductance_s)

    async def mvm(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
        return self._spoil_mvm(await self._board.mvm(array, voltage_v))

    async def read_conductance(self, array: int) -> NDArray[np.float64]:
        return self._spoil_read(await self._board.read_conductance(array))
