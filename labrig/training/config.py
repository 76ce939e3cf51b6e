"""Training files: TOML that names a rig or a recording, a task, a model, a method, a policy and a budget."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from labrig.toml_models import Fault, Section, check_toml, read_toml
from labrig.training.backends import Kind
from labrig.training.canaries import CanarySettings
from labrig.training.models import TWO_LAYER
from labrig.training.objects import is_import_path
from labrig.training.optimisation import Optimisation
from labrig.training.plan import MethodName, Plan, PolicyName, PolicyPlan
from labrig.training.policy import Budget
from labrig.training.recipe import Recipe
from labrig.training.task_loss import TaskLoss
from labrig_surrogates.schedules import Constant, Exponential, Linear, Schedule

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Magnitude = Annotated[float, Field(ge=0)]

_RECIPE = Recipe()


class RunSection(Section):
    """The run as a whole."""

    folder: Annotated[str, Field(min_length=1)]
    """Where the run's files go, relative to the training file; must not exist yet."""
    seed: Whole = 0
    """Determines initial weights, the order of images, and every noise draw."""
    checkpoint_every: Whole = 50
    """Steps between two checkpoints; 0 writes none."""
    reconnects: Whole = 3
    """How often a rig that was lost is opened again before the run ends; it can be resumed afterwards all the same."""


class ChipSection(Section):
    """The chip. A recording alone serves for training on the surrogate; a rig is needed for in-loop training."""

    rig: str | None = None
    """Rig file, relative to the training file."""
    recording: str | None = None
    """Recording of a calibration sweep: the surrogate is fitted to it where no calibration is named."""
    calibration: str | None = None
    """Fitted chip, made by `labrig calibrate`."""
    replay: str | None = None
    """Recording of an earlier training on the chip, for layers that `training.layers` has replayed."""
    conductance_step_s: Magnitude = 0.0
    """Smallest change of a cell in S that is written; smaller ones wait in float. 0 writes every change."""
    endurance_writes: Count | None = None
    """Programmings that an array endures; a training that would take more is refused."""


class DataSection(Section):
    """The task."""

    name: Annotated[str, Field(min_length=1)] = "digits"
    """Data set: `digits`, the 1,797 images that come with scikit-learn, or an import path of your own."""


class TrainingSection(Section):
    """Network and steps."""

    method: MethodName
    """`digital`, `surrogate`, `in-loop` (physics-aware) or another one; see docs/how-to/train.md."""
    model: Annotated[str, Field(min_length=1)] = TWO_LAYER
    """`two-layer`, or an import path of your own."""
    hidden: Count = _RECIPE.hidden
    """Hidden units of the two-layer network."""
    digital_steps: Count = _RECIPE.digital_steps
    """Steps of the digital network."""
    surrogate_steps: Whole = _RECIPE.surrogate_steps
    """Steps on the surrogate before the method's own."""
    in_loop_cycles: Count = 40
    """Physical passes of the in-the-loop training with a fixed ratio."""
    surrogate_steps_per_cycle: Whole = 5
    """Surrogate steps before each physical pass; where `policy` is `adaptive`, at the start."""
    steps: Count | None = None
    """Steps of the method; in place of `in_loop_cycles`."""
    batch: Count = _RECIPE.optimisation.batch
    """Images in a step."""
    chunks: Count = 1
    """Parts of a batch that are in flight together: the chip measures one while the gradient of another is computed."""
    learning_rate: Rate = _RECIPE.optimisation.learning_rate
    """Adam's step size at the start of digital and surrogate training."""
    in_loop_learning_rate: Rate = _RECIPE.in_loop.optimisation.learning_rate
    """Adam's step size at the start of the method's own steps."""
    clip_sigmas: Magnitude = 0.0
    """Weights beyond so many standard deviations of their layer are clipped after each step; 0 does not."""
    average_decay: Part = 0.0
    """Weight of the past in the moving average of the weights, over the last quarter of the steps; 0 takes none."""
    distillation: Part = 0.0
    """Part of the loss that follows the outputs of the digital network."""
    distillation_temperature: Positive = 4.0
    """Temperature of these outputs."""
    perturbation: Positive = 0.02
    """Relative size of the perturbations of `spsa`."""
    calibration_images: Count = 512
    """Images that `offline-calibrated` fits scale and bias of the columns to."""
    layers: dict[str, Kind] = Field(default_factory=dict)
    """Layers that stay what they are, whatever the step is, by name: `digital`, `surrogate`, `physical`, or `replay`
    (the surrogate, anchored to `chip.replay`)."""
    probe_every: Whole = 5
    """Physical passes between two comparisons of the gradients of chip and surrogate; no pass is needed for it."""


class NoiseSection(Section):
    """Noise of the steps on the surrogate."""

    schedule: Literal["constant", "linear", "exponential"] = "constant"
    """How the noise grows."""
    start: Magnitude = 0.1
    """Multiple of the chip's own noise at the start of a ramp."""
    level: Magnitude = 1.0
    """Multiple of the chip's own noise in the end."""
    ramp: Part = 0.25
    """Part of the steps that a ramp takes."""
    draws: Count = 1
    """Programmings that each step meets."""
    population: Whole = 0
    """Chips that are drawn from the errors of the calibration; 0 trains on the fitted one alone."""
    stochastic_rounding: bool = False
    """Whether steps of `chip.conductance_step_s` are rounded at random."""

    def build(self, steps: int) -> Schedule:
        """The schedule over so many steps."""
        ramp = max(round(self.ramp * steps), 1)
        if self.schedule == "linear":
            return Linear(self.start, self.level, ramp)
        if self.schedule == "exponential":
            return Exponential(self.start, self.level, ramp)
        return Constant(self.level)


class PolicySection(Section):
    """How surrogate steps and passes through the chip alternate."""

    name: PolicyName = "fixed"
    """`fixed`, `scheduled` (ever more passes), or `adaptive` (where the surrogate's gradient is wrong)."""
    passes: Count | None = None
    """Passes that `adaptive` may spend."""
    writes: Count | None = None
    """Programmings that it may spend."""
    seconds: Positive | None = None
    """Time in s that it may spend."""
    joules: Positive | None = None
    """Energy in J that it may spend."""
    trust: Positive = 0.05
    """Relative change of the weights for which it trusts the surrogate; beyond, it takes a pass."""
    finale: Part = 0.0
    """Part of the passes that it keeps for the last steps, for chips that drift."""
    renew_from: Whole = 0
    """Passes after which each one renews the calibration, where recalibration is on; 0 waits for a reason."""


class RecalibrationSection(Section):
    """How the surrogate is kept right while training."""

    on: bool = False
    """Whether the calibration is renewed from the passes of the training."""
    canaries_every: Whole = 10
    """Passes between two looks at the canaries."""
    first_s: Magnitude = 60.0
    """Board time in s after which the drift clock looks first, then at twice the time; 0 stops the clock."""
    false_alarm_looks: Positive = 1000.0
    """Looks between two false alarms."""


class EvaluationSection(Section):
    """How the trained network is judged on the chip."""

    writes: Count = 5
    """Programmings, each judged on all test images."""


class TrainFile(Section):
    """A labrig training file."""

    run: RunSection
    chip: ChipSection = ChipSection()
    data: DataSection = DataSection()
    training: TrainingSection
    noise: NoiseSection = NoiseSection()
    policy: PolicySection = PolicySection()
    recalibration: RecalibrationSection = RecalibrationSection()
    evaluation: EvaluationSection = EvaluationSection()

    def recipe(self) -> Recipe:
        """Everything about the steps."""
        training, policy = self.training, self.policy
        steps = training.steps or training.in_loop_cycles * (training.surrogate_steps_per_cycle + 1)
        rate = training.in_loop_learning_rate
        if training.method == "surrogate":
            steps, rate = max(training.surrogate_steps, 1), training.learning_rate
        loss = TaskLoss(distillation=training.distillation, temperature=training.distillation_temperature)
        canaries = CanarySettings(
            every=self.recalibration.canaries_every,
            first_s=self.recalibration.first_s,
            false_alarm_looks=self.recalibration.false_alarm_looks,
        )
        plan = Plan(
            method=training.method,
            steps=steps,
            policy=PolicyPlan(
                policy.name,
                training.surrogate_steps_per_cycle,
                Budget(policy.passes, policy.writes, policy.seconds, policy.joules),
                policy.trust,
                policy.finale,
                policy.renew_from,
            ),
            optimisation=Optimisation(training.batch, rate, loss, training.clip_sigmas),
            noise=self.noise.build(steps),
            draws=self.noise.draws,
            population=self.noise.population,
            conductance_step_s=self.chip.conductance_step_s,
            stochastic_rounding=self.noise.stochastic_rounding,
            average_decay=training.average_decay,
            chunks=training.chunks,
            layers=tuple(sorted(training.layers.items())),
            recalibrate=self.recalibration.on,
            canaries=canaries,
            perturbation=training.perturbation,
            calibration_images=training.calibration_images,
            probe_every=training.probe_every,
        )
        return Recipe(
            hidden=training.hidden,
            digital_steps=training.digital_steps,
            surrogate_steps=0 if training.method == "surrogate" else training.surrogate_steps,
            optimisation=Optimisation(batch=training.batch, learning_rate=training.learning_rate),
            in_loop=plan,
        )


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

    @property
    def base(self) -> Path:
        """The folder that import paths start from."""
        return self.path.parent

    def _with(self, rig: Path | str | None, recording: Path | str | None) -> TrainConfig:
        config = self
        if recording is not None:
            config = replace(config, recording=Path(recording), calibration=None, rig=None)
        if rig is not None:
            config = replace(config, rig=Path(rig))
        return config


def load_training(
    path: Path | str, *, rig: Path | str | None = None, recording: Path | str | None = None
) -> TrainConfig:
    """Reads and checks a training file.

    Args:
        path: The training file (TOML); paths in it start from its folder.
        rig: A rig in place of the file's own.
        recording: A recording in place of the file's own rig, recording and fitted chip.

    Raises:
        ConfigError: The file cannot be read or is wrong; the message lists every fault as `file:line: key: reason`.
    """
    path = Path(path)
    given = rig is not None or recording is not None
    return parse_training(read_toml(path), path, chip_given=given)._with(rig, recording)


def parse_training(text: str, path: Path, *, chip_given: bool = False) -> TrainConfig:
    """Checks the text of a training file; see `load_training`.

    Args:
        text: What is in the file.
        path: Where it is.
        chip_given: Whether the chip is named elsewhere.

    Raises:
        ConfigError: It is wrong; every fault is named.
    """
    base = path.parent
    cross_faults = partial(_cross_faults, chip_given=chip_given)
    file = check_toml(text, path, TrainFile, cross_faults, partial(_missing_files, base=base, chip_given=chip_given))

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


def _missing_files(raw: Mapping[str, object], *, base: Path, chip_given: bool) -> Iterator[Fault]:
    """Files that are not there: of a valid training file, whoever reads one says so."""
    chip = raw.get("chip")
    for key in ("replay",) if chip_given else ("rig", "recording", "calibration", "replay"):
        name = chip.get(key) if isinstance(chip, dict) else None
        if isinstance(name, str) and not os.path.isfile(base / name):  # noqa: PTH113  # a name of any length
            yield Fault(("chip", key), f"there is no file {base / name}")


def _cross_faults(raw: Mapping[str, object], *, chip_given: bool) -> Iterator[Fault]:
    chip, training = raw.get("chip"), raw.get("training")
    needed = not chip_given and not (isinstance(training, dict) and training.get("method") == "digital")
    if needed and (chip is None or (isinstance(chip, dict) and not {"rig", "recording", "calibration"} & set(chip))):
        yield Fault(("chip",), "names neither rig nor recording nor calibration; at least one is needed")
    layers = training.get("layers") if isinstance(training, dict) else None
    if isinstance(layers, dict) and "replay" in layers.values() and not (isinstance(chip, dict) and "replay" in chip):
        yield Fault(("training", "layers"), "a layer is replayed, and chip.replay names no recording of passes")
    policy, noise = raw.get("policy"), raw.get("noise")
    if isinstance(policy, dict) and policy.get("name") != "adaptive":
        for key in sorted({"passes", "writes", "seconds", "joules"} & set(policy)):
            yield Fault(("policy", key), "only the policy adaptive has a budget")
    if isinstance(noise, dict) and noise.get("schedule") == "exponential":
        for key in ("start", "level"):
            value = noise.get(key, 0.1)
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                yield Fault(("noise", key), "an exponential ramp neither starts nor ends at zero; use linear")
    data = raw.get("data")
    for section, key, own in ((training, "model", TWO_LAYER), (data, "name", "digits")):
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and value != own and not is_import_path(value):
            place = "training" if key == "model" else "data"
            yield Fault((place, key), f"{value!r} is neither {own} nor an import path such as my_file.py:make")
