"""The trigger model of Keithley's touch-screen source-meters: numbered blocks that run one after another.

Reference manual 2450-901-01, section "Trigger model", and the `:TRIGger:BLOCk` commands of its section 6. Execution
begins at block 1 and ends where the next number has no block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from labrig_drivers.mock.scpi_parser import Run


@dataclass(frozen=True)
class ClearBuffer:
    """Empties the reading buffer."""

    buffer: str


@dataclass(frozen=True)
class Recall:
    """Recalls one index, counted from 1, of a source configuration list."""

    name: str
    index: int


@dataclass(frozen=True)
class RecallNext:
    """Recalls the index after the one that was recalled last; after the last one the first again."""

    name: str


@dataclass(frozen=True)
class Delay:
    """Waits a constant time in s."""

    duration_s: float


@dataclass(frozen=True)
class Measure:
    """Takes readings into a buffer."""

    buffer: str
    count: int


@dataclass(frozen=True)
class BranchCounter:
    """Goes to a block until it was reached `target` times, then on."""

    target: int
    to: int


@dataclass(frozen=True)
class BranchAlways:
    """Goes to a block; 0 ends the run."""

    to: int


@dataclass(frozen=True)
class SwitchSource:
    """Switches the output."""

    on: bool


Block: TypeAlias = ClearBuffer | Recall | RecallNext | Delay | Measure | BranchCounter | BranchAlways | SwitchSource


class Stage(Protocol):
    """The instrument on which a trigger model acts."""

    def clear_buffer(self, buffer: str) -> None:
        """Empties a reading buffer."""
        ...

    def recall(self, name: str, index: int) -> None:
        """Makes one index, counted from 1, of a source configuration list the present settings."""
        ...

    def list_size(self, name: str) -> int:
        """Number of indexes in a source configuration list."""
        ...

    def take_reading(self, buffer: str) -> Generator[float, None, None]:
        """Takes one reading; yields the seconds that it takes."""
        ...

    def switch_source(self, on: bool) -> None:
        """Switches the output."""
        ...


class TriggerModel:
    """Blocks by number."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not self._blocks

    def clear(self) -> None:
        """Forgets every block."""
        self._blocks.clear()

    def set_block(self, number: int, block: Block) -> None:
        """Sets one block; numbers begin at 1."""
        self._blocks[number] = block

    def load(self, blocks: list[Block]) -> None:
        """Replaces everything by `blocks`, numbered from 1."""
        self._blocks = dict(enumerate(blocks, start=1))

    def run(self, stage: Stage) -> Run:
        """Runs from block 1; yields the seconds that delays and readings take, and 0 where it may loop for ever."""
        counts: Counter[int] = Counter()
        positions: dict[str, int] = {}
        number = 1
        while number in self._blocks:
            block = self._blocks[number]
            following = number + 1
            match block:
                case BranchAlways(to):
                    following = to
                    yield 0.0
                case BranchCounter(target, to):
                    counts[number] += 1
                    if counts[number] < target:
                        following = to
                        yield 0.0
                    else:
                        counts[number] = 0
                case _:
                    yield from _act(block, stage, positions)
            number = following
        return None


def _act(block: Block, stage: Stage, positions: dict[str, int]) -> Generator[float, None, None]:
    """Does what a block that goes on to the next one does; `positions` are the lists' present indexes."""
    match block:
        case ClearBuffer(buffer):
            stage.clear_buffer(buffer)
        case Recall(name, index):
            positions[name] = index
            stage.recall(name, index)
        case RecallNext(name):
            positions[name] = positions.get(name, 0) % stage.list_size(name) + 1
            stage.recall(name, positions[name])
        case Delay(duration_s):
            if duration_s:
                yield duration_s
        case Measure(buffer, count):
            for _ in range(count):
                yield from stage.take_reading(buffer)
        case SwitchSource(on):
            stage.switch_source(on)
        case _:
            raise ValueError(f"{block} branches; it does not act")
