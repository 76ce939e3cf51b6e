"""Which streams and journals the recording of one run has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from labrig.plans.base import BesideCapacity, StreamCapacity
from labrig.recording import layout
from labrig_drivers.crossbar import BoardInfo


@dataclass(frozen=True)
class RunStreams:
    """The streams of one run.

    Attributes:
        mvms: MVMs, by array.
        writes: Programmings, by array.
        supply: Readings of the array supply.
        settings: Where axes were moved to; None where the plan moves none.
        curves: Readings of I-V curves; None where the plan takes none.
        journals: Entries that each journal has room for, by the path of its stream.
        axis_units: Unit of each axis that is moved, by its name.
    """

    mvms: Mapping[int, layout.Stream]
    writes: Mapping[int, layout.Stream]
    supply: layout.Stream
    settings: layout.Stream | None
    curves: layout.Stream | None
    journals: Mapping[str, int]
    axis_units: Mapping[str, str]

    def __iter__(self) -> Iterator[layout.Stream]:
        """In the order in which they lie in the file: what others refer to first, what can be spared last."""
        yield from (one for one in (self.settings, *self.writes.values(), self.curves) if one is not None)
        yield from (*self.mvms.values(), self.supply)

    @property
    def default_group(self) -> str:
        """What a viewer shows first: the group's name within `entry`."""
        first = next(iter(self.mvms.values()), self.curves or self.supply)
        return first.path.rpartition("/")[2]


def run_streams(
    info: BoardInfo,
    capacity: Mapping[int, StreamCapacity],
    supply_rows: int,
    beside: BesideCapacity,
    axis_units: Mapping[str, str],
) -> RunStreams:
    """The streams of a run with room for all of it.

    Args:
        info: The board.
        capacity: Room for each array.
        supply_rows: Room for readings of the supply.
        beside: Room for everything else.
        axis_units: Unit of each axis that is moved, by its name.
    """
    moves_axes = bool(axis_units)
    mvms = {array: layout.mvm_stream(array, info, one, moves_axes=moves_axes) for array, one in capacity.items()}
    journals = {mvms[array].path: max(one.blocks, 1) for array, one in capacity.items()}
    curves = layout.curve_stream(beside.readings, moves_axes=moves_axes) if beside.curves else None
    if curves is not None:
        journals[curves.path] = beside.curves
    return RunStreams(
        mvms=mvms,
        writes={array: layout.write_stream(array, info, one, moves_axes=moves_axes) for array, one in capacity.items()},
        supply=layout.supply_stream(supply_rows),
        settings=layout.settings_stream(beside.settings, axis_units) if moves_axes else None,
        curves=curves,
        journals=journals,
        axis_units=axis_units,
    )
