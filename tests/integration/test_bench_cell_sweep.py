"""I-V curves of single cells on a bench of source-meters and relays, on real sockets, judged by the circuit's log."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from labrig.testing.capability_contract import check_capabilities
from labrig_drivers.bench_crossbar import BenchCrossbar
from labrig_drivers.bench_settings import BenchGeometry, BenchSettings, CellRange, ReadSettings
from labrig_drivers.errors import CapabilityError, SafetyError, StateError
from labrig_drivers.keithley2400 import Keithley2400, Keithley2400Dialect
from labrig_drivers.links import TcpLink
from labrig_drivers.mock.bare_crossbar import BareCrossbar, CellSettings
from labrig_drivers.mock.crossbar_bench import NUMBERS, CrossbarBench
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.wired_crossbar import hot_switches
from labrig_drivers.scpi_switch import ScpiSwitchMatrix
from labrig_drivers.source_meter import SourceKind
from labrig_drivers.source_meter_dialect import RawReading
from labrig_drivers.switch_matrix import SwitchMatrixInfo

GEOMETRY = BenchGeometry((1, 2, 3), (4, 5), source_row=1, meter_rows=(2,), ground_row=3)
GATED = BenchGeometry((1, 2, 3), (4, 5), 1, (2,), 3, gate_row=4, gate_columns=(6, 7, 8))
ONE_BIT_LINE = BenchGeometry((1, 2, 3), (4,), source_row=1, meter_rows=(2,), ground_row=3)
READ = ReadSettings(nplc=0.01)
RAMP_V_PER_S = 1000.0
SLOW = 1e-3


def board_on(bench: CrossbarBench, read: ReadSettings = READ) -> BenchCrossbar:
    def meter(port: int, name: str) -> Keithley2400:
        return Keithley2400(TcpLink("127.0.0.1", port), ramp_v_per_s=RAMP_V_PER_S, ramp_step_v=0.05, name=name)

    geometry = bench.geometry
    columns = max(*geometry.word_columns, *geometry.bit_columns, *geometry.gate_columns)
    info = SwitchMatrixInfo(max(geometry.matrix_rows), columns, 100.0, 0.5, settle_s=0.0)
    settings = BenchSettings(geometry, CellRange("CHIP-7", writes_before=1), read)
    return BenchCrossbar(
        meter(bench.word_port, "word"),
        [meter(port, "bit") for port in bench.bit_ports],
        ScpiSwitchMatrix(TcpLink("127.0.0.1", bench.matrix_port), info, NUMBERS),
        settings,
        gate_source=None if geometry.gate_row is None else meter(bench.gate_port, "gate"),
    )


@asynccontextmanager
async def bench_of(geometry: BenchGeometry) -> AsyncIterator[CrossbarBench]:
    """A bench that is judged at the end: nothing was switched hot, everything is off and open."""
    rng = np.random.default_rng(4)
    cells = CellSettings(gate_threshold_v=0.7 if geometry.gate_columns else None)
    crossbar = BareCrossbar(rng.uniform(5e-6, 9e-5, (geometry.rows, geometry.columns)), cells, rng)
    async with CrossbarBench(crossbar, geometry, time_scale=SLOW) as bench:
        yield bench
        assert hot_switches(bench.events) == []
        assert bench.is_safe()


@pytest.mark.parametrize("geometry", [GEOMETRY, GATED, ONE_BIT_LINE], ids=["passive", "gates", "one bit line"])
async def test_the_curve_is_that_of_the_cell_alone(geometry: BenchGeometry) -> None:
    levels_v = [0.0, 0.05, 0.2, 0.1, -0.2, 0.0]
    async with bench_of(geometry) as bench:
        truth_s = bench.crossbar.conductance_s
        async with board_on(bench) as board:
            for row, column in ((0, 0), (2, geometry.columns - 1)):
                readings = await board.sweep_cell(0, row, column, levels_v)
                assert [one.voltage_v for one in readings] == pytest.approx(levels_v, abs=1e-6)
                exact_a = truth_s[row, column] * np.array(levels_v)
                np.testing.assert_allclose([one.current_a for one in readings], exact_a, rtol=2e-6, atol=1e-11)
                assert not any(one.in_compliance for one in readings)
                assert all(before.time_s < after.time_s for before, after in pairwise(readings))


async def test_the_contract_is_kept_by_a_single_bit_line_too() -> None:
    async with bench_of(replace(ONE_BIT_LINE, word_columns=(1, 2))) as bench, board_on(bench) as board:
        await check_capabilities(board)


@pytest.mark.parametrize("geometry", [GEOMETRY, GATED, ONE_BIT_LINE], ids=["passive", "gates", "one bit line"])
async def test_a_limit_is_kept_by_the_instrument_and_told(geometry: BenchGeometry) -> None:
    async with bench_of(geometry) as bench:
        cell_s = bench.crossbar.conductance_s[1, 0]
        limit_a = 0.1 * cell_s
        async with board_on(bench) as board:
            readings = await board.sweep_cell(0, 1, 0, [0.05, 0.2, -0.2, -0.05], limit_a)
        assert [one.in_compliance for one in readings] == [False, True, True, False]
        # The voltage that was measured, not the level, belongs to the current.
        for one in readings[1:3]:
            assert abs(one.voltage_v) < 0.19
            assert abs(one.current_a) == pytest.approx(limit_a, rel=1e-3)
        if geometry is not GEOMETRY:
            assert readings[1].voltage_v == pytest.approx(0.1, rel=1e-3)
        on = [event for event in bench.events if isinstance(event, OutputEvent) and event.output_on]
        own = "word" if geometry is ONE_BIT_LINE else "bit0"
        assert {event.current_limit_a for event in on if event.instrument == own} == {limit_a}
        assert {event.current_limit_a for event in on if event.instrument != own} == {READ.limit_a}


@pytest.mark.parametrize("geometry", [GEOMETRY, ONE_BIT_LINE], ids=["passive", "one bit line"])
async def test_the_word_line_moves_by_its_ramp_and_never_further_than_the_levels(geometry: BenchGeometry) -> None:
    async with bench_of(geometry) as bench:
        async with board_on(bench) as board:
            await board.sweep_cell(0, 1, 0, [0.2, -0.2, 0.01])
        for serial, highest_v in (("word", 0.2), ("bit0", 0.0)):
            events = [one for one in bench.events if isinstance(one, OutputEvent) and one.instrument == serial]
            path_v = [one.voltage_v for one in events if one.output_on]
            assert max(map(abs, path_v)) == highest_v
            assert max(abs(after - before) for before, after in pairwise([0.0, *path_v, 0.0])) <= 0.05 + 1e-9


@pytest.mark.parametrize(("geometry", "inside"), [(GEOMETRY, 0), (ONE_BIT_LINE, 41)], ids=["passive", "one bit line"])
async def test_a_cell_alone_on_its_lines_is_swept_inside_the_instrument(
    geometry: BenchGeometry, inside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[float] = []
    run_sweep = Keithley2400Dialect.run_sweep

    async def watched(
        dialect: Keithley2400Dialect, source: SourceKind, levels: Sequence[float], settle_s: float, timeout_s: float
    ) -> list[RawReading]:
        swept.extend(levels)
        return await run_sweep(dialect, source, levels, settle_s, timeout_s)

    monkeypatch.setattr(Keithley2400Dialect, "run_sweep", watched)
    async with bench_of(geometry) as bench, board_on(bench) as board:
        levels_v = np.linspace(-0.2, 0.2, 41).tolist()
        readings = await board.sweep_cell(0, 1, 0, levels_v)
        exact_a = bench.crossbar.conductance_s[1, 0] * np.array(levels_v)
        np.testing.assert_allclose([one.current_a for one in readings], exact_a, rtol=2e-6, atol=1e-11)
    assert len(swept) == inside


async def test_the_meters_own_offset_is_subtracted() -> None:
    async with bench_of(GEOMETRY) as bench:
        inside, offset_a = bench.wired.terminal_current_a, 40e-9
        bench.wired.terminal_current_a = (  # type: ignore[method-assign]
            lambda serial, voltage_v: inside(serial, voltage_v) - (offset_a if serial == "bit0" else 0.0)
        )
        for subtracts in (True, False):
            async with board_on(bench, replace(READ, subtract_zero=subtracts)) as board:
                (reading,) = await board.sweep_cell(0, 0, 0, [0.1])
            wanted_a = 0.1 * bench.crossbar.conductance_s[0, 0] + (0.0 if subtracts else offset_a)
            assert reading.current_a == pytest.approx(wanted_a, abs=1e-11)


async def test_what_is_refused_was_never_sent() -> None:
    async with bench_of(GEOMETRY) as bench, board_on(bench) as board:
        for limit_a, levels_v in ((2e-3, [0.1]), (None, [0.25]), (-1e-6, [0.1]), (None, [float("nan")])):
            with pytest.raises(SafetyError):
                await board.sweep_cell(0, 0, 0, levels_v, limit_a)
        with pytest.raises(CapabilityError, match="row 3, column 0 does not exist"):
            await board.sweep_cell(0, 3, 0, [0.1])
        assert bench.events == []


@pytest.mark.parametrize("geometry", [GEOMETRY, ONE_BIT_LINE], ids=["passive", "one bit line"])
async def test_cancelled_or_closed_at_any_moment_everything_is_off_and_open(geometry: BenchGeometry) -> None:
    rng, cut = random.Random(3), 0
    async with bench_of(geometry) as bench, board_on(bench) as board:
        levels_v = [0.01 * step for step in range(20)]
        started_s = time.monotonic()
        await board.sweep_cell(0, 1, 0, levels_v)
        whole_s = time.monotonic() - started_s  # so that most moments lie inside, however fast the machine is
        for _ in range(12):
            task = asyncio.create_task(board.sweep_cell(0, 1, 0, levels_v))
            await asyncio.sleep(rng.uniform(0.0, whole_s))
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            cut += isinstance(outcome, asyncio.CancelledError)
            assert bench.is_safe()
        (reading,) = await board.sweep_cell(0, 1, 0, [0.1])
        assert reading.current_a == pytest.approx(0.1 * bench.crossbar.conductance_s[1, 0], rel=1e-5)
        task = asyncio.create_task(board.sweep_cell(0, 1, 0, [0.01] * 10_000))
        await asyncio.sleep(0.1)
        await board.close()
        with pytest.raises(StateError, match="closed"):
            await task
    assert cut >= 3
