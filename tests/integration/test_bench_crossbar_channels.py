"""A bench whose word source and bit meter are the two channels of one source-meter, on one connection."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from labrig_drivers import bench_config
from labrig_drivers.bench_crossbar import BenchCrossbar
from labrig_drivers.bench_settings import BenchGeometry
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.bare_crossbar import BareCrossbar, CellSettings
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.output_event import OutputEvent
from labrig_drivers.mock.switch_matrix import SimulatedSwitchMatrix, SwitchEvent, SwitchMatrixServer
from labrig_drivers.mock.wired_crossbar import WiredCrossbar, hot_switches

GEOMETRY = BenchGeometry((1, 2), (3, 4), source_row=1, meter_rows=(2,), ground_row=3)
DRIVERS = {
    "keithley2600": "labrig_drivers.keithley2600:Keithley2600",
    "scpi-switch-matrix": "labrig_drivers.scpi_switch:ScpiSwitchMatrix",
}


async def test_two_channels_of_one_instrument_make_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lupa", reason="the simulated 2600 runs Lua")
    from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600

    points = [EntryPoint(name, target, "labrig.drivers") for name, target in DRIVERS.items()]
    monkeypatch.setattr(bench_config, "entry_points", lambda group: points)
    rng = np.random.default_rng(6)
    crossbar = BareCrossbar(rng.uniform(5e-6, 9e-5, (2, 2)), CellSettings(), rng)
    before_s = crossbar.conductance_s
    wired = WiredCrossbar(crossbar, GEOMETRY, {"S:a": 1, "S:b": 2})
    events: list[OutputEvent | SwitchEvent] = []

    def output_changed(event: OutputEvent) -> None:
        events.append(event)
        wired.output_changed(event)

    def relay_moved(event: SwitchEvent) -> None:
        events.append(event)
        wired.relay_moved(event)

    meter = SimulatedKeithley2600(wired.load("S:a"), load_b=wired.load("S:b"), serial="S", log=output_changed)
    matrix = SimulatedSwitchMatrix(3, 4, log=relay_moved)
    async with (
        InstrumentServer(meter, time_scale=1e-3) as meter_server,
        SwitchMatrixServer(matrix, time_scale=1e-3) as matrix_server,
    ):
        channel = {"driver": "keithley2600", "link": f"tcp://127.0.0.1:{meter_server.port}", "ramp_v_per_s": 1000.0}
        settings: dict[str, object] = {
            "chip_id": "CHIP-7",
            "writes_before": 1,
            "wiring": {
                "word_columns": [1, 2],
                "bit_columns": [3, 4],
                "source_row": 1,
                "meter_rows": [2],
                "ground_row": 3,
            },
            "read": {"nplc": 0.01},
            "word_source": channel | {"settings": {"channel": "a"}},
            "bit_meters": [channel | {"settings": {"channel": "b"}}],
            "matrix": {
                "driver": "scpi-switch-matrix",
                "link": f"tcp://127.0.0.1:{matrix_server.port}",
                "settings": {"rows": 3, "columns": 4, "first_channel": 1101, "settle_s": 1e-4},
            },
        }
        async with BenchCrossbar.from_settings(settings, ExpectedIdentity(), "board") as board:
            read_s = await board.read_conductance(0)
            report = await board.program(0, np.full((2, 2), 4e-5))
            result = await board.mvm(0, np.array([[0.2, -0.1]]))
    np.testing.assert_allclose(read_s, before_s, rtol=1e-5)
    assert report.rms_error_s < 2.1e-6
    exact_a = np.array([0.2, -0.1]) @ crossbar.conductance_s
    np.testing.assert_allclose(result.current_a[0], exact_a, atol=3e-9)
    assert hot_switches(events) == []
    assert not meter_on(events)
    assert matrix.closed == frozenset()


def meter_on(events: list[OutputEvent | SwitchEvent]) -> bool:
    """Whether an output is on at the end."""
    return any({event.instrument: event.output_on for event in events if isinstance(event, OutputEvent)}.values())
