"""What the fast path does with one batch, in numbers: steps of converters, widths of noise, a level of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.draws import Draw
from labrig_surrogates.passes import Number, code_pass, number
from labrig_surrogates.products import Block, ConvProduct, LinearProduct


class InputConverter(NamedTuple):
    """A DAC: `code = clip(round(x / step))`."""

    step: Number
    lowest: int
    highest: int


class OutputNoiseDraw(NamedTuple):
    """Numbers for the outputs of one tile; `sigma` in LSB, without an ADC in the output's unit."""

    draw: Draw
    sigma: Number
    first: int = 0

    def beginning_at(self, first: int) -> OutputNoiseDraw:
        """The same from the number `first` on."""
        return OutputNoiseDraw(self.draw, self.sigma, first)


class FusedPlan(NamedTuple):
    """What the fast path does with one batch; every `Number` that is a tensor has one element, or one per output.

    Attributes:
        product: Linear or convolution.
        blocks: Blocks of rows, one for each tile that an output is made of.
        dac: The DAC; None leaves the inputs as they are.
        unit: One level of the weights in their own unit.
        lsb: One level of the ADC of each block in the output's unit; None without an ADC.
        highest: Highest code of the ADC.
        compute: Type in which products are computed; None is that of the inputs.
        learns: Whether a backward pass may follow.
        narrow: Whether inputs and outputs are of the type of the products too: convolutions without an ADC, whose
            feature maps would otherwise go back and forth between two types.
    """

    product: LinearProduct | ConvProduct
    blocks: tuple[Block, ...]
    dac: InputConverter | None
    unit: Number
    lsb: tuple[Number, ...] | None
    highest: int
    compute: torch.dtype | None
    learns: bool
    narrow: bool = False

    def inputs(self, x: Tensor) -> Tensor:
        """Inputs in levels of the DAC."""
        dac = self.dac
        return self.typed(x if dac is None else code_pass(x, 1.0 / dac.step, dac.lowest, dac.highest))

    def gain(self, block: int) -> Number:
        """What one level of inputs times one level of weights counts in levels of the ADC: a number, or `[outputs]`."""
        unit = self.unit if self.dac is None else self.unit * self.dac.step
        if isinstance(unit, Tensor) and unit.dim():
            unit = unit.reshape(-1)
        return unit if self.lsb is None else unit / self.lsb[block]

    def typed(self, x: Tensor) -> Tensor:
        """In the type of the products."""
        return x if self.compute is None else x.to(self.compute)

    def untyped(self, x: Tensor) -> Tensor:
        """In the type of everything else."""
        return x if self.compute is None or self.narrow else x.float()


class Ranges(NamedTuple):
    """The ranges that converters and noise of one layer count from.

    Attributes:
        limit: Largest weight that the conductances can express.
        input_max: Largest input of the DAC.
        output_max: Full scale of the ADC of each tile, `[tiles, 1]` or `[tiles, outputs]`, where it is calibrated.
        output_std: Standard deviation of each tile's clean outputs, `[tiles, 1]`, where output noise needs it.
    """

    limit: Number
    input_max: Number
    output_max: Tensor | None
    output_std: Tensor | None


def input_converter(config: AnalogConfig, input_max: Number) -> InputConverter | None:
    """The DAC of a config."""
    dac = config.dac
    return None if dac is None else InputConverter(input_max / dac.highest, dac.lowest, dac.highest)


def output_steps(config: AnalogConfig, ranges: Ranges, tiles: int) -> tuple[Number, ...] | None:
    """One level of the ADC of each tile in the output's unit: a number, or `[outputs]`; None without an ADC."""
    adc = config.adc
    if adc is None:
        return None
    if adc.range == "calibrated":
        assert ranges.output_max is not None
        return tuple(number(ranges.output_max[tile]) / adc.highest for tile in range(tiles))
    top = adc.bound_products * ranges.limit * ranges.input_max
    return (number(top.reshape(-1)) / adc.highest if isinstance(top, Tensor) else top / adc.highest,) * tiles


def stays_narrow(config: AnalogConfig, product: LinearProduct | ConvProduct) -> bool:
    """Whether autocast keeps inputs and outputs in the type of the products; see `FusedPlan.narrow`."""
    return config.adc is None and isinstance(product, ConvProduct)


def fused_plan(
    config: AnalogConfig,
    product: LinearProduct | ConvProduct,
    blocks: tuple[Block, ...],
    unit: Number,
    ranges: Ranges,
    *,
    compute: torch.dtype | None,
    learns: bool,
) -> FusedPlan:
    """What a config means for one batch; see `FusedPlan` for the arguments."""
    return FusedPlan(
        product=product,
        blocks=blocks,
        dac=input_converter(config, ranges.input_max),
        unit=unit,
        lsb=output_steps(config, ranges, len(blocks)),
        highest=0 if config.adc is None else config.adc.highest,
        compute=compute,
        learns=learns,
        narrow=compute is not None and stays_narrow(config, product),
    )


def output_draws(
    config: AnalogConfig, plan: FusedPlan, ranges: Ranges, normal: Callable[[], Draw]
) -> tuple[OutputNoiseDraw, ...]:
    """Output noise of each tile; none where the config has none.

    Args:
        config: Which noise.
        plan: Of this batch.
        ranges: What the noise may be relative to.
        normal: Normal numbers for the outputs of one tile, new at every call.
    """
    if config.output_noise is None:
        return ()
    tiles = range(len(plan.blocks))
    return tuple(OutputNoiseDraw(normal(), output_sigma(config, tile, ranges, plan.lsb)) for tile in tiles)


def output_sigma(config: AnalogConfig, tile: int, ranges: Ranges, lsb: tuple[Number, ...] | None) -> Number:
    """Standard deviation of `config.output_noise`, which is on, in steps of the tile's ADC, or of outputs without one.

    Args:
        config: Which noise, and which ADC.
        tile: Number of the tile among those of an output.
        ranges: What it may be relative to.
        lsb: One step of each tile's ADC; None without.
    """
    noise, level = config.output_noise, 1.0 if lsb is None else lsb[tile]
    assert noise is not None
    if noise.relative_to == "ofs":
        assert config.adc is not None
        return noise.level * config.adc.highest
    if noise.relative_to == "products" and config.adc is not None and config.adc.range == "products":
        return noise.level * config.adc.highest / config.adc.bound_products
    if noise.relative_to == "abs":
        return noise.level / level
    if noise.relative_to == "ostd":
        assert ranges.output_std is not None
        return noise.level * number(ranges.output_std[tile]) / level
    limit = ranges.limit.reshape(-1) if isinstance(ranges.limit, Tensor) else ranges.limit
    return noise.level * limit * ranges.input_max / level
