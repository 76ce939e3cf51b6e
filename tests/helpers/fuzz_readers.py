"""The readers of everything that reaches labrig from outside: files, boards, brokers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from fuzz_campaign import Reader
from fuzz_mutations import Parts
from numpy.typing import NDArray
from served_rig import MOCK
from small_rig import RIG

from labrig.acquisition import run_sweep
from labrig.config import load_rig, shipped_rig
from labrig.events import EventBus
from labrig.plans import plan_by_name
from labrig.plans.plan_file import PlanFile, read_plan_file
from labrig.recording import Recording
from labrig.recording.compaction import compact
from labrig.recording.recovery import recover_recording
from labrig.recording.verification import verify_recording
from labrig.remote.envelope import Assembler, packets, read_body
from labrig.remote.messages import Answer, Fault, Request, read_answer, read_request
from labrig_drivers.board_messages import (
    Conductance,
    Done,
    Hello,
    Message,
    Mvm,
    MvmAnswer,
    MvmPart,
    Ping,
    Program,
    Programmed,
    ReadConductance,
    Safe,
    StreamMvm,
    Welcome,
    info_from_json,
    info_to_json,
)
from labrig_drivers.board_messages import Fault as BoardFault
from labrig_drivers.board_protocol import BoardFraming, decode_verified, encode
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError, LabrigError, ProtocolError, StorageError
from labrig_drivers.instrument import Identity
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.io import load_chip, save_chip
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

COUNTS = {
    "zero": 1,
    "one_hot_repeats": 1,
    "sparse": 1,
    "ladder_patterns": 1,
    "random": 2,
    "activation": 2,
    "repeat_vectors": 1,
    "repeats": 1,
    "hadamard_repeats": 1,
}
# In the runs below nearly all structure lies in front of this place, and all rows behind it.
_FRONT_BYTES = 64 * 1024
TINY_RIG = RIG.replace("arrays = 2", "arrays = 1").replace("rows = 8", "rows = 3").replace("columns = 4", "columns = 2")


def _file(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# Rig files, training files, plan files


def rig_files() -> Reader:
    """`load_rig`."""

    def seeds(_: Path) -> list[Parts]:
        shipped = [shipped_rig(name).read_bytes() for name in ("mock", "simulated_bench", "remote")]
        return [(text,) for text in (*shipped, MOCK.encode(), RIG.encode())]

    return Reader(seeds, lambda content, folder: _ignored(load_rig(_file(content, folder, "rig.toml"))), (ConfigError,))


def training_files() -> Reader:
    """`load_training`."""
    from labrig.training.config import load_training

    text = """\
[run]
folder = "runs/one"
seed = 3
[chip]
rig = "rig.toml"
calibration = "chip.safetensors"
[data]
name = "digits"
[training]
method = "in-loop"
steps = 40
[policy]
name = "adaptive"
seconds = 60.0
[evaluation]
writes = 5
"""

    short = '[run]\nfolder = "a"\n[chip]\nrecording = "run.h5"\n[training]\nmethod = "surrogate"\n'

    def read(content: bytes, folder: Path) -> None:
        load_training(_file(content, folder, "train.toml"))

    return Reader(lambda _: [(text.encode(),), (short.encode(),)], read, (ConfigError,))


def plan_files() -> Reader:
    """`read_plan_file`, and making the plan that it names; plans of one's own are Python and not read here."""

    def seeds(_: Path) -> list[Parts]:
        files = [
            PlanFile("mvm", {"writes": 2, "counts": COUNTS}),
            PlanFile("iv", {"levels": 5, "cells": 2, "high_v": 0.1}),
            PlanFile("retention", {}),
            PlanFile("noise", {}),
        ]
        return [(one.text(("made by labrig plan",)).encode(),) for one in files]

    def read(content: bytes, folder: Path) -> None:
        file = read_plan_file(_file(content, folder, "plan.toml"))
        if ":" not in file.name:
            plan_by_name(file.name, **file.options)

    return Reader(seeds, read, (LabrigError,))


# Recordings


def _recorded(folder: Path) -> list[Parts]:
    """A run of MVMs, one of curves, and a compact copy; what lies in front of the rows is a part of its own."""
    rig = _file(TINY_RIG.encode(), folder, "rig.toml")
    plans = [
        plan_by_name("mvm", writes=2, counts=COUNTS),
        plan_by_name("iv", levels=2, cells=1, program=True),
    ]
    for plan in plans:
        asyncio.run(run_sweep(load_rig(rig), plan, folder / f"{plan.name}.h5", EventBus()))
    compact(folder / "mvm.h5", folder / "compact.h5")
    contents = [(folder / f"{name}.h5").read_bytes() for name in ("mvm", "iv", "compact")]
    return [(content[:_FRONT_BYTES], content[_FRONT_BYTES:]) for content in contents]


def recordings() -> Reader:
    """Opening a recording and reading all of it."""

    def read(content: bytes, folder: Path) -> None:
        with Recording.open(_file(content, folder, "run.h5")) as recording:
            for array in recording.arrays:
                # A run of curves has none, and says so.
                with contextlib.suppress(StorageError):
                    recording.dataset(array)
                _ignored(recording.writes(array), recording.point_hashes(array))
            _ignored(recording.supply(), recording.summary())
            recording.verify()
            recording.refresh()

    return Reader(_recorded, read, (StorageError,))


def verified_recordings() -> Reader:
    """`labrig verify`, without the process in which HDF5 opens what is found right."""

    def read(content: bytes, folder: Path) -> None:
        if verify_recording(_file(content, folder, "run.h5"), refusal=lambda _: "").faults:
            raise StorageError("faults were found")

    return Reader(_recorded, read, (StorageError,))


def recovered_recordings() -> Reader:
    """`labrig recover`, and reading what it rescued."""

    def read(content: bytes, folder: Path) -> None:
        rescued = folder / "rescued.h5"
        rescued.unlink(missing_ok=True)
        report = recover_recording(_file(content, folder, "run.h5"), rescued, refusal=lambda _: "")
        if report.output is not None:
            with Recording.open(rescued) as recording:
                recording.verify()

    return Reader(_recorded, read, (StorageError,))


# Parameter files


def parameter_files() -> Reader:
    """`load_chip`."""

    def seeds(folder: Path) -> list[Parts]:
        made: list[Parts] = []
        for number, (arrays, rows, columns) in enumerate([((0,), 2, 2), ((0, 3), 3, 1)]):
            path = folder / f"chip{number}.safetensors"
            chip = ChipParameters(f"SIM-{number}", {index: _array(index, rows, columns) for index in arrays}, {"n": 3})
            save_chip(path, chip)
            content = path.read_bytes()
            (size,) = struct.unpack_from("<Q", content)
            made.append((content[8 : 8 + size], content[8 + size :]))
        return made

    def read(content: bytes, folder: Path) -> None:
        chip = load_chip(_file(content, folder, "chip.safetensors"))
        for array in chip.arrays.values():
            _ignored(array.estimates(), array.rows, array.columns)

    return Reader(seeds, read, (SurrogateError,), _safetensors)


def _safetensors(parts: Sequence[bytes]) -> bytes:
    return struct.pack("<Q", len(parts[0])) + b"".join(parts)


def _array(index: int, rows: int, columns: int) -> ArrayParameters:
    rng = np.random.default_rng(index)

    def estimate(unit: str, count: int = columns) -> Estimate:
        return Estimate(rng.normal(size=count), rng.uniform(0.01, 0.1, size=count), unit)

    return ArrayParameters(
        array=index,
        gain=estimate("1"),
        offset=estimate("A"),
        compression=estimate("1/A"),
        drift=estimate("1"),
        amplifier_noise=estimate("A^2"),
        shot_noise=estimate("A"),
        conductance_noise=estimate("1"),
        programming=estimate("1", 3),
        cell_slope=rng.normal(size=(rows, columns)),
        cell_intercept_s=rng.normal(size=(rows, columns)),
        stuck=rng.random((rows, columns)) < 0.5,
        write_conductance_s=rng.normal(size=(2, rows, columns)),
        drift_reference_s=1.5,
        converters=ConverterRange(0.3, 0.002, rng.uniform(size=columns), -512, 511, 1e-6, 1e-4),
    )


def checkpoints() -> Reader:
    """`load_checkpoint`."""
    from safetensors.numpy import save

    from labrig.training.checkpoint import FORMAT, load_checkpoint

    def seeds(_: Path) -> list[Parts]:
        numbers = json.dumps({"format": FORMAT, "step": 3, "recordings": [], "held": {}, "policy": {"a": [1, 2.5]}})
        tensors: dict[str, NDArray[np.generic]] = {
            "network/0.weight": np.ones((2, 3), np.float32),
            "generator": np.zeros(16, np.uint8),
        }
        content = save(tensors, {"labrig": numbers})
        (size,) = struct.unpack_from("<Q", content)
        return [(content[8 : 8 + size], content[8 + size :])]

    def read(content: bytes, folder: Path) -> None:
        load_checkpoint(_file(content, folder, "step-00000003.safetensors"))

    return Reader(seeds, read, (StorageError,), _safetensors)


# Frames of a board


def board_frames() -> Reader:
    """Both ends of the board protocol: framing, messages, and what a board says of itself."""
    info = asyncio.run(_info())

    def seeds(_: Path) -> list[Parts]:
        answer = MvmAnswer(2, np.array([0.5]), np.array([[1, -2, 3]], np.int16), np.array([[True, False, True]]))
        voltage_v = np.full((2, 3), 0.1, np.float32)
        messages: list[Message] = [
            Hello(1, 1),
            Welcome(1, 7, 1 << 20, 4, 1.0, Identity("labrig", "X", "1", "2"), info_to_json(info)),
            Program(0, 99, voltage_v),
            Programmed(1, 2.0, 40, 1e-6),
            Mvm(0, voltage_v),
            answer,
            StreamMvm(0, 1, voltage_v),
            MvmPart(0, True, answer),
            ReadConductance(0),
            Conductance(voltage_v),
            Ping(5),
            Safe(),
            Done(),
            BoardFault(3, "out of range"),
        ]
        frames = [encode(message, 17) for message in messages]
        return [(frame[:8], frame[12:-4]) for frame in frames]

    def read(content: bytes, _folder: Path) -> None:
        buffer, framing = bytearray(content), BoardFraming()
        if not content or framing.missing(bytearray(content[:11])) < 1:
            raise ProtocolError("nothing came")
        while (frame := framing.take(buffer)) is not None:
            _, message = decode_verified(frame)
            if isinstance(message, Welcome):
                info_from_json(message.info_json)

    return Reader(seeds, read, (ProtocolError,), _frame)


async def _info() -> BoardInfo:
    async with MockBoard(ChipSettings(seed=1, rows=3, columns=2)) as board:
        return board.info


def _frame(parts: Sequence[bytes]) -> bytes:
    head, payload = parts
    frame = head + struct.pack("<I", len(payload)) + payload
    return frame + struct.pack("<I", zlib.crc32(frame))


# What comes over MQTT and over the direct link


def mqtt_requests() -> Reader:
    """Packets, envelope, and the header of requests and answers."""

    def seeds(_: Path) -> list[Parts]:
        return [_parts(one.encoded()) for one in (*REQUESTS, *ANSWERS)]

    def read(content: bytes, _: Path) -> None:
        whole = Assembler().take(content, 0.0)
        if whole is None:
            raise ProtocolError("not whole")
        body = read_body(whole)
        try:
            read_answer(body)
        except ProtocolError:
            read_request(body)

    return Reader(seeds, read, (ProtocolError,), _packet)


REQUESTS = (
    Request("hello", "me", 0),
    Request("acquire", "me", 0, values={"who": "me", "queue": True}),
    Request("mvm", "me", 1, "token", 12.5, "board", {"array": 0}, {"voltage_v": np.full((2, 12), 0.1)}),
    Request("program", "me", 2, "token", None, "board", {"array": 1}, {"conductance_s": np.full((12, 9), 2e-5)}),
    Request("sweep", "me", 3, "token", None, "supply", {"voltage_v": [0.1, 0.2], "limits": {"a": "b"}}),
)
ANSWERS = (
    Answer("me", 1, {"write_index": 0}, {"code": np.ones((2, 9), np.int16), "saturated": np.zeros((2, 9), bool)}),
    Answer("me", 2, fault=Fault("SafetyError", "too high", {"array": 0, "names": ["a", "b"]})),
)


def _parts(message: bytes) -> Parts:
    (size,) = struct.unpack_from("<I", message)
    arrays = message[4 + size :]
    if not arrays:
        return (message[4 : 4 + size], b"", b"")
    (head,) = struct.unpack_from("<Q", arrays)
    return (message[4 : 4 + size], arrays[8 : 8 + head], arrays[8 + head :])


def _packet(parts: Sequence[bytes]) -> bytes:
    header, head, data = parts
    arrays = _safetensors((head, data)) if head or data else b""
    return next(packets(struct.pack("<I", len(header)) + header + arrays, 1, None))


def _ignored(*_: object) -> None:
    """Values that only had to be readable."""


READERS: dict[str, Callable[[], Reader]] = {
    "board-frames": board_frames,
    "checkpoints": checkpoints,
    "mqtt-requests": mqtt_requests,
    "parameter-files": parameter_files,
    "plan-files": plan_files,
    "recordings": recordings,
    "recovered-recordings": recovered_recordings,
    "rig-files": rig_files,
    "training-files": training_files,
    "verified-recordings": verified_recordings,
}
