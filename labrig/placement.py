"""Puts the tiles of a model on the arrays of a board, and says what a pass through them costs before it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError
from labrig_drivers.wording import counted
from labrig_surrogates.backend import DigitalBackend, TileName
from labrig_surrogates.backend_product import tile_names
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.parameters import ConverterRange
from labrig_surrogates.tilemap import ArrayGeometry


@dataclass(frozen=True)
class PassCost:
    """What one pass of a batch takes on the board, from its own latencies; the link comes on top.

    Attributes:
        writes: Programmings, when every weight has changed.
        standing_writes: Programmings, when no weight has changed: those of arrays that tiles share.
        mvms: Matrix-vector products.
        write_s: Time in s of the programmings with changed weights.
        mvm_s: Time in s of the products.
    """

    writes: int
    standing_writes: int
    mvms: int
    write_s: float
    mvm_s: float


@dataclass(frozen=True)
class Placement:
    """An array for every tile of a model.

    Attributes:
        arrays: Array of each tile, by the tile's name.
        mvms_per_image: Products of each tile for one image.
        utilisation: Part of the cells of all tiles that hold a weight or belong to its pair.
        info: The board.
    """

    arrays: Mapping[TileName, int]
    mvms_per_image: Mapping[TileName, int]
    utilisation: float
    info: BoardInfo

    @property
    def tiles_of(self) -> dict[int, list[TileName]]:
        """The tiles of each array that has one."""
        found: dict[int, list[TileName]] = {}
        for tile, array in self.arrays.items():
            found.setdefault(array, []).append(tile)
        return found

    @property
    def shared(self) -> dict[int, list[TileName]]:
        """Arrays that several tiles share: they are programmed in turn at every pass."""
        return {array: tiles for array, tiles in self.tiles_of.items() if len(tiles) > 1}

    @property
    def most_writes_of_an_array(self) -> int:
        """Programmings that one pass with changed weights takes on the busiest array."""
        return max(len(tiles) for tiles in self.tiles_of.values())

    def cost(self, images: int) -> PassCost:
        """What one pass of a batch of so many images takes."""
        writes = len(self.arrays)
        mvms = images * sum(self.mvms_per_image.values())
        return PassCost(
            writes=writes,
            standing_writes=sum(len(tiles) for tiles in self.shared.values()),
            mvms=mvms,
            write_s=writes * self.info.program_latency_s,
            mvm_s=mvms * self.info.mvm_latency_s,
        )

    def demand_endurance(self, passes: int, endurance_writes: int) -> None:
        """Refuses passes that wear an array out.

        Raises:
            ConfigError: An array would be programmed more often than it endures; the message has the numbers.
        """
        needed = passes * self.most_writes_of_an_array
        if needed > endurance_writes:
            raise ConfigError(
                f"{passes} passes with {counted(self.most_writes_of_an_array, 'write')} of the busiest array "
                f"each are {needed} writes; it endures {endurance_writes}: "
                f"{endurance_writes // self.most_writes_of_an_array} passes at most, or more arrays for the tiles"
            )

    def describe(self, images: int) -> str:
        """One paragraph for whoever starts a run: where the tiles are, and what one pass costs."""
        cost, info, shared = self.cost(images), self.info, self.shared
        lines = [
            f"{counted(len(self.arrays), 'tile')} on {len(self.tiles_of)} of {info.arrays} arrays of {info.rows} x "
            f"{info.columns} cells; {100 * self.utilisation:.0f} % of the cells in use"
        ]
        for array, tiles in shared.items():
            lines.append(
                f"array {array} is programmed in turn for {', '.join(tiles)}: {counted(len(tiles), 'write')} every pass"
            )
        lines.append(
            f"a pass of {counted(images, 'image')}: {counted(cost.writes, 'write')} with changed weights "
            f"({cost.standing_writes} without), {counted(cost.mvms, 'MVM')}, {cost.write_s:.3g} s of writing and "
            f"{cost.mvm_s:.3g} s of measuring on the board"
        )
        return "; ".join(lines)


def geometry_of(info: BoardInfo) -> ArrayGeometry:
    """The geometry that a model is mapped to."""
    return ArrayGeometry(
        rows=info.rows,
        columns=info.columns,
        conductance_min_s=info.conductance_min_s,
        conductance_max_s=info.conductance_max_s,
        voltage_max_v=info.voltage_max_v,
    )


def geometry_of_calibration(converters: ConverterRange, rows: int, columns: int) -> ArrayGeometry:
    """The same, where only a calibration is at hand."""
    return ArrayGeometry(
        rows=rows,
        columns=columns,
        conductance_min_s=converters.conductance_min_s,
        conductance_max_s=converters.conductance_max_s,
        voltage_max_v=converters.voltage_max_v,
    )


def model_tiles(model: nn.Module) -> list[TileName]:
    """Names of all tiles of a model, in the order of its modules."""
    return [name for matrix in weight_matrices(model) for name in tile_names(matrix.core)]


def place(tiles: Sequence[TileName], arrays: Sequence[int]) -> dict[TileName, int]:
    """Gives every tile an array.

    With more tiles than arrays, all arrays but the last keep a tile of their own, and the rest takes turns on the
    last: of all fixed placements that leaves the fewest tiles to be programmed again at every pass.

    Raises:
        ConfigError: There is no array.
    """
    if not arrays:
        raise ConfigError(f"{len(tiles)} tiles need an array, and there is none")
    return {tile: arrays[min(number, len(arrays) - 1)] for number, tile in enumerate(tiles)}


def plan_placement(
    model: nn.Module,
    info: BoardInfo,
    example: Tensor,
    *,
    arrays: Sequence[int] | None = None,
    time_multiplexed: bool = True,
) -> Placement:
    """Places a model that `to_analog` made for the arrays of a board, and counts what a pass takes.

    Args:
        model: The analog model.
        info: The board.
        example: A few inputs of the model, `[images, ...]`; they tell how often a convolution uses its tiles.
        arrays: The arrays that may be used; None for all.
        time_multiplexed: Whether tiles may take turns on an array.

    Raises:
        ConfigError: It does not fit; the message lists every fault with its numbers.
    """
    usable = list(range(info.arrays)) if arrays is None else list(arrays)
    tiles = model_tiles(model)
    faults = [*_geometry_faults(model, info)]
    if missing := [array for array in usable if not 0 <= array < info.arrays]:
        which = f"{', '.join(map(str, missing))} {'does' if len(missing) == 1 else 'do'} not exist"
        faults.append(f"array {which}: the board has {info.arrays}, counted from 0")
    if not tiles:
        faults.append("the model has no analog layer: convert it with to_analog")
    if tiles and not usable:
        faults.append(f"{len(tiles)} tiles need an array, and none may be used")
    if len(tiles) > len(usable) and not time_multiplexed and usable:
        seconds = (len(tiles) - len(usable) + 1) * info.program_latency_s
        faults.append(
            f"{len(tiles)} tiles need as many arrays, {len(usable)} may be used: {len(tiles) - len(usable)} too few; "
            f"taking turns would cost {len(tiles) - len(usable) + 1} writes and {seconds:.3g} s more at every pass"
        )
    if faults:
        raise ConfigError("the model cannot be placed on the board:\n  " + "\n  ".join(faults))
    return Placement(place(tiles, usable), _mvms_per_image(model, example), _utilisation(model), info)


def _geometry_faults(model: nn.Module, info: BoardInfo) -> Iterator[str]:
    board = geometry_of(info)
    for matrix in weight_matrices(model):
        mapped = matrix.core.config.geometry
        if mapped is None:
            yield f"layer {matrix.core.name!r} was made without a geometry: give to_analog that of the board"
        elif (mapped.rows, mapped.columns) != (board.rows, board.columns):
            yield (
                f"layer {matrix.core.name!r} is mapped to arrays of {mapped.rows} x {mapped.columns}, "
                f"the board has {board.rows} x {board.columns}"
            )
        elif mapped != board:
            yield (
                f"layer {matrix.core.name!r} is mapped to {mapped.conductance_min_s:g} to "
                f"{mapped.conductance_max_s:g} S and {mapped.voltage_max_v:g} V, the board has "
                f"{board.conductance_min_s:g} to {board.conductance_max_s:g} S and {board.voltage_max_v:g} V"
            )


class _CountingBackend:
    """The ideal arrays, which count the vectors that they are given."""

    def __init__(self) -> None:
        self.vectors: Counter[TileName] = Counter()

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        self.vectors[tile] += voltage_v.shape[0]
        return DigitalBackend().currents(tile, target_s, voltage_v)


@torch.no_grad()
def _mvms_per_image(model: nn.Module, example: Tensor) -> dict[TileName, int]:
    cores = [matrix.core for matrix in weight_matrices(model)]
    before, training, counter = [core.backend for core in cores], model.training, _CountingBackend()
    model.eval()
    try:
        for core in cores:
            core.use_backend(counter)
        model(example)
    finally:
        model.train(training)
        for core, backend in zip(cores, before, strict=True):
            core.backend = backend
    return {tile: counter.vectors[tile] // example.shape[0] for tile in model_tiles(model)}


def _utilisation(model: nn.Module) -> float:
    maps = [(matrix.core.tile_map, matrix.core.product.groups) for matrix in weight_matrices(model)]
    tiles = sum(len(one.tiles) * groups for one, groups in maps)
    return sum(one.utilisation * len(one.tiles) * groups for one, groups in maps) / tiles
