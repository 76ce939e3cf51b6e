"""How each instrument says that it is set: asked for, recorded, and no reason to stop where it cannot say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import Event, EventBus, Message
from labrig.plans import CanaryDesign, IvPlan, ScheduledPlan
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.keithley2450 import Keithley2450
from labrig_drivers.keithley2600 import Keithley2600
from labrig_drivers.keysight_b2900 import KeysightB2900
from labrig_drivers.links.tcp import TcpLink
from labrig_drivers.mock.instrument_server import InstrumentServer, SimulatedInstrument
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import ResistorLoad

Driver = type[Keithley2400] | type[Keithley2450] | type[Keithley2600] | type[KeysightB2900]
LOAD = ResistorLoad(1e4)
# Level, limit, integration time and wires as each model calls them.
METERS: list[tuple[Driver, Callable[[], SimulatedInstrument], tuple[str, str, str, str]]] = [
    (
        Keithley2400,
        lambda: SimulatedKeithley2400(LOAD),
        (":SOUR:VOLT:LEV", ":SENS:CURR:PROT", ":SENS:CURR:NPLC", ":SYST:RSEN"),
    ),
    (
        Keithley2450,
        lambda: SimulatedKeithley2450(LOAD),
        (":SOUR:VOLT", ":SOUR:VOLT:ILIM", ":SENS:CURR:NPLC", ":SENS:CURR:RSEN"),
    ),
    (
        Keithley2600,
        lambda: SimulatedKeithley2600(LOAD),
        ("smua.source.levelv", "smua.source.limiti", "smua.measure.nplc", "smua.sense"),
    ),
    (
        KeysightB2900,
        lambda: SimulatedKeysightB2900(LOAD),
        (":SOUR1:VOLT", ":SENS1:CURR:PROT", ":SENS1:CURR:NPLC", ":SENS1:REM"),
    ),
]


@pytest.mark.parametrize(("driver", "simulated", "names"), METERS, ids=lambda one: getattr(one, "__name__", ""))
async def test_a_source_meter_says_how_it_is_set_and_nothing_changes(
    driver: Driver, simulated: Callable[[], SimulatedInstrument], names: tuple[str, str, str, str]
) -> None:
    async with InstrumentServer(simulated()) as server, driver(TcpLink("127.0.0.1", server.port)) as meter:
        await meter.configure(source="voltage", nplc=0.5, wires=4)
        await meter.set_limit(current_a=1e-3)
        await meter.set_level(voltage_v=0.25)
        settings = await meter.read_settings()
        assert [float(settings[name]) for name in names] == [0.25, 1e-3, 0.5, 1.0]
        assert len(settings) >= 15
        assert await meter.read_settings() == settings
        assert await meter.errors() == []
        assert not await meter.output_is_on()


RIG = """\
[rig]
name = "fed"
[board]
driver = "mock-board"
[board.settings]
rows = 8
columns = 4
arrays = 1
[source_meters.supply]
driver = "keithley2400"
link = "tcp://127.0.0.1:{port}"
role = "array-supply"
level_voltage_v = 1.2
limit_current_a = 0.1
nplc = 0.01
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 1000.0
max_read_voltage_v = 0.3
"""


def recorded(path: Path, name: str) -> dict[str, str]:
    with h5py.File(path) as file:
        text = file[f"entry/instruments/{name}/reported_settings"][()]
    settings: dict[str, str] = json.loads(text)
    return settings


async def test_a_recording_has_the_settings_of_the_supply_while_it_feeds(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with InstrumentServer(SimulatedKeithley2400(LOAD)) as server:
        config = parse_rig(RIG.format(port=server.port), Path("rig.toml"))
        await run_sweep(config, ScheduledPlan(CanaryDesign(repeats=1)), path, EventBus())
    settings = recorded(path, "supply")
    assert (float(settings[":SOUR:VOLT:LEV"]), settings[":OUTP"]) == (1.2, "1")


async def test_a_recording_has_the_settings_of_a_meter_that_takes_curves(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    async with InstrumentServer(SimulatedKeithley2400(LOAD)) as server:
        text = RIG.replace('role = "array-supply"\n', "").replace("level_voltage_v = 1.2\n", "")
        config = parse_rig(text.format(port=server.port), Path("rig.toml"))
        plan = IvPlan(low_v=-0.1, high_v=0.1, levels=2, limit_a=2e-3, meter="supply")
        await run_sweep(config, plan, path, EventBus())
    assert float(recorded(path, "supply")[":SENS:CURR:PROT"]) == 2e-3


async def test_an_instrument_that_cannot_say_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A firmware that does not know one of the questions answers nothing.
    monkeypatch.setattr("labrig_drivers.keithley2400._SETTINGS", (":SOUR:UNHEARD",))
    monkeypatch.setitem(Keithley2400.__init__.__kwdefaults__ or {}, "timeout_s", 1.0)
    path, bus, seen = tmp_path / "run.h5", EventBus(), list[Event]()
    bus.subscribe(seen.append)
    async with InstrumentServer(SimulatedKeithley2400(LOAD)) as server:
        config = parse_rig(RIG.format(port=server.port), Path("rig.toml"))
        summary = await run_sweep(config, ScheduledPlan(CanaryDesign(repeats=1)), path, bus)
    assert summary.status == "finished"
    (said,) = [event.text for event in seen if isinstance(event, Message) and "not recorded" in event.text]
    assert "supply" in said
    with h5py.File(path) as file:
        assert file["entry/instruments/supply/reported_settings"][()] == b""
