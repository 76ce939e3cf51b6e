"""`labrig study ablation`: what each part of the training adds, one factor at a time, at 10 % and at 20 % noise.

Each factor is taken away from the whole method, or put in the place of a part of it, with everything else as it was:
the same digital network, the same order of images, the same chips. Differences are paired by seed. A part that adds
nothing is printed like one that does.
"""

from __future__ import annotations

from typing import Final

from labrig.studies.result import StudyResult
from labrig.studies.running import Report, StudySettings
from labrig.studies.vision.comparison import Comparison, compared, size_of
from labrig.studies.vision.factors import Factor
from labrig.studies.vision.methods import METHODS

QUESTION = "What does each part of the training for noisy chips add?"

BASE: Final = METHODS["ours"]

FACTORS: Final = (
    Factor.of(BASE, "weights not clipped", clip_sigmas=None),
    Factor.of(BASE, "weights clipped at 1.5 sigma", clip_sigmas=1.5),
    Factor.of(BASE, "no noise on the weights", weight_noise=0.0),
    Factor.of(BASE, "no noise on the outputs", output_noise=0.0),
    Factor.of(BASE, "noise constant from the start", ramp="constant"),
    Factor.of(BASE, "no distillation", distillation=0.0),
    Factor.of(BASE, "weights rounded to the nearest", rounding="nearest"),
    Factor.of(BASE, "no moving average", average=0.0),
    Factor.of(BASE, "stochastic residual layers", residual=True),
    Factor.of(BASE, "spread of the weights held by its prior", spread=True, kl=1.0),
    Factor.of(BASE, "statistics of the chip's activations", statistics=0.01),
    Factor.of(BASE, "asymmetric activation", activation="asymmetric"),
)
"""What is changed; see `Method`."""


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How; see `labrig.studies.robustness.run`. The usual size takes a network of half the channels.
        report: Progress.

    Raises:
        ConfigError: A rig is named, or no folder with the data.
        StorageError: Data or networks cannot be read or written.
    """
    factors = FACTORS[:2] if settings.quick else FACTORS
    return compared(Comparison("ablation", QUESTION, BASE, factors, size_of(settings)), settings, report)
