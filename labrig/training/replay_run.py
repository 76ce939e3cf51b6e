"""A run from its recordings: no rig, the same steps, and the same weights to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from labrig.events import EventBus
from labrig.training.assembly import assemble
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import load_images
from labrig.training.on_rig import recorded_passes
from labrig.training.policy import Recorded, StepKind
from labrig.training.run import step_event
from labrig.training.run_folder import (
    CHIP,
    DIGITAL,
    NETWORK,
    START,
    SUMMARY,
    MetricsFile,
    create_folder,
    load_metrics,
    load_network,
    load_origin,
    load_summary,
    save_network,
)
from labrig.training.run_summary import network_of
from labrig.training.segments import Segments
from labrig.training.session import Line, RecordedUpkeep, Session
from labrig.training.tape_board import TapeBoard
from labrig_drivers.errors import StorageError
from labrig_surrogates.io import load_chip
from labrig_surrogates.layers import set_backend


@dataclass(frozen=True)
class ReplayResult:
    """A rerun beside the run.

    Attributes:
        folder: Where the rerun is.
        steps: Steps that were taken again.
        different: Largest difference of a weight; zero where all bits are the same.
    """

    folder: Path
    steps: int
    different: float


def replay_run(recording: Path, bus: EventBus) -> ReplayResult:
    """Takes the steps of a finished run again, with its recordings in the place of the rig.

    What the run decided by time, energy or canaries is in its log, and is not decided again.

    Args:
        recording: A recording of the run, in its folder; or the folder.
        bus: Gets the progress.

    Raises:
        StorageError: It is no recording of a finished run, or a file cannot be read or written.
        CapabilityError: The rerun has left the recording.
    """
    folder = recording if recording.is_dir() else recording.parent
    if not recording.exists():
        raise StorageError(f"{recording}: there is no such file")
    if not (folder / SUMMARY).is_file():
        raise StorageError(f"{recording}: is not in the folder of a finished run of `labrig train`")
    summary, origin = load_summary(folder), load_origin(folder)
    data, plan = load_images(origin.file.data.name, origin.base), origin.file.recipe().in_loop
    lines = [one for one in load_metrics(folder) if one["phase"] == plan.method]
    if [one["step"] for one in lines] != list(range(1, plan.steps + 1)):
        raise StorageError(f"{folder}: its log does not have every one of the {plan.steps} steps once")
    segments = Segments.load(folder)
    board = TapeBoard(segments)
    network = network_of(origin, summary, data, START)
    teacher = None
    if origin.file.training.distillation > 0.0:
        digital = network_of(origin, {**summary, "geometry": None}, data, DIGITAL)
        with torch.no_grad():
            teacher = cast(Tensor, digital.eval()(data.train_x))
    chip = ChipModel.of(load_chip(folder / CHIP))
    session = assemble(
        network,
        chip,
        data,
        plan,
        origin.file.run.seed,
        board=board,
        teacher=teacher,
        recorded=recorded_passes(origin, chip),
    )
    session.policy = Recorded([cast(StepKind, one["kind"]) for one in lines], probes=session.policy.probes)
    if session.recalibration is not None:
        looked, renewed = (_steps_with(lines, what) for what in ("canaries", "recalibration"))
        session.recalibration.recorded = RecordedUpkeep(looked, renewed)
    config = replace(origin, folder=_free_name(folder))
    create_folder(config)
    with closing(MetricsFile(config.folder)) as metrics:

        def journal(line: Line) -> None:
            metrics.write(line)
            bus.publish(step_event(line))

        session.run(journal, _fresh_writes(session, segments))
    set_backend(network, None)
    save_network(config.folder / NETWORK, network)
    recorded = network_of(origin, summary, data)
    load_network(folder / NETWORK, recorded)
    pairs = zip(network.state_dict().values(), recorded.state_dict().values(), strict=True)
    apart = max(float((one.double() - other.double()).abs().max()) for one, other in pairs if one.numel())
    return ReplayResult(config.folder, session.step, apart)


def _fresh_writes(session: Session, segments: Segments) -> Callable[[], None]:
    """Has the arrays programmed anew where the run had to, because it had lost its rig."""
    steps = {one.step for one in segments.every[1:] if one.fresh}

    def after_step() -> None:
        if session.step in steps:
            session.bench.chip.new_write()

    return after_step


def _steps_with(lines: Sequence[Line], what: str) -> frozenset[int]:
    return frozenset(int(str(one["step"])) for one in lines if what in one)


def _free_name(folder: Path) -> Path:
    number = 1
    while (found := folder / f"replay-{number}").exists():
        number += 1
    return found
