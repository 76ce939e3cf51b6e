"""One contract, every family of matrices; and the checks find drivers that break it."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from labrig.testing.driver_contract import check_switch_matrix
from labrig_drivers.links import MemoryLink, TcpLink
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.switch_matrix import SimulatedSwitchMatrix, SwitchMatrixServer
from labrig_drivers.scpi_switch import FAMILIES, ChannelNumbers, ScpiSwitchMatrix
from labrig_drivers.switch_matrix import Point, SwitchMatrixInfo, check_points

ROWS, COLUMNS = 6, 8
INFO = SwitchMatrixInfo(ROWS, COLUMNS, 100.0, 0.5, 0.0)
NUMBERS = {
    "agilent": ChannelNumbers(1101),
    "femto": ChannelNumbers(10101),
    "multiple": ChannelNumbers(101, row_step=8),
}


def handler_of(instrument: SimulatedSwitchMatrix) -> Callable[[bytes], bytes]:
    """The instrument as a function from requests to answers; relays take no time."""

    def handle(request: bytes) -> bytes:
        answers = [run_at_once(instrument, line) for line in request.decode("ascii").splitlines()]
        return b"".join(str(answer).encode() + b"\n" for answer in answers if answer is not None)

    return handle


@pytest.mark.parametrize("family", sorted(FAMILIES))
async def test_every_family_keeps_the_contract(family: str) -> None:
    instrument = SimulatedSwitchMatrix(ROWS, COLUMNS, numbers=NUMBERS[family])
    await check_switch_matrix(
        lambda: ScpiSwitchMatrix(MemoryLink(handler_of(instrument)), INFO, NUMBERS[family], commands=FAMILIES[family])
    )
    assert instrument.closed == frozenset()


async def test_a_matrix_on_a_socket_keeps_the_contract() -> None:
    instrument = SimulatedSwitchMatrix(ROWS, COLUMNS, numbers=NUMBERS["agilent"])
    async with SwitchMatrixServer(instrument, time_scale=0.01) as server:
        port = server.port
        await check_switch_matrix(lambda: ScpiSwitchMatrix(TcpLink("127.0.0.1", port), INFO, NUMBERS["agilent"]))


class Deaf(ScpiSwitchMatrix):
    """Says that it has done what it has not."""

    async def open_points(self, points: Collection[Point]) -> None:
        if len(points) == len(check_points(self.info, points, "deaf")) < 4:
            return
        await super().open_points(points)


class MakeOnly(ScpiSwitchMatrix):
    """Connects without opening what is not wanted."""

    async def connect(self, points: Collection[Point]) -> None:
        await self.close_points(points)


class Forgetful(ScpiSwitchMatrix):
    """Leaves its relays closed."""

    async def _end(self) -> None:
        self._ours = frozenset()
        await super()._end()


class Greedy(ScpiSwitchMatrix):
    """Opens everybody's relays when it leaves."""

    async def _end(self) -> None:
        await self.open_all()
        await super()._end()


class Eager(ScpiSwitchMatrix):
    """Changes relays when it is opened."""

    async def open(self) -> None:
        await super().open()
        await self.close_points({(2, 2)})


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Deaf, r"open_points\(\) opens the points"),
        (MakeOnly, r"connect\(\) opens what is not wanted"),
        (Forgetful, r"close\(\) opens every relay that its object closed"),
        (Greedy, r"close\(\) leaves relays that its object did not close"),
        (Eager, r"open\(\) changes no relay"),
    ],
)
async def test_the_checks_find_a_broken_matrix(broken: type[ScpiSwitchMatrix], promise: str) -> None:
    instrument = SimulatedSwitchMatrix(ROWS, COLUMNS, numbers=NUMBERS["agilent"])
    with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
        await check_switch_matrix(lambda: broken(MemoryLink(handler_of(instrument)), INFO, NUMBERS["agilent"]))
