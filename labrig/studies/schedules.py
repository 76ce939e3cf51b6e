"""`labrig study schedules`: does it matter how the noise of a training grows?

The same method with noise that is constant, or grows in a straight line, exponentially, past its end and back, or
varies from step to step as in VANT (arXiv 2503.16183); judged at the noise that it was trained for, at less and more.
"""

from __future__ import annotations

from typing import Final

from labrig.studies.result import StudyResult
from labrig.studies.running import Report, StudySettings
from labrig.studies.vision.comparison import Comparison, compared, size_of
from labrig.studies.vision.factors import Factor
from labrig.studies.vision.methods import METHODS
from labrig.studies.vision.noise import Noise

QUESTION = "Does it matter how the noise of a training grows?"

BASE: Final = METHODS["ours"]
"""Its noise grows in a straight line."""

SCHEDULES: Final = (
    # By the name that it has among the ablations: one training for both.
    Factor.of(BASE, "noise constant from the start", ramp="constant"),
    Factor.of(BASE, "exponential", ramp="exponential"),
    Factor.of(BASE, "overshoot", ramp="overshoot"),
    Factor.of(BASE, "VANT", ramp="vant"),
)
"""What stands in the place of the straight line."""

_NOISES: Final = (Noise(0.0), Noise(0.1, 0.1), Noise(0.2, 0.2), Noise(0.3, 0.3))


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How; see `labrig.studies.robustness.run`. The usual size takes a network of half the channels.
        report: Progress.

    Raises:
        ConfigError: A rig is named, or no folder with the data.
        StorageError: Data or networks cannot be read or written.
    """
    schedules = SCHEDULES[:1] if settings.quick else SCHEDULES
    return compared(Comparison("schedules", QUESTION, BASE, schedules, size_of(settings), _NOISES), settings, report)
