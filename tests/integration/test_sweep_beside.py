"""Sweeps that do more than MVMs: axes that move, curves of cells and devices, the energy of an MVM."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from labrig.acquisition import run_sweep
from labrig.config import RigConfig, parse_rig
from labrig.energy import energy_report
from labrig.events import AxesArrived, BlockCommitted, Event, EventBus, RunStarted
from labrig.plans import (
    CanaryDesign,
    EnergyPlan,
    IvPlan,
    OverAxes,
    RetentionPlan,
    ScheduledPlan,
    grid,
    repeated,
)
from labrig.recording import Recording, layout
from labrig.recording.verification import verify_recording
from labrig.run_control import RunControl
from labrig_drivers.errors import CapabilityError, ConfigError, StateError, StorageError
from labrig_drivers.mock.bench import BenchSettings, SimulatedBench
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent

SAFETY = """\
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 1000.0
max_read_voltage_v = 0.3
"""
MOCK = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = 1
arrays = 2
rows = 8
columns = 4
"""
TEMPERATURE = """\
[axes.temperature]
driver = "mock-axis"
[axes.temperature.settings]
quantity = "temperature"
unit = "K"
low = 280.0
high = 360.0
tolerance = 0.1
hold_s = 1.0
noise = 0.01
"""


def rig(*parts: str) -> RigConfig:
    return parse_rig("".join([MOCK, *parts, SAFETY]), Path("rig.toml"))


def nothing_in(folder: Path) -> bool:
    return not list(folder.iterdir())


def heard(bus: EventBus) -> list[Event]:
    events: list[Event] = []
    bus.subscribe(events.append)
    return events


WARM = OverAxes(
    ScheduledPlan(CanaryDesign(repeats=2)), repeated(grid({"temperature": [290.0, 310.0, 330.0]}), 2), settle_s=3.0
)


async def test_a_plan_over_an_axis_is_recorded_with_the_setting_of_each_row(tmp_path: Path) -> None:
    path, bus = tmp_path / "run.h5", EventBus()
    events = heard(bus)
    summary = await run_sweep(rig(TEMPERATURE), WARM, path, bus)
    assert (summary.mvms, summary.writes) == (6 * 2 * 32, 12)
    with Recording.open(path) as recording:
        recording.verify()
        set_k = recording.column(layout.SETTINGS, "temperature_set")
        read_k = recording.column(layout.SETTINGS, "temperature_read")
        assert set_k.tolist() == [290.0, 310.0, 330.0] * 2
        assert read_k == pytest.approx(set_k, abs=0.1)
        for array in recording.arrays:
            setting = recording.column(f"entry/array_{array}", "setting")
            assert setting.tolist() == np.repeat(np.arange(6), 32).tolist()
            assert recording.column(f"entry/array_{array}/writes", "setting").tolist() == list(range(6))
            # The data set has it as the chip's temperature, whole, in part and by writes.
            for mvms, first in ((recording.dataset(array), 0), (recording.dataset(array, 40, 150), 40)):
                assert mvms.temperature_k is not None
                assert mvms.temperature_k.tolist() == np.repeat(read_k, 32)[first : first + len(mvms)].tolist()
            by_write = recording.dataset(array, writes=[3, 1]).temperature_k
            assert by_write is not None
            assert by_write.tolist() == np.repeat(read_k[[3, 1]], 32).tolist()
    arrived = [event for event in events if isinstance(event, AxesArrived)]
    assert [event.values["temperature"] for event in arrived] == pytest.approx(read_k)
    # Readable without labrig.
    with xarray.open_dataset(path, engine="h5netcdf", group=layout.SETTINGS) as settings:
        assert settings["temperature_read"].attrs["units"] == "K"


async def test_an_interrupted_run_moves_the_axis_again_only_for_what_is_left(tmp_path: Path) -> None:
    path, bus, control = tmp_path / "run.h5", EventBus(), RunControl()
    blocks = 0

    def stop(event: Event) -> None:
        nonlocal blocks
        blocks += isinstance(event, BlockCommitted)
        if blocks == 6:
            control.stop()

    bus.subscribe(stop)
    await run_sweep(rig(TEMPERATURE), WARM, path, bus, control=control)
    with Recording.open(path) as recording:
        # What array 1 is measured at last is the first setting that is left to do, or was being done.
        done = recording.committed(1) // 32
    assert 1 <= done < 6
    again = EventBus()
    events = heard(again)
    await run_sweep(rig(TEMPERATURE), WARM, path, again, resume=True)
    arrived = [event.values["temperature"] for event in events if isinstance(event, AxesArrived)]
    assert arrived == pytest.approx(([290.0, 310.0, 330.0] * 2)[done:], abs=0.1)
    with Recording.open(path) as recording:
        set_k = recording.column(layout.SETTINGS, "temperature_set")
        of_row = set_k[recording.column("entry/array_1", "setting")]
        assert of_row.tolist() == np.repeat([290.0, 310.0, 330.0] * 2, 32).tolist()


async def test_axes_are_recorded_in_the_order_of_the_plan_whatever_their_names(tmp_path: Path) -> None:
    axes = "".join(TEMPERATURE.replace("axes.temperature", f"axes.{name}") for name in ("zeta", "alpha"))
    plan = OverAxes(
        ScheduledPlan(CanaryDesign(repeats=1, arrays=[0])), grid({"zeta": [290.0, 300.0], "alpha": [350.0]})
    )
    await run_sweep(rig(axes), plan, tmp_path / "run.h5", EventBus())
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()
        assert recording.column(layout.SETTINGS, "zeta_set").tolist() == [290.0, 300.0]
        assert recording.column(layout.SETTINGS, "alpha_set").tolist() == [350.0, 350.0]
        # Which of two is the chip's, nobody said.
        assert recording.dataset(0).temperature_k is None


async def test_an_axis_that_was_not_moved_yet_has_no_value_and_that_is_right(tmp_path: Path) -> None:
    axes = "".join(TEMPERATURE.replace("axes.temperature", f"axes.{name}") for name in ("zeta", "alpha"))
    plan = OverAxes(ScheduledPlan(CanaryDesign(repeats=1, arrays=[0])), [{"zeta": 290.0}, {"alpha": 350.0}])
    await run_sweep(rig(axes), plan, tmp_path / "run.h5", EventBus())
    with Recording.open(tmp_path / "run.h5") as recording:
        recording.verify()
        np.testing.assert_array_equal(recording.column(layout.SETTINGS, "zeta_set"), [290.0, 290.0])
        np.testing.assert_array_equal(recording.column(layout.SETTINGS, "alpha_set"), [np.nan, 350.0])
        np.testing.assert_array_equal(np.isnan(recording.column(layout.SETTINGS, "alpha_read")), [True, False])
    assert verify_recording(tmp_path / "run.h5").faults == ()


async def test_one_write_is_measured_at_all_temperatures(tmp_path: Path) -> None:
    inner = RetentionPlan(last_s=2.0, repeats=1, arrays=[0])
    plan = OverAxes(inner, grid({"temperature": [300.0, 340.0]}), settle_s=3.0, rewrite=False)
    summary = await run_sweep(rig(TEMPERATURE), plan, tmp_path / "run.h5", EventBus())
    # The write ages at the first temperature, from after it had settled; at the second it is older than its ages.
    assert (summary.writes, summary.missed) == (1, 2)


async def test_what_the_rig_has_not_is_refused_with_every_fault_and_leaves_no_file(tmp_path: Path) -> None:
    inner = IvPlan(low_v=-1.0, high_v=1.0, meter="smu")
    plan = OverAxes(inner, grid({"temperature": [250.0, 300.0], "field": [0.0]}))
    with pytest.raises(ConfigError) as caught:
        await run_sweep(rig(TEMPERATURE), plan, tmp_path / "run.h5", EventBus())
    assert "axis 'field' is not there (there are: temperature)" in str(caught.value)
    assert "source-meter 'smu' is not there (there are: none)" in str(caught.value)
    assert "from 280 to 360 K, the plan from 250 to 300 K" in str(caught.value)
    assert nothing_in(tmp_path)


async def test_curves_of_cells_show_their_conductance(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    events = heard(bus := EventBus())
    summary = await run_sweep(rig(), IvPlan(cells=5, levels=4, program=True), path, bus)
    assert (summary.curves, summary.writes, summary.mvms) == (10, 2, 0)
    with Recording.open(path) as recording:
        recording.verify()
        columns = {one.name: recording.column(layout.CURVES, one.name) for one in layout.curve_stream(0).columns}
        targets = [recording.column(f"entry/array_{array}/writes", "target_conductance_s")[0] for array in (0, 1)]
    started = next(one for one in events if isinstance(one, RunStarted))
    readings, chip = len(columns["curve"]), ChipSettings()
    # What was announced is what the simulated chip's clock then spent, reading by reading and write by write.
    assert started.least_s == pytest.approx(readings * chip.cell_reading_s + 2 * chip.program_latency_s)
    assert np.diff(columns["time_s"][columns["curve"] == 0]) == pytest.approx(chip.cell_reading_s)
    assert len(np.unique(columns["curve"])) == 10
    assert columns["write"].tolist() == [0] * len(columns["write"])
    for curve in range(10):
        rows = columns["curve"] == curve
        array, row, column = (int(columns[name][rows][0]) for name in ("array", "row", "column"))
        slope_s = np.polyfit(columns["voltage_v"][rows], columns["current_a"][rows], 1)[0]
        # Programming error, mismatch, a stuck cell now and then.
        assert abs(slope_s - targets[array][row, column]) < 4e-5
    levels = columns["level_v"][columns["curve"] == 0]
    assert (levels.max(), levels.min(), levels[0], levels[-1]) == (0.3, -0.3, 0.0, 0.0)
    with xarray.open_dataset(path, engine="h5netcdf", group=layout.CURVES) as curves:
        assert curves["current_a"].attrs["units"] == "A"
    with h5py.File(path) as file:
        assert file["entry"].attrs["default"] == "array_0"


async def test_a_device_at_a_source_meter_is_swept_and_left_off(tmp_path: Path) -> None:
    log: list[OutputEvent] = []
    async with InstrumentServer(SimulatedKeithley2400(ResistorLoad(1e4), log=log.append)) as server:
        meter = f"""\
[source_meters.smu]
driver = "keithley2400"
link = "tcp://127.0.0.1:{server.port}"
limit_current_a = 1e-4
nplc = 0.01
"""
        plan = IvPlan(low_v=-0.5, high_v=1.5, levels=5, repeats=2, meter="smu")
        events = heard(bus := EventBus())
        summary = await run_sweep(rig(meter), plan, tmp_path / "run.h5", bus)
    assert summary.curves == 2
    # 0.01 cycles of a mains of 60 Hz for each of 2 x 21 readings.
    started = next(one for one in events if isinstance(one, RunStarted))
    assert started.least_s == pytest.approx(42 * 0.01 / 60.0)
    assert not log[-1].output_on
    with Recording.open(tmp_path / "run.h5") as recording:
        column = {one.name: recording.column(layout.CURVES, one.name) for one in layout.curve_stream(0).columns}
        assert recording.arrays == ()
    held = column["in_compliance"] == 1
    assert column["current_a"][~held] == pytest.approx(column["voltage_v"][~held] / 1e4, abs=1e-8)
    # 1.2 V and 1.5 V would drive more than 100 uA.
    assert column["current_a"][held] == pytest.approx(1e-4)
    assert sorted(set(column["level_v"][held].round(6))) == [1.2, 1.5]
    assert set(column["array"]) == {-1}


async def test_curves_of_cells_that_nobody_programmed_say_which_option_does(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"never programmed; .* the plan iv .* \(--set program=true\)$"):
        await run_sweep(rig(), IvPlan(cells=5, levels=4), tmp_path / "run.h5", EventBus())


async def test_cells_of_a_board_without_source_meters_are_refused_before_anything(tmp_path: Path) -> None:
    async with SimulatedBench(BenchSettings(chip=ChipSettings(arrays=1, rows=4, columns=4))) as bench:
        text = f'[rig]\nname = "b"\n[board]\ndriver = "wire-board"\nlink = "{bench.addresses.board}"\n{SAFETY}'
        with pytest.raises(CapabilityError, match="cell-sweep"):
            await run_sweep(parse_rig(text, Path("rig.toml")), IvPlan(), tmp_path / "run.h5", EventBus())
    assert nothing_in(tmp_path)


async def test_joules_per_mvm_are_those_of_the_simulated_chip(tmp_path: Path) -> None:
    # Cells that draw as much as the converters.
    chip = ChipSettings(
        seed=3,
        arrays=1,
        rows=8,
        columns=8,
        conductance_min_s=1e-3,
        conductance_max_s=2e-2,
        adc_full_scale_a=0.1,
        compression_a=10.0,
        wire_ohm=1e-3,
        mvm_latency_s=1e-4,
    )
    path = tmp_path / "run.h5"
    plan = EnergyPlan(loads=(0.0, 1.0), bursts=4, mvms=1000, batch=250, rest_s=0.3)
    async with SimulatedBench(BenchSettings(chip=chip)) as bench:
        text = f"""\
[rig]
name = "fed"
[board]
driver = "wire-board"
link = "{bench.addresses.board}"
[source_meters.supply]
driver = "keithley2400"
link = "{bench.addresses.meter_tcp}"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1
nplc = 0.1
{SAFETY}"""
        await run_sweep(parse_rig(text, Path("rig.toml")), plan, path, EventBus())
    report = energy_report(path)
    idle, full = report.loads
    # The periphery draws 4 mA; converters take 15 mW during an MVM, and the lines what their voltages drive.
    assert report.idle_w == pytest.approx(1.2 * 4e-3, rel=0.02)
    assert (idle.load, full.load, idle.bursts, full.bursts) == (0.0, 1.0, 4, 4)
    # A meter that reads now and then misses some of it where other work keeps the machine; the unit test is exact.
    assert idle.joules_per_mvm == pytest.approx(15e-3 * 1e-4, rel=0.6)
    with Recording.open(path) as recording:
        data = recording.dataset(0)
    driven = data.voltage_v[np.abs(data.voltage_v).any(axis=1)]
    lines_w = float((driven**2 @ data.target_conductance_s[0].sum(axis=1)).mean())
    assert lines_w > 5e-3
    assert full.joules_per_mvm == pytest.approx((15e-3 + lines_w) * 1e-4, rel=0.6)
    assert full.joules_per_mvm > idle.joules_per_mvm
    assert full.operations_per_joule == pytest.approx(2 * 64 / full.joules_per_mvm)


async def test_energy_needs_the_right_plan_and_a_supply(tmp_path: Path) -> None:
    await run_sweep(rig(), ScheduledPlan(CanaryDesign(repeats=1)), tmp_path / "canary.h5", EventBus())
    with pytest.raises(StorageError, match="plan 'canary', not of 'energy'"):
        energy_report(tmp_path / "canary.h5")
    await run_sweep(rig(), EnergyPlan(mvms=8, bursts=1), tmp_path / "unfed.h5", EventBus())
    with pytest.raises(StorageError, match="no readings of the array supply"):
        energy_report(tmp_path / "unfed.h5")
