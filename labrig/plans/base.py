"""What a plan is: an asynchronous stream of points, each one request to the board, each with a stable hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from labrig_drivers.crossbar import BoardInfo, FloatArray


@dataclass(frozen=True)
class StreamCapacity:
    """How much one array's part of a recording must hold.

    Attributes:
        rows: MVMs.
        writes: Programmings.
        blocks: Batches of MVMs.
    """

    rows: int
    writes: int
    blocks: int


@dataclass(frozen=True, eq=False)
class ProgramPoint:
    """Programs one array.

    Attributes:
        array: Which array.
        write: Which programming of this array in this plan, from 0.
        conductance_s: Target in S, `[rows, columns]`.
    """

    array: int
    write: int
    conductance_s: FloatArray

    @cached_property
    def hash(self) -> str:
        """32 hex digits that depend on the content only."""
        return _content_hash({"point": "program", "array": self.array, "write": self.write}, self.conductance_s)


@dataclass(frozen=True, eq=False)
class MvmPoint:
    """Measures one block of vectors on one array.

    Attributes:
        array: Which array.
        write: Which programming of this array in this plan is read.
        block: Which block of this write, from 0: equal vectors measured twice are two points.
        kind: What the vectors are for, such as a `StimulusKind`.
        voltage_v: Inputs in V, `[batch, rows]`.
    """

    array: int
    write: int
    block: int
    kind: int
    voltage_v: FloatArray

    @cached_property
    def hash(self) -> str:
        """32 hex digits that depend on the content only."""
        place = {
            "point": "mvm",
            "array": self.array,
            "write": self.write,
            "block": self.block,
            "kind": int(self.kind),
        }
        return _content_hash(place, self.voltage_v)


Point = ProgramPoint | MvmPoint


@runtime_checkable
class Plan(Protocol):
    """What to measure. The same plan on the same board yields the same points, in the same order."""

    @property
    def name(self) -> str:
        """The name under which `plan_by_name` makes it."""
        ...

    def describe(self) -> dict[str, object]:
        """Everything that determines the points, seeds included, as JSON can hold it."""
        ...

    def capacity(self, info: BoardInfo) -> dict[int, StreamCapacity]:
        """How much a recording of this plan must hold, by array.

        Raises:
            CapabilityError: The board has no such array.
        """
        ...

    def points(self, info: BoardInfo) -> AsyncIterator[Point]:
        """The points in the order of measurement.

        Raises:
            CapabilityError: The board has no such array.
        """
        ...


def least_seconds(capacity: Mapping[int, StreamCapacity], info: BoardInfo) -> float:
    """How long the board alone needs for all of this, in s: its stated latencies, without link and disk."""
    rows = sum(one.rows for one in capacity.values())
    writes = sum(one.writes for one in capacity.values())
    return rows * info.mvm_latency_s + writes * info.program_latency_s


def _content_hash(place: Mapping[str, object], values: FloatArray) -> str:
    content = {**place, "shape": list(values.shape)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    # Little-endian whatever the machine, or a run could not be resumed on another one.
    digest.update(np.ascontiguousarray(values, dtype="<f8").data)
    return digest.hexdigest()[:32]
