"""How the weights of one layer lie on arrays, and whether the tables of its converters and amplifiers fit."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.products import Block
from labrig_surrogates.tilemap import ArrayGeometry, TileMap


def tile_map_of(shape: Sequence[int], groups: int, config: AnalogConfig) -> TileMap:
    """The tiles of one group of a layer; without a geometry, one array as large as that group.

    Args:
        shape: Of the weights, `[outputs, inputs of a group, *kernel]`.
        groups: Groups of a convolution.
        config: Its geometry and scheme decide.

    Raises:
        SurrogateError: The kernel positions of one channel do not fit on an array.
    """
    outputs, inputs, scheme = shape[0] // groups, prod(shape[1:]), config.mapping.scheme
    columns = 2 * outputs if scheme == "differential_pair" else outputs + 1
    geometry = config.geometry or ArrayGeometry.relative(rows=inputs, columns=columns)
    return TileMap(outputs, inputs, geometry, scheme=scheme, input_unit=prod(shape[2:]))


def channel_blocks(tile_map: TileMap, shape: Sequence[int]) -> tuple[Block, ...]:
    """Blocks of input channels (of one group), one for each tile that an output is made of."""
    unit = prod(shape[2:])
    return tuple((first // unit, last // unit) for first, last in tile_map.input_blocks)


def table_faults(shape: Sequence[int], groups: int, config: AnalogConfig) -> list[str]:
    """What is wrong with the tables of the converters and amplifiers, one text each."""
    faults = []
    for effect in config.output_effects:
        columns = getattr(effect, "columns", 1)
        if columns not in {1, shape[0]}:
            faults.append(f"output_effects: {type(effect).__name__} has curves for {columns} of {shape[0]} outputs")
    sizes = (("dac", config.dac, shape[1] * groups), ("adc", config.adc, shape[0]))
    for kind, converter, count in sizes:
        table = () if converter is None or converter.nonlinearity is None else converter.nonlinearity.table_lsb
        if len(table) > 1 and len(table) != count:
            faults.append(f"{kind}.nonlinearity.table_lsb has {len(table)} rows for {count} converters")
    return faults
