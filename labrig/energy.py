"""What an MVM costs: joules per MVM and operations per joule, from a recording of the plan `energy`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labrig.plans.energy import EnergyPlan
from labrig.recording import Recording
from labrig.recording.summary import SupplyTrace
from labrig_drivers.crossbar import FloatArray
from labrig_drivers.errors import StorageError


@dataclass(frozen=True)
class LoadEnergy:
    """What MVMs of one load cost on one array, above what the board draws when it rests.

    Attributes:
        array: Which array.
        load: Fraction of the largest inputs that the ADC can take.
        bursts: Bursts that were measured.
        joules_per_mvm: Mean energy in J of one MVM.
        standard_error_j: Its standard error in J, from the spread between bursts; NaN with one burst.
        operations_per_joule: Multiplications and additions per J, `2 * rows * columns` in one MVM; infinite where no
            energy was seen.
    """

    array: int
    load: float
    bursts: int
    joules_per_mvm: float
    standard_error_j: float
    operations_per_joule: float


@dataclass(frozen=True)
class EnergyReport:
    """What a recording of the plan `energy` says.

    Attributes:
        idle_w: Power in W of the resting board.
        idle_standard_error_w: Its standard error in W.
        loads: One entry for each array and load.
    """

    idle_w: float
    idle_standard_error_w: float
    loads: tuple[LoadEnergy, ...]


@dataclass(frozen=True)
class _Burst:
    array: int
    load: float
    mvms: int
    began_s: float
    ended_s: float


def energy_report(path: Path | str) -> EnergyReport:
    """Reads joules per MVM from a recording.

    A reading of the supply counts as the mean power over the time since the reading before. What a burst draws above
    the power of the rests around it is counted from the request to half a rest after the answer.

    Raises:
        StorageError: The recording cannot be read or believed, is of another plan, or has no readings of a supply.
    """
    with Recording.open(path) as recording:
        recording.verify()
        plan = _plan_of(recording)
        supply = recording.supply()
        if len(supply.time_s) < 2:
            raise StorageError(
                f"{path}: has no readings of the array supply; the rig needs a source-meter that feeds it"
            )
        bursts = [burst for array in recording.arrays for burst in _bursts(recording, plan, array)]
        operations = 2 * recording.info.rows * recording.info.columns
    if not bursts:
        raise StorageError(f"{path}: not one burst is recorded whole")
    resting = _resting(supply, bursts, plan.rest_s)
    power_w = supply.voltage_v * supply.current_a
    if resting.sum() < 2:
        raise StorageError(f"{path}: has less than two readings of the resting board; use longer rests (rest_s)")
    idle_w = float(power_w[resting].mean())
    keys = sorted({(burst.array, burst.load) for burst in bursts})
    return EnergyReport(
        idle_w=idle_w,
        idle_standard_error_w=float(power_w[resting].std(ddof=1) / math.sqrt(resting.sum())),
        loads=tuple(
            _load(
                array,
                load,
                operations,
                [_joules(supply, one, plan.rest_s) for one in bursts if (one.array, one.load) == (array, load)],
            )
            for array, load in keys
        ),
    )


def _plan_of(recording: Recording) -> EnergyPlan:
    options = dict(recording.header.plan)
    if options.pop("name", None) != "energy" or "settings" in options:
        raise StorageError(
            f"{recording.path}: is a recording of the plan {recording.header.plan.get('name')!r}, not of 'energy'"
        )
    return EnergyPlan(**options)  # type: ignore[arg-type]


def _bursts(recording: Recording, plan: EnergyPlan, array: int) -> list[_Burst]:
    journal = recording.journal(f"entry/array_{array}")
    size = plan.blocks_per_burst
    found = []
    # One more block follows the last burst, so that the readings cover that.
    for first in range(0, len(journal) - size, size):
        blocks = journal[first : first + size]
        began_s, ended_s = float(blocks["began_s"][0]), float(blocks["ended_s"][-1])
        # Interrupted within the burst, and gone on with later.
        if (blocks["began_s"][1:] - blocks["ended_s"][:-1] < plan.rest_s).all():
            found.append(_Burst(array, plan.load_of(first), int(blocks["rows"].sum()), began_s, ended_s))
    return found


def _resting(supply: SupplyTrace, bursts: list[_Burst], rest_s: float) -> NDArray[np.bool_]:
    """The readings whose whole time lies in the second half of a rest."""
    begins_s = np.concatenate([[math.nan], supply.time_s[:-1]])
    resting = np.zeros(len(supply.time_s), dtype=np.bool_)
    for burst in bursts:
        resting |= (begins_s >= burst.began_s - 0.5 * rest_s) & (supply.time_s <= burst.began_s)
    return resting


def _joules(supply: SupplyTrace, burst: _Burst, rest_s: float) -> float:
    """Energy in J of one MVM of a burst, above a straight line from the rest before it to the rest after it."""
    power_w = supply.voltage_v * supply.current_a
    began_s, ended_s = burst.began_s, burst.ended_s
    # Times from the start of the burst: UTC in seconds leaves too few digits to fit a line.
    time_s = supply.time_s - began_s
    lasted_s = np.diff(time_s, prepend=time_s[0])
    before = (time_s - lasted_s >= -0.5 * rest_s) & (time_s <= 0.0)
    after = (time_s - lasted_s >= ended_s - began_s + 0.5 * rest_s) & (time_s <= ended_s - began_s + rest_s)
    if not (before.any() and after.any()):
        return math.nan
    idle_w = np.polynomial.Polynomial.fit(time_s[before | after], power_w[before | after], 1)
    # A reading may end after the burst did, and a board may answer before it has done with the last MVM.
    within = (time_s > 0.0) & (time_s <= ended_s - began_s + 0.5 * rest_s)
    return float(((power_w[within] - idle_w(time_s[within])) * lasted_s[within]).sum()) / burst.mvms


def _load(array: int, load: float, operations: int, joules: list[float]) -> LoadEnergy:
    values: FloatArray = np.array([one for one in joules if math.isfinite(one)])
    mean_j = float(values.mean()) if len(values) else math.nan
    error_j = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    per_joule = operations / mean_j if mean_j > 0.0 else math.inf
    return LoadEnergy(array, load, len(values), mean_j, error_j, per_joule)
