"""What a bench crossbar says of itself and of a programming, and its currents as codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from labrig_drivers.bench_settings import BenchSettings
from labrig_drivers.capabilities import CELL_SWEEP, READ_CONDUCTANCE
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult
from labrig_drivers.source_meter import Reading

LINE_BY_LINE: Final = "line-by-line"
"""Capability: word lines are driven one after another and their currents added as numbers."""
SELECT_GATES: Final = "select-gates"
"""Capability: cells have select transistors whose gates are driven, so unselected cells conduct nothing."""

# A source-meter's 200 mV range has steps of 5 uV (2400 Series manual 2400S-900-01 rev. K, specifications).
_DAC_BITS: Final = 16


@dataclass(frozen=True)
class ProgramProgress:
    """How far a programming is.

    Attributes:
        done: Cells that are finished.
        cells: Cells in all.
        pulses: Pulses spent so far.
        failed: Cells that did not come within the tolerance.
    """

    done: int
    cells: int
    pulses: int
    failed: int


def bench_info(settings: BenchSettings, switch_s: float) -> BoardInfo:
    """The description of a bench whose matrix takes `switch_s` to settle; latencies without links and ramps."""
    geometry, cells, read = settings.geometry, settings.cells, settings.read
    gates = frozenset({SELECT_GATES}) if geometry.gate_columns else frozenset[str]()
    return BoardInfo(
        chip_id=cells.chip_id,
        arrays=1,
        rows=geometry.rows,
        columns=geometry.columns,
        conductance_min_s=cells.conductance_min_s,
        conductance_max_s=cells.conductance_max_s,
        voltage_min_v=-read.max_v,
        voltage_max_v=read.max_v,
        dac_bits=_DAC_BITS,
        adc_bits=read.adc_bits,
        adc_full_scale_a=(read.full_scale_a,) * geometry.columns,
        mvm_latency_s=settings.mvm_duration_s(1, switch_s),
        program_latency_s=settings.program_duration_s(switch_s),
        capabilities=frozenset({CELL_SWEEP, LINE_BY_LINE, READ_CONDUCTANCE}) | gates,
    )


def coded(info: BoardInfo, current_a: FloatArray, time_s: FloatArray, write_index: int) -> MvmResult:
    """Currents as the nearest codes; what a meter could not read (infinite, NaN) becomes an end of the range.

    Args:
        info: The board.
        current_a: Currents `[batch, columns]` in A.
        time_s: When each vector was read, `[batch]` in s.
        write_index: Which programming was read.
    """
    low, high = -(2 ** (info.adc_bits - 1)), 2 ** (info.adc_bits - 1) - 1
    steps = np.nan_to_num(current_a / info.adc_lsb_a, nan=high, posinf=high, neginf=low)
    code = np.clip(np.rint(steps), low, high).astype(np.int16)
    return MvmResult(
        code=code,
        current_a=code * info.adc_lsb_a,
        saturated=(code == low) | (code == high),
        time_s=time_s,
        write_index=write_index,
    )


def bit_line_current_a(reading: Reading) -> float:
    """Current in A out of a bit line into its meter; infinite where the meter was at its limit."""
    current_a = -reading.current_a
    return float(np.copysign(np.inf, current_a)) if reading.in_compliance else current_a
