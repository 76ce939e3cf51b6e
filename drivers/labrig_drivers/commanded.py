"""A simulated board whose time is a number: it waits without waiting, and can be put back into an earlier state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from labrig_drivers.crossbar import BoardInfo, FloatArray

COMMANDED: Final = "commanded"
"""Name of this ability in `BoardInfo.capabilities`."""


@dataclass(frozen=True)
class PastWrite:
    """The latest programming of an array, and what was asked of it since.

    Attributes:
        array: Which array.
        write_index: How often the array was programmed before, as the board counts.
        conductance_s: Target in S, `[rows, columns]`.
        time_s: Board clock in s at the end of the programming.
        requests: Measurements of this array since then.
    """

    array: int
    write_index: int
    conductance_s: FloatArray
    time_s: float
    requests: int


@runtime_checkable
class CommandedBoard(Protocol):
    """A board that declares `commanded`: all that it does follows from what was asked of it, and its clock is told."""

    async def now_s(self) -> float:
        """The board's clock in s."""
        ...

    async def let_pass(self, duration_s: float) -> None:
        """Moves the clock on, as if the board had been left alone for so long."""
        ...

    async def restore(self, now_s: float, writes: Sequence[PastWrite]) -> None:
        """Puts the board where it was when exactly these writes were on it; other arrays were never programmed.

        Args:
            now_s: The board's clock in s.
            writes: The latest write of each array.

        Raises:
            CapabilityError: The board does not declare `commanded`, or has no such array.
        """
        ...


def commanded(board: object, info: BoardInfo) -> CommandedBoard | None:
    """The board as a commanded one, where it is one."""
    return board if COMMANDED in info.capabilities and isinstance(board, CommandedBoard) else None
