"""The envelope: what is refused before anything is sent, and how an output moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pytest

from labrig.cleanup import finish
from labrig.safety import RAMP_STEP_S, Envelope, GuardedBoard, GuardedSourceMeter
from labrig_drivers.errors import CapabilityError, LinkLostError, SafetyError
from labrig_drivers.instrument import Identity
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.source_meter import Reading, SourceKind

ENVELOPE = Envelope(
    max_voltage_v=2.0, max_current_a=0.2, max_power_w=0.3, max_ramp_v_per_s=20.0, max_read_voltage_v=0.2
)
STEP_V = ENVELOPE.max_ramp_v_per_s * RAMP_STEP_S


class FakeMeter:
    """Notes every request; fails where it is told to."""

    def __init__(self) -> None:
        self.log: list[tuple[str, float | None]] = []
        self.on = False
        self.fails_at: str | None = None
        self.busy = asyncio.Event()
        self.gate: asyncio.Event | None = None

    @property
    def identity(self) -> Identity:
        return Identity("Fake", "2400", "1", "0")

    async def open(self) -> None:
        self._note("open")

    async def close(self) -> None:
        self._note("close")

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def configure(self, *, source: SourceKind, nplc: float = 1.0, wires: Literal[2, 4] = 2) -> None:
        self._note("configure")

    async def set_limit(self, *, current_a: float | None = None, voltage_v: float | None = None) -> None:
        self._note("limit", current_a)

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        self._note("level", voltage_v)

    async def output_on(self) -> None:
        self.on = True
        self._note("on")

    async def output_off(self) -> None:
        self.on = False
        self._note("off")

    async def output_is_on(self) -> bool:
        return self.on

    async def measure(self) -> Reading:
        self.busy.set()
        if self.gate is not None:
            await self.gate.wait()
        self._note("measure")
        return Reading(0.0, 0.0, in_compliance=False, time_s=0.0)

    async def set_ranges(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        pass

    async def sweep(
        self, *, voltage_v: Sequence[float] | None = None, current_a: Sequence[float] | None = None
    ) -> list[Reading]:
        self._note("sweep")
        return [Reading(level, 0.0, in_compliance=False, time_s=0.0) for level in voltage_v or []]

    async def errors(self) -> list[tuple[int, str]]:
        return []

    def levels(self) -> list[float]:
        return [value for name, value in self.log if name == "level" and value is not None]

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    def _note(self, name: str, value: float | None = None) -> None:
        self.log.append((name, value))
        if name == self.fails_at:
            raise LinkLostError(f"lost at {name}")


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


@pytest.fixture
def guarded(meter: FakeMeter) -> GuardedSourceMeter:
    return GuardedSourceMeter(meter, ENVELOPE, "supply")


async def powered(guarded: GuardedSourceMeter, level_v: float) -> None:
    await guarded.configure(source="voltage")
    await guarded.set_limit(current_a=0.1)
    await guarded.set_level(voltage_v=level_v)
    await guarded.output_on()


async def test_every_violated_limit_is_named_and_nothing_is_sent(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await guarded.set_limit(current_a=0.15)
    meter.log.clear()
    with pytest.raises(SafetyError) as caught:
        await guarded.set_level(voltage_v=-2.5)
    assert caught.value.reasons == (
        "supply: -2.5 V exceeds max_voltage_v = 2 V",
        "supply: 0.375 W exceeds max_power_w = 0.3 W",
    )
    with pytest.raises(SafetyError, match="nan V exceeds"):
        await guarded.set_level(voltage_v=float("nan"))
    with pytest.raises(SafetyError, match=r"0\.5 A exceeds max_current_a"):
        await guarded.set_limit(current_a=0.5)
    assert meter.log == []


async def test_power_is_judged_in_either_order(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await guarded.set_level(voltage_v=2.0)
    with pytest.raises(SafetyError, match="W exceeds max_power_w"):
        await guarded.set_limit(current_a=0.2)
    await guarded.set_limit(current_a=0.1)
    assert meter.names() == ["level", "limit"]


async def test_output_comes_on_at_zero_and_moves_by_the_ramp(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await powered(guarded, 1.0)
    on = meter.names().index("on")
    assert [value for name, value in meter.log[:on] if name == "level"][-1] == 0.0
    await guarded.set_level(voltage_v=-0.5)
    await guarded.output_off()
    assert meter.names()[-1] == "off"
    sent = [0.0, *[value for name, value in meter.log[on:] if name == "level" and value is not None]]
    assert 1.0 in sent
    assert -0.5 in sent
    assert sent[-1] == 0.0
    assert max(abs(after - before) for before, after in pairwise(sent)) <= STEP_V * (1 + 1e-9)


async def test_output_is_switched_off_even_when_the_ramp_fails(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await powered(guarded, 1.0)
    meter.fails_at = "level"
    with pytest.raises(LinkLostError):
        await guarded.output_off()
    assert not meter.on


async def test_closing_switches_off_what_is_on_and_disconnects(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await powered(guarded, 1.0)
    meter.fails_at = "off"
    with pytest.raises(LinkLostError):
        await guarded.close()
    assert meter.names()[-2:] == ["off", "close"]


async def test_closing_an_untouched_meter_sends_nothing_to_its_output(
    meter: FakeMeter, guarded: GuardedSourceMeter
) -> None:
    async with guarded:
        pass
    assert meter.names() == ["open", "close"]


async def test_sweep_with_small_steps_runs_in_the_instrument(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await powered(guarded, 0.0)
    readings = await guarded.sweep(voltage_v=[0.0, STEP_V, 2 * STEP_V])
    assert len(readings) == 3
    assert "sweep" in meter.names()
    meter.log.clear()
    await guarded.sweep(voltage_v=[0.0, 1.0])
    assert "sweep" not in meter.names()
    assert max(abs(after - before) for before, after in pairwise([2 * STEP_V, *meter.levels()])) <= STEP_V * (1 + 1e-9)
    with pytest.raises(SafetyError):
        await guarded.sweep(voltage_v=[0.0, 3.0])


async def test_cancelling_never_cuts_an_exchange_in_two(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    meter.gate = asyncio.Event()
    task = asyncio.create_task(guarded.measure())
    await meter.busy.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    meter.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert meter.names() == ["measure"]


async def test_finish_lets_a_failure_outrank_the_cancellation() -> None:
    gate = asyncio.Event()

    async def fails() -> None:
        await gate.wait()
        raise LinkLostError("output may be on")

    task = asyncio.create_task(finish(fails()))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(LinkLostError):
        await task


async def test_board_keeps_the_envelope_and_its_own_range() -> None:
    board = GuardedBoard(MockBoard(ChipSettings(rows=4, columns=2)), ENVELOPE)
    async with board:
        await board.program(0, np.full((4, 2), 1e-5))
        result = await board.mvm(0, np.full((3, 4), 0.2))
        assert result.code.shape == (3, 2)
        over = np.full((3, 4), 0.2)
        over[1, 2] = -0.25
        with pytest.raises(SafetyError) as caught:
            await board.mvm(0, over)
        assert caught.value.reasons == ("1 word line voltages exceed max_read_voltage_v = 0.2 V (largest 0.25 V)",)
        over[0, 0] = 5.0
        with pytest.raises(SafetyError) as caught:
            await board.mvm(0, over)
        assert len(caught.value.reasons) == 2
        with pytest.raises(SafetyError):
            await board.program(0, np.full((4, 2), 1.0))
        with pytest.raises(CapabilityError):
            await board.program(7, np.full((4, 2), 1e-5))
        assert (await board.mvm(0, np.full((1, 4), 0.1))).write_index == 0
