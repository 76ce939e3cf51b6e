"""The evaluation of a run folder: on the chip, on many chips that the calibration allows, or in float."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from labrig.config import RigConfig, load_rig
from labrig.events import EventBus
from labrig.training.assembly import NOISE_STREAM, generator_of
from labrig.training.bench import MeanOf
from labrig.training.capacity import PlannedPasses, training_capacity
from labrig.training.chip_model import ChipModel
from labrig.training.column_fit import calibrate_columns, column_layers
from labrig.training.config import TrainConfig
from labrig.training.datasets import ImageSet, load_images
from labrig.training.evaluate import AccuracyTable, Judged, ReprogrammableBackend, judge_on, table
from labrig.training.live_rig import LiveRig, LiveRun
from labrig.training.normalisation import has_batch_norm, reestimate_batch_norm
from labrig.training.population import draw_chip
from labrig.training.run_folder import CHIP, load_origin, load_summary, write_json
from labrig.training.run_report import write_run_report
from labrig.training.run_summary import network_of
from labrig.training.trainings import physical_backend
from labrig_drivers.errors import ConfigError
from labrig_surrogates.backend import DigitalBackend, SurrogateBackend, TileName
from labrig_surrogates.io import load_chip
from labrig_surrogates.layers import set_backend

# Images, without their classes, that a chip is calibrated with for the second number.
_CALIBRATION_IMAGES = 512
_POPULATION_STREAM = 11


@dataclass(frozen=True)
class Evaluation:
    """How good the network of a run is.

    Attributes:
        zero_shot: Accuracies as the network is.
        calibrated: The same after scale and bias of every column, and batch normalisation, were fitted on the chip;
            None where there is no chip.
        worst: 5th percentile over chips (or programmings, on one chip) as the network is.
        where: Where they were measured, in words.
        confusion: Test images of the network as it is, true classes by rows.
    """

    zero_shot: AccuracyTable
    calibrated: AccuracyTable | None
    worst: float
    where: str
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, object]:
        """For `evaluation.json`."""
        calibrated = None if self.calibrated is None else self.calibrated.as_dict()
        return {
            **self.zero_shot.as_dict(),
            "percentile_5": self.worst,
            "calibrated": calibrated,
            "where": self.where,
            "confusion": [list(row) for row in self.confusion],
        }


def evaluate_run(
    folder: Path | str, rig_path: Path | str | None, writes: int | None, bus: EventBus, *, chips: int = 0
) -> Evaluation:
    """Judges the network of a run folder: on the chip where it was trained for one, else in float.

    Args:
        folder: The run folder.
        rig_path: Rig file; the run's own when None.
        writes: Programmings; the training file's number when None.
        bus: Gets the events of the rig.
        chips: Chips drawn from the errors of the calibration to judge it on, instead of the rig; zero for the rig.

    Raises:
        ConfigError: The network needs a chip and no rig is named.
        IdentityError: The rig has another chip than the run.
        StorageError: Not a finished run, or a file cannot be written.
    """
    folder = Path(folder)
    summary, config = load_summary(folder), load_origin(folder)
    data = load_images(config.file.data.name, config.base)
    network = network_of(config, summary, data)
    writes = writes or config.file.evaluation.writes
    if summary["chip_id"] is None:
        result = _evaluation([judge_on(network, _Float(), data, 1)], None, data, "in float, no chip")
    elif chips:
        result = _on_drawn_chips(network, folder, data, chips, writes)
    else:
        rig_path = rig_path or config.rig
        if rig_path is None:
            raise ConfigError(
                f"{folder}: trained on a recording, so name the rig to judge it on: --rig RIG.toml "
                "(or --chips N for chips drawn from the calibration)"
            )
        result = _on_chip(network, config, load_rig(rig_path), data, writes, bus)
    write_json(folder / "evaluation.json", result.as_dict())
    write_run_report(folder)
    return result


def _on_chip(
    network: nn.Module, config: TrainConfig, rig: RigConfig, data: ImageSet, writes: int, bus: EventBus
) -> Evaluation:
    folder = config.folder
    chip = ChipModel.of(load_chip(folder / CHIP))
    placement = chip.placement(network)
    images = min(_CALIBRATION_IMAGES, len(data.train_y))
    planned = [
        PlannedPasses(2 * writes, len(data.test_y), 2 * writes),
        PlannedPasses(len(column_layers(network)) + int(has_batch_norm(network)), images, 1),
    ]
    run = LiveRun(
        config=rig,
        chip_id=chip.chip_id,
        path=next(path for path in (folder / f"evaluation-{n}.h5" for n in itertools.count(1)) if not path.exists()),
        plan={"name": "evaluation", "writes": writes},
        capacity=lambda info: training_capacity(placement, planned, info.arrays),
    )
    with LiveRig(run, bus) as board:
        backend = physical_backend(network, chip, board, 0)
        zero_shot = judge_on(network, backend, data, writes)
        _fit_chip(network, chip, backend, data)
        calibrated = judge_on(network, backend, data, writes)
    where = f"on chip {chip.chip_id}, {writes} programmings"
    return _evaluation([zero_shot], [calibrated], data, where)


def _on_drawn_chips(network: nn.Module, folder: Path, data: ImageSet, chips: int, writes: int) -> Evaluation:
    fitted = load_chip(folder / CHIP)
    model = ChipModel.of(fitted)
    generator = generator_of(0, _POPULATION_STREAM)
    before = {name: one.clone() for name, one in network.state_dict().items()}
    zero_shot, calibrated = [], []
    for number in range(chips):
        surrogates = draw_chip(fitted, generator)
        backend = SurrogateBackend(surrogates, model.placement(network), generator_of(number, NOISE_STREAM))
        zero_shot.append(judge_on(network, backend, data, writes))
        _fit_chip(network, model, backend, data)
        calibrated.append(judge_on(network, backend, data, writes))
        network.load_state_dict(before)
    where = f"on {chips} chips drawn from the calibration of {fitted.chip_id}, {writes} programmings each"
    return _evaluation(zero_shot, calibrated, data, where)


def _fit_chip(network: nn.Module, chip: ChipModel, backend: ReprogrammableBackend, data: ImageSet) -> None:
    """Fits columns and batch normalisation on one programming of the chip, without classes."""
    # The weights were trained to make up for the errors that the calibration knows: those must stay.
    reference = MeanOf(chip.backend(network, generator_of(0, NOISE_STREAM)))
    images = data.train_x[:_CALIBRATION_IMAGES]
    backend.new_write()
    calibrate_columns(network, backend, images, reference)
    set_backend(network, backend)
    reestimate_batch_norm(network, images, 128)


class _Float:
    """Ideal arrays, which are the same however often they are programmed."""

    def new_write(self) -> None:
        """Nothing changes."""

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """See `Backend.currents`."""
        return DigitalBackend().currents(tile, target_s, voltage_v)


def _evaluation(
    zero_shot: Sequence[Judged], calibrated: Sequence[Judged] | None, data: ImageSet, where: str
) -> Evaluation:
    # Over chips where there are several, else over the programmings of the one.
    first = zero_shot[0].accuracies
    each = [float(np.mean(one.accuracies)) for one in zero_shot] if len(zero_shot) > 1 else list(first)
    confusion = np.sum([one.confusion for one in zero_shot], axis=0)
    return Evaluation(
        table([one.accuracies for one in zero_shot], data),
        None if calibrated is None else table([one.accuracies for one in calibrated], data),
        float(np.percentile(each, 5.0)),
        where,
        tuple(tuple(int(count) for count in row) for row in confusion),
    )
