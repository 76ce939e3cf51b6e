"""Device-level fits of a file or a recording: what `labrig fit-devices` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labrig import measured_files as files
from labrig import recorded_devices as recorded
from labrig.recording.whole_files import no_file
from labrig_calibration.devices.iv import Curve, fit_iv, split_branches
from labrig_calibration.devices.programming import fit_programming
from labrig_calibration.devices.pulses import fit_pulses
from labrig_calibration.devices.read_noise import fit_read_noise
from labrig_calibration.devices.relaxation import compare_predictions, level_retention
from labrig_calibration.devices.telegraph import TelegraphFit, fit_telegraph
from labrig_calibration.devices.values import DeviceFitError, Progress, Summary, Table, quiet
from labrig_drivers.errors import ConfigError, StorageError
from labrig_drivers.wording import counted

KINDS = ("iv", "programming", "relaxation", "noise", "pulses")
"""What can be fitted."""

_RECORDING_SUFFIXES = {".h5", ".hdf5", ".nxs"}
_MOST_TELEGRAPH = 16


@dataclass(frozen=True)
class FitChoices:
    """What the fits of one kind or another ask.

    Attributes:
        until_s: Relaxation: latest age in s that is fitted to; the middle of the ages when None.
        most_levels: Relaxation: levels with this number or higher are left out; none when None.
        rate_hz: Noise: readings for each second, where the file does not say.
        telegraph: Noise: also look for jumps in the first traces.
        most_readings: Noise: so many readings of a trace are searched for jumps.
        low_v: I-V: readings below are left out.
        high_v: I-V: readings above are left out.
        branch: I-V: which piece of each sweep, counted from 0, where the voltage turns; whole curves when None.
        only: I-V: only curves whose name begins so.
        temperature_k: I-V: temperature in K.
    """

    until_s: float | None = None
    most_levels: int | None = None
    rate_hz: float | None = None
    telegraph: bool = False
    most_readings: int = 4000
    low_v: float = -np.inf
    high_v: float = np.inf
    branch: int | None = None
    only: str | None = None
    temperature_k: float = 293.15


def fit_file(kind: str, path: Path, choices: FitChoices, progress: Progress = quiet) -> list[Summary]:
    """Reads measurements of a kind from a file or a recording, and fits them.

    Args:
        kind: One of `KINDS`.
        path: The file.
        choices: What the kind asks.
        progress: Told how far it is.

    Raises:
        ConfigError: There is no such kind.
        StorageError: The file cannot be read, or is none of this kind.
        DeviceFitError: The measurements cannot carry the fit.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r} of device fits; there are: {', '.join(KINDS)}")
    if (absent := no_file(path)) is not None:
        raise StorageError(absent)
    of_recording = path.suffix.lower() in _RECORDING_SUFFIXES
    if of_recording and kind == "pulses":
        raise StorageError(f"{path}: no plan records trains of pulses; give a CSV file with the columns up and down")
    fits: dict[str, Callable[[Path, bool, FitChoices, Progress], list[Summary]]] = {
        "iv": _fit_iv,
        "programming": _fit_programming,
        "relaxation": _fit_relaxation,
        "noise": _fit_noise,
        "pulses": _fit_pulses,
    }
    return fits[kind](path, of_recording, choices, progress)


def _fit_iv(path: Path, of_recording: bool, choices: FitChoices, _: Progress) -> list[Summary]:
    curves = recorded.recorded_curves(path) if of_recording else files.read_curves(path)
    if choices.only is not None:
        curves = [one for one in curves if one.name.startswith(choices.only)]
    if choices.branch is not None:
        curves = [_branch(one, choices.branch) for one in curves]
    curves = [one.within(choices.low_v, choices.high_v) for one in curves]
    return [fit_iv(curves, temperature_k=choices.temperature_k).summary()]


def _branch(curve: Curve, number: int) -> Curve:
    pieces = split_branches(curve)
    if not 0 <= number < len(pieces):
        raise DeviceFitError(
            f"{curve.name}: has {counted(len(pieces), 'branch', 'branches')}, counted from 0; {number} was asked for"
        )
    return pieces[number]


def _fit_programming(path: Path, of_recording: bool, _: FitChoices, __: Progress) -> list[Summary]:
    cells = recorded.recorded_programming(path) if of_recording else files.read_programmed(path)
    return [fit_programming(cells).summary()]


def _fit_relaxation(path: Path, of_recording: bool, choices: FitChoices, progress: Progress) -> list[Summary]:
    most = choices.most_levels
    data = recorded.recorded_relaxation(path) if of_recording else files.read_relaxed(path, most_levels=most)
    ages_s = np.unique(data.age_s[data.age_s > 0])
    until_s = choices.until_s
    if until_s is None and len(ages_s):
        until_s = float(ages_s[(len(ages_s) - 1) // 2 if len(ages_s) > 3 else -1])
    fit, predictions = compare_predictions(data, 0.0 if until_s is None else until_s, progress=progress)
    summary = fit.summary()
    tables = [*summary.tables]
    tables += [predictions] if predictions.rows else []
    tables += [level_retention(fit, data)] if len(np.unique(data.level)) > 1 else []
    return [Summary(summary.title, summary.conditions, summary.quantities, tuple(tables), summary.notes)]


def _fit_noise(path: Path, of_recording: bool, choices: FitChoices, progress: Progress) -> list[Summary]:
    traces = recorded.recorded_traces(path) if of_recording else files.read_traces(path, choices.rate_hz)
    summaries = [fit_read_noise(traces).summary()]
    if choices.telegraph:
        some = type(traces)(traces.values[:_MOST_TELEGRAPH], traces.rate_hz, traces.unit)
        summaries.append(
            _jumps(fit_telegraph(some, most_readings=choices.most_readings, progress=progress), len(traces.values))
        )
    return summaries


def _jumps(fits: tuple[TelegraphFit, ...], traces: int) -> Summary:
    """One line for each trace."""
    rows = []
    for number, one in enumerate(fits):
        criteria = {str(row[0]): float(row[2]) for row in one.comparison.rows}
        without = min(criteria["white"], criteria["memory"])
        gain = without - min(criteria["jumps"], criteria["jumps + memory"])
        sizes = (one.amplitude.value, one.amplitude.low, one.amplitude.high, one.up_hz.value, one.down_hz.value)
        rows.append((number, one.model, "yes" if one.found else "no", *sizes, one.jumps, gain))
    header = (
        "trace",
        "model",
        "telegraph noise",
        f"amplitude ({fits[0].unit})",
        "low",
        "high",
        "up (1/s)",
        "down (1/s)",
    )
    table = Table("jumps", (*header, "jumps", "BIC gained by jumps"), tuple(rows))
    found = sum(one.found for one in fits)
    conditions: dict[str, str | float] = {"traces": len(fits), "with telegraph noise": found}
    notes = (f"the first {len(fits)} of {traces} traces were searched",) if traces > len(fits) else ()
    return Summary("read noise: jumps", conditions, (), (table,), notes)


def _fit_pulses(path: Path, of_recording: bool, _: FitChoices, progress: Progress) -> list[Summary]:
    del of_recording
    return [fit_pulses(files.read_pulses(path), progress).summary()]
