"""A sweep of training runs: one training file, some of its values varied, a run folder for every combination.

Runs are independent parts as those of a study are: computed one after another, in several processes, or as jobs of a
cluster. A run that was interrupted is resumed, and one that has ended is taken as it is, so that the same command goes
on with what is missing.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labrig.events import EventBus
from labrig.studies.cache import Cache, Numbers
from labrig.studies.parts import Configuration, Workers, computed
from labrig.threads import one_thread
from labrig.training.config import TrainConfig, parse_training
from labrig.training.evaluation_run import evaluate_run
from labrig.training.run import resume_run, train_run
from labrig.training.run_folder import CONFIG, SUMMARY, load_origin, load_summary, write_json
from labrig_drivers.errors import ConfigError, StorageError

SWEEP = "sweep.json"
_PARTS = ".parts"
# Chips that a run without a rig is judged on.
_DRAWN_CHIPS = 25
_COUNTED = ("passes", "mvms", "writes", "surrogate_steps", "digital_flops", "recalibrations", "seconds", "joules")


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        name: Its folder in that of the sweep.
        values: What was varied, by `section.key`.
        config: Its training file.
    """

    name: str
    values: Mapping[str, object]
    config: TrainConfig


def swept_runs(config: TrainConfig, variations: Sequence[str]) -> list[SweptRun]:
    """Every combination of the values, checked before anything runs.

    Args:
        config: The training file; its run folder becomes that of the sweep.
        variations: `section.key=value,value,...` each; values as in the file, text also without quotation marks.

    Raises:
        ConfigError: A variation cannot be read, or makes a training file that is wrong; every fault is named.
    """
    varied, faults = _parsed(variations)
    if faults:
        raise ConfigError("\n".join(faults))
    short = [key.rpartition(".")[2] for key in varied]
    labels = [key if short.count(last) > 1 else last for key, last in zip(varied, short, strict=True)]
    refused: dict[str, list[str]] = {}
    runs, given = [], any(one is not None for one in (config.rig, config.recording, config.calibration))
    for chosen in itertools.product(*varied.values()):
        values = dict(zip(varied, chosen, strict=True))
        name = ",".join(f"{label}={_plain(value)}" for label, value in zip(labels, chosen, strict=True))
        try:
            made = parse_training(_text(config, values), config.path, chip_given=given)
        except ConfigError as error:
            # The text with the values in it is no file, so its lines are left out.
            here = re.escape(str(config.path))
            for line in str(error).splitlines():
                refused.setdefault(re.sub(rf"^{here}:[0-9]+: ", "", line), []).append(name)
            continue
        made = replace(
            made,
            folder=config.folder / name,
            # As the command line had them, where they are not what is varied.
            rig=made.rig if "chip.rig" in values else config.rig,
            recording=made.recording if "chip.recording" in values else config.recording,
            calibration=made.calibration if "chip.calibration" in values else config.calibration,
        )
        runs.append(SweptRun(name, values, made))
    if refused:
        combinations = math.prod(len(values) for values in varied.values())
        raise ConfigError("\n".join(f"{_where(names, combinations)}: {fault}" for fault, names in refused.items()))
    return runs


def _where(names: Sequence[str], combinations: int) -> str:
    """Of which combinations a fault is told: once, however many there are."""
    if len(names) == combinations > 1:
        return f"all {combinations} combinations"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def run_sweep(
    config: TrainConfig, variations: Sequence[str], workers: Workers, done: Callable[[int, int], None]
) -> list[tuple[SweptRun, Numbers]]:
    """Trains and judges all runs of a sweep, and writes `sweep.json` into its folder.

    A run is judged on its rig; without one on chips drawn from the errors of the calibration, or in float.

    Args:
        config: The training file.
        variations: See `swept_runs`.
        workers: How many processes train at a time, or a cluster. A rig serves one run at a time.
        done: Called with the number of runs that have ended, and that of all.

    Raises:
        ConfigError: See `swept_runs`.
        StorageError: A folder holds a run of another training file, or cannot be written.
        LabrigError: A run failed.
    """
    runs = swept_runs(config, variations)
    if (config.folder / CONFIG).exists():
        raise StorageError(f"{config.folder}: is the folder of a single run; choose another run.folder for a sweep")
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{config.folder}: cannot be made ({error.strerror})") from error
    for run in runs:
        if run.config.folder.exists() and _text_of(run.config.folder) != run.config.source_text:
            raise StorageError(
                f"{run.config.folder}: holds a run of another training file; remove it, or choose another run.folder"
            )
    # The configuration of a run says all that it depends on but the code; a finished run stays what it is.
    cache = Cache(config.folder / _PARTS, by_code=False)
    parts = [_part(run) for run in runs]
    for run, part in zip(runs, parts, strict=True):
        if not (run.config.folder / "evaluation.json").exists():
            cache.forget(part)
    told: list[int] = []

    def tell(count: int) -> None:
        if told[-1:] != [count]:
            told.append(count)
            done(count, len(runs))

    found = computed(train_part, parts, cache, workers, tell)
    table = [
        {"folder": run.name, "values": dict(run.values), **numbers} for run, numbers in zip(runs, found, strict=True)
    ]
    write_json(config.folder / SWEEP, {"file": str(config.path.resolve()), "runs": table})
    return list(zip(runs, found, strict=True))


def train_part(part: Configuration) -> Mapping[str, float]:
    """Trains and judges one run, or goes on where it stopped; another process may have begun it."""
    config = _config_of(part)
    folder = config.folder
    with one_thread():
        if not folder.exists():
            train_run(config, EventBus())
        elif not (folder / SUMMARY).exists():
            resume_run(load_origin(folder), EventBus())
        alone = config.rig is None and load_summary(folder)["chip_id"] is not None
        judged = evaluate_run(folder, None, None, EventBus(), chips=_DRAWN_CHIPS if alone else 0)
    summary = load_summary(folder)
    ledger = summary["ledger"]
    assert isinstance(ledger, dict)
    numbers = {name: float(ledger[name]) for name in _COUNTED if ledger[name] is not None}
    accuracy = {"accuracy": judged.zero_shot.mean, "accuracy_error": judged.zero_shot.error}
    calibrated = {} if judged.calibrated is None else {"accuracy_calibrated": judged.calibrated.mean}
    return {"digital_accuracy": float(str(summary["digital_accuracy"])), **accuracy, **calibrated, **numbers}


def _part(run: SweptRun) -> Configuration:
    config = run.config
    paths = {"rig": config.rig, "recording": config.recording, "calibration": config.calibration}
    return {
        "text": config.source_text,
        "path": str(config.path.resolve()),
        "folder": str(config.folder.resolve()),
        **{name: None if path is None else str(path.resolve()) for name, path in paths.items()},
    }


def _config_of(part: Configuration) -> TrainConfig:
    def path(name: str) -> Path | None:
        return None if part[name] is None else Path(str(part[name]))

    made = parse_training(str(part["text"]), Path(str(part["path"])), chip_given=True)
    return replace(
        made,
        folder=Path(str(part["folder"])),
        rig=path("rig"),
        recording=path("recording"),
        calibration=path("calibration"),
    )


def _parsed(variations: Sequence[str]) -> tuple[dict[str, list[object]], list[str]]:
    varied: dict[str, list[object]] = {}
    faults = []
    for one in variations:
        key, _, values = one.partition("=")
        key = key.strip()
        section, _, name = key.partition(".")
        if not section or not name or "." in name or not values:
            faults.append(f"--sweep {one}: write section.key=value,value")
        elif key in varied:
            faults.append(f"--sweep {key}: is varied twice")
        elif key == "run.folder":
            faults.append("--sweep run.folder: every run has a folder of its own in run.folder")
        else:
            varied[key] = [_value(text.strip()) for text in values.split(",")]
            again = {text for text, count in Counter(map(_plain, varied[key])).items() if count > 1}
            faults += [f"--sweep {key}: {text} is there twice" for text in sorted(again)]
    if not variations:
        faults.append("a sweep varies something: --sweep section.key=value,value")
    return varied, faults


def _value(text: str) -> object:
    """A value as TOML writes it; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _plain(value: object) -> str:
    return str(value).replace("/", "_")


def _text(config: TrainConfig, values: Mapping[str, object]) -> str:
    """The training file with other values; its comments are left behind."""
    tables = tomllib.loads(config.source_text)
    for key, value in values.items():
        section, _, name = key.partition(".")
        tables.setdefault(section, {})[name] = value
    lines = []
    for section, table in tables.items():
        lines += ["", f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines[1:]) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text_of(folder: Path) -> str | None:
    try:
        return (folder / CONFIG).read_text(encoding="utf-8")
    except OSError:
        return None
