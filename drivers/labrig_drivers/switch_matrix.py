"""The contract of a switch matrix: relays at the crossings of its rows and columns.

Rows and columns are counted from 1, as on the front panels and in the manuals. A closed point joins its row and its
column; two columns that share a row are joined as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from labrig_drivers.errors import CapabilityError
from labrig_drivers.instrument import Instrument

Point = tuple[int, int]
"""Row and column of one relay, both counted from 1."""


@dataclass(frozen=True)
class SwitchMatrixInfo:
    """What a switch matrix can do.

    Attributes:
        rows: Number of rows; the instruments are usually wired to them.
        columns: Number of columns; the device under test is usually wired to them.
        voltage_v: Highest voltage in V across an open relay, either sign.
        current_a: Highest current in A that a closed relay carries, either sign.
        settle_s: Time in s after a change until the contacts have stopped bouncing.
    """

    rows: int
    columns: int
    voltage_v: float
    current_a: float
    settle_s: float


class SwitchMatrix(Instrument, Protocol):
    """A relay matrix. It knows nothing of what is wired to it: never switching hot is the caller's duty.

    `open()` changes no relay; `close()` opens every relay that this object closed. Every change is read back from the
    instrument before the call returns, and the settling time has passed then.
    """

    @property
    def info(self) -> SwitchMatrixInfo:
        """Sizes and ratings; `StateError` before `open()`."""
        ...

    async def close_points(self, points: Collection[Point]) -> None:
        """Closes relays; those that are closed already stay so, all others stay as they are.

        Args:
            points: Relays as (row, column), both from 1.

        Raises:
            CapabilityError: A point does not exist; nothing was sent.
            InstrumentError: The instrument refused, or a relay is not in the state that was asked for.
        """
        ...

    async def open_points(self, points: Collection[Point]) -> None:
        """Opens relays; all others stay as they are. Raises as `close_points`.

        Args:
            points: Relays as (row, column), both from 1.
        """
        ...

    async def open_all(self) -> None:
        """Opens every relay of the instrument, also those that somebody else closed.

        Raises:
            InstrumentError: A relay is still closed.
        """
        ...

    async def closed_points(self) -> frozenset[Point]:
        """Asks the instrument which relays are closed."""
        ...

    async def connect(self, points: Collection[Point]) -> None:
        """Makes exactly these points closed, break before make: what must open has opened before anything closes.

        Raises as `close_points`.

        Args:
            points: Relays as (row, column), both from 1.
        """
        ...


def check_points(info: SwitchMatrixInfo, points: Collection[Point], name: str) -> frozenset[Point]:
    """Refuses points that the matrix does not have, every one named in one error; returns the points as a set.

    Raises:
        CapabilityError: At least one point does not exist.
    """
    missing = sorted(
        point for point in set(points) if not (1 <= point[0] <= info.rows and 1 <= point[1] <= info.columns)
    )
    if missing:
        raise CapabilityError(
            f"{name}: no relay at row, column {', '.join(map(str, missing))}; nothing was sent "
            f"(the matrix has rows 1 to {info.rows} and columns 1 to {info.columns})"
        )
    return frozenset(points)
