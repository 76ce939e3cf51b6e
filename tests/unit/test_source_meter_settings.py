"""What a rig file may say of any source-meter, and that it does what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pytest

from labrig_drivers.errors import ConfigError, LinkError, LinkTimeoutError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.keithley2400 import Keithley2400
from labrig_drivers.keithley2450 import Keithley2450
from labrig_drivers.keithley2600 import Keithley2600
from labrig_drivers.keysight_b2900 import KeysightB2900
from labrig_drivers.links import Link, MemoryLink
from labrig_drivers.mock.instrument_server import SimulatedInstrument, run_at_once
from labrig_drivers.mock.keithley2400 import SimulatedKeithley2400
from labrig_drivers.mock.keithley2450 import SimulatedKeithley2450
from labrig_drivers.mock.keithley2600 import SimulatedKeithley2600
from labrig_drivers.mock.keysight_b2900 import SimulatedKeysightB2900
from labrig_drivers.mock.loads import ResistorLoad
from labrig_drivers.source_meter import SourceMeter

LOAD = ResistorLoad(1000.0)


class FromSettings(Protocol):
    def from_settings(
        self, link: Link, expected: ExpectedIdentity, name: str, *, settings: Mapping[str, object] | None = None
    ) -> SourceMeter: ...


class Line:
    """A line to an instrument that loses as many answers as told."""

    def __init__(self, instrument: SimulatedInstrument) -> None:
        self.lost = 0
        self.link = MemoryLink(self._handle)
        self._instrument = instrument

    def _handle(self, request: bytes) -> bytes:
        answers = b""
        for line in request.decode("ascii").splitlines():
            answer = run_at_once(self._instrument, line)
            if answer is not None and self.lost:
                self.lost -= 1
            elif answer is not None:
                answers += answer if isinstance(answer, bytes) else answer.encode("latin-1") + b"\n"
        return answers


@pytest.mark.parametrize(
    ("driver", "instrument"),
    [
        (Keithley2400, SimulatedKeithley2400(LOAD)),
        (Keithley2450, SimulatedKeithley2450(LOAD)),
        (Keithley2600, SimulatedKeithley2600(LOAD)),
        (KeysightB2900, SimulatedKeysightB2900(LOAD, LOAD)),
    ],
)
async def test_a_rig_file_chooses_whether_questions_are_asked_again(
    driver: FromSettings, instrument: SimulatedInstrument
) -> None:
    line = Line(instrument)
    async with driver.from_settings(line.link, ExpectedIdentity(), "gate") as impatient:
        line.lost = 1
        with pytest.raises(LinkTimeoutError):
            await impatient.output_is_on()
        assert not await impatient.output_is_on()
    async with driver.from_settings(
        line.link, ExpectedIdentity(), "gate", settings={"reconnect_attempts": 2}
    ) as patient:
        line.lost = 1
        assert not await patient.output_is_on()
        line.lost = 100
        with pytest.raises(LinkError):
            await patient.output_is_on()
        line.lost = 0
    with pytest.raises(ConfigError) as caught:
        driver.from_settings(line.link, ExpectedIdentity(), "gate", settings={"reconnect_attempts": 0, "colour": "red"})
    assert [fault.partition(": ")[0] for fault in str(caught.value).splitlines()] == [
        "source_meters.gate.settings.reconnect_attempts",
        "source_meters.gate.settings.colour",
    ]
