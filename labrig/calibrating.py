"""From recordings on disk to a fitted chip: what `labrig calibrate` and `labrig train --recording` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from labrig.events import EventBus, Message, StepDone
from labrig.recording import Recording
from labrig.recording.header import utc_now
from labrig.recording.joining import read_arrays
from labrig_calibration.dataset import DatasetError, MvmDataset
from labrig_calibration.diagnostics import diagnose
from labrig_calibration.fit import CalibrationError, chip_parameters, fit, heldout_part, smallest_write
from labrig_calibration.result import CalibrationResult, JudgedArray
from labrig_drivers.errors import StorageError
from labrig_drivers.wording import counted
from labrig_surrogates.io import load_chip
from labrig_surrogates.parameters import ChipParameters

# A fit reports fractions; events count steps.
_FRACTION_STEPS = 100


@dataclass(frozen=True)
class Calibration:
    """A fitted chip, and the fits that it was made of.

    Attributes:
        chip: The parameters, ready for `chip.safetensors`.
        fits: One for each array, with data and diagnostics.
    """

    chip: ChipParameters
    fits: tuple[CalibrationResult, ...]


def datasets_of(paths: Sequence[Path], bus: EventBus | None = None) -> list[MvmDataset]:
    """Reads every array of one or more recordings of one chip; recordings of the same array are joined.

    Writes that an interruption left with too few MVMs to be fitted are left out.

    Args:
        paths: The recordings.
        bus: Told what is left out.

    Raises:
        StorageError: A file cannot be read or believed, holds no MVMs, or the files do not belong together.
    """
    datasets = []
    for whole in read_arrays(paths).values():
        fewest = smallest_write(whole.rows)
        datasets.append(kept := whole.without_sparse_writes(fewest))
        if bus is not None and kept.writes < whole.writes:
            bus.publish(
                Message(
                    f"array {whole.array}: {counted(len(whole) - len(kept), 'MVM')} of "
                    f"{counted(whole.writes - kept.writes, 'write')} left out, as an interruption leaves them: a write "
                    f"needs {fewest} to be fitted"
                )
            )
    return datasets


def calibrate_recordings(paths: Path | str | Sequence[Path | str], seed: int, bus: EventBus) -> Calibration:
    """Fits every array of a chip.

    Args:
        paths: A recording, or several of one chip.
        seed: Of the draws in the diagnostics; the fit itself draws nothing.
        bus: Gets the progress.

    Raises:
        StorageError: See `datasets_of`.
        CalibrationError: The data cannot carry a fit.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
    rng = np.random.default_rng(seed)
    fits = []
    for dataset in datasets_of(files, bus):

        def progress(stage: str, fraction: float, array: int = dataset.array) -> None:
            done = round(_FRACTION_STEPS * fraction)
            bus.publish(StepDone(f"fit of array {array}, {stage}", done, _FRACTION_STEPS, None))

        try:
            fitted = fit(dataset, rng=rng, progress=progress)
        except (CalibrationError, DatasetError) as error:
            raise CalibrationError(f"array {dataset.array} of {', '.join(map(str, files))}: {error}") from error
        fits.append(fitted)
        bus.publish(
            Message(
                f"array {dataset.array}: {counted(len(dataset), 'MVM')} of {counted(dataset.writes, 'write')}, "
                f"held-out error {fitted.diagnostics.error_over_noise:.3f} x noise floor, "
                f"{counted(int(fitted.array_parameters.stuck.sum()), 'stuck cell')}, rung {fitted.rung}, "
                f"{counted(int(fitted.flagged.sum()), 'MVM')} and {counted(fitted.outliers, 'output')} left out"
            )
        )
    provenance: dict[str, str | float | int] = {
        "recordings": ", ".join(path.name for path in files),
        "calibrated_utc": utc_now(),
        "labrig": version("labrig"),
        "seed": seed,
    }
    for fitted in fits:
        provenance |= fitted.provenance()
    return Calibration(chip_parameters(fits, provenance), tuple(fits))


def judged_again(paths: Sequence[Path], chip_path: Path, rng: np.random.Generator) -> list[JudgedArray]:
    """A fitted chip beside the recordings that it was fitted to, judged anew on their held-out part.

    Raises:
        StorageError: The recordings cannot be read, or are not those that the chip was fitted to.
        SurrogateError: The chip file cannot be read.
    """
    chip = load_chip(chip_path)
    fits = []
    for dataset in datasets_of(paths):
        fitted_to = chip.provenance.get(f"array_{dataset.array}_data_sha256")
        if chip.chip_id != dataset.chip_id or fitted_to != dataset.sha256():
            raise StorageError(
                f"{chip_path}: chip {chip.chip_id} was not fitted to these data of array {dataset.array} of chip "
                f"{dataset.chip_id} ({', '.join(map(str, paths))}); run `labrig calibrate` on them"
            )
        parameters = chip.arrays[dataset.array]
        heldout, _ = heldout_part(dataset)
        fits.append(JudgedArray(parameters, diagnose(parameters, heldout, rng=rng), dataset))
    return fits


def report_conditions(paths: Sequence[Path]) -> dict[str, str]:
    """What the report prints as its conditions: read from the first recording."""
    with Recording.open(paths[0]) as recording:
        header = recording.header
        return {
            "recordings": ", ".join(path.name for path in paths),
            "rig": header.rig_name,
            "board": str(header.identities["board"]),
            "measured": header.started_utc,
            "labrig": header.versions.get("labrig", "unknown"),
            "commit": header.git_commit or "unknown",
        }
