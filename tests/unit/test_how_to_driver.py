"""The driver of the how-to page works, is as short as it says, and the contract suite finds what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from labrig.testing.driver_contract import check_source_meter
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.links import MemoryLink
from labrig_drivers.mock.instrument_server import run_at_once
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.source_meter import SourceMeter

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "your-own-driver.md").read_text()
DRIVER = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]


def factory(source: str) -> Callable[[], SourceMeter]:
    """Makes drivers out of the page's text; the instrument is one whose subset of SCPI the page uses."""
    names: dict[str, type[SourceMeter]] = {}
    exec(source, names)
    instrument = SimulatedKeithley2400(ResistorLoad(1000.0), model="ACME 1")

    def handle(request: bytes) -> bytes:
        answers = [run_at_once(instrument, line) for line in request.decode().splitlines()]
        return b"".join(one.encode() + b"\n" for one in answers if isinstance(one, str))

    make: Callable[..., SourceMeter] = vars(names["AcmeMeter"])["from_settings"].__get__(None, names["AcmeMeter"])
    return lambda: make(MemoryLink(handle), ExpectedIdentity(), "acme", ramp_v_per_s=1e6)


def test_it_is_short() -> None:
    written = [line for line in DRIVER.splitlines() if line and not line.startswith("from ")]
    assert len(written) <= 40


async def test_it_keeps_the_contract() -> None:
    await check_source_meter(factory(DRIVER))


@pytest.mark.parametrize(
    ("right", "wrong", "finding"),
    [
        ("RawReading(voltage_v, current_a,", "RawReading(current_a, voltage_v,", "the level 0.5 V, not 0.0005 V"),
        ("bool(int(status) & 8)", "True", "not in compliance"),
        (':OUTP {int(on)}"', ':OUTP 1"', "press OUTPUT OFF"),
        ('return await self.channel.query_flag(":OUTP?")', "return False", "output"),
    ],
)
async def test_the_contract_suite_says_what_is_wrong(right: str, wrong: str, finding: str) -> None:
    assert right in DRIVER
    with pytest.raises(Exception, match=finding):
        await check_source_meter(factory(DRIVER.replace(right, wrong)))


def test_the_page_shows_what_the_suite_says() -> None:
    assert "broken promise: measure() finds the level 0.5 V, not 0.0005 V" in PAGE
