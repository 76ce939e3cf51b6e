"""What differs from device to device and from column to column of a chip, whatever is written on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights, TileOutput
from labrig_surrogates.cell_pairs import WeightCells
from labrig_surrogates.faults import refuse
from labrig_surrogates.physical_units import per_output, product_of


@dataclass(frozen=True)
class CellMismatch:
    """Cells that are not alike: each has a gain and an offset of its own, Gaussian, the same until `new_chip`.

    An entry of `AnalogConfig.weight_effects`. A level l (0 the lowest conductance, 1 the highest) becomes
    `l (1 + gain a) + offset b` with normal numbers a and b of each cell.

    Attributes:
        gain: Standard deviation of the gain, relative.
        offset: Standard deviation of the offset, relative to the range of conductances.

    Raises:
        SurrogateError: A value is negative; every fault is named.
    """

    gain: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        refuse("mismatch of cells", _faults(gain=self.gain, offset=self.offset))

    @property
    def fresh_at_read(self) -> bool:
        """False: it belongs to the chip."""
        return False

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        """The cells with their own gains and offsets; they are no noise, and stay when that is off."""

        def differ(name: str, level: Tensor) -> Tensor:
            if self.gain:
                level = level * (1.0 + self.gain * known.of_chip(f"gain of {name}", level.shape))
            if self.offset:
                level = level + self.offset * known.of_chip(f"offset of {name}", level.shape)
            return level

        return cells.changed(differ)


@dataclass(frozen=True)
class ColumnMismatch:
    """Columns whose amplifiers are not alike: each of every tile has a gain and an offset, the same until `new_chip`.

    An entry of `AnalogConfig.output_effects`.

    Attributes:
        gain: Standard deviation of the gain, relative.
        offset_products: Standard deviation of the offset in products; needs a DAC.

    Raises:
        SurrogateError: A value is negative; every fault is named.
    """

    gain: float = 0.0
    offset_products: float = 0.0

    def __post_init__(self) -> None:
        refuse("mismatch of columns", _faults(gain=self.gain, offset_products=self.offset_products))

    @property
    def needs_dac(self) -> bool:
        """Whether it counts products."""
        return self.offset_products > 0.0

    def on_outputs(self, outputs: Tensor, known: TileOutput) -> Tensor:
        """The outputs with their columns' own gains and offsets."""
        count = outputs.shape[known.axis]
        if self.gain:
            outputs = outputs * (1.0 + self.gain * per_output(known.of_chip("gain of columns", (count,)), known))
        if self.offset_products:
            product = product_of(known, "offset_products of mismatched columns")
            number = per_output(known.of_chip("offset of columns", (count,)), known)
            outputs = outputs + self.offset_products * product * number
        return outputs


def _faults(**values: float) -> list[str]:
    return [f"{name} = {value} must not be negative" for name, value in values.items() if not value >= 0]
