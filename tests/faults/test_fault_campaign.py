"""Every driver over a line with every fault: the right answer or a typed error in time, and never a wrong answer.

A new driver of a source-meter is one line in `METERS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import pytest

from labrig.testing.echo import EchoBoard, EchoInstrument
from labrig.testing.fault_campaign import run_campaign, run_cancellations
from labrig.testing.fault_lane import cut_frames
from labrig.testing.fault_plan import BLOCK_MENU, TEXT_LINE_MENU, TEXT_MENU, Fault, FaultMenu, FaultPlan, checked_menu
from labrig.testing.fault_proxy import FaultProxy
from labrig.testing.fault_report import CampaignReport, campaign_table
from labrig.testing.fault_subjects import AxisSubject, BoardSubject, ChannelSubject, SourceMeterSubject, Subject
from labrig_drivers.axis_motion import AxisSettings
from labrig_drivers.board_messages import Pong
from labrig_drivers.board_protocol import encode
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.keithley2450 import Keithley2450
from labrig_drivers.keithley2600 import Keithley2600
from labrig_drivers.keysight_b2900 import KeysightB2900
from labrig_drivers.links import Link, SerialLink, TcpLink, VisaLink
from labrig_drivers.mock.axis_controller import SetPointEvent, SimulatedAxisController
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.instrument_server import InstrumentServer, SimulatedInstrument
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import Load, ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.scpi import ScpiChannel
from labrig_drivers.scpi_axis import ScpiAxis
from labrig_drivers.source_meter import SourceMeter
from labrig_drivers.wire_board import WireBoard

RESISTANCE_OHM = 1000.0
# The levels of the questions end below 5 V, and a ramp takes them in one or two steps.
HIGHEST_V, STEP_V = 5.0, 2.5
TIMEOUT_S = 0.05
# A serial line has to be silent for a tenth of a second before it counts as reopened.
SERIAL_TIMEOUT_S = 0.3
SAFE_T = 1.5
# Where nothing is lost, nothing may run into its deadline, however loaded the machine is.
PATIENT_S = 5.0
# `close()` of a board waits three times for one second at most, then it disconnects all the same.
BOARD_CLOSING_S = 3.0
BOARD_MENU = checked_menu(encode(Pong(0), 2**32 - 1))


class MakesMeter(Protocol):
    def __call__(self, link: Link, *, timeout_s: float, ramp_v_per_s: float, ramp_step_v: float) -> SourceMeter: ...


class MakesInstrument(Protocol):
    def __call__(self, load: Load, *, log: Callable[[OutputEvent], None]) -> SimulatedInstrument: ...


METERS: dict[str, tuple[MakesMeter, MakesInstrument, FaultMenu]] = {
    "keithley2400": (Keithley2400, SimulatedKeithley2400, TEXT_MENU),
    "keithley2450": (Keithley2450, SimulatedKeithley2450, TEXT_MENU),
    "keithley2600": (Keithley2600, SimulatedKeithley2600, BLOCK_MENU),
    "keysight-b2900": (KeysightB2900, SimulatedKeysightB2900, BLOCK_MENU),
}


@dataclass(frozen=True)
class Scene:
    """A driver, the line between it and its instrument, what may happen there, and what the instrument complains of."""

    subject: Subject
    proxy: FaultProxy
    menu: FaultMenu
    rate: float
    judge: Callable[[], list[str]] = list


@asynccontextmanager
async def meter_scene(
    name: str, *, sweep: bool = False, serial: bool = False, timeout_s: float
) -> AsyncIterator[Scene]:
    if name == "keithley2600":
        pytest.importorskip("lupa", reason="the simulated 2600 runs Lua")
    make_meter, make_instrument, menu = METERS[name]
    events: list[OutputEvent] = []
    instrument = make_instrument(ResistorLoad(RESISTANCE_OHM), log=events.append)
    async with (
        InstrumentServer(instrument, time_scale=0.01) as server,
        FaultProxy(server.port, serial=serial) as proxy,
    ):

        def meter() -> SourceMeter:
            link = SerialLink(proxy.device) if serial else TcpLink("127.0.0.1", proxy.port)
            return make_meter(link, timeout_s=timeout_s, ramp_v_per_s=1e5, ramp_step_v=STEP_V)

        suffix = " sweep" * sweep + " serial" * serial
        subject = SourceMeterSubject(
            meter, resistance_ohm=RESISTANCE_OHM, timeout_s=timeout_s, name=name + suffix, sweep=sweep
        )
        yield Scene(subject, proxy, TEXT_LINE_MENU if serial else menu, rate=0.02, judge=lambda: complaints(events))


def complaints(events: list[OutputEvent]) -> list[str]:
    """A level or a step that nobody asked for, or an output that stayed on."""
    found = [f"an output stayed on: {events[-1]}"] if events[-1].output_on else []
    for before, after in pairwise(events):
        step_v = abs(after.voltage_v - before.voltage_v) if before.output_on and after.output_on else 0.0
        if abs(after.voltage_v) > HIGHEST_V or step_v > STEP_V + 1e-9:
            found.append(f"from {before} to {after}")
    return found


@asynccontextmanager
async def axis_scene(*, timeout_s: float) -> AsyncIterator[Scene]:
    settings = AxisSettings(
        "field", "T", 1.0, 5.0, tolerance=1e-6, timeout_s=timeout_s, poll_s=1e-3, safe_value=SAFE_T, max_rate=1e4
    )
    events: list[SetPointEvent] = []
    controller = SimulatedAxisController(2.0, low=0.0, high=6.0, lag_s=1e-9, quantity="FIELd", log=events.append)
    async with InstrumentServer(controller) as server, FaultProxy(server.port) as proxy:

        def axis() -> ScpiAxis:
            link = TcpLink("127.0.0.1", proxy.port)
            query = "MEAS:FIEL?"
            return ScpiAxis(link, settings, set_command="SOUR:FIEL {value}", read_query=query, timeout_s=timeout_s)

        def judge() -> list[str]:
            found = [f"it was sent to {one}" for one in events if not 1.0 <= one.set_point <= 5.0]
            return found if events[-1].set_point == SAFE_T else [*found, f"it was left at {events[-1]}"]

        yield Scene(AxisSubject(axis, timeout_s=timeout_s, name="scpi-axis"), proxy, TEXT_MENU, rate=0.02, judge=judge)


@asynccontextmanager
async def channel_scene(kind: str, *, timeout_s: float) -> AsyncIterator[Scene]:
    async with EchoInstrument() as instrument, FaultProxy(instrument.port, serial=kind == "serial") as proxy:

        def channel() -> ScpiChannel:
            link: Link
            match kind:
                case "tcp":
                    link = TcpLink("127.0.0.1", proxy.port)
                case "serial":
                    link = SerialLink(proxy.device)
                case _:
                    link = VisaLink(f"TCPIP::127.0.0.1::{proxy.port}::SOCKET")
            return ScpiChannel(link, "echo", timeout_s=timeout_s)

        menu = TEXT_LINE_MENU if kind == "serial" else TEXT_MENU
        yield Scene(ChannelSubject(channel, timeout_s=timeout_s, name=f"scpi {kind}"), proxy, menu, rate=0.12)


@asynccontextmanager
async def board_scene(*, serial: bool = False, timeout_s: float) -> AsyncIterator[Scene]:
    board = EchoBoard(think_s=0.002)
    # Frames so short that a batch needs several.
    async with (
        BoardServer(board, max_payload_bytes=512, gap_s=0.5 * timeout_s) as server,
        FaultProxy(
            server.start_pty() if serial else await server.start_tcp(),
            serial=serial,
            requests=cut_frames,
            answers=cut_frames,
        ) as proxy,
    ):

        def wire_board() -> WireBoard:
            link = SerialLink(proxy.device) if serial else TcpLink("127.0.0.1", proxy.port)
            return WireBoard(link, timeout_s=timeout_s)

        subject = BoardSubject(
            wire_board,
            timeout_s=timeout_s,
            opening_s=BOARD_CLOSING_S,
            batch=20,
            name="wire-board" + " serial" * serial,
        )
        yield Scene(subject, proxy, BOARD_LINE_MENU if serial else BOARD_MENU, rate=0.06)


BOARD_LINE_MENU = FaultMenu(
    requests=TEXT_LINE_MENU.requests,
    answers=TEXT_LINE_MENU.answers,
    durations_s=TEXT_LINE_MENU.durations_s,
    checked=True,
    notice=BOARD_MENU.notice,
)


class Stage(Protocol):
    def __call__(self, *, timeout_s: float) -> AbstractAsyncContextManager[Scene]: ...


SCENES: dict[str, Stage] = {
    **{name: partial(meter_scene, name) for name in METERS},
    **{f"{name} sweep": partial(meter_scene, name, sweep=True) for name in METERS},
    "scpi tcp": partial(channel_scene, "tcp"),
    "scpi-axis": axis_scene,
    "wire-board": board_scene,
}
SLOW_SCENES: dict[str, Stage] = {
    "keithley2400 serial": partial(meter_scene, "keithley2400", serial=True),
    "scpi serial": partial(channel_scene, "serial"),
    "scpi visa": partial(channel_scene, "visa"),
    "wire-board serial": partial(board_scene, serial=True),
}
ALL_SCENES = {**SCENES, **SLOW_SCENES}


async def campaign(name: str, seed: int, questions: int) -> CampaignReport:
    async with ALL_SCENES[name](timeout_s=SERIAL_TIMEOUT_S if "serial" in name else TIMEOUT_S) as scene:
        plan = FaultPlan.random(seed, scene.rate, scene.menu)
        report = await run_campaign(scene.subject, scene.proxy, plan, questions=questions)
        report.broken += scene.judge()
        return report


async def campaigns(name: str, *, seeds: range, questions: int) -> CampaignReport:
    """Several at once, since most of the time is spent in waiting for deadlines."""
    reports = await asyncio.gather(*(campaign(name, seed, questions) for seed in seeds))
    total = reports[0]
    for report in reports[1:]:
        total = total + report
    return total


def seems_tested(report: CampaignReport) -> None:
    """A campaign that met no faults, or in which nothing ever worked, proves nothing."""
    assert report.faults > 20
    assert report.errors.total() > 10
    assert report.right > report.calls // 4


@pytest.mark.parametrize("name", SCENES)
async def test_no_wrong_answer_over_a_faulty_line(name: str) -> None:
    report = await campaigns(name, seeds=range(8), questions=50)
    print(campaign_table([report]))
    report.require_kept()
    seems_tested(report)


@pytest.mark.parametrize("name", SLOW_SCENES)
async def test_no_wrong_answer_over_a_faulty_line_of_another_kind(name: str) -> None:
    report = await campaigns(name, seeds=range(8), questions=8)
    print(campaign_table([report]))
    report.require_kept()
    assert report.faults > 5
    assert report.right > report.calls // 4


@pytest.mark.parametrize("fault", TEXT_MENU.answers, ids=lambda fault: fault.value)
@pytest.mark.parametrize("name", ["scpi tcp", "wire-board"])
async def test_each_fault_alone(name: str, fault: Fault) -> None:
    """Both ways where it can be."""
    async with SCENES[name](timeout_s=TIMEOUT_S) as scene:
        requests = (fault,) if fault in scene.menu.requests else ()
        menu = FaultMenu(requests, (fault,), (0.001, 0.08), scene.menu.checked, scene.menu.notice)
        # Faults that only move answers cost no time, and there are more moments for them to do harm.
        questions = 50 if fault in {Fault.DUPLICATE, Fault.STALE, Fault.SWAP, Fault.NOTICE} else 15
        report = await run_campaign(scene.subject, scene.proxy, FaultPlan.random(7, 0.2, menu), questions=questions)
    report.require_kept()
    assert set(report.injected) <= {fault}
    assert report.faults > 0


TURNED = [*((name, 0) for name in (*METERS, "scpi tcp", "wire-board")), ("wire-board", 3)]
CANCELLED = [*((name, 0) for name in SCENES), ("wire-board", 3), ("scpi serial", 0), ("scpi visa", 0)]


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        *((*case, "as it is") for case in CANCELLED),
        *((*case, "in pieces") for case in CANCELLED if "sweep" not in case[0]),
    ],
)
async def test_cancelled_at_every_suspension_the_next_answer_is_right(name: str, kind: int, line: str) -> None:
    """In pieces, a question is also cancelled while it has a part of its answer."""
    async with ALL_SCENES[name](timeout_s=PATIENT_S) as scene:
        if line == "in pieces":
            menu = replace(scene.menu, requests=(), answers=(Fault.SPLIT,))
            scene.proxy.plan = FaultPlan.random(3, 1.0, menu)
        report = await run_cancellations(scene.subject, kind=kind)
        report.broken += scene.judge()
    print(campaign_table([report]))
    report.require_kept()
    assert report.cancelled >= 1


@pytest.mark.parametrize(
    ("name", "kind"), [case for case in CANCELLED if case[0] in {*METERS, "scpi tcp", "wire-board"}]
)
async def test_cancelled_after_any_turn_of_the_loop_the_next_answer_is_right(name: str, kind: int) -> None:
    async with ALL_SCENES[name](timeout_s=PATIENT_S) as scene:
        report = await run_cancellations(scene.subject, kind=kind, turns=True)
        report.broken += scene.judge()
    print(campaign_table([report]))
    report.require_kept()
    assert report.cancelled >= 3


@pytest.mark.nightly
@pytest.mark.timeout(3600)
async def test_a_hundred_thousand_exchanges_over_faulty_lines() -> None:
    reports = []
    for number, name in enumerate(ALL_SCENES):
        questions = 60 if name in SLOW_SCENES else 5000 if name in {"scpi tcp", "wire-board"} else 1500
        reports.append(await campaigns(name, seeds=range(1000 * number, 1000 * number + 16), questions=questions))
    print()
    print(campaign_table(reports))
    for report in reports:
        report.require_kept()
    assert sum(report.requests for report in reports) >= 100_000
