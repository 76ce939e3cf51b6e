"""I-V curves of single cells on a bench crossbar.

The word line is driven, the bit line held at 0 V by its meter, and everything else grounded. The word source then
feeds all cells of its word line, so only the bit line's meter sees the one cell, and the two have to be read together:
point by point. On a crossbar with a single bit line the word source feeds nothing but the cell, reads both quantities
and may run the sweep by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from labrig_drivers.bench_lines import BenchLines, compliance_at_zero
from labrig_drivers.bench_settings import BenchSettings
from labrig_drivers.errors import InstrumentError
from labrig_drivers.source_meter import Reading

# Closing waits for the piece in hand.
_LEVELS_IN_ONE_GO: Final = 50
# Two instruments in series at equal limits: either of them may be the one that says so.
_AT_LIMIT: Final = 1.0 - 1e-3


async def sweep_selected_cell(
    lines: BenchLines, settings: BenchSettings, voltage_v: Sequence[float], limit_a: float, go_on: Callable[[], None]
) -> list[Reading]:
    """Measures the selected cell at each level; readings are those of `CellSweep.sweep_cell`.

    Args:
        lines: The lines, in a session, with the cell selected.
        settings: How it is read.
        voltage_v: Levels in V.
        limit_a: Compliance limit in A of the source-meter that reads the current.
        go_on: Called before every piece of work; what it raises ends the sweep.

    Raises:
        InstrumentError: A source-meter is in compliance with all lines at 0 V.
    """
    alone = settings.geometry.columns == 1
    zero_a = await _zero_a(lines, settings, alone=alone) if settings.read.subtract_zero else 0.0
    readings: list[Reading] = []
    if alone:
        for start in range(0, len(voltage_v), _LEVELS_IN_ONE_GO):
            go_on()
            readings += await lines.sweep_word(voltage_v[start : start + _LEVELS_IN_ONE_GO])
    else:
        for level_v in voltage_v:
            go_on()
            await lines.drive(level_v)
            await asyncio.sleep(settings.read.settle_s)
            readings.append(_of_cell(*await lines.read_cell()))
    return [_judged(replace(one, current_a=one.current_a - zero_a), limit_a) for one in readings]


async def _zero_a(lines: BenchLines, settings: BenchSettings, *, alone: bool) -> float:
    """The cell's current in A as it is read at 0 V: offsets and leakage."""
    await lines.drive(0.0)
    await asyncio.sleep(settings.read.settle_s)
    word, bit = await lines.read_cell()
    limited = [what for what, one in (("word source", word), ("bit meter 0", bit)) if one.in_compliance]
    if limited:
        raise InstrumentError(0, compliance_at_zero(limited), "measure", lines.name)
    return word.current_a if alone else -bit.current_a


def _of_cell(word: Reading, bit: Reading) -> Reading:
    """The cell's voltage and current from what its two lines' instruments read."""
    return Reading(
        voltage_v=word.voltage_v - bit.voltage_v,
        current_a=-bit.current_a,
        in_compliance=word.in_compliance or bit.in_compliance,
        time_s=bit.time_s,
        instrument_time_s=bit.instrument_time_s,
    )


def _judged(reading: Reading, limit_a: float) -> Reading:
    return reading if abs(reading.current_a) < _AT_LIMIT * limit_a else replace(reading, in_compliance=True)
