"""Training files: TOML that names a rig or a recording, a task, a network and a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from labrig.toml_models import Fault, Section, check_toml, read_toml
from labrig.training.loops import Optimisation
from labrig.training.policy import FixedRatio
from labrig.training.recipe import Recipe

Method = Literal["digital", "surrogate", "in-loop"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]

_RECIPE = Recipe()


class RunSection(Section):
    """The run as a whole."""

    folder: Annotated[str, Field(min_length=1)]
    """Where the run's files go, relative to the training file; must not exist yet."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Determines initial weights, the order of images, and every noise draw."""


class ChipSection(Section):
    """The chip. A recording alone serves for training on the surrogate; a rig is needed for in-loop training."""

    rig: str | None = None
    """Rig file, relative to the training file."""
    recording: str | None = None
    """Recording of a calibration sweep: the surrogate is fitted to it where no calibration is named."""
    calibration: str | None = None
    """Fitted chip, made by `labrig calibrate`."""


class DataSection(Section):
    """The task."""

    name: Literal["digits"] = "digits"
    """Data set: `digits`, the 1,797 images that come with scikit-learn."""


class TrainingSection(Section):
    """Network and steps."""

    method: Method
    """`digital`, `surrogate` (after digital), or `in-loop` (after both)."""
    hidden: Count = _RECIPE.hidden
    """Hidden units."""
    digital_steps: Count = _RECIPE.digital_steps
    """Steps of the digital network."""
    surrogate_steps: Count = _RECIPE.surrogate_steps
    """Steps on the surrogate."""
    in_loop_cycles: Count = _RECIPE.alternation.cycles
    """Physical passes of the in-the-loop training."""
    surrogate_steps_per_cycle: Annotated[int, Field(ge=0)] = _RECIPE.alternation.surrogate_steps
    """Surrogate steps before each physical pass."""
    batch: Count = _RECIPE.optimisation.batch
    """Images in a step."""
    learning_rate: Rate = _RECIPE.optimisation.learning_rate
    """Adam's step size at the start of digital and surrogate training."""
    in_loop_learning_rate: Rate = _RECIPE.in_loop_optimisation.learning_rate
    """Adam's step size at the start of in-the-loop training."""

    def recipe(self) -> Recipe:
        """The steps as a `Recipe`."""
        return Recipe(
            hidden=self.hidden,
            digital_steps=self.digital_steps,
            surrogate_steps=self.surrogate_steps,
            alternation=FixedRatio(self.in_loop_cycles, self.surrogate_steps_per_cycle),
            optimisation=Optimisation(batch=self.batch, learning_rate=self.learning_rate),
            in_loop_optimisation=Optimisation(batch=self.batch, learning_rate=self.in_loop_learning_rate),
        )


class EvaluationSection(Section):
    """How the trained network is judged on the chip."""

    writes: Count = 5
    """Programmings, each judged on all test images."""


class TrainFile(Section):
    """A labrig training file."""

    run: RunSection
    chip: ChipSection
    data: DataSection = DataSection()
    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()


@dataclass(frozen=True)
class TrainConfig:
    """A valid training file with its paths resolved.

    Attributes:
        file: The file's sections.
        path: The file.
        source_text: Its text, verbatim.
        folder: Where the run's files go.
        rig: Rig file, where one is named.
        recording: Recording, where one is named.
        calibration: Fitted chip, where one is named.
    """

    file: TrainFile
    path: Path
    source_text: str
    folder: Path
    rig: Path | None
    recording: Path | None
    calibration: Path | None

    def overridden(self, *, rig: Path | None, recording: Path | None) -> TrainConfig:
        """With `--rig` or `--recording` of the command line in place of the file's own.

        A recording takes the place of a rig and of a fitted chip, and a rig that of nothing else.
        """
        config = self
        if recording is not None:
            config = replace(config, recording=recording, calibration=None, rig=None)
        if rig is not None:
            config = replace(config, rig=rig)
        return config


def load_training(path: Path) -> TrainConfig:
    """Reads and checks a training file.

    Raises:
        ConfigError: The file cannot be read or is wrong; the message lists every fault as `file:line: key: reason`.
    """
    return parse_training(read_toml(path), path)


def parse_training(text: str, path: Path) -> TrainConfig:
    """Checks the text of a training file; see `load_training`."""
    file = check_toml(text, path, TrainFile, _cross_faults)
    base = path.parent

    def resolved(name: str | None) -> Path | None:
        return None if name is None else base / name

    return TrainConfig(
        file=file,
        path=path,
        source_text=text,
        folder=base / file.run.folder,
        rig=resolved(file.chip.rig),
        recording=resolved(file.chip.recording),
        calibration=resolved(file.chip.calibration),
    )


def _cross_faults(raw: Mapping[str, object]) -> Iterator[Fault]:
    chip = raw.get("chip")
    if isinstance(chip, dict) and not {"rig", "recording", "calibration"} & set(chip):
        yield Fault(("chip",), "names neither rig nor recording nor calibration; at least one is needed")
