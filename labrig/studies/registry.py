"""The studies by name; each is loaded only when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Final, cast

from labrig.studies.result import StudyResult
from labrig.studies.running import Report, StudySettings
from labrig_drivers.errors import ConfigError

STUDIES: Final[dict[str, str]] = {
    "break-even": "how wrong must a surrogate be before training on the chip itself pays?",
    "robustness": "how much accuracy do networks of few bits keep on noisy chips, by how they were trained?",
    "anchor": "does labrig reproduce the published noise table of NeuRRAM's ResNet-20?",
    "ablation": "what does each part of the training for noisy chips add?",
    "schedules": "does it matter how the noise of a training grows?",
    "definitions": "how much does it matter which noise is meant by 10 %?",
    "energy": "does an analog inference take a fifth of a digital one, and against which machine?",
    "equilibrium": "does a recurrence on an array bear weight errors better than the same work unrolled?",
    "eqprop": "does an array learn from its own settled states, and at which read noise does that break?",
    "ebm": "is a chip's own read noise good enough to sample with, and does noise regularise?",
    "diffusion": "can a diffusion sampler use the noise of the array that its denoiser is on?",
    "recurrent": "does training a recurrence through time on the chip beat fitting its readout?",
}
"""What each asks, by its name; the module of that name, `-` as `_`, has a function `run`."""

_OF_IMAGES: Final = frozenset({"robustness", "anchor", "ablation", "schedules", "definitions"})
_OF_ANY_NOISE: Final = frozenset({"robustness", "ablation", "schedules"})
_OF_ANY_PRECISION: Final = _OF_ANY_NOISE | {"definitions"}


def run_study(name: str, settings: StudySettings, report: Report) -> StudyResult:
    """Runs a study.

    Args:
        name: One of `STUDIES`.
        settings: How.
        report: Progress.

    Raises:
        ConfigError: There is no such study, less than one seed, or something is asked for that this study has not;
            every fault is listed.
        LabrigError: The rig failed.
    """
    if name not in STUDIES:
        raise ConfigError(f"no study named {name!r}; there are {', '.join(STUDIES)}")
    if faults := [*_faults(name, settings)]:
        raise ConfigError("\n".join(faults))
    run = cast(
        Callable[[StudySettings, Report], StudyResult], import_module(f"labrig.studies.{name.replace('-', '_')}").run
    )
    return run(settings, report)


def _faults(name: str, settings: StudySettings) -> Iterator[str]:
    if settings.seeds < 1:
        yield f"{settings.seeds} seeds are no repetitions: give at least 1, and 2 for an interval"
    given = {
        "--data": settings.data is not None,
        "--network": settings.network is not None,
        "--epochs": settings.epochs is not None,
        "--evaluate": settings.evaluate,
    }
    strange = [option for option, is_given in given.items() if is_given]
    if strange and name not in _OF_IMAGES:
        yield f"study {name} takes no {', '.join(strange)}: that is for {', '.join(sorted(_OF_IMAGES))}"
    if settings.noise is not None and name not in _OF_ANY_NOISE:
        yield f"study {name} takes no --noise: that is for {', '.join(sorted(_OF_ANY_NOISE))}"
    if settings.precision is not None and name not in _OF_ANY_PRECISION:
        yield f"study {name} takes no --precision: that is for {', '.join(sorted(_OF_ANY_PRECISION))}"
    if settings.quick and (settings.network is not None or settings.epochs is not None):
        yield "--quick has a network and epochs of its own: leave it out, or --network and --epochs"
    if settings.epochs is not None and min(settings.epochs) < 1:
        yield "--epochs counts at least one epoch each, such as 12+10"
