"""How much a recording of training must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labrig.plans.base import StreamCapacity


@dataclass(frozen=True)
class PlannedPasses:
    """Forward passes that a training will make through the chip.

    Attributes:
        passes: Batches sent through the network.
        images: Images in each of them.
        writes: Programmings of each tile; every pass with changed weights needs one.
    """

    passes: int
    images: int
    writes: int


def training_capacity(
    placement: Mapping[str, int], planned: list[PlannedPasses], arrays: int
) -> dict[int, StreamCapacity]:
    """Sizes each array's stream; tiles that share an array are programmed anew at every pass."""
    capacity = {}
    for array in range(arrays):
        tiles = sum(1 for placed in placement.values() if placed == array)
        writes = sum(tiles * max(plan.writes, plan.passes if tiles > 1 else 0) for plan in planned)
        blocks = sum(tiles * plan.passes for plan in planned)
        rows = sum(tiles * plan.passes * plan.images for plan in planned)
        capacity[array] = StreamCapacity(rows=max(rows, 1), writes=max(writes, 1), blocks=max(blocks, 1))
    return capacity
