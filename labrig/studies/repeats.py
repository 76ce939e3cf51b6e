"""A study's parts over seeds: each seed, task or chip is computed once, on two cores, and kept until the study ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import cast

from labrig.studies.cache import Cache, Numbers
from labrig.studies.parts import Compute, Configuration, computed
from labrig.studies.running import Found, Report, StudySettings
from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class Repeats:
    """What the parts of a study gave.

    Attributes:
        parts: Their configurations.
        numbers: Of each.
        taken: How many an earlier, interrupted run had computed.
    """

    parts: tuple[Configuration, ...]
    numbers: tuple[Numbers, ...]
    taken: int

    def of(self, **wanted: object) -> list[Numbers]:
        """The numbers of all parts with these values in their configuration, in the order of the seeds."""
        return [
            numbers
            for part, numbers in zip(self.parts, self.numbers, strict=True)
            if all(part.get(name) == value for name, value in wanted.items())
        ]

    def noted(self, found: Found) -> Found:
        """What was found, with a condition that says how many parts are of an earlier run."""
        if not self.taken:
            return found
        note = f"{len(self.parts)}, of which {self.taken} from an earlier run"
        return replace(found, conditions={**found.conditions, "parts": note})


def repeat(
    study: str,
    settings: StudySettings,
    compute: Compute,
    report: Report,
    kinds: Sequence[Mapping[str, object]] = ({},),
) -> Repeats:
    """Computes every kind of part for every seed.

    On a rig, whose chip there is only one of, parts come one after another in this process, and what they measured is
    forgotten when all are done: a chip ages, and the next study has to measure it again.

    Args:
        study: Name of the study.
        settings: How it is run.
        compute: Computes a part, a function of a module. A part's configuration holds `study`, `seed`, `quick`, and
            `rig`, beside what its kind adds.
        report: Told of every part that is done.
        kinds: What there is of each seed.

    Raises:
        ConfigError: The rig file cannot be read.
        LabrigError: The rig failed.
        StorageError: The folder of finished parts cannot be written.
    """
    shared: dict[str, object] = {"study": study, "quick": settings.quick, "rig": None}
    if settings.rig is not None:
        shared |= {"rig": str(settings.rig), "rig_content": _digest(settings.rig)}
    parts = [{**shared, "seed": seed, **kind} for seed in settings.all_seeds for kind in kinds]
    cache = Cache(settings.cache)
    report("parts", 0, len(parts))
    workers = settings.workers if settings.rig is None else 1  # a rig has one user
    workers = min(workers, len(parts)) if isinstance(workers, int) else workers
    numbers = computed(compute, parts, cache, workers, lambda done: report("parts", done, len(parts)))
    report("parts", len(parts), len(parts))
    if settings.rig is not None:
        for part in parts:
            cache.forget(part)
    return Repeats(tuple(parts), tuple(numbers), cache.taken)


def seed_of(part: Configuration) -> int:
    """The seed of a part."""
    return cast(int, part["seed"])


def rig_of(part: Configuration) -> Path | None:
    """The rig file of a part; None for the simulated chip."""
    rig = cast(str | None, part["rig"])
    return None if rig is None else Path(rig)


def _digest(rig: Path) -> str:
    try:
        return sha256(rig.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{rig}: cannot be read ({error.strerror})") from error
