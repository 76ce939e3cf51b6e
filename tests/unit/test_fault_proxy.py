"""The fault proxy on real sockets and pseudo-terminals, and the campaign that must find a driver that lies."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from labrig.testing.echo import EchoInstrument
from labrig.testing.fault_campaign import run_campaign, run_cancellations
from labrig.testing.fault_cancellation import CancelAt
from labrig.testing.fault_plan import Fault, FaultPlan, PlannedFault
from labrig.testing.fault_proxy import FaultProxy
from labrig.testing.fault_report import CampaignReport, campaign_table
from labrig.testing.fault_subjects import WrongAnswerError
from labrig_drivers.errors import LinkLostError, LinkTimeoutError, StateError
from labrig_drivers.links import LineFraming, SerialLink, TcpLink

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "testing-your-driver.md"
LINE = LineFraming()
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def talking(*faults: PlannedFault) -> AsyncIterator[tuple[FaultProxy, Streams]]:
    """A host that is connected to an echo instrument, over a line with these faults."""
    async with EchoInstrument() as instrument, FaultProxy(instrument.port, FaultPlan.of(*faults)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        yield proxy, (reader, writer)
        writer.close()


async def said(reader: asyncio.StreamReader, within_s: float = 0.5) -> bytes:
    """The next line, or what there is when the time or the stream has ended."""
    try:
        async with asyncio.timeout(within_s):
            return await reader.readline()
    except TimeoutError:
        return b"(nothing)"


async def test_a_line_without_faults_is_not_there() -> None:
    async with talking() as (proxy, (reader, writer)):
        for number in range(50):
            writer.write(b"SAY %d\n" % number)
            assert await said(reader) == b"%d\n" % number
        assert proxy.injected == []
        assert (proxy.messages("requests"), proxy.messages("answers"), proxy.connections) == (50, 50, 1)


async def test_pipelined_answers_are_swapped() -> None:
    async with talking(PlannedFault(Fault.SWAP, message=0)) as (proxy, (reader, writer)):
        writer.write(b"SAY a\nSAY b\nSAY c\n")
        assert [await said(reader) for _ in range(3)] == [b"b\n", b"a\n", b"c\n"]
        assert proxy.kinds == {Fault.SWAP: 1}
        assert proxy.injected[0].message == b"a\n"


async def test_a_frozen_line_moves_nothing_until_it_thaws() -> None:
    async with talking() as (proxy, (reader, writer)):
        proxy.freeze()
        writer.write(b"SAY a\n")
        assert await said(reader, 0.03) == b"(nothing)"
        proxy.thaw()
        assert await said(reader) == b"a\n"


async def test_a_freeze_for_ever_ends_with_healing() -> None:
    async with talking(PlannedFault(Fault.FREEZE, message=0)) as (proxy, (reader, writer)):
        writer.write(b"SAY a\n")
        assert await said(reader, 0.03) == b"(nothing)"
        await proxy.heal()
        assert await said(reader) == b"a\n"


async def test_half_closed_the_other_way_stays_open() -> None:
    async with talking(PlannedFault(Fault.HALF_CLOSE, message=0)) as (proxy, (reader, writer)):
        writer.write(b"SAY a\n")
        assert await said(reader) == b"a\n"
        assert await said(reader) == b""
        writer.write(b"SAY b\n")
        await writer.drain()
        await asyncio.sleep(0.01)
        assert proxy.messages("requests") == 2


async def test_a_reset_is_a_reset_and_a_cut_is_an_end() -> None:
    async with talking(PlannedFault(Fault.RESET, message=0)) as (_, (reader, writer)):
        writer.write(b"SAY a\n")
        with pytest.raises(ConnectionResetError):
            await said(reader)
    async with talking(PlannedFault(Fault.CUT, byte=2)) as (_, (reader, writer)):
        writer.write(b"SAY abc\n")
        assert await said(reader) == b"ab"


async def test_nobody_can_connect_for_a_while() -> None:
    async with talking(PlannedFault(Fault.REFUSE, message=0, duration_s=0.05)) as (proxy, (reader, writer)):
        writer.write(b"SAY a\n")
        with pytest.raises(ConnectionResetError):
            await said(reader)
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await asyncio.sleep(0.08)
        _, again = await asyncio.open_connection("127.0.0.1", proxy.port)
        again.close()


async def test_refused_until_healed() -> None:
    async with talking() as (proxy, (reader, _)):
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await said(reader)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.heal()
        _, again = await asyncio.open_connection("127.0.0.1", proxy.port)
        again.close()


async def test_refused_until_healed_counts_more_than_refused_for_a_while() -> None:
    async with talking(PlannedFault(Fault.REFUSE, message=0, duration_s=0.05)) as (proxy, (reader, writer)):
        writer.write(b"SAY a\n")
        with pytest.raises(ConnectionResetError):
            await said(reader)
        await proxy.refuse()
        await asyncio.sleep(0.2)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.heal()
        _, other = await asyncio.open_connection("127.0.0.1", proxy.port)
        other.close()


async def test_an_instrument_that_is_not_there_resets() -> None:
    async with EchoInstrument() as instrument:
        port = instrument.port
    async with FaultProxy(port) as proxy:
        link = TcpLink("127.0.0.1", proxy.port)
        await link.open()
        with pytest.raises(LinkLostError):
            await link.exchange(b"SAY a\n", LINE)
        await link.close()


async def test_faults_on_requests() -> None:
    faults = [PlannedFault(Fault.DROP, "requests", message=1), PlannedFault(Fault.DUPLICATE, "requests", message=2)]
    async with talking(*faults) as (proxy, (reader, writer)):
        heard = []
        for text in (b"a", b"b", b"c"):
            writer.write(b"SAY " + text + b"\n")
            heard.append(await said(reader, 0.03))
        assert [*heard, await said(reader)] == [b"a\n", b"(nothing)", b"c\n", b"c\n"]
        assert [one.planned.direction for one in proxy.injected] == ["requests", "requests"]


async def test_a_plan_counts_from_when_it_was_given() -> None:
    async with talking() as (proxy, (reader, writer)):
        writer.write(b"SAY a\n")
        assert await said(reader) == b"a\n"
        proxy.plan = FaultPlan.of(PlannedFault(Fault.NOTICE, message=0, data=b"hot\n"))
        writer.write(b"SAY b\n")
        assert [await said(reader), await said(reader)] == [b"hot\n", b"b\n"]
        assert proxy.messages("answers") == 2
        story = proxy.story()
    assert "PlannedFault(Fault.NOTICE, 'answers', message=0, data=b'hot\\n')" in story


async def test_a_serial_line_with_faults() -> None:
    """Over two pseudo-terminals: an inner line stands for the instrument's port."""
    async with (
        EchoInstrument() as instrument,
        FaultProxy(instrument.port, serial=True) as inner,
        FaultProxy(inner.device, serial=True) as proxy,
    ):
        link = SerialLink(proxy.device)
        await link.open()
        assert await link.exchange(b"SAY a\n", LINE) == b"a"
        proxy.plan = FaultPlan.of(PlannedFault(Fault.DELAY, message=0, duration_s=0.06))
        with pytest.raises(LinkTimeoutError):
            await link.exchange(b"SAY late\n", LINE, timeout_s=0.03)
        await link.reopen()
        assert await link.exchange(b"SAY b\n", LINE) == b"b"
        await link.close()
        assert proxy.kinds == {Fault.DELAY: 1}
        with pytest.raises(StateError, match="no TCP port"):
            _ = proxy.port


async def test_a_serial_line_has_no_connection_to_break() -> None:
    with pytest.raises(ValueError, match="cut, reset"):
        FaultProxy(
            1, FaultPlan.of(*(PlannedFault(fault, message=0) for fault in (Fault.CUT, Fault.RESET))), serial=True
        )
    with pytest.raises(LinkLostError, match="reach"):
        await FaultProxy("/dev/not-a-port", serial=True).start()
    with pytest.raises(StateError, match="no serial device"):
        _ = FaultProxy(1).device


async def test_an_error_of_a_cutter_is_not_hidden() -> None:
    def broken(_: bytearray) -> int:
        raise ZeroDivisionError

    async with EchoInstrument() as instrument:
        proxy = FaultProxy(instrument.port, requests=broken)
        await proxy.start()
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"SAY a\n")
        await asyncio.sleep(0.02)
        with pytest.raises(ZeroDivisionError):
            await proxy.stop()
        writer.close()


class Liar:
    """A driver that keeps no promise from its fifth question on."""

    name, deadline_s, opening_s, period = "liar", 0.05, 0.05, 1

    def __init__(self, misbehave: Callable[[int], None]) -> None:
        self._misbehave = misbehave

    async def open(self) -> None:
        await asyncio.sleep(0)

    async def ask(self, number: int) -> None:
        await asyncio.sleep(0)
        if number == 5:
            self._misbehave(number)

    async def close(self) -> None:
        await asyncio.sleep(0)


def answer_wrongly(number: int) -> None:
    raise WrongAnswerError(f"asked {number}")


def raise_something_else(number: int) -> None:
    raise KeyError(number)


async def found_out(misbehave: Callable[[int], None]) -> CampaignReport:
    async with FaultProxy(1) as proxy:
        report = await run_campaign(Liar(misbehave), proxy, FaultPlan.random(9, 0.1), questions=8)
    with pytest.raises(AssertionError, match=r"question 5.*\n(.*\n)*.*seed 9"):
        report.require_kept()
    return report


async def test_a_wrong_answer_is_found() -> None:
    report = await found_out(answer_wrongly)
    assert (report.wrong, report.calls, report.right) == (1, 12, 11)
    assert re.search(r"liar +0 +0 +12 +11 +0 +0 +0 +1 +1\n", campaign_table([report]))


async def test_another_exception_is_found() -> None:
    report = await found_out(raise_something_else)
    assert (report.wrong, len(report.broken)) == (0, 1)


async def test_a_call_that_hangs_is_found_and_ended() -> None:
    class Hanging(Liar):
        async def ask(self, number: int) -> None:
            await asyncio.sleep(30.0 if number == 5 else 0.0)

    async with FaultProxy(1) as proxy:
        report = await run_campaign(Hanging(answer_wrongly), proxy, FaultPlan(), questions=6)
    assert len(report.broken) == 1
    assert "question 5: was not back" in report.broken[0]


async def test_a_driver_that_gives_a_cancelled_answer_to_the_next_question_is_found() -> None:
    class Late(Liar):
        """The answers of one queue, whoever asks."""

        def __init__(self) -> None:
            super().__init__(answer_wrongly)
            self.answers: list[int] = []

        async def ask(self, number: int) -> None:
            self.answers.append(number)
            await asyncio.sleep(0)
            if (answer := self.answers.pop(0)) != number:
                raise WrongAnswerError(f"asked {number}, got {answer}")

    report = await run_cancellations(Late())
    assert report.cancelled == 1
    assert report.wrong > 0


async def test_a_call_is_cancelled_exactly_where_asked() -> None:
    reached: list[int] = []

    async def steps() -> str:
        for step in range(3):
            reached.append(step)
            await asyncio.sleep(0)
        return "done"

    for suspension, seen in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2])):
        reached.clear()
        with pytest.raises(asyncio.CancelledError):
            await CancelAt(suspension).run(steps())
        assert reached == seen
    cancel = CancelAt(4)
    assert await cancel.run(steps()) == "done"
    assert not cancel.cancelled
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


FAILING_TEST = """
from labrig.testing.echo import EchoInstrument
from labrig.testing.fault_plan import FaultPlan

async def test_mine(fault_proxy):
    async with EchoInstrument() as instrument, fault_proxy(instrument.port, FaultPlan.random(seed=41, rate=0.5)):
        assert False
"""


def test_a_failed_test_tells_how_to_repeat_its_faults(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(FAILING_TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=auto",
        "test_mine.py",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "FaultPlan with seed 41, rate 0.5" in run.stdout


async def test_example_of_the_guide(fault_proxy: Callable[..., FaultProxy]) -> None:
    """The code of the page is run as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Callable[[Callable[..., FaultProxy]], asyncio.Future[None]]] = {}
    exec("".join(block for block in blocks if "fault_proxy" in block), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        await test(fault_proxy)
