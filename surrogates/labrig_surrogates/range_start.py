"""First values of a core's ranges and learned steps, and which ranges a config uses at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.cells import weight_limit
from labrig_surrogates.quantization import largest, learned_step_start, wide

RANGES = ("weight_max", "input_max", "output_max", "output_std", "output_mean")
"""Names of the buffers of a core that hold ranges."""

PARAMETERS = ("weight_step", "log_spread", "input_step", "output_step")
"""Names of the parameters of a core."""


@torch.no_grad()
def first_ranges(weight: Tensor, config: AnalogConfig, tiles: int) -> dict[str, Tensor | None]:
    """Ranges before anything was measured: NaN where only a measurement can tell, None where the config needs none.

    Args:
        weight: The weights.
        config: Which effects are on.
        tiles: Tiles whose outputs are added up for one output.
    """
    values = wide(weight)
    fixed = config.mapping.weight_range == "fixed"
    calibrated = config.adc is not None and config.adc.range == "calibrated"
    by_std = config.output_noise is not None and config.output_noise.relative_to == "ostd"
    by_signal = config.output_noise is not None and config.output_noise.law == "poisson"
    unknown = values.new_full((tiles, 1), float("nan"))
    return {
        "weight_max": largest(values, per_column=config.mapping.per_column) if fixed else None,
        "input_max": values.new_tensor(1.0 if config.dac is None else config.dac.input_max),
        "output_max": unknown.clone() if calibrated else None,
        "output_std": unknown.clone() if by_std else None,
        "output_mean": unknown.clone() if by_signal else None,
    }


@torch.no_grad()
def first_parameters(
    weight: Tensor, config: AnalogConfig, tiles: int, ranges: Mapping[str, Tensor | None]
) -> dict[str, Tensor | None]:
    """Learned steps and spreads before training; None where the config learns none."""
    values = wide(weight)
    quantization, spread, dac, adc = config.weight_quantization, config.spread, config.dac, config.adc
    column_shape = (values.shape[0], *[1] * (values.dim() - 1))
    made: dict[str, Tensor | None] = dict.fromkeys(PARAMETERS)
    if quantization is not None and quantization.learned_step:
        ones = values.new_ones(column_shape if config.mapping.per_column else ())
        made["weight_step"] = learned_step_start(values, quantization.highest) * ones
    limit = torch.as_tensor(weight_limit(values, config, ranges["weight_max"], made["weight_step"])).to(values)
    input_max = ranges["input_max"]
    assert input_max is not None
    if spread is not None:
        shape = {"layer": (), "column": column_shape, "weight": tuple(values.shape)}[spread.per]
        start = torch.log(spread.start_range * limit)
        made["log_spread"] = (start.max() if spread.per == "layer" else start).expand(shape).clone()
    if dac is not None and dac.range == "learned":
        made["input_step"] = input_max / dac.highest
    if adc is not None and adc.range == "learned":
        # One range for a tile's converters, whatever the ranges of the weights' columns.
        top = adc.bound_products * limit.max() * input_max
        made["output_step"] = (top / adc.highest).expand(tiles, 1).clone()
    return made


def range_faults(given: Mapping[str, Tensor], in_use: Mapping[str, Tensor | None]) -> list[str]:
    """Why ranges cannot be set: not positive, or not used by the config."""
    reasons = {
        "weight_max": "the mapping follows the weights (mapping.weight_range is not 'fixed')",
        "output_max": "the ADC counts products (adc.range='products'), or there is none",
        "output_std": "no output noise is relative to it",
        "output_mean": "no output noise follows the signal (output_noise.law is not 'poisson')",
    }
    faults = [
        f"{name} = {float(value[~((value > 0.0) & torch.isfinite(value))][0]):g} must be positive and finite"
        for name, value in given.items()
        if not bool((value > 0.0).all() and torch.isfinite(value).all())
    ]
    return faults + [f"{name}: {reasons[name]}" for name in given if in_use[name] is None]
