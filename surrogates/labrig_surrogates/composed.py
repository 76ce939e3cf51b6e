"""The path that serves every effect: a tile's outputs step by step, in operations that autograd and compilers know.

Order of one product (the digital side follows): DAC, clipped; product with the weights in the arrays; noise of the
cells; further effects; integrator; output noise; ADC, clipped; tiles and slices added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import TileOutput
from labrig_surrogates.bit_slicing import slice_weights, slices_of
from labrig_surrogates.cell_pairs import WeightCells, weight_cells
from labrig_surrogates.cells import ArrayWeights, own_unit
from labrig_surrogates.converters import saturate
from labrig_surrogates.draws import Draw
from labrig_surrogates.effect_settings import Adc, Dac
from labrig_surrogates.line_noise import difference_noise
from labrig_surrogates.passes import Number
from labrig_surrogates.products import Block, Product, multiply
from labrig_surrogates.quantization import quantize, quantize_learned, wide


@dataclass(frozen=True)
class TileState:
    """What belongs to a layer's converters beside their settings.

    Attributes:
        input_max: Largest input of the DAC.
        input_step: The parameter of a DAC with a learned range, else None.
        output_max: Full scale of the ADC of each tile, `[tiles, 1]` or `[tiles, outputs]`, where it is calibrated.
        output_step: The parameter of an ADC with a learned range, `[tiles, 1]`, else None.
        output_std: Standard deviation of each tile's clean outputs, `[tiles, 1]`, where output noise needs it.
        output_mean: Their mean size, likewise.
        normal: Normal numbers of a shape, new at every call; None switches noise off.
        uniform: Uniform numbers of a shape, new at every call; None rounds to the nearest.
        of_chip: Normal numbers of a shape that stay until the next `new_chip`, by name.
        poisson: Poisson numbers with these means, new at every call.
    """

    input_max: Tensor | None
    input_step: Tensor | None
    output_max: Tensor | None
    output_step: Tensor | None
    output_std: Tensor | None
    output_mean: Tensor | None
    normal: Callable[[Sequence[int]], Draw] | None
    uniform: Callable[[Sequence[int]], Draw] | None
    of_chip: Callable[[str, Sequence[int]], Tensor]
    poisson: Callable[[Tensor], Tensor]


def full_scale(adc: Adc, state: TileState, tile: int, limit: Number) -> Number:
    """Full scale of a tile's ADC in the unit of the output, of a calibrated range or counted in products."""
    if adc.range == "calibrated":
        assert state.output_max is not None
        return state.output_max[tile]
    assert state.input_max is not None
    return adc.bound_products * limit * state.input_max


def composed_outputs(
    x: Tensor,
    weights: list[ArrayWeights],
    blocks: Sequence[Block],
    product: Product,
    config: AnalogConfig,
    state: TileState,
) -> Tensor:
    """Outputs of all tiles and slices, added up; no bias.

    Args:
        x: Inputs.
        weights: What stands in the arrays, one for each slice of the bits.
        blocks: Blocks of rows, one for each tile that an output is made of.
        product: Linear or convolution.
        config: Which effects are on.
        state: Ranges, parameters and random numbers.
    """
    total: Tensor | None = None
    for _, output in tile_outputs(x, weights, blocks, product, config, state):
        total = output if total is None else total + output
    assert total is not None
    return total


def tile_outputs(
    x: Tensor,
    weights: list[ArrayWeights],
    blocks: Sequence[Block],
    product: Product,
    config: AnalogConfig,
    state: TileState,
) -> Iterator[tuple[int, Tensor]]:
    """Outputs of one tile and slice after another, with the number of the tile; see `composed_outputs`."""
    values = [own_unit(one) for one in weights]
    for inputs, input_max, input_factor in _inputs(wide(x), product, config, state):
        for cells, value in zip(weights, values, strict=True):
            for tile, block in enumerate(blocks):
                one = _Tile(product, tile, block, len(blocks), config, state, input_max)
                yield tile, one.output(inputs, value, cells) * (input_factor * cells.factor)


def _inputs(
    x: Tensor, product: Product, config: AnalogConfig, state: TileState
) -> list[tuple[Tensor, Tensor | None, float]]:
    """Inputs after the DAC, the largest that they can be, and what their outputs count; several where sliced."""
    dac = config.dac
    if dac is None:
        return [(x, None, 1.0)]
    assert state.input_max is not None
    stochastic = dac.rounding == "stochastic" and state.uniform is not None
    uniform = state.uniform(x.shape).tensor() if stochastic and state.uniform is not None else None
    if state.input_step is not None:
        features = x.numel() // max(x.shape[0], 1)
        learned = quantize_learned(x, state.input_step, dac.lowest, dac.highest, features, uniform)
        input_max = state.input_step.detach() * dac.highest
        return [(_bent(learned, state.input_step, product, dac), input_max, 1.0)]
    step = state.input_max / dac.highest
    low = -state.input_max if dac.signed else torch.zeros_like(state.input_max)
    converted = quantize(x, step, low, state.input_max, uniform)
    if dac.slice_bits is None:
        return [(_bent(converted, step, product, dac), state.input_max, 1.0)]
    bits = dac.bits - 1 if dac.signed else dac.bits
    parts = slices_of(_whole(converted / step), bits, dac.slice_bits)
    largest = (2**dac.slice_bits - 1) * step
    factors = slice_weights(len(parts), dac.slice_bits)
    return [(part * step, largest, factor) for part, factor in zip(parts, factors, strict=True)]


def _whole(codes: Tensor) -> Tensor:
    """Codes that are whole numbers but for rounding errors of a division, made whole."""
    return codes + (torch.round(codes) - codes).detach()


def _bent(converted: Tensor, step: Tensor, product: Product, dac: Dac) -> Tensor:
    if dac.nonlinearity is None:
        return converted
    codes = torch.round(converted.detach() / step.detach())
    return converted + step.detach() * dac.nonlinearity.at(codes, dac.lowest, dac.highest, product.channel_axis)


@dataclass(frozen=True)
class _Tile:
    product: Product
    tile: int
    block: Block
    blocks: int
    config: AnalogConfig
    state: TileState
    input_max: Tensor | None

    def output(self, inputs: Tensor, values: Tensor, cells: ArrayWeights) -> Tensor:
        config, product = self.config, self.product
        x = product.inputs(inputs, self.block, self.blocks)
        weights = product.weights(values, self.block, self.blocks)
        backward = None
        if cells.backward is not None:
            backward = product.weights(cells.backward * cells.unit, self.block, self.blocks)
        outputs = wide(multiply(product, x, weights, backward))
        if config.read_noise is not None and self.state.normal is not None:
            outputs = outputs + self._read_noise(x, weights, cells.limit, outputs.shape)
        if cells.cells is not None and cells.cells.read_variance is not None and self.state.normal is not None:
            outputs = outputs + self._cell_noise(x, cells.cells, outputs.shape, self.state.normal)
        for effect in config.output_effects:
            outputs = effect.on_outputs(outputs, self._known(x, weights, cells))
        limit = cells.limit if isinstance(cells.limit, (int, float)) else product.columns(cells.limit)
        if config.saturation is not None and self.input_max is not None:
            bound = torch.as_tensor(config.saturation.limit_products * limit * self.input_max).to(outputs)
            outputs = saturate(outputs, bound, config.saturation.shape)
        if config.output_noise is not None and self.state.normal is not None:
            sigma = self._output_sigma(limit)
            if config.output_noise.law == "poisson":
                sigma = sigma * self._signal_share(outputs)
            outputs = outputs + sigma * self.state.normal(outputs.shape).tensor()
        return outputs if config.adc is None else self._adc(outputs, config.adc, limit)

    def _read_noise(self, x: Tensor, weights: Tensor, limit: Number, shape: Sequence[int]) -> Tensor:
        noise = self.config.read_noise
        assert noise is not None
        assert self.state.normal is not None
        # The width follows the weights but teaches them nothing: its gradient would only drive them to zero.
        if noise.exponent == 0.0:
            # All cells of an output alike: one product for all outputs of a group, which costs next to nothing.
            groups = self.product.groups
            power = self.product.plain(x.square(), torch.ones_like(weights[:groups]))
            if groups > 1:
                power = torch.repeat_interleave(power, weights.shape[0] // groups, self.product.channel_axis)
            sigma = noise.level * (limit if isinstance(limit, (int, float)) else self.product.columns(limit))
        else:
            size = (weights.detach().abs() / limit) ** (2.0 * noise.exponent)
            power = self.product.plain(x.square(), (noise.level * limit) ** 2 * size)
            sigma = 1.0
        spread = torch.sqrt(torch.clamp(wide(power), min=torch.finfo(torch.float32).tiny))
        return sigma * spread * self.state.normal(shape).tensor()

    def _cell_noise(
        self, x: Tensor, cells: WeightCells, shape: Sequence[int], normal: Callable[[Sequence[int]], Draw]
    ) -> Tensor:
        """Noise of reading the cells of this tile, in the closed form of `ReadNoise`."""
        part = cells.cut(self._part)
        assert part.read_variance is not None
        square = x.square()
        own, reference = (wide(self.product.plain(square, one)) for one in part.read_variance)
        noise = difference_noise(
            own, reference, cells.reference_of, lambda size: normal(size).tensor(), self.product.channel_axis
        )
        per_level = torch.as_tensor(cells.weight_per_level).to(noise)
        return noise.view(tuple(shape)) * self.product.columns(per_level)

    def _part(self, values: Tensor) -> Tensor:
        return self.product.weights(values, self.block, self.blocks)

    def _output_sigma(self, limit: Number) -> Number:
        noise = self.config.output_noise
        assert noise is not None
        if noise.relative_to == "abs":
            return noise.level
        if noise.relative_to == "ostd":
            assert self.state.output_std is not None
            return noise.level * self._columns(self.state.output_std[self.tile])
        if noise.relative_to == "ofs":
            assert self.config.adc is not None
            return noise.level * self._full_scale(self.config.adc, limit)
        assert self.input_max is not None
        return noise.level * limit * self.input_max

    def _signal_share(self, outputs: Tensor) -> Tensor:
        """What the signal makes of the standard deviation; without a gradient, which would only make signals small."""
        assert self.state.output_mean is not None
        return torch.sqrt(outputs.detach().abs() / self._columns(self.state.output_mean[self.tile]))

    def _full_scale(self, adc: Adc, limit: Number) -> Number:
        if self.state.output_step is not None:
            return self._columns(self.state.output_step[self.tile].detach() * adc.highest)
        if adc.range == "calibrated":
            return self._columns(full_scale(adc, self.state, self.tile, limit))
        assert self.input_max is not None
        return adc.bound_products * limit * self.input_max

    def _columns(self, values: Number) -> Number:
        return values if isinstance(values, (int, float)) else self.product.columns(values)

    def _adc(self, outputs: Tensor, adc: Adc, limit: Number) -> Tensor:
        stochastic = adc.rounding == "stochastic" and self.state.uniform is not None
        uniform = self.state.uniform(outputs.shape).tensor() if stochastic and self.state.uniform is not None else None
        top = torch.as_tensor(self._full_scale(adc, limit)).to(outputs)
        step = top / adc.highest
        if adc.nonlinearity is not None:
            bent = adc.nonlinearity.at(outputs / step, -adc.highest, adc.highest, self.product.channel_axis)
            outputs = outputs + step * bent
        if self.state.output_step is None:
            return quantize(outputs, step, -top, top, uniform)
        features = outputs.numel() // max(outputs.shape[0], 1)
        learned = self.product.columns(self.state.output_step[self.tile])
        return quantize_learned(outputs, learned, -adc.highest, adc.highest, features, uniform)

    def _known(self, x: Tensor, weights: Tensor, array: ArrayWeights) -> TileOutput:
        state, config, product = self.state, self.config, self.product
        top = torch.as_tensor(array.limit).to(weights)

        def fresh(shape: Sequence[int]) -> Tensor:
            return x.new_zeros(tuple(shape)) if state.normal is None else state.normal(shape).tensor()

        def of_chip(name: str, shape: Sequence[int]) -> Tensor:
            return state.of_chip(f"{name} of tile {self.tile}", shape)

        def cells() -> WeightCells:
            if array.cells is not None:
                return array.cells.cut(self._part).moved_to(weights)
            return weight_cells(weights, top, config.mapping.scheme, config.geometry, product.groups)

        return TileOutput(
            inputs=x,
            weights=weights,
            limit=top,
            input_max=self.input_max,
            multiply=product.plain,
            fresh=fresh,
            of_chip=of_chip,
            counts=(lambda means: means) if state.normal is None else state.poisson,
            cells=cells,
            axis=product.channel_axis,
        )
