"""The page about axes shows what happens: its example runs, its rig file is valid and makes its axes."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from labrig.config import RigConfig, parse_rig
from labrig.instruments import InstrumentSpec, build_instruments
from labrig.rig import instrument_specs
from labrig.rig_checks import check_axes
from labrig_drivers.mock.axis import MockAxis
from labrig_drivers.scpi_axis import ScpiAxis

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "axes.md").read_text()


def block(language: str, word: str = "") -> str:
    """The one code block in a language that has a word in it."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (text,) = [text for text in found if word in text]
    return str(text)


def test_the_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python", "asyncio.run"), "axes.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == block("text")


def test_the_rig_file_makes_its_axes() -> None:
    config: RigConfig = parse_rig(block("toml"), Path("rig.toml"))
    specs: list[InstrumentSpec] = instrument_specs(config)
    built = build_instruments(specs)
    chuck, lamp = built["axes.chuck"], built["axes.lamp"]
    assert isinstance(chuck, ScpiAxis)
    assert isinstance(lamp, MockAxis)
    check_axes(config, {"chuck": chuck, "lamp": lamp})
    assert (chuck.safe_value, chuck.unit, lamp.safe_value) == (295.0, "K", None)
    assert config.conditions["chuck"].high == 361.0


def test_the_drivers_are_announced() -> None:
    names = {point.name for point in entry_points(group="labrig.drivers")}
    assert {"scpi-axis", "mock-axis"} <= names
