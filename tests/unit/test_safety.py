"""The envelope: what is refused before anything is sent, and how an output moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.guarded_board import GuardedBoard
from labrig.guarded_source_meter import CURRENT_RAMP_STEPS, RAMP_STEP_S, GuardedSourceMeter
from labrig.safety import BoardEnvelope, BoardLimits, SourceEnvelope, SourceLimits
from labrig_drivers.capabilities import (
    CELL_SWEEP,
    FLOATING_LINES,
    READ_CONDUCTANCE,
    STREAMING,
    TEMPERATURE,
    TRANSPOSED_MVM,
)
from labrig_drivers.commanded import COMMANDED
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.errors import CapabilityError, LinkLostError, SafetyError, StateError
from labrig_drivers.instrument import Identity
from labrig_drivers.mock.board import MOCK_CAPABILITIES, MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.settling import undivided
from labrig_drivers.source_meter import Reading, SourceKind

RAMP_V_PER_S = 20.0
LIMITS = SourceLimits("safety", max_voltage_v=2.0, max_current_a=0.2, max_power_w=0.3, max_ramp_v_per_s=RAMP_V_PER_S)
ENVELOPE = SourceEnvelope("supply", (LIMITS,))
BOARD = BoardEnvelope((BoardLimits("safety", max_read_voltage_v=0.2),))
STEP_V = RAMP_V_PER_S * RAMP_STEP_S


class FakeMeter:
    """Notes every request; fails where it is told to."""

    def __init__(self) -> None:
        self.log: list[tuple[str, float | None]] = []
        self.times_s: list[float] = []
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
        self._note("limit", current_a if voltage_v is None else voltage_v)

    async def set_level(self, *, voltage_v: float | None = None, current_a: float | None = None) -> None:
        self._note("level", current_a if voltage_v is None else voltage_v)

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
        if self.gate is not None:
            await self.gate.wait()
        return [Reading(level, 0.0, in_compliance=False, time_s=0.0) for level in voltage_v or current_a or []]

    async def errors(self) -> list[tuple[int, str]]:
        return []

    def levels(self) -> list[float]:
        return [value for name, value in self.log if name == "level" and value is not None]

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    def _note(self, name: str, value: float | None = None) -> None:
        self.log.append((name, value))
        self.times_s.append(time.monotonic())
        if name == self.fails_at:
            raise LinkLostError(f"lost at {name}")


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


@pytest.fixture
def guarded(meter: FakeMeter) -> GuardedSourceMeter:
    return GuardedSourceMeter(meter, ENVELOPE)


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
        "supply: -2.5 V exceeds safety.max_voltage_v = 2 V",
        "supply: 0.375 W exceeds safety.max_power_w = 0.3 W",
    )
    with pytest.raises(SafetyError, match="nan V exceeds"):
        await guarded.set_level(voltage_v=float("nan"))
    with pytest.raises(SafetyError, match=r"0\.5 A exceeds safety.max_current_a"):
        await guarded.set_limit(current_a=0.5)
    assert meter.log == []


async def test_power_is_judged_in_either_order(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await guarded.set_level(voltage_v=2.0)
    with pytest.raises(SafetyError, match=r"W exceeds safety\.max_power_w"):
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


async def test_tighter_limits_of_one_meter_apply_beside_those_of_the_rig(meter: FakeMeter) -> None:
    own = SourceLimits("source_meters.supply.safety", max_voltage_v=1.0, max_power_w=0.05, max_ramp_v_per_s=5.0)
    envelope = SourceEnvelope("supply", (LIMITS, own))
    assert (envelope.ramp_v_per_s, envelope.ramp_a_per_s) == (5.0, None)
    guarded = GuardedSourceMeter(meter, envelope)
    await guarded.set_limit(current_a=0.1)
    with pytest.raises(SafetyError) as caught:
        await guarded.set_level(voltage_v=1.5)
    assert caught.value.reasons == (
        "supply: 1.5 V exceeds source_meters.supply.safety.max_voltage_v = 1 V",
        "supply: 0.15 W exceeds source_meters.supply.safety.max_power_w = 0.05 W",
    )
    with pytest.raises(SafetyError) as caught:
        await guarded.set_level(voltage_v=3.0)
    assert len(caught.value.reasons) == 3 + 1  # voltage and power, of the rig too where it is exceeded
    assert meter.levels() == []


async def test_many_small_levels_in_a_row_are_a_ramp_too(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await powered(guarded, 0.0)
    begin = len(meter.log)
    for index in range(1, 9):
        await guarded.set_level(voltage_v=index * STEP_V)
    sent = list(zip(meter.times_s[begin:], meter.levels()[-8:], strict=True))
    for index, (early_s, early_v) in enumerate(sent):
        for late_s, late_v in sent[index + 1 :]:
            assert late_v - early_v <= RAMP_V_PER_S * (late_s - early_s) * (1 + 1e-6) + 1e-9


async def powered_current(guarded: GuardedSourceMeter, level_a: float) -> None:
    await guarded.configure(source="current")
    await guarded.set_limit(voltage_v=1.0)
    await guarded.set_level(current_a=level_a)
    await guarded.output_on()


async def test_a_current_comes_on_at_zero_and_is_ramped_in_steps(meter: FakeMeter, guarded: GuardedSourceMeter) -> None:
    await powered_current(guarded, 0.1)
    await guarded.output_off()
    on = meter.names().index("on")
    assert meter.levels()[:2] == [0.1, 0.0]
    sent = [0.0, *[value for name, value in meter.log[on:] if name == "level" and value is not None]]
    assert max(sent) == 0.1
    assert sent[-1] == 0.0
    assert max(abs(after - before) for before, after in pairwise(sent)) <= 0.1 / CURRENT_RAMP_STEPS * (1 + 1e-9)
    with pytest.raises(SafetyError, match=r"0\.3 A exceeds safety\.max_current_a"):
        await guarded.set_level(current_a=0.3)


async def test_a_current_keeps_its_own_ramp_where_the_rig_file_has_one(meter: FakeMeter) -> None:
    own = SourceLimits("source_meters.supply.safety", max_ramp_a_per_s=1.0)
    guarded = GuardedSourceMeter(meter, SourceEnvelope("supply", (LIMITS, own)))
    await powered_current(guarded, 0.025)
    on = meter.names().index("on")
    sent = [value for name, value in meter.log[on:] if name == "level"]
    assert sent == pytest.approx([0.025 / 3, 0.05 / 3, 0.025])


async def test_sweep_of_currents_is_judged_before_and_ramped_between(
    meter: FakeMeter, guarded: GuardedSourceMeter
) -> None:
    await powered_current(guarded, 0.0)
    meter.log.clear()
    with pytest.raises(SafetyError) as caught:
        await guarded.sweep(current_a=[0.0, 0.1, -0.25, 0.1])
    assert caught.value.reasons == ("supply: -0.25 A exceeds safety.max_current_a = 0.2 A",)
    with pytest.raises(SafetyError, match="nan A"):
        await guarded.sweep(current_a=[0.0, float("nan"), 0.1])
    assert meter.log == []
    readings = await guarded.sweep(current_a=[0.0, 0.1])
    assert len(readings) == meter.names().count("measure") == 2
    assert max(abs(after - before) for before, after in pairwise([0.0, *meter.levels()])) <= 0.1 / 20 * (1 + 1e-9)
    meter.log.clear()
    await guarded.sweep(current_a=list(np.linspace(0.1, 0.0, 21)))
    assert meter.names()[-1] == "sweep"


async def test_after_a_cancelled_sweep_the_driver_ramps_from_where_it_stands(
    meter: FakeMeter, guarded: GuardedSourceMeter
) -> None:
    await powered(guarded, 0.0)
    meter.gate = asyncio.Event()
    task = asyncio.create_task(guarded.sweep(voltage_v=[0.0, STEP_V, 2 * STEP_V]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert meter.names()[-1] == "sweep"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    meter.log.clear()
    await guarded.output_off()
    # A level from here would be a jump: only the instrument knows how far the sweep came.
    assert meter.names() == ["off"]


async def test_nothing_is_switched_on_when_its_watch_cannot_stand_ready(meter: FakeMeter) -> None:
    calls: list[str] = []

    async def before_on() -> None:
        calls.append("watch")
        if len(calls) == 1:
            raise StateError("no watchdog")

    async def after_off() -> None:
        calls.append("off" if not meter.on else "still on")

    guarded = GuardedSourceMeter(meter, ENVELOPE, before_on=before_on, after_off=after_off)
    with pytest.raises(StateError, match="no watchdog"):
        await powered(guarded, 0.5)
    assert "on" not in meter.names()
    await guarded.output_on()
    assert meter.on
    await guarded.output_off()
    assert calls == ["watch", "watch", "off"]


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

    task = asyncio.create_task(undivided(fails()))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(LinkLostError):
        await task


async def test_board_keeps_the_envelope_and_its_own_range() -> None:
    board = GuardedBoard(MockBoard(ChipSettings(rows=4, columns=2)), BOARD)
    async with board:
        await board.program(0, np.full((4, 2), 1e-5))
        result = await board.mvm(0, np.full((3, 4), 0.2))
        assert result.code.shape == (3, 2)
        over = np.full((3, 4), 0.2)
        over[1, 2] = -0.25
        with pytest.raises(SafetyError) as caught:
            await board.mvm(0, over)
        assert caught.value.reasons == (
            "1 word line voltage exceeds safety.max_read_voltage_v = 0.2 V (largest 0.25 V)",
        )
        over[0, 0] = 5.0
        with pytest.raises(SafetyError) as caught:
            await board.mvm(0, over)
        assert len(caught.value.reasons) == 2
        with pytest.raises(SafetyError):
            await board.program(0, np.full((4, 2), 1.0))
        with pytest.raises(CapabilityError):
            await board.program(7, np.full((4, 2), 1e-5))
        assert (await board.mvm(0, np.full((1, 4), 0.1))).write_index == 0


async def test_limits_of_one_array_apply_to_it_alone() -> None:
    tight = BoardLimits("board.arrays.1.safety", 0.1, min_conductance_s=8e-6, max_conductance_s=2e-5)
    envelope = BoardEnvelope((*BOARD.limits, BoardLimits("board.safety", max_conductance_s=4e-5)), {1: tight})
    driven: list[str] = []

    async def before_drive() -> None:
        driven.append("watched")

    board = GuardedBoard(MockBoard(ChipSettings(arrays=2, rows=4, columns=2)), envelope, before_drive)
    async with board:
        for array, target_s, count in ((0, 3e-5, 0), (1, 3e-5, 1), (1, 5e-6, 1), (0, 4.5e-5, 1), (1, 4.5e-5, 2)):
            targets_s = np.full((4, 2), target_s)
            if not count:
                await board.program(array, targets_s)
                continue
            with pytest.raises(SafetyError) as caught:
                await board.program(array, targets_s)
            assert len(caught.value.reasons) == count
        with pytest.raises(
            SafetyError, match=r"8 targets exceed board\.arrays\.1\.safety\.max_conductance_s = 2e-05 S"
        ):
            await board.program(1, np.full((4, 2), 3e-5))
        await board.mvm(0, np.full((1, 4), 0.15))
        with pytest.raises(SafetyError, match=r"4 word line voltages exceed board\.arrays\.1\.safety"):
            await board.mvm(1, np.full((1, 4), 0.15))
    assert driven == ["watched"]


class _Declaring(MockBoard):
    """A mock that declares what it is told to; its open lines are lines at 0 V."""

    def __init__(self, declared: frozenset[str]) -> None:
        super().__init__(ChipSettings(rows=4, columns=2), capabilities=MOCK_CAPABILITIES)
        self._declared = declared

    @property
    def info(self) -> BoardInfo:
        return replace(super().info, capabilities=self._declared)

    async def mvm_floating(self, array: int, voltage_v: NDArray[np.float64], driven: NDArray[np.bool_]) -> MvmResult:
        return await self.mvm(array, voltage_v * driven)


async def test_only_what_passes_the_guard_is_declared_behind_it() -> None:
    usual = {CELL_SWEEP, READ_CONDUCTANCE, TEMPERATURE, TRANSPOSED_MVM, COMMANDED}
    for declared, behind in ((usual | {STREAMING}, usual), ({STREAMING, COMMANDED}, {COMMANDED})):
        guarded = GuardedBoard(_Declaring(frozenset(declared)), BOARD)
        async with guarded:
            assert guarded.info.capabilities == behind
            if TEMPERATURE in behind:
                assert await guarded.temperature_k() == 300.0
            else:
                with pytest.raises(CapabilityError, match="does not declare 'temperature'"):
                    await guarded.temperature_k()
                with pytest.raises(CapabilityError, match="does not declare 'cell-sweep'"):
                    await guarded.sweep_cell(0, 0, 0, [0.1])
                with pytest.raises(CapabilityError, match="does not declare 'transposed-mvm'"):
                    await guarded.mvm_transposed(0, np.zeros((1, 2)))
                with pytest.raises(CapabilityError, match="does not declare 'floating-lines'"):
                    await guarded.mvm_floating(0, np.zeros((1, 4)), np.ones(4, dtype=np.bool_))


async def test_lines_driven_backwards_or_left_open_are_held_against_the_envelope() -> None:
    driven: list[str] = []

    async def before_drive() -> None:
        driven.append("watched")

    declared = frozenset({FLOATING_LINES, TRANSPOSED_MVM})
    async with GuardedBoard(_Declaring(declared), BOARD, before_drive) as board:
        with pytest.raises(SafetyError) as caught:
            await board.mvm_transposed(0, np.array([[0.25, 0.5]]))
        assert caught.value.reasons == (
            "1 bit line voltage outside -0.3 to 0.3 V, or not finite (the first is 0.5 V)",
            "2 bit line voltages exceed safety.max_read_voltage_v = 0.2 V (largest 0.5 V)",
        )
        some = np.array([True, False, True, True])
        with pytest.raises(SafetyError, match="1 word line voltage exceeds"):
            await board.mvm_floating(0, np.array([[0.25, 0.0, 0.1, 0.1]]), some)
        with pytest.raises(CapabilityError, match="expected"):
            await board.mvm_transposed(0, np.zeros((1, 4)))
        assert driven == []
        await board.program(0, np.full((4, 2), 1e-5))
        assert driven == ["watched"]
        assert (await board.mvm_transposed(0, np.full((3, 2), 0.1))).code.shape == (3, 4)
        assert len(board.transposed_full_scale_a) == 4
        assert (await board.mvm_floating(0, np.array([[0.1, 0.0, 0.1, 0.1]]), some)).code.shape == (1, 2)


async def test_a_sweep_of_a_cell_is_held_against_every_limit() -> None:
    driven: list[str] = []

    async def before_drive() -> None:
        driven.append("watched")

    envelope = BoardEnvelope(BOARD.limits, sources=SourceLimits("safety", max_current_a=1e-4, max_power_w=1e-5))
    inner = MockBoard(ChipSettings(rows=4, columns=2), capabilities=MOCK_CAPABILITIES)
    async with GuardedBoard(inner, envelope, before_drive) as board:
        await inner.program(0, np.full((4, 2), 1e-5))
        assert await board.temperature_k() == 300.0
        with pytest.raises(SafetyError) as caught:
            await board.sweep_cell(0, 3, 1, [0.1, -0.4], 2e-4)
        assert caught.value.reasons == (
            "1 level outside -0.3 to 0.3 V, or not finite (the first is -0.4 V)",
            "1 word line voltage exceeds safety.max_read_voltage_v = 0.2 V (largest 0.4 V)",
            "0.0002 A exceeds safety.max_current_a = 0.0001 A",
            "8e-05 W exceeds safety.max_power_w = 1e-05 W",
        )
        with pytest.raises(CapabilityError):
            await board.sweep_cell(0, 4, 0, [0.1])
        assert driven == []
        readings = await board.sweep_cell(0, 3, 1, [0.1, -0.2], 5e-5)
        assert [one.voltage_v for one in readings] == [0.1, -0.2]
        assert driven == ["watched"]
