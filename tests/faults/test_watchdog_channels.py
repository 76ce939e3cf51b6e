"""A killed program on instruments that share an address, or that a board is made of."""

from __future__ import annotations

import asyncio
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from labrig import instruments
from labrig.instruments import InstrumentSpec
from labrig.watchdog.rescue import rescue
from labrig_drivers import bench_config
from labrig_drivers.bench_settings import BenchGeometry
from labrig_drivers.mock.bare_crossbar import BareCrossbar, CellSettings
from labrig_drivers.mock.crossbar_bench import CrossbarBench
from labrig_drivers.mock.instrument_server import InstrumentServer
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.mock.output_event import OutputEvent

PATIENCE_S = 30.0

RIG = """\
[rig]
name = "bench"
[board]
driver = "mock-board"
[source_meters.gate]
driver = "keysight-b2900"
link = "tcp://127.0.0.1:{port}"
settings = {{ channel = 2 }}
[source_meters.drain]
driver = "keysight-b2900"
link = "visa://TCPIP::localhost::{port}::SOCKET"
settings = {{ channel = 1 }}
[source_meters.drain.safety]
max_ramp_v_per_s = 4.0
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 20.0
max_read_voltage_v = 0.25
"""

PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from labrig.rig import open_rig

async def main(rig_file, folder):
    async with open_rig(rig_file, lock_folder=Path(folder)) as rig:
        for name, level_v in (("gate", 1.5), ("drain", -1.0)):
            meter = rig.source_meters[name]
            await meter.configure(source="voltage", nplc=0.01)
            await meter.set_limit(current_a=0.1)
            await meter.set_level(voltage_v=level_v)
            await meter.output_on()
        print("on", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


async def killed(rig_file: Path, folder: Path) -> str:
    """Runs the program until it kills itself; what the watchdog process says then."""
    pipe = asyncio.subprocess.PIPE
    arguments = ["-c", PROGRAM, str(rig_file), str(folder)]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(PATIENCE_S):
        output, errors = await process.communicate()
    assert output == b"on\n", errors.decode()
    return errors.decode()


async def test_both_channels_of_one_instrument_are_switched_off_each_by_its_ramp(tmp_path: Path) -> None:
    events: list[OutputEvent] = []
    instrument = SimulatedKeysightB2900(ResistorLoad(1000.0), ResistorLoad(1000.0), log=events.append)
    rig_file = tmp_path / "rig.toml"
    async with InstrumentServer(instrument) as server:
        rig_file.write_text(RIG.format(port=server.port))
        report = await killed(rig_file, tmp_path / "locks")
    assert "gate, drain (keysight-b2900, " in report
    assert "safe" in report
    for channel, rate_v_per_s in ((2, 20.0), (1, 4.0)):
        path = [event for event in events if event.instrument.endswith(f":{channel}")]
        assert True in [event.output_on for event in path]
        assert not path[-1].output_on
        moving = [(event.time_s, event.voltage_v if event.output_on else 0.0) for event in path]
        for index, (early_s, early_v) in enumerate(moving):
            for late_s, late_v in moving[index + 1 :]:
                assert abs(late_v - early_v) <= rate_v_per_s * (late_s - early_s) + 0.2 + 1e-6


DRIVERS = {
    "bench-crossbar": "labrig_drivers.bench_crossbar:BenchCrossbar",
    "keithley2400": "labrig_drivers.keithley2400:Keithley2400",
    "scpi-switch-matrix": "labrig_drivers.scpi_switch:ScpiSwitchMatrix",
}


async def test_a_board_that_is_made_of_source_meters_is_made_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {name: EntryPoint(name, value, "labrig.drivers") for name, value in DRIVERS.items()}
    monkeypatch.setattr(instruments, "installed_drivers", lambda: points)
    monkeypatch.setattr(bench_config, "entry_points", lambda group: list(points.values()))
    geometry = BenchGeometry((1, 2), (3, 4), source_row=1, meter_rows=(2,), ground_row=3)
    rng = np.random.default_rng(1)
    cells = BareCrossbar(rng.uniform(5e-6, 9e-5, (2, 2)), CellSettings(), rng)
    said: list[str] = []
    async with CrossbarBench(cells, geometry, time_scale=1e-3) as bench:

        def meter(port: int) -> dict[str, object]:
            return {"driver": "keithley2400", "link": f"tcp://127.0.0.1:{port}", "ramp_v_per_s": 100.0}

        settings: dict[str, object] = {
            "chip_id": "CHIP-7",
            "wiring": {
                "word_columns": [1, 2],
                "bit_columns": [3, 4],
                "source_row": 1,
                "meter_rows": [2],
                "ground_row": 3,
            },
            "read": {"nplc": 0.01},
            "pulse": {"max_v": 1.2},
            "word_source": meter(bench.word_port),
            "bit_meters": [meter(port) for port in bench.bit_ports],
            "matrix": {
                "driver": "scpi-switch-matrix",
                "link": f"tcp://127.0.0.1:{bench.matrix_port}",
                "settings": {"rows": 3, "columns": 4, "first_channel": 1101, "settle_s": 1e-4},
            },
        }
        spec = InstrumentSpec("board", "bench-crossbar", settings=settings)
        # What a killed program left: a level at a word line.
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.word_port)
        writer.write(b":SOUR:VOLT:LEV 0.5\n:OUTP 1\n*OPC?\n")
        assert await reader.readline() == b"1\n"
        writer.close()
        assert not bench.is_safe()
        assert await rescue([spec], said.append, 10.0, time.monotonic())
        assert bench.is_safe()
    levels_v = [event.voltage_v for event in bench.events if isinstance(event, OutputEvent) and event.output_on]
    assert levels_v[0] == 0.5
    assert levels_v[-1] == 0.0
    assert len(levels_v) > 5
    assert "board (bench-crossbar, tcp://127.0.0.1:" in said[-1]
    assert "safe" in said[-1]
