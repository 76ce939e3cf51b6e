"""`labrig study break-even`: how wrong must a surrogate be, and in which way, before training on the chip pays?

A chip departs from its surrogate in one structure of a chosen size, and drifts or does not (`structured_chip`). All
methods start from one network that was trained on the surrogate, and all are judged on the chip at its last age:
offline training with as many further steps on the surrogate, the same with its columns calibrated on the chip,
physics-aware (PAT) and dual adaptive training (DAT) with many passes and with few, and the adaptive alternation with
few. Learning rates and the alternation are tuned on chips that no result is of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import cast

import torch

from labrig.studies.break_even_findings import Grid, found
from labrig.studies.cache import Cache, Numbers
from labrig.studies.loop_methods import (
    LoopSize,
    Task,
    Tuned,
    all_methods,
    further,
    judged,
    offline,
    plans,
    prepare,
    trained_in_loop,
)
from labrig.studies.parts import Workers, computed
from labrig.studies.result import StudyResult
from labrig.studies.running import Report, StudySettings, finished
from labrig.studies.structured_chip import STRUCTURES, Structure, StructuredBoard, StructuredChip, another
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet, load_digits
from labrig.training.models import digital_network
from labrig_drivers.errors import ConfigError

QUESTION = "How wrong must a surrogate be, and in which way, before training on the chip itself pays?"

# Chips for tuning: far from the seeds of any result.
_TUNING_SEED = 100_000
_TUNING_CHIPS: tuple[tuple[Structure, float, float], ...] = (("cells", 0.3, 0.2), ("crosstalk", 0.2, 0.0))
_CANDIDATES: tuple[tuple[str, tuple[dict[str, float], ...]], ...] = (
    ("offline", ({"offline": 3e-3}, {"offline": 1e-2})),
    ("PAT", ({"pat": 1e-2}, {"pat": 3e-2})),
    ("DAT", ({"dat": 1e-2}, {"dat": 3e-2})),
    (
        "adaptive",
        (
            {"adaptive": 1e-2, "finale": 0.5},
            {"adaptive": 2e-2, "finale": 0.5},
            {"adaptive": 3e-2, "finale": 0.5},
            {"adaptive": 2e-2, "finale": 0.25},
        ),
    ),
)


@dataclass(frozen=True)
class _Scale:
    """How large the whole is."""

    size: LoopSize
    structures: tuple[Structure, ...]
    mismatches: tuple[float, ...]
    drifts: tuple[float, ...]
    images: tuple[int, int] | None = None


_USUAL = _Scale(LoopSize(), STRUCTURES, (0.0, 0.1, 0.2, 0.3), (0.0, 0.2))
_FULL = _Scale(
    LoopSize(hidden=32, digital_steps=1500, surrogate_steps=1000, passes=200, few=40, steps=1000),
    STRUCTURES,
    (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    (0.0, 0.1, 0.2),
)
_QUICK = _Scale(LoopSize(8, 60, 20, 4, 2, 4, 32), ("columns", "curve"), (0.0, 0.3), (0.0,), (256, 100))


def run(settings: StudySettings, report: Report) -> StudyResult:
    """Runs the study.

    Args:
        settings: How.
        report: Progress.

    Raises:
        ConfigError: A rig is named: no rig has a departure from its surrogate that can be chosen.
        StorageError: The folder of finished parts cannot be written.
    """
    if settings.rig is not None:
        raise ConfigError("break-even needs chips whose departure from their surrogate can be chosen; give no --rig")
    started_s = time.monotonic()
    scale = _QUICK if settings.quick else _FULL if settings.full else _USUAL
    cache = Cache(settings.cache)
    shared: dict[str, object] = {"study": "break-even", "size": asdict(scale.size), "images": scale.images}
    tuned = Tuned() if settings.quick else _tuned(shared, cache, settings.workers, report)
    shared |= {"tuned": asdict(tuned)}
    chips: list[tuple[Structure, float, float]] = []
    for drift in scale.drifts:
        # Without a mismatch there is no structure: one chip stands for all.
        chips.append((scale.structures[0], 0.0, drift))
        chips.extend((one, size, drift) for one in scale.structures for size in scale.mismatches if size > 0.0)
    parts: list[dict[str, object]] = []
    for seed in settings.all_seeds:
        parts += [{**shared, "part": "methods", "seed": seed, "chip": chip} for chip in chips]
        parts += [{**shared, "part": "controls", "seed": seed, "chip": ("columns", 0.3, 0.0)}]
    numbers = computed(
        compute, parts, cache, settings.workers, lambda done: report("trainings on a chip", done, len(parts))
    )
    grid = Grid(scale.structures, scale.mismatches, scale.drifts, scale.size, tuned)
    results: dict[tuple[int, tuple[Structure, float, float]], Numbers] = {}
    controls = []
    for part, one in zip(parts, numbers, strict=True):
        if part["part"] == "controls":
            controls.append(one)
        else:
            results[cast(int, part["seed"]), cast(tuple[Structure, float, float], part["chip"])] = one
    resumed = {"parts": f"{len(parts)}, of which {cache.taken} from an earlier run"} if cache.taken else {}
    outcome = found(grid, results, controls, tuple(settings.all_seeds))
    outcome = replace(outcome, conditions={**outcome.conditions, **resumed})
    return finished("break-even", QUESTION, settings, outcome, started_s)


def compute(part: Mapping[str, object]) -> Numbers:
    """The numbers of one part of the study; see `run` for what parts there are."""
    structure, mismatch, drift = cast(tuple[Structure, float, float], part["chip"])
    seed = cast(int, part["seed"])
    size = LoopSize(**cast(dict[str, int], part["size"]))
    tuned = Tuned(**cast(dict[str, float], part["tuned"]))
    images = cast(tuple[int, int] | None, part["images"])
    # Nothing else that is tuned matters for what the methods start from.
    task = _task(seed, size, tuned.offline, None if images is None else (images[0], images[1]))
    chip = StructuredChip(seed + 1, structure, mismatch, drift)
    if part["part"] == "controls":
        return _controls(task, chip, tuned)
    if part["part"] == "tuning":
        name = cast(str, part["method"])
        one = offline(task, chip, calibrated=True) if name == "offline" else None
        return {"accuracy": (one or trained_in_loop(task, chip, plans(size, tuned)[name])).accuracy}
    return {
        f"{name}/{key}": value
        for name, one in all_methods(task, chip, tuned).items()
        for key, value in asdict(one).items()
    }


def _tuned(shared: Mapping[str, object], cache: Cache, workers: Workers, report: Report) -> Tuned:
    """The best of each method's candidates on chips of their own."""
    parts: list[dict[str, object]] = [
        {
            **shared,
            "part": "tuning",
            "method": method,
            "tuned": asdict(replace(Tuned(), **one)),
            "seed": seed,
            "chip": c,
        }
        for method, candidates in _CANDIDATES
        for one in candidates
        for seed in (_TUNING_SEED, _TUNING_SEED + 1)
        for c in _TUNING_CHIPS
    ]
    # Candidates of one seed follow each other, so that what they start from is trained once.
    parts.sort(key=lambda part: (cast(int, part["seed"]), str(cast(dict[str, float], part["tuned"])["offline"])))
    numbers = computed(compute, parts, cache, workers, lambda done: report("tuning on other chips", done, len(parts)))
    best = Tuned()
    for method, candidates in _CANDIDATES:
        scores = []
        for one in candidates:
            wanted = asdict(replace(Tuned(), **one))
            mine = [
                found["accuracy"]
                for part, found in zip(parts, numbers, strict=True)
                if part["method"] == method and part["tuned"] == wanted
            ]
            scores.append(sum(mine) / len(mine))
        best = replace(best, **candidates[scores.index(max(scores))])
    return best


def _controls(task: Task, chip: StructuredChip, tuned: Tuned) -> Numbers:
    """Training on the exact surrogate of this chip and of another one, and on the chip with shuffled labels."""
    board, found = StructuredBoard(chip, age=1.0), {}
    for name, known in (("right", chip), ("wrong", another(chip))):
        model = ChipModel.of(known.calibration(gains=True))
        network = further(task.start, model, task.data, task.size, tuned, task.seed)
        found[name] = judged(task, chip, network, board)
    generator = torch.Generator().manual_seed(task.seed)
    shuffled = replace(task, data=task.data.shuffled_labels(generator))
    fresh = digital_network(task.data.input_shape[0], task.size.hidden, task.data.classes, generator)
    start = ChipModel.of(chip.calibration()).deployed(fresh, task.data)
    found["shuffled"] = trained_in_loop(shuffled, chip, plans(task.size, tuned)["PAT"], start=start).accuracy
    return found


@lru_cache(maxsize=2)
def _task(seed: int, size: LoopSize, offline_rate: float, images: tuple[int, int] | None) -> Task:
    return prepare(StructuredChip(seed + 1, "columns", 0.0), _data(images), size, Tuned(offline=offline_rate), seed)


def _data(images: tuple[int, int] | None) -> ImageSet:
    return load_digits() if images is None else load_digits().first(*images)
