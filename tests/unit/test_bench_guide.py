"""The guide's rig file is a valid one, and its bench is made from it; the guide's table is the driver's own."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from labrig.config import parse_rig
from labrig_drivers import bench_config, scpi_switch
from labrig_drivers.bench_crossbar import BenchCrossbar
from labrig_drivers.instrument import ExpectedIdentity

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "bench-crossbar.md"
DRIVERS = {
    "bench-crossbar": "labrig_drivers.bench_crossbar:BenchCrossbar",
    "keithley2400": "labrig_drivers.keithley2400:Keithley2400",
    "scpi-switch-matrix": "labrig_drivers.scpi_switch:ScpiSwitchMatrix",
}


def test_the_guides_rig_file_makes_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, target, "labrig.drivers") for name, target in DRIVERS.items()]
    monkeypatch.setattr(bench_config, "entry_points", lambda group: points)
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    rig = parse_rig(text, Path("bench.toml"), drivers=tuple(DRIVERS))
    board = BenchCrossbar.from_settings(rig.board.settings, ExpectedIdentity(serial="W12-D07"), "board")
    assert isinstance(board, BenchCrossbar)


def test_the_guides_channel_numbers_are_the_drivers() -> None:
    def numbers(text: str) -> list[tuple[str, str, str]]:
        rows = re.findall(r"^\| .* \| (s\w+) \| (\d+) \| `?(\w+)`? \|", text, re.MULTILINE)
        return sorted(rows)

    assert scpi_switch.__doc__ is not None
    assert len(numbers(PAGE.read_text())) == 5
    assert numbers(PAGE.read_text()) == numbers(scpi_switch.__doc__)
    assert {family for *_, family in numbers(PAGE.read_text())} == set(scpi_switch.FAMILIES)
