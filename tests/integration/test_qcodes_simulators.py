"""Identities of foreign simulated instruments: QCoDeS's pyvisa-sim files, through `VisaLink` and our channel.

Optional: skipped where QCoDeS or pyvisa-sim are not installed. Only QCoDeS's data files are read, none of its code is
imported, so `pip install --no-deps qcodes` beside `pyvisa-sim` is enough.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from labrig_drivers.errors import StateError
from labrig_drivers.keithley2450 import Keithley2450Dialect
from labrig_drivers.links import VisaLink
from labrig_drivers.scpi import ScpiChannel


def simulation(name: str) -> str:
    """The backend that serves one of QCoDeS's files."""
    found = importlib.util.find_spec("qcodes")
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("pyvisa_sim") is None:
        pytest.skip("QCoDeS's simulated instruments are optional: pip install pyvisa-sim; pip install --no-deps qcodes")
    path = Path(found.submodule_search_locations[0]) / "instrument" / "sims" / name
    assert path.is_file()
    return f"{path}@sim"


@asynccontextmanager
async def opened(resource: str, file: str) -> AsyncIterator[ScpiChannel]:
    channel = ScpiChannel(VisaLink(resource, backend=simulation(file)), "foreign", timeout_s=2.0)
    await channel.open()
    try:
        yield channel
    finally:
        await channel.close()


async def test_the_2450_is_identified_and_its_command_set_found_right() -> None:
    async with opened("GPIB::2::INSTR", "Keithley_2450.yaml") as channel:
        identity = await channel.identify()
        assert (identity.manufacturer, identity.model) == ("QCoDeS", "correct mode")
        dialect = Keithley2450Dialect(channel)
        await dialect.prepare()
        assert await dialect.read_source() == "current"


async def test_a_2450_that_imitates_a_2400_is_refused() -> None:
    async with opened("GPIB::1::INSTR", "Keithley_2450.yaml") as channel:
        assert (await channel.identify()).model == "wrong mode"
        with pytest.raises(StateError, match="SCPI2400, not SCPI"):
            await Keithley2450Dialect(channel).prepare()


async def test_the_2600_is_identified() -> None:
    async with opened("GPIB::1::INSTR", "Keithley_2600.yaml") as channel:
        identity = await channel.identify()
        assert (identity.model, identity.serial) == ("Model 2601B", "1398687")
