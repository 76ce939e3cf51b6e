"""Checkpoints: everything that a session needs to go on as if it had never stopped, in one file written at once."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from labrig.recording.whole_files import write_whole
from labrig.training.ledger import Ledger
from labrig.training.physical import Held, Observation
from labrig.training.recorded_board import BoardPosition
from labrig.training.session import Session
from labrig_drivers.commanded import PastWrite
from labrig_drivers.crossbar import MvmResult
from labrig_drivers.errors import StorageError
from labrig_drivers.wording import objection

FORMAT = 1
_KEPT = 2


def save_checkpoint(folder: Path, session: Session, position: BoardPosition | None, recordings: list[str]) -> Path:
    """Writes a checkpoint; the last two are kept.

    Args:
        folder: Where checkpoints go.
        session: The training, between two steps.
        position: Where the rig is; None for a training without one.
        recordings: Names of the recordings so far.

    Raises:
        StorageError: It cannot be written; those before are as they were.
    """
    tensors, numbers = _state(session)
    if position is not None:
        for one in position.past:
            tensors[f"board/{one.array}"] = torch.as_tensor(one.conductance_s)
        numbers["board"] = {
            "now_s": position.now_s,
            "rows": position.rows,
            "writes": position.writes,
            "past": [[one.array, one.write_index, one.time_s, one.requests] for one in position.past],
        }
    numbers |= {"format": FORMAT, "recordings": recordings, "threads": torch.get_num_threads()}
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{session.step:08d}.safetensors"
    content = {name: one.detach().contiguous().clone() for name, one in tensors.items()}
    write_whole(path, save(content, {"labrig": json.dumps(numbers)}))
    for old in sorted(folder.glob("step-*.safetensors"))[:-_KEPT]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint; None where there is none. A file that is not complete has another name."""
    return max(folder.glob("step-*.safetensors"), default=None)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and numbers of a checkpoint.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            numbers = _mapping(json.loads(file.metadata()["labrig"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(
            f"{path}: no checkpoint that can be read ({objection(error)}); remove it to go on from an earlier one"
        ) from error
    if numbers.get("format") != FORMAT:
        raise StorageError(
            f"{path}: is a checkpoint of format {numbers.get('format', '?')}, this labrig reads {FORMAT}; "
            "go on with the labrig that wrote it"
        )
    return tensors, numbers


def restore_session(
    session: Session, tensors: dict[str, Tensor], numbers: dict[str, object], path: Path | None = None
) -> None:
    """Puts a freshly assembled session where the checkpoint was; its chip is that of the checkpoint already.

    Args:
        session: The session.
        tensors: Those of the checkpoint.
        numbers: The same.
        path: The checkpoint, for messages.

    Raises:
        StorageError: The checkpoint is of another training.
    """
    bench, stepper = session.bench, session.bench.stepper
    try:
        stepper.network.load_state_dict(_part(tensors, "network"))
        session.step = int(str(numbers["step"]))
        session.physical_steps = int(str(numbers["physical_steps"]))
        stepper.load_state(_part(tensors, "optimiser"), int(str(numbers["optimiser_steps"])))
        session.sampler.load_state(_part(tensors, "sampler"))
        bench.generator.set_state(tensors["generator"])
        bench.surrogate.generator.set_state(tensors["noise"])
        session.method.begin(bench)
        session.method.learned.load_state(_part(tensors, "method"))
        session.average.shadow = _part(tensors, "average")
        session.reference = _part(tensors, "reference")
        bench.ledger.copy_from(Ledger(**_mapping(numbers["ledger"])))  # type: ignore[arg-type]
        session.policy.load_state(_mapping(numbers["policy"]))  # type: ignore[arg-type]
        session.now_s = float(str(numbers["now_s"]))
        session.looked_s = float(str(numbers["looked_s"]))
        canaries = None if session.recalibration is None else session.recalibration.canaries
        if canaries is not None:
            canaries.load_state(_mapping(numbers["canaries"]))  # type: ignore[arg-type]
        _restore_measured(session, _part(tensors, "measured"), _mapping(numbers["measured"]))
        if bench.physical is not None:
            for name, one in _part(tensors, "wear").items():
                bench.physical.wear.writes[int(name)] = one.numpy().copy()
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        name = "the checkpoint" if path is None else str(path)
        raise StorageError(f"{name}: does not belong to this training ({objection(error)})") from error


def restore_held(session: Session, tensors: dict[str, Tensor], numbers: dict[str, object]) -> None:
    """Tells the session what is on the arrays of a board that was put back where it was."""
    times = _mapping(numbers["held"])
    for name, commanded in _part(tensors, "held").items():
        session.bench.chip.held[int(name)] = Held(commanded.numpy().copy(), float(str(times[name])))


def board_position(tensors: dict[str, Tensor], numbers: dict[str, object]) -> BoardPosition | None:
    """Where the rig was; None where there was none."""
    board = numbers.get("board")
    if board is None:
        return None
    content = _mapping(board)
    rows, writes, past = content["rows"], content["writes"], content["past"]
    assert isinstance(rows, dict)
    assert isinstance(writes, dict)
    assert isinstance(past, list)
    return BoardPosition(
        {int(array): int(count) for array, count in rows.items()},
        {int(array): int(count) for array, count in writes.items()},
        None if content["now_s"] is None else float(str(content["now_s"])),
        tuple(
            PastWrite(int(array), int(index), tensors[f"board/{array}"].numpy().copy(), float(time_s), int(requests))
            for array, index, time_s, requests in past
        ),
    )


def _state(session: Session) -> tuple[dict[str, Tensor], dict[str, object]]:
    bench = session.bench
    parts = {
        "network": dict(bench.stepper.network.state_dict()),
        "optimiser": bench.stepper.state(),
        "sampler": session.sampler.state(),
        "method": session.method.learned.state(),
        "average": session.average.shadow,
        "reference": session.reference,
    }
    tensors = {f"{part}/{name}": one for part, content in parts.items() for name, one in content.items()}
    tensors |= {"generator": bench.generator.get_state(), "noise": bench.surrogate.generator.get_state()}
    held: dict[str, float] = {}
    if bench.physical is not None:
        for array, one in bench.physical.held.items():
            tensors[f"held/{array}"] = torch.as_tensor(one.commanded_s)
            held[str(array)] = one.time_s
        for array, writes in bench.physical.wear.writes.items():
            tensors[f"wear/{array}"] = torch.as_tensor(writes)
    measured = {}
    for array, seen in session.measured.items():
        for number, batch in enumerate(seen):
            tensors |= {f"measured/{array}/{number}/{name}": value for name, value in _tensors_of(batch).items()}
        measured[str(array)] = [[batch.tile, batch.held.time_s, batch.result.write_index] for batch in seen]
    canaries = None if session.recalibration is None else session.recalibration.canaries
    numbers: dict[str, object] = {
        "step": session.step,
        "optimiser_steps": bench.stepper.step_number,
        "physical_steps": session.physical_steps,
        "ledger": asdict(bench.ledger),
        "policy": session.policy.state(),
        "canaries": None if canaries is None else canaries.state(),
        "version": session.version,
        "now_s": session.now_s,
        "looked_s": session.looked_s,
        "held": held,
        "measured": measured,
    }
    return tensors, numbers


def _tensors_of(one: Observation) -> dict[str, Tensor]:
    result = one.result
    return {
        "commanded": torch.as_tensor(one.held.commanded_s),
        "voltage": torch.as_tensor(one.voltage_v),
        "code": torch.as_tensor(result.code),
        "current": torch.as_tensor(result.current_a),
        "saturated": torch.as_tensor(result.saturated),
        "time": torch.as_tensor(result.time_s),
    }


def _restore_measured(session: Session, tensors: dict[str, Tensor], numbers: dict[str, object]) -> None:
    for array, entries in numbers.items():
        assert isinstance(entries, list)
        memory = 0 if session.recalibration is None else session.recalibration.refit.memory
        seen: deque[Observation] = deque(maxlen=memory)
        for number, (tile, held_s, write_index) in enumerate(entries):
            values = {name: one.numpy().copy() for name, one in _part(tensors, f"{array}/{number}").items()}
            result = MvmResult(
                code=values["code"].astype(np.int16),
                current_a=values["current"],
                saturated=values["saturated"].astype(np.bool_),
                time_s=values["time"],
                write_index=int(write_index),
            )
            held = Held(values["commanded"], float(held_s))
            seen.append(Observation(tile, int(array), held, values["voltage"], result))
        session.measured[int(array)] = seen


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}


def _mapping(content: object) -> dict[str, object]:
    if not isinstance(content, dict):
        raise TypeError(f"{content!r} is no table")
    return content
