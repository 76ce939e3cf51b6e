"""How wide the output noise of one tile is, in steps of its converter."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.passes import Number, number


class NoiseScales(NamedTuple):
    """What output noise may be relative to.

    Attributes:
        limit: Largest weight that the conductances can express.
        input_max: Largest input of the DAC.
        output_std: Standard deviation of each tile's clean outputs, where it was measured.
    """

    limit: Number
    input_max: Tensor
    output_std: Tensor | None


def tile_sigma(config: AnalogConfig, tile: int, scales: NoiseScales, lsb: tuple[Number, ...] | None) -> Number:
    """Standard deviation of `config.output_noise`, which is on, in steps of the tile's ADC, or of outputs without one.

    Args:
        config: Which noise, and which ADC.
        tile: Number of the tile among those of an output.
        scales: What it may be relative to.
        lsb: One step of each tile's ADC; None without.
    """
    noise, level = config.output_noise, 1.0 if lsb is None else lsb[tile]
    assert noise is not None
    if noise.relative_to == "ofs":
        assert config.adc is not None
        return noise.level * config.adc.highest
    if noise.relative_to == "abs":
        return noise.level / level
    if noise.relative_to == "ostd":
        assert scales.output_std is not None
        return noise.level * number(scales.output_std[tile]) / level
    return noise.level * scales.limit * number(scales.input_max) / level
