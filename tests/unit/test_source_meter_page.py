"""The page about source-meters shows what happens: its example runs, its rig file is valid, its table is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labrig.config import parse_rig
from labrig_drivers.keithley2400 import Keithley2400Dialect
from labrig_drivers.keithley2450 import Keithley2450Dialect
from labrig_drivers.keysight_b2900 import KeysightB2900Dialect

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "source-meters.md").read_text()


def block(language: str) -> str:
    """The one code block in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


def row(name: str) -> list[str]:
    """The cells of one row of the table, without its name."""
    (line,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_the_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "source-meters.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == block("text")


def test_the_rig_file_is_valid() -> None:
    rig = parse_rig(block("toml"), Path("rig.toml"), drivers=("keysight-b2900", "mock-board"))
    assert {name: meter.settings for name, meter in rig.source_meters.items()} == {
        "word": {"channel": 1},
        "bit": {"channel": 2},
    }


@pytest.mark.parametrize(
    ("column", "dialect"), [(0, Keithley2400Dialect), (1, Keithley2450Dialect), (3, KeysightB2900Dialect)]
)
def test_the_table_knows_the_drivers(
    column: int, dialect: type[Keithley2400Dialect] | type[Keithley2450Dialect] | type[KeysightB2900Dialect]
) -> None:
    assert row("sweeps inside, levels at most")[column].endswith(f"{dialect.abilities.sweep_points:,}")
    assert (row("output off when the host is lost")[column] == "no") is (dialect.host_loss_protection.silence_s is None)
