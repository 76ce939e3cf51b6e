"""The SCPI matrix driver: what it sends, what it reads back, and what it does when a relay or the link fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from labrig_drivers.errors import (
    CapabilityError,
    ConfigError,
    IdentityError,
    InstrumentError,
    LinkError,
    ProtocolError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links import MemoryLink, TcpLink
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.switch_matrix import SimulatedSwitchMatrix, SwitchEvent, SwitchMatrixServer
from labrig_drivers.scpi_switch import FAMILIES, ChannelNumbers, ScpiSwitchMatrix
from labrig_drivers.switch_matrix import SwitchMatrixInfo

INFO = SwitchMatrixInfo(4, 8, 100.0, 0.5, 0.0)
NUMBERS = ChannelNumbers(1101)


class Place:
    """A matrix in this process, what was said to it, and what its relays did."""

    def __init__(self, *, reads_contacts: bool = True, numbers: ChannelNumbers = NUMBERS) -> None:
        self.lines: list[str] = []
        self.events: list[SwitchEvent] = []
        self.numbers = numbers
        self.instrument = SimulatedSwitchMatrix(
            4, 8, numbers=numbers, reads_contacts=reads_contacts, log=self.events.append
        )

    def handle(self, request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            self.lines.append(line)
            answer = run_at_once(self.instrument, line)
            answers += b"" if answer is None else str(answer).encode() + b"\n"
        return answers

    def matrix(self, family: str = "agilent", expected: ExpectedIdentity | None = None) -> ScpiSwitchMatrix:
        link = MemoryLink(self.handle)
        return ScpiSwitchMatrix(link, INFO, self.numbers, commands=FAMILIES[family], expected=expected, name="relays")


@pytest.mark.parametrize(
    ("family", "numbers", "close", "state", "open_all"),
    [
        ("agilent", ChannelNumbers(5101), ":ROUT:CLOS (@5101,5208)", ":ROUT:CLOS? (@5101,5208)", ":ROUT:OPEN:ALL"),
        ("femto", ChannelNumbers(10101), ":ROUT:CLOS (@10101,10208)", ":ROUT:CLOS? (@10101,10208)",
         ":ROUT:OPEN:CARD ALL"),
        ("agilent", ChannelNumbers(10000), ":ROUT:CLOS (@10000,10107)", ":ROUT:CLOS? (@10000,10107)",
         ":ROUT:OPEN:ALL"),
        ("agilent", ChannelNumbers(111, 10), ":ROUT:CLOS (@111,128)", ":ROUT:CLOS? (@111,128)", ":ROUT:OPEN:ALL"),
        ("multiple", ChannelNumbers(101, 8), ":ROUT:MULT:CLOS (@101,116)", ":ROUT:MULT:CLOS:STAT? (@101,116)",
         ":ROUT:OPEN:ALL"),
    ],
)  # fmt: skip
async def test_each_family_is_spoken_as_its_manual_prints_it(
    family: str, numbers: ChannelNumbers, close: str, state: str, open_all: str
) -> None:
    place = Place(numbers=numbers)
    async with place.matrix(family) as matrix:
        place.lines.clear()
        await matrix.close_points({(1, 1), (2, 8)})
        assert place.lines == [close, ":SYST:ERR?", state]
        place.lines.clear()
        await matrix.open_all()
        assert place.lines[:2] == [open_all, ":SYST:ERR?"]
    assert place.instrument.closed == frozenset()


async def test_long_lists_go_in_lines_of_fifty() -> None:
    place = Place()
    points = {(row, column) for row in range(1, 5) for column in range(1, 9)}
    wide = SwitchMatrixInfo(8, 32, 100.0, 0.5, 0.0)
    place.instrument = SimulatedSwitchMatrix(8, 32, log=place.events.append)
    async with ScpiSwitchMatrix(MemoryLink(place.handle), wide, NUMBERS) as matrix:
        assert await matrix.closed_points() == frozenset()
        await matrix.connect(points)
        assert await matrix.closed_points() == points
    assert max(line.count(",") for line in place.lines) == 49


async def test_connect_breaks_before_it_makes() -> None:
    place = Place()
    async with place.matrix() as matrix:
        await matrix.connect({(1, 1), (2, 2), (3, 3)})
        place.events.clear()
        await matrix.connect({(1, 2), (2, 1), (3, 3)})
        moved = [(event.row, event.column, event.closed) for event in place.events]
    assert sorted(moved[:2]) == [(1, 1, False), (2, 2, False)]
    assert sorted(moved[2:4]) == [(1, 2, True), (2, 1, True)]
    assert (3, 3, False) not in moved[:4]


@pytest.mark.parametrize(("closed", "word"), [(True, "closed"), (False, "open")])
async def test_a_stuck_relay_is_found_and_named(*, closed: bool, word: str) -> None:
    place = Place()
    matrix = place.matrix()
    await matrix.open()
    if closed:
        await matrix.close_points({(2, 3), (1, 1)})
    place.instrument.stick((2, 3), closed=closed)
    with pytest.raises(
        InstrumentError, match=rf"relays: error -240 \(.*\(2, 3\) are {word} and should not be"
    ) as caught:
        await matrix.connect({(1, 2)} if closed else {(2, 3), (1, 2)})
    assert caught.value.code == -240
    if closed:
        # Nothing was made while the contact that had to break was still closed.
        assert (1, 2) not in place.instrument.closed
        with pytest.raises(InstrumentError, match=r"\(2, 3\) are closed"):
            await matrix.open_all()
    else:
        await matrix.close()
        assert place.instrument.closed == frozenset()


async def test_a_mainframe_that_only_remembers_hides_a_stuck_relay() -> None:
    """Why the guide tells to test the relays of such a mainframe by other means."""
    place = Place(reads_contacts=False)
    async with place.matrix() as matrix:
        place.instrument.stick((2, 3), closed=True)
        await matrix.connect({(1, 1)})
        assert await matrix.closed_points() == {(1, 1)}
        assert place.instrument.closed == {(1, 1), (2, 3)}


async def test_a_refusal_of_the_instrument_is_an_error() -> None:
    place = Place(numbers=ChannelNumbers(2101))
    link = MemoryLink(place.handle)
    async with ScpiSwitchMatrix(link, INFO, NUMBERS, name="relays") as matrix:
        with pytest.raises(InstrumentError, match=r"-222 .* after ':ROUT:CLOS \(@1101\)'"):
            await matrix.close_points({(1, 1)})
        await matrix.errors()
        # Nothing of this object can be closed: the instrument has no such relay.
        place.numbers = NUMBERS
        place.instrument = SimulatedSwitchMatrix(4, 8, numbers=NUMBERS)


async def test_points_that_do_not_exist_are_named_before_anything_is_sent() -> None:
    place = Place()
    async with place.matrix() as matrix:
        place.lines.clear()
        with pytest.raises(CapabilityError, match=r"\(0, 1\), \(5, 1\).*rows 1 to 4 and columns 1 to 8"):
            await matrix.connect({(1, 1), (0, 1), (5, 1)})
        assert place.lines == []


async def test_a_wrong_identity_is_refused_and_the_link_closed() -> None:
    place = Place()
    matrix = place.matrix(expected=ExpectedIdentity(serial="another"))
    with pytest.raises(IdentityError, match="another"):
        await matrix.open()
    with pytest.raises(StateError):
        await matrix.closed_points()
    assert place.lines == ["*IDN?", "*OPC?"]


@pytest.mark.parametrize(
    "answer", [b"1,2\n", b"1\n", b"1,0,0\n", b"yes,no\n", b"\n"], ids=["2", "too few", "too many", "words", "empty"]
)
async def test_a_readback_that_makes_no_sense_is_no_readback(answer: bytes) -> None:
    place = Place()

    def handle(request: bytes) -> bytes:
        return answer if b"CLOS?" in request else place.handle(request)

    matrix = ScpiSwitchMatrix(MemoryLink(handle), INFO, NUMBERS, name="relays")
    await matrix.open()
    with pytest.raises(ProtocolError, match="relays"):
        await matrix.close_points({(1, 1), (1, 2)})
    with pytest.raises(ProtocolError, match="relays"):
        await matrix.close()


async def test_relays_are_opened_over_a_new_connection_when_the_old_one_broke() -> None:
    instrument = SimulatedSwitchMatrix(4, 8, numbers=NUMBERS)
    server = SwitchMatrixServer(instrument, time_scale=0.01)
    await server.start()
    matrix = ScpiSwitchMatrix(TcpLink("127.0.0.1", server.port), INFO, NUMBERS)
    await matrix.open()
    await matrix.close_points({(1, 1), (4, 8)})
    port = server.port
    await server.stop()
    with pytest.raises(LinkError):
        await matrix.closed_points()
    await server.start(port=port)
    await matrix.close()
    assert instrument.closed == frozenset()
    await server.stop()


async def test_a_cancelled_close_points_is_undone_at_the_end() -> None:
    instrument = SimulatedSwitchMatrix(4, 8, numbers=NUMBERS, operate_s=0.05)
    async with SwitchMatrixServer(instrument) as server:
        matrix = ScpiSwitchMatrix(TcpLink("127.0.0.1", server.port), INFO, NUMBERS)
        await matrix.open()
        task = asyncio.create_task(matrix.close_points({(2, 2)}))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await matrix.close()
        # The command was on its way: the relay may have closed, and is open now.
        assert instrument.closed == frozenset()


Make = Callable[[dict[str, object]], ScpiSwitchMatrix]


@pytest.fixture
def make() -> Make:
    return lambda settings: ScpiSwitchMatrix.from_settings(
        MemoryLink(Place().handle), ExpectedIdentity(), "matrix", settings
    )


async def test_settings_make_the_matrix(make: Make) -> None:
    settings: dict[str, object] = {"rows": 4, "columns": 8, "first_channel": 1101, "settle_s": 1e-3, "voltage_v": 42}
    async with make(settings) as matrix:
        assert matrix.info == SwitchMatrixInfo(4, 8, 42.0, 0.5, 1e-3)


def test_every_fault_of_the_settings_is_named(make: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        make({"rows": 0, "columns": True, "family": "tsp", "settle_s": -1.0, "colour": "red"})
    assert str(caught.value).splitlines() == [
        "matrix.settings.rows: 0 is not a whole number of at least 1",
        "matrix.settings.columns: true is not a whole number of at least 1",
        "matrix.settings.settle_s: -1.0 is not a positive number",
        "matrix.settings.first_channel: is missing; a whole number of at least 0 is needed",
        "matrix.settings.family: 'tsp' is not one of agilent, femto, multiple",
        "matrix.settings.colour: unknown key; known are columns, current_a, family, first_channel, row_step, rows, "
        "settle_s, voltage_v",
    ]


def test_columns_must_fit_between_the_rows_numbers(make: Make) -> None:
    with pytest.raises(ConfigError, match="9 columns do not fit into steps of 8"):
        make({"rows": 2, "columns": 9, "first_channel": 101, "row_step": 8})
