"""What is wrong with a data set before anything is fitted, every fault named, and what it will not be able to tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.dataset import MvmDataset
from labrig_calibration.linear_rungs import LinearSums
from labrig_calibration.mapped import pieces
from labrig_surrogates.faults import counted, numbered

# A column whose outputs vary less than this many ADC steps has not answered.
_DEAD_STEPS = 0.51
# Targets and outputs agree to within this factor on any chip that works; a unit that is wrong is off by a thousand.
_WRONG_UNIT = 30.0
# Correlation of outputs with what the targets predict, below which the rows cannot belong together.
_UNRELATED = 0.2


def smallest_write(rows: int) -> int:
    """Fewest MVMs of one write that can carry its `rows` conductances and leave something to judge by."""
    return 2 * (rows + 3)


def faults_of(dataset: MvmDataset) -> list[str]:
    """Reasons that forbid a fit, in words."""
    faults = []
    targets = dataset.target_conductance_s
    if dataset.writes < 2 or float(np.ptp(targets, axis=0).max(initial=0.0)) == 0.0:
        faults.append("at least two different programmed patterns are needed to tell gains from conductances")
    counts = np.bincount(dataset.pattern, minlength=dataset.writes)
    needed = smallest_write(dataset.rows)
    faults += [
        f"write {write} has {counted(int(counts[write]), 'MVM')}, at least {needed} are needed for {dataset.rows} rows"
        for write in np.flatnonzero(counts < needed)
    ]
    if not len(dataset):
        return faults
    of_mvm_v, of_row_v = _largest_inputs(dataset)
    if not (of_mvm_v == 0.0).any():
        faults.append("no zero input vector, so offsets cannot be told from leakage")
    full = np.flatnonzero(dataset.saturated.mean(axis=0) > 0.5)
    if full.size:
        told = numbered(full.tolist(), "column", "saturates", "saturate")
        faults.append(f"{told} in more than half of the MVMs; lower the read voltage")
    never = np.flatnonzero(of_row_v == 0.0)
    if never.size:
        told, whose = numbered(never.tolist(), "row", "is", "are"), "its" if never.size == 1 else "their"
        faults.append(f"{told} never driven, so nothing is known of {whose} cells")
    early = int((dataset.age_s < 0.0).sum())
    if early:
        faults.append(
            f"{counted(early, 'MVM was read before its', 'MVMs were read before their')} write was done; "
            "are time_s and programmed_at_s of one clock?"
        )
    return faults


def faults_of_sums(dataset: MvmDataset, sums: LinearSums) -> list[str]:
    """Reasons that only show when inputs, targets and outputs are compared."""
    faults = []
    alive = ~dead_columns(dataset)
    if not alive.any():
        return ["no column answers: every output is constant"]
    gain = np.abs(sums.gain().numpy()[alive])
    middle = float(np.median(gain))
    related = float(np.median(np.abs(sums.correlation().numpy()[alive])))
    if related < _UNRELATED:
        faults.append(
            f"outputs have a correlation of {related:.2f} with what inputs and targets predict; are their rows of the "
            "same MVMs, and do patterns name the right writes?"
        )
    elif not 1.0 / _WRONG_UNIT < middle < _WRONG_UNIT:
        faults.append(
            f"outputs are {middle:.3g} times what inputs and targets predict; one of voltage_v (V), current_a (A), "
            "target_conductance_s (S) is in another unit"
        )
    limit_v = max(abs(dataset.converters.voltage_min_v), abs(dataset.converters.voltage_max_v))
    largest_v = float(_largest_inputs(dataset)[1].max())
    if largest_v > _WRONG_UNIT * limit_v:
        faults.append(f"voltage_v reaches {largest_v:.3g} V where the DAC ends at {limit_v:.3g} V; is it in V?")
    return faults


def _largest_inputs(dataset: MvmDataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest voltage in V of each MVM, `[N]`, and of each row, `[rows]`."""
    of_mvm_v, of_row_v = np.zeros(len(dataset)), np.zeros(dataset.rows)
    for piece in pieces(len(dataset)):
        size_v = np.abs(dataset.voltage_v[piece])
        of_mvm_v[piece] = size_v.max(axis=1)
        of_row_v = np.maximum(of_row_v, size_v.max(axis=0))
    return of_mvm_v, of_row_v


def dead_columns(dataset: MvmDataset) -> NDArray[np.bool_]:
    """Columns whose outputs hardly change, `[columns]`."""
    span = np.subtract(*np.quantile(dataset.current_a[:: max(len(dataset) // 20000, 1)], [0.99, 0.01], axis=0))
    return np.asarray(span <= _DEAD_STEPS * dataset.converters.adc_lsb_a)


def notes_of(dataset: MvmDataset) -> list[str]:
    """What these data cannot tell, in words."""
    notes = []
    is_dead = dead_columns(dataset)
    dead = np.flatnonzero(is_dead)
    if dead.size:
        told = numbered(dead.tolist(), "column", "is", "are")
        known = "its offset" if dead.size == 1 else "their offsets"
        notes.append(f"{told} dead (constant outputs): nothing but {known} is known")
    empty = np.flatnonzero(~np.asarray(dataset.target_conductance_s).any(axis=(0, 1)) & ~is_dead)
    if empty.size:
        told = numbered(empty.tolist(), "column", "was", "were")
        notes.append(f"{told} written with zeros only: what its outputs are is known, but not which part is gain")
    if dataset.writes < 3:
        notes.append("with two writes a stuck cell and a large programming error look alike")
    if dataset.converters.adc_bits == 0:
        notes.append("no ADC was described: its steps count as amplifier noise, and clipped outputs are not recognised")
    clipped = dataset.saturated.mean(axis=0)
    heavy = np.flatnonzero(clipped > 0.1)
    if heavy.size:
        told = numbered(heavy.tolist(), "column", "saturates", "saturate")
        notes.append(
            f"{told} in more than a tenth of the MVMs; what is left carries {'its' if heavy.size == 1 else 'their'} fit"
        )
    ages = dataset.age_s
    if len(dataset) and float(np.log1p(ages.max()) - np.log1p(max(ages.min(), 0.0))) < 0.1:
        notes.append("all MVMs were read at nearly the same age: drift cannot be seen")
    return notes
