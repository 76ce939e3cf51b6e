"""The whole loop on a simulated bench: what `labrig demo` runs, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labrig.acquisition import RunSummary, run_sweep
from labrig.calibrating import Calibration, calibrate_recordings, report_conditions
from labrig.config import RigConfig, load_rig
from labrig.events import EventBus
from labrig.plans.mvm import MvmCalibrationPlan
from labrig.portal import LoopPortal
from labrig.reports.calibration import write_report
from labrig.rig import identify
from labrig.simulated import simulated_bench
from labrig.training.chip_model import ChipModel
from labrig.training.comparison import Comparison, Prepared, compare, comparison_capacity, prepare
from labrig.training.datasets import ImageSet, load_digits
from labrig.training.evaluate import AccuracyTable
from labrig.training.ledger import Ledger, total
from labrig.training.live_rig import LiveRig, LiveRun
from labrig.training.recipe import Recipe
from labrig.training.run import step_publisher
from labrig.training.run_folder import write_json
from labrig_drivers.errors import StorageError
from labrig_drivers.wording import counted
from labrig_surrogates.io import save_chip

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoSettings:
    """What a demo run is made of.

    Attributes:
        folder: Where everything is left; must not exist or be empty.
        seed: Seed of the simulated chip.
        network_seeds: Trainings of each method, paired.
        writes: Programmings in each judgement on the chip.
    """

    folder: Path
    seed: int = 1
    network_seeds: int = 5
    writes: int = 5


@dataclass(frozen=True)
class DemoResult:
    """What a demo run measured.

    Attributes:
        comparison: Accuracies and ledgers.
        sweep: What the calibration sweep spent.
        training_joules: Energy in J of the whole time on the chip after the sweep, idling included; None without a
            supply meter.
        seconds: Wall time of the whole demo in s.
    """

    comparison: Comparison
    sweep: RunSummary
    training_joules: float | None
    seconds: float

    @property
    def spent(self) -> Ledger:
        """Everything the demo spent on the chip: sweep, training and judgement."""
        comparison = self.comparison
        sweep = Ledger(mvms=self.sweep.mvms, writes=self.sweep.writes)
        everything = total([sweep, *comparison.training, *comparison.evaluation])
        energies = [self.sweep.joules, self.training_joules]
        everything.joules = None if None in energies else sum(energy for energy in energies if energy is not None)
        return everything


def run_demo(settings: DemoSettings, bus: EventBus, say: Say) -> DemoResult:
    """Runs the demo; every step leaves its file in the folder.

    Raises:
        StorageError: The folder holds files already, or cannot be written.
        LabrigError: A step failed; outputs are off and the bench has ended.
    """
    begin_s = time.perf_counter()
    folder = settings.folder
    _prepare(folder)
    say("1 of 6: starting the simulated bench in a process of its own")
    with simulated_bench(folder, seed=settings.seed, standard_ports=True) as bench:
        config = load_rig(bench.rig_file)
        say(f"2 of 6: opening the rig ({bench.rig_file})")
        _identify(config, say)
        say("3 of 6: calibration sweep -> calibration.h5")
        recording = folder / "calibration.h5"
        with LoopPortal() as portal:
            sweep = portal.call(run_sweep(config, MvmCalibrationPlan(), recording, bus))
        say("4 of 6: fitting the chip -> chip.safetensors, report.html")
        calibration = _calibrate(recording, folder, bus)
        say(f"5 of 6: training {settings.network_seeds} networks, digital and on the surrogate")
        chip, data, recipe = ChipModel.of(calibration.chip), load_digits(), Recipe()
        prepared = prepare(chip, data, recipe, range(settings.network_seeds), step_publisher(bus))
        say("6 of 6: training them in the loop with the chip, and judging all on it -> training.h5")
        comparison, joules = _compare(prepared, config, chip, data, recipe, settings, bus)
    result = DemoResult(comparison, sweep, joules, time.perf_counter() - begin_s)
    write_json(folder / "summary.json", summary(result, calibration, settings))
    return result


def summary(result: DemoResult, calibration: Calibration, settings: DemoSettings) -> dict[str, object]:
    """The content of `summary.json`."""
    spent = result.spent
    comparison = result.comparison
    return {
        "accuracy": {name: table.as_dict() for name, table in comparison.accuracy.items()},
        "passes": spent.passes,
        "mvms": spent.mvms,
        "writes": spent.writes,
        "seconds": result.seconds,
        "joules": spent.joules,
        "phases": {
            "calibration": {
                "mvms": result.sweep.mvms,
                "writes": result.sweep.writes,
                "seconds": result.sweep.seconds,
                "joules": result.sweep.joules,
            },
            "surrogate_training": total(list(comparison.surrogate_training)).as_dict(),
            "in_loop_training": total(list(comparison.training)).as_dict(),
            "evaluation": total(list(comparison.evaluation)).as_dict(),
        },
        "calibration": {
            str(fitted.array_parameters.array): {
                "error_over_noise": fitted.diagnostics.error_over_noise,
                "coverage_90": fitted.diagnostics.coverage_90,
                "jensen_shannon_bits": fitted.diagnostics.divergence.raw,
                "jensen_shannon_nominal_bits": fitted.diagnostics.divergence_nominal.raw,
            }
            for fitted in calibration.fits
        },
        "conditions": {
            "chip_id": calibration.chip.chip_id,
            "data": "digits (scikit-learn), fixed split of 1,347 training and 450 test images",
            "network": f"64-{Recipe().hidden}-10, two layers, differential pairs",
            "noise": "programming at each write, read noise at each MVM, drift by the wall clock",
            "network_seeds": settings.network_seeds,
            "programmings_each": settings.writes,
        },
    }


def advice(accuracy: dict[str, AccuracyTable]) -> str:
    """One line on what to try next, from what was measured."""
    digital, surrogate, in_loop = (accuracy[name] for name in ("digital", "surrogate", "in_loop"))
    error = float(np.hypot(surrogate.error, in_loop.error))
    if in_loop.mean < digital.mean - 0.02:
        return "next: the chip still costs accuracy; train longer (in_loop_cycles), or calibrate with more writes."
    if in_loop.mean - surrogate.mean > 2.0 * error:
        return "next: the loop pays here; spend more passes, fewer surrogate steps between them."
    return (
        "next: the surrogate alone is as good as the loop on this chip, so save the passes: "
        "try `labrig train` with method surrogate, or another chip with --seed."
    )


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise StorageError(f"{folder}: cannot be used ({error.strerror}); choose another with --folder") from error
    if occupied:
        raise StorageError(f"{folder}: holds files already; remove it or choose another with --folder")


def _identify(config: RigConfig, say: Say) -> None:
    with LoopPortal() as portal:
        identities, info = portal.call(identify(config))
    for name, identity in identities.items():
        say(f"   {name}: {identity}")
    say(f"   chip {info.chip_id}: {counted(info.arrays, 'array')} of {info.rows} x {info.columns}")


def _calibrate(recording: Path, folder: Path, bus: EventBus) -> Calibration:
    calibration = calibrate_recordings([recording], 0, bus)
    save_chip(folder / "chip.safetensors", calibration.chip)
    conditions = report_conditions([recording])
    write_report(folder / "report.html", calibration.fits, conditions, np.random.default_rng(0), chip=calibration.chip)
    return calibration


def _compare(
    prepared: Sequence[Prepared],
    config: RigConfig,
    chip: ChipModel,
    data: ImageSet,
    recipe: Recipe,
    settings: DemoSettings,
    bus: EventBus,
) -> tuple[Comparison, float | None]:
    seeds, writes = len(prepared), settings.writes
    run = LiveRun(
        config=config,
        chip_id=chip.chip_id,
        path=settings.folder / "training.h5",
        plan={"name": "training", "seeds": [one.seed for one in prepared], "writes": writes},
        capacity=lambda info: comparison_capacity(prepared[0].deployed, chip, data, recipe, seeds, writes, info.arrays),
    )
    with LiveRig(run, bus) as board:
        result = compare(
            prepared, chip, board, data, recipe, writes=writes, on_step=step_publisher(bus), meter_j=board.joules
        )
        return result, board.joules()
