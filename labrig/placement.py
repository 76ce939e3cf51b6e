"""Puts the tiles of a model on the arrays of a board."""

from __future__ import annotations

from collections.abc import Sequence

from labrig_drivers.crossbar import BoardInfo
from labrig_surrogates.parameters import ConverterRange
from labrig_surrogates.tilemap import ArrayGeometry


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


def place(tile_names: Sequence[str], arrays: Sequence[int]) -> dict[str, int]:
    """Gives every tile an array, in turn.

    With more tiles than arrays several tiles share one and are programmed in turn at every pass, which costs writes;
    the ledger shows them.
    """
    return {name: arrays[number % len(arrays)] for number, name in enumerate(tile_names)}
