"""A crossbar made of source-meters and a switch matrix, on real sockets: contract, physics, programming, safety."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.testing.driver_contract import check_crossbar_board
from labrig_drivers import bench_config
from labrig_drivers.bench_codes import ProgramProgress
from labrig_drivers.bench_crossbar import BenchCrossbar
from labrig_drivers.bench_lines import BenchLines
from labrig_drivers.bench_settings import BenchGeometry, BenchSettings, CellRange, PulseSettings, ReadSettings
from labrig_drivers.errors import (
    CapabilityError,
    ConfigError,
    IdentityError,
    InstrumentError,
    LabrigError,
    SafetyError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.links import TcpLink
from labrig_drivers.mock.bare_crossbar import BareCrossbar, CellSettings
from labrig_drivers.mock.crossbar_bench import NUMBERS, CrossbarBench
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.switch_matrix import SwitchEvent
from labrig_drivers.mock.wired_crossbar import hot_switches
from labrig_drivers.scpi_switch import ScpiSwitchMatrix
from labrig_drivers.switch_matrix import SwitchMatrixInfo

FloatArray = NDArray[np.float64]

# 4 word lines, 3 bit lines, 2 meters: bit lines are measured in two groups of different sizes.
GEOMETRY = BenchGeometry((2, 3, 4, 5), (7, 8, 9), source_row=1, meter_rows=(2, 4), ground_row=3)
GATED = replace(GEOMETRY, gate_row=5, gate_columns=(10, 11, 12, 1))
READ = ReadSettings(nplc=0.01, full_scale_a=100e-6)
PULSE = PulseSettings(width_s=0.0, tolerance_s=3e-6, limit_a=2e-3)
SETTINGS = BenchSettings(GEOMETRY, CellRange("CHIP-7", writes_before=1), READ, PULSE)
SLOW = 1e-3


def crossbar(geometry: BenchGeometry = GEOMETRY, cells: CellSettings | None = None, seed: int = 1) -> BareCrossbar:
    rng = np.random.default_rng(seed)
    return BareCrossbar(rng.uniform(5e-6, 9e-5, (geometry.rows, geometry.columns)), cells or CellSettings(), rng)


def board_on(
    bench: CrossbarBench,
    settings: BenchSettings = SETTINGS,
    *,
    expected: ExpectedIdentity | None = None,
    progress: Callable[[ProgramProgress], None] | None = None,
    rated_v: float = 100.0,
) -> BenchCrossbar:
    def meter(port: int, name: str) -> Keithley2400:
        return Keithley2400(TcpLink("127.0.0.1", port), ramp_v_per_s=1000.0, ramp_step_v=0.5, name=name)

    geometry = bench.geometry
    columns = max(*geometry.word_columns, *geometry.bit_columns, *geometry.gate_columns)
    info = SwitchMatrixInfo(max(geometry.matrix_rows), columns, rated_v, 0.5, settle_s=0.0)
    return BenchCrossbar(
        meter(bench.word_port, "word"),
        [meter(port, f"bit{index}") for index, port in enumerate(bench.bit_ports)],
        ScpiSwitchMatrix(TcpLink("127.0.0.1", bench.matrix_port), info, NUMBERS),
        settings,
        gate_source=None if geometry.gate_row is None else meter(bench.gate_port, "gate"),
        expected=expected,
        progress=progress,
    )


@asynccontextmanager
async def judged(bench: CrossbarBench) -> AsyncIterator[CrossbarBench]:
    """Serves the bench and judges by its log alone: nothing switched hot, everything off and open at the end."""
    async with bench:
        yield bench
        assert hot_switches(bench.events) == []
        assert bench.is_safe()


@pytest.fixture
async def bench() -> AsyncIterator[CrossbarBench]:
    async with judged(CrossbarBench(crossbar(), GEOMETRY, time_scale=SLOW)) as running:
        yield running


async def test_the_bench_keeps_the_contract() -> None:
    # Small, as the checks ask for 1,500 vectors in one batch, and each is read line by line.
    geometry = BenchGeometry((1, 2), (3, 4), source_row=1, meter_rows=(2, 3), ground_row=4)
    settings = replace(SETTINGS, geometry=geometry, cells=CellRange("CHIP-7"))
    async with judged(CrossbarBench(crossbar(geometry), geometry, time_scale=SLOW)) as bench:
        await check_crossbar_board(lambda: board_on(bench, settings))


async def test_an_mvm_is_the_product_within_the_resolution(bench: CrossbarBench) -> None:
    line_v = np.random.default_rng(2).uniform(-0.2, 0.2, (6, 4))
    line_v[0], line_v[1, 1:], line_v[2, 2] = 0.0, 0.0, 0.0
    async with board_on(bench) as board:
        result = await board.mvm(0, line_v)
        step_a = board.info.adc_lsb_a
    exact_a = line_v @ bench.crossbar.conductance_s
    # Half a step of the code, and seven digits of each of four readings and as many zeros.
    np.testing.assert_allclose(result.current_a, exact_a, atol=0.5 * step_a[0] + 8 * 5e-7 * 2e-5)
    assert not result.saturated.any()
    assert (result.write_index, result.code[0].tolist()) == (0, [0, 0, 0])


async def test_reading_cells_finds_the_truth(bench: CrossbarBench) -> None:
    async with board_on(bench) as board:
        read_s = await board.read_conductance(0)
    np.testing.assert_allclose(read_s, bench.crossbar.conductance_s, rtol=2e-6)


async def test_the_same_bench_with_floating_lines_reads_the_sneak_paths_too() -> None:
    """Why the unselected lines are grounded: the instruments of the bench, by hand, with the other lines open."""
    geometry = BenchGeometry((1, 2), (3, 4), source_row=1, meter_rows=(2,), ground_row=3)
    info = SwitchMatrixInfo(3, 4, 100.0, 0.5, 0.0)
    async with judged(CrossbarBench(crossbar(geometry), geometry, time_scale=SLOW)) as bench:
        async with (
            Keithley2400(TcpLink("127.0.0.1", bench.word_port), ramp_v_per_s=1000.0) as word,
            Keithley2400(TcpLink("127.0.0.1", bench.bit_ports[0]), ramp_v_per_s=1000.0) as bit,
            ScpiSwitchMatrix(TcpLink("127.0.0.1", bench.matrix_port), info, NUMBERS) as matrix,
        ):
            await matrix.connect({(1, 1), (2, 3)})
            for meter, level_v in ((word, 0.2), (bit, 0.0)):
                await meter.configure(source="voltage", nplc=0.01)
                await meter.set_limit(current_a=1e-3)
                await meter.set_level(voltage_v=level_v)
                await meter.output_on()
            found_a = -(await bit.measure()).current_a
            await word.output_off()
            await bit.output_off()
        g = bench.crossbar.conductance_s
        sneak_s = 1.0 / (1.0 / g[0, 1] + 1.0 / g[1, 1] + 1.0 / g[1, 0])
        assert found_a == pytest.approx(0.2 * (g[0, 0] + sneak_s), rel=2e-6)
        async with board_on(bench, replace(SETTINGS, geometry=geometry)) as board:
            (current_a,) = (await board.mvm(0, np.array([[0.2, 0.0]]))).current_a
        assert current_a[0] == pytest.approx(0.2 * g[0, 0], abs=2e-9)
        assert sneak_s > 0.05 * g[0, 0]


@pytest.mark.parametrize("subtracts", [True, False])
async def test_the_meters_own_offset_is_subtracted(bench: CrossbarBench, *, subtracts: bool) -> None:
    inside, offset_a = bench.wired.terminal_current_a, 40e-9
    bench.wired.terminal_current_a = (  # type: ignore[method-assign]
        lambda serial, voltage_v: inside(serial, voltage_v) - (offset_a if serial == "bit1" else 0.0)
    )
    async with board_on(bench, replace(SETTINGS, read=replace(READ, subtract_zero=subtracts))) as board:
        (current_a,) = (await board.mvm(0, np.full((1, 4), 0.1))).current_a
    error_a = current_a - 0.1 * bench.crossbar.conductance_s.sum(axis=0)
    # Each word line's reading carries it once more.
    np.testing.assert_allclose(error_a, [0.0, 0.0 if subtracts else 4 * offset_a, 0.0], atol=2e-9)


async def test_relays_and_readings_are_as_many_as_the_guide_says(bench: CrossbarBench) -> None:
    readings: list[str] = []
    inside = bench.wired.terminal_current_a

    def counted(serial: str, voltage_v: float) -> float:
        readings.append(serial)
        return inside(serial, voltage_v)

    bench.wired.terminal_current_a = counted  # type: ignore[method-assign]
    batch = 5
    async with board_on(bench) as board:
        await board.mvm(0, np.full((batch, 4), 0.1))
    # 4 word lines times 2 groups of bit lines; the second meter has one bit line only in the first group.
    assert readings.count("bit0") == 8 * (batch + 1)
    assert readings.count("bit1") == 4 * (batch + 1)
    assert readings.count("word") == 8
    quick = replace(SETTINGS, read=replace(READ, nplc=1.0, settle_s=0.01))
    assert quick.mvm_duration_s(batch, switch_s=0.02) == pytest.approx(8 * (0.04 + (batch + 2) * 0.03))
    # A line that changes its row opens one relay and closes one; 7 lines close once at the start.
    moved = [event for event in bench.events if isinstance(event, SwitchEvent)]
    closings = sum(event.closed for event in moved)
    assert closings == sum(not event.closed for event in moved)
    assert 7 + 7 * 3 <= closings <= 7 + 7 * 5


async def test_programming_converges_and_reports_what_it_did(bench: CrossbarBench) -> None:
    target_s = np.random.default_rng(3).uniform(2e-6, 98e-6, (4, 3))
    steps: list[ProgramProgress] = []
    async with board_on(bench, progress=steps.append) as board:
        report = await board.program(0, target_s)
        again = await board.program(0, target_s)
        result = await board.mvm(0, np.full((1, 4), 0.1))
    error_s = bench.crossbar.conductance_s - target_s
    assert np.abs(error_s).max() <= 1.01 * PULSE.tolerance_s
    assert report.rms_error_s == pytest.approx(float(np.sqrt(np.mean(error_s**2))), rel=1e-3)
    # A cell takes only the pulses that are beyond its thresholds.
    assert 0 < bench.crossbar.pulses <= report.pulses
    assert [step.done for step in steps[:12]] == list(range(1, 13))
    assert (steps[11].pulses, steps[11].failed) == (report.pulses, 0)
    assert (again.pulses, again.write_index, report.write_index) == (0, 2, 1)
    assert result.write_index == 2
    assert result.time_s[0] >= again.time_s >= report.time_s


async def test_pulses_below_the_thresholds_do_nothing_and_nothing_is_claimed(bench: CrossbarBench) -> None:
    before_s = bench.crossbar.conductance_s
    target_s = np.where(before_s > 5e-5, 5e-6, 9.5e-5)
    weak = replace(PULSE, set_start_v=0.5, reset_start_v=0.5, max_v=0.75, max_pulses=6)
    steps: list[ProgramProgress] = []
    async with board_on(bench, replace(SETTINGS, pulse=weak), progress=steps.append) as board:
        report = await board.program(0, target_s)
    np.testing.assert_array_equal(bench.crossbar.conductance_s, before_s)
    assert report.rms_error_s == pytest.approx(float(np.sqrt(np.mean((before_s - target_s) ** 2))), rel=1e-4)
    assert report.rms_error_s > 10 * PULSE.tolerance_s
    assert (report.pulses, steps[-1].failed, bench.crossbar.pulses) == (12 * 6, 12, 0)


@pytest.mark.parametrize("geometry", [GEOMETRY, GATED], ids=["passive", "gates"])
async def test_only_the_selected_cell_sees_more_than_half_a_pulse(geometry: BenchGeometry) -> None:
    seen_v: list[FloatArray] = []
    cells = CellSettings(gate_threshold_v=0.7 if geometry.gate_columns else None)
    array = crossbar(geometry, cells)
    inside = array.stress

    def watched(cell_v: FloatArray) -> None:
        seen_v.append(cell_v.copy())
        inside(cell_v)

    array.stress = watched  # type: ignore[method-assign]
    async with judged(CrossbarBench(array, geometry, time_scale=SLOW)) as bench:
        async with board_on(bench, replace(SETTINGS, geometry=geometry)) as board:
            assert ("select-gates" in board.info.capabilities) == bool(geometry.gate_columns)
            read_s = await board.pulse(0, 1, 2, 1.4)
            await board.pulse(0, 1, 2, -1.4)
            assert board.info.capabilities >= {"line-by-line", "read-conductance"}
        all_v = np.abs(np.array(seen_v))
    assert all_v[:, 1, 2].max() == pytest.approx(1.4)
    all_v[:, 1, 2] = 0.0
    # With gates, no other word line conducts at all; on the selected one the bit lines are grounded.
    assert all_v.max() == pytest.approx(0.7)
    if geometry.gate_columns:
        assert np.delete(all_v, 1, axis=1).max() == 0.0
    assert read_s > 5e-6
    assert bench.crossbar.pulses == 2


async def test_a_gated_crossbar_is_measured_and_programmed() -> None:
    array = crossbar(GATED, CellSettings(gate_threshold_v=0.7))
    async with judged(CrossbarBench(array, GATED, time_scale=SLOW)) as bench:
        settings = replace(SETTINGS, geometry=GATED)
        async with board_on(bench, settings) as board:
            await board.program(0, np.full((4, 3), 4e-5))
            result = await board.mvm(0, np.full((1, 4), 0.1))
            np.testing.assert_allclose(result.current_a[0], 0.1 * array.conductance_s.sum(axis=0), atol=1e-8)
        # The same without the gates' voltage: the cells are not there.
        low = replace(settings, cells=replace(settings.cells, gate_v=0.5))
        async with board_on(bench, low) as board:
            assert (await board.mvm(0, np.full((1, 4), 0.1))).code.tolist() == [[0, 0, 0]]


async def test_no_output_ever_leaves_its_limit_or_its_envelope(bench: CrossbarBench) -> None:
    async with board_on(bench) as board:
        await board.program(0, np.full((4, 3), 5e-5))
        await board.mvm(0, np.full((2, 4), -0.2))
    on = [event for event in bench.events if isinstance(event, OutputEvent) and event.output_on]
    assert {event.current_limit_a for event in on} == {PULSE.limit_a, READ.limit_a}
    assert max(abs(event.voltage_v) for event in on) <= 0.5 * PULSE.max_v
    # The log begins each switching-on at 0 V.
    last: dict[str, bool] = {}
    for event in bench.events:
        if isinstance(event, OutputEvent):
            if event.output_on and not last.get(event.instrument, False):
                assert event.voltage_v == 0.0
            last[event.instrument] = event.output_on


async def test_a_pulse_beyond_the_envelope_is_refused_before_anything_is_sent(bench: CrossbarBench) -> None:
    async with board_on(bench) as board:
        for pulse_v in (1.51, -1.51, np.nan, np.inf):
            with pytest.raises(SafetyError, match=r"beyond pulse\.max_v = 1\.5 V"):
                await board.pulse(0, 0, 0, pulse_v)
        with pytest.raises(CapabilityError, match="column 3 does not exist"):
            await board.pulse(0, 0, 3, 1.0)
    assert bench.events == []


async def test_lines_are_never_driven_beyond_their_session(bench: CrossbarBench) -> None:
    """The last line of defence, below the board's own checks."""

    def meter(port: int) -> Keithley2400:
        return Keithley2400(TcpLink("127.0.0.1", port), ramp_v_per_s=1000.0)

    info = SwitchMatrixInfo(4, 9, 100.0, 0.5, 0.0)
    matrix = ScpiSwitchMatrix(TcpLink("127.0.0.1", bench.matrix_port), info, NUMBERS)
    meters = [meter(port) for port in bench.bit_ports]
    lines = BenchLines(meter(bench.word_port), meters, None, matrix, GEOMETRY, "lines")
    await lines.open()
    async with lines.session(limit_a=1e-3, highest_v=0.2, gate_v=0.0, nplc=0.01):
        await lines.select(0, (0,))
        for word_v, bit_v in ((0.21, 0.0), (0.0, -0.21), (0.15, -0.15), (np.nan, 0.0)):
            with pytest.raises(SafetyError, match=r"voltages? .* not in -0\.2 to 0\.2 V"):
                await lines.drive(word_v, bit_v)
    await lines.close()
    assert all(event.voltage_v == 0.0 for event in bench.events if isinstance(event, OutputEvent))


def test_settings_that_contradict_their_envelope_are_refused_with_every_fault() -> None:
    wrong = replace(
        SETTINGS,
        geometry=replace(GEOMETRY, meter_rows=(2, 3), bit_columns=(5, 7, 8)),
        pulse=replace(PULSE, set_start_v=2.0, tolerance_s=0.0, max_pulses=0, width_s=-1.0),
        read=replace(READ, cell_v=0.3, limit_a=5e-5, nplc=0.0, settle_s=-2.0),
        cells=replace(SETTINGS.cells, writes_before=-1, gate_v=0.0),
    )
    with pytest.raises(SafetyError) as caught:
        wrong.check("bench")
    text = str(caught.value)
    assert len(caught.value.reasons) == 13
    for fault in (
        "two lines share matrix column 5",
        "two instruments share matrix row 3",
        "pulse.set_start_v = 2 V is above the envelope pulse.max_v = 1.5 V",
        "pulse.tolerance_s = 0 is not positive",
        "read.cell_v = 0.3 V is above read.max_v",
        "draws up to 6e-05 A at read.max_v",
        "read.full_scale_a = 0.0001 A is above read.limit_a",
        "pulse.max_pulses = 0 is less than 1",
        "pulse.width_s = -1 s is negative",
        "read.nplc = 0 is not positive",
        "read.settle_s = -2 s is negative",
        "writes_before = -1 is negative",
        "gate_v = 0 V is not positive",
    ):
        assert fault in text


async def test_a_matrix_that_is_not_rated_for_it_is_refused(bench: CrossbarBench) -> None:
    board = board_on(bench, rated_v=1.0)
    with pytest.raises(SafetyError, match=r"1\.5 V is more than the matrix is rated for \(1 V\)"):
        await board.open()
    with pytest.raises(StateError):
        _ = board.info
    assert bench.events == []


async def test_the_chip_is_checked_and_an_unreachable_instrument_leaves_nothing_open(bench: CrossbarBench) -> None:
    with pytest.raises(IdentityError, match="CHIP-8"):
        await board_on(bench, expected=ExpectedIdentity(serial="CHIP-8")).open()
    await bench.stop_meters()
    with pytest.raises(LabrigError):
        await board_on(bench).open()
    assert bench.events == []


async def test_a_crossbar_that_was_never_programmed_is_not_read(bench: CrossbarBench) -> None:
    async with board_on(bench, replace(SETTINGS, cells=CellRange("CHIP-7"))) as board:
        with pytest.raises(StateError, match=r"never programmed.*writes_before"):
            await board.mvm(0, np.zeros((1, 4)))
    assert bench.events == []


async def test_codes_saturate_where_the_meter_or_the_range_ends(bench: CrossbarBench) -> None:
    small = replace(SETTINGS, read=replace(READ, full_scale_a=1e-6))
    async with board_on(bench, small) as board:
        result = await board.mvm(0, np.array([[0.2] * 4, [-0.2] * 4, [0.001, 0.0, 0.0, 0.0]]))
    assert result.saturated.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert (result.code[0] == 32767).all()
    assert (result.code[1] == -32768).all()


async def test_a_shorted_cell_is_reported_and_not_measured() -> None:
    shorted = np.full((4, 3), 2e-5)
    shorted[2, 1] = 0.1
    array = BareCrossbar(shorted, CellSettings(), np.random.default_rng(1))
    async with judged(CrossbarBench(array, GEOMETRY, time_scale=SLOW)) as bench, board_on(bench) as board:
        with pytest.raises(InstrumentError, match=r"word source is in compliance.*a cell is shorted"):
            await board.mvm(0, np.full((1, 4), 0.2))
        assert bench.is_safe()
        # The healthy word lines still are: a line at 0 V takes no part.
        result = await board.mvm(0, np.array([[0.2, 0.2, 0.0, 0.2]]))
        np.testing.assert_allclose(result.current_a, 3 * 0.2 * 2e-5, rtol=1e-3)


@pytest.mark.parametrize("closed", [True, False])
async def test_a_stuck_relay_stops_everything(*, closed: bool) -> None:
    async with CrossbarBench(crossbar(), GEOMETRY, time_scale=SLOW) as bench:
        board = board_on(bench)
        await board.open()
        bench.matrix.stick((1, 3), closed=closed)
        bench.events.clear()
        with pytest.raises(InstrumentError, match=r"\(1, 3\) are (open|closed) and should not be"):
            await board.mvm(0, np.full((1, 4), 0.1))
        outputs = {event.instrument: event.output_on for event in bench.events if isinstance(event, OutputEvent)}
        assert outputs == {"word": False, "bit0": False, "bit1": False}
        assert hot_switches(bench.events) == []
        assert bench.matrix.closed == ({(1, 3)} if closed else frozenset())
        if not closed:
            assert bench.is_safe()
            await board.close()
        else:
            with pytest.raises(InstrumentError, match=r"\(1, 3\) are closed"):
                await board.close()


async def _requests(board: BenchCrossbar, kind: int) -> None:
    if kind == 0:
        await board.program(0, np.full((4, 3), 5e-5))
    elif kind == 1:
        await board.mvm(0, np.random.default_rng(0).uniform(-0.2, 0.2, (4, 4)))
    elif kind == 2:
        await board.read_conductance(0)
    else:
        await board.pulse(0, 1, 1, 1.2)


async def test_cancelled_at_any_moment_everything_is_off_and_open(bench: CrossbarBench) -> None:
    rng = random.Random(5)
    cut = 0
    async with board_on(bench) as board:
        for trial in range(24):
            task = asyncio.create_task(_requests(board, trial % 4))
            await asyncio.sleep(rng.uniform(0.0, (0.15, 0.06, 0.05, 0.02)[trial % 4]))
            task.cancel()
            if trial % 3 == 0:
                # Once more, while it cleans up.
                await asyncio.sleep(rng.uniform(0.0, 0.002))
                task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            cut += outcome is not None
            assert bench.is_safe()
            assert hot_switches(bench.events) == []
        # Nothing is out of step: the next request is right.
        read_s = await board.read_conductance(0)
    np.testing.assert_allclose(read_s, bench.crossbar.conductance_s, rtol=2e-6)
    assert cut > 12


async def test_closing_goes_to_its_end_even_where_the_caller_is_cancelled_while_a_request_runs(
    bench: CrossbarBench,
) -> None:
    begun = asyncio.Event()
    board = board_on(bench, progress=lambda _: begun.set())
    await board.open()
    running = asyncio.create_task(board.program(0, np.full((4, 3), 5e-5)))
    await begun.wait()
    closing = asyncio.create_task(board.close())
    await asyncio.sleep(0)
    closing.cancel()
    outcomes = await asyncio.gather(running, closing, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert bench.is_safe()
    # Closed altogether: it can be opened again.
    await board.open()
    await board.close()


async def test_closing_ends_a_running_request_and_leaves_everything_safe(bench: CrossbarBench) -> None:
    begun = asyncio.Event()
    board = board_on(bench, progress=lambda _: begun.set())
    await board.open()
    running = asyncio.create_task(board.program(0, np.full((4, 3), 5e-5)))
    waiting = asyncio.create_task(board.read_conductance(0))
    await begun.wait()
    await board.close()
    for task in (running, waiting):
        with pytest.raises(StateError, match=r"closed|not open"):
            await task
    assert bench.is_safe()


async def test_an_instrument_that_is_gone_is_never_switched_hot() -> None:
    async with CrossbarBench(crossbar(), GEOMETRY, time_scale=SLOW) as bench:
        begun = asyncio.Event()
        board = board_on(bench, progress=lambda _: begun.set())
        await board.open()
        ports = [bench.word_port, *bench.bit_ports]
        running = asyncio.create_task(board.program(0, np.full((4, 3), 5e-5)))
        await begun.wait()
        await bench.stop_meters()
        with pytest.raises(StateError, match=r"relays were left as they are; press OUTPUT OFF .*word source"):
            await running
        assert hot_switches(bench.events) == []
        assert bench.matrix.closed
        # Back on the network, closing makes everything safe.
        await bench.start_meters(ports)
        await board.close()
        assert bench.is_safe()
        assert hot_switches(bench.events) == []


async def test_outputs_that_somebody_left_on_are_switched_off_before_relays_move(bench: CrossbarBench) -> None:
    stranger = Keithley2400(TcpLink("127.0.0.1", bench.word_port), ramp_v_per_s=1000.0)
    await stranger.open()
    await stranger.configure(source="voltage", nplc=0.01)
    await stranger.set_limit(current_a=1e-3)
    await stranger.set_level(voltage_v=0.4)
    await stranger.output_on()
    async with board_on(bench) as board:
        assert not bench.is_safe()  # opening touched nothing
        await board.read_conductance(0)
        assert bench.is_safe()
    await stranger.close()


async def test_make_safe_also_ends_what_others_left(bench: CrossbarBench) -> None:
    info = SwitchMatrixInfo(4, 9, 100.0, 0.5, 0.0)
    stranger = ScpiSwitchMatrix(TcpLink("127.0.0.1", bench.matrix_port), info, NUMBERS)
    await stranger.open()
    await stranger.close_points({(4, 9), (1, 1)})
    async with board_on(bench) as board:
        assert not bench.is_safe()
        await board.make_safe()
        assert bench.is_safe()
    await stranger.close()


def _table(bench: CrossbarBench) -> dict[str, object]:
    def meter(port: int) -> dict[str, object]:
        return {"driver": "keithley2400", "link": f"tcp://127.0.0.1:{port}", "ramp_v_per_s": 1000.0}

    return {
        "chip_id": "CHIP-7",
        "writes_before": 1,
        "wiring": {
            "word_columns": [2, 3, 4, 5],
            "bit_columns": [7, 8, 9],
            "source_row": 1,
            "meter_rows": [2, 4],
            "ground_row": 3,
        },
        "read": {"nplc": 0.01},
        "pulse": {"max_v": 1.2},
        "word_source": meter(bench.word_port),
        "bit_meters": [meter(port) for port in bench.bit_ports],
        "matrix": {
            "driver": "scpi-switch-matrix",
            "link": f"tcp://127.0.0.1:{bench.matrix_port}",
            "settings": {"rows": 4, "columns": 9, "first_channel": 1101, "settle_s": 1e-4},
        },
    }


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drivers that a bench names, as entry points."""
    points = [
        EntryPoint("keithley2400", "labrig_drivers.keithley2400:Keithley2400", "labrig.drivers"),
        EntryPoint("scpi-switch-matrix", "labrig_drivers.scpi_switch:ScpiSwitchMatrix", "labrig.drivers"),
    ]
    monkeypatch.setattr(bench_config, "entry_points", lambda group: points)


@pytest.mark.usefixtures("drivers")
async def test_a_rig_file_makes_the_bench(bench: CrossbarBench) -> None:
    async with BenchCrossbar.from_settings(_table(bench), ExpectedIdentity(serial="CHIP-7"), "board") as board:
        assert board.identity.firmware == "34980A + MODEL 2400 + MODEL 2400 + MODEL 2400"
        result = await board.mvm(0, np.full((1, 4), 0.1))
        with pytest.raises(SafetyError, match=r"pulse\.max_v = 1\.2 V"):
            await board.pulse(0, 0, 0, 1.3)
        assert board.host_loss_protection.silence_s is None
    np.testing.assert_allclose(result.current_a[0], 0.1 * bench.crossbar.conductance_s.sum(axis=0), atol=2e-9)


@pytest.mark.usefixtures("drivers")
async def test_every_fault_of_a_rig_file_is_named(bench: CrossbarBench) -> None:
    table = _table(bench)
    table |= {"chip_id": "", "colour": 1, "read": {"nplc": "fast"}, "bit_meters": [{"driver": "keithley2400"}]}
    table["gate_source"] = {"driver": "keithley2400", "link": "tcp://127.0.0.1:2"}
    table["word_source"] = {"driver": "keithley9999", "link": "tcp://127.0.0.1:1"}
    table["matrix"] = {"driver": "scpi-switch-matrix", "link": "tcp://127.0.0.1:2"}
    with pytest.raises(ConfigError) as caught:
        BenchCrossbar.from_settings(table, ExpectedIdentity(), "board")
    text = str(caught.value)
    for fault in (
        "board.settings.chip_id: '' is not a text",
        "board.settings.read.nplc: 'fast' is not a number that is not negative",
        "board.settings.word_source: no driver named 'keithley9999' is installed; installed are keithley2400",
        "board.settings.bit_meters[0].link: is missing",
        "board.settings.matrix: link: tcp://127.0.0.1:2 is the address of another instrument",
        "board.settings.colour: unknown key",
    ):
        assert fault in text
    assert bench.events == []
