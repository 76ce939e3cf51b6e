"""Ranges of DACs and ADCs from data: how large inputs and outputs really are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from labrig_surrogates.core import AnalogCore, RangeObserver
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.model_tools import observed
from labrig_surrogates.quantization import quantize

SAMPLE = 2**14
"""Values that are kept of a tensor in one batch, evenly spaced."""

Activations = Literal["twin", "converted"]
"""What measures ranges: the digital twin, or the twin with the inputs of each layer converted within its range."""


class _Record:
    """What one core saw."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: dict[int, list[Tensor]] = {}

    def see_inputs(self, x: Tensor) -> None:
        self.inputs.append(_sample(x))

    def see_outputs(self, tile: int, outputs: Tensor) -> None:
        self.outputs.setdefault(tile, []).append(_sample(outputs))


def _sample(x: Tensor) -> Tensor:
    flat = x.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)].float().cpu()


@torch.no_grad()
def calibrate_ranges(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    input_quantile: float | None = 0.999,
    output_quantile: float = 0.9999,
    activations: Activations = "twin",
) -> None:
    """Sets the ranges of all converters from a few batches, and the standard deviation that output noise refers to.

    First the ranges of the DACs: the quantile of the absolute inputs. Then, with DACs and levels of the weights on and
    without noise, those of the ADCs of each tile (calibrated and learned ones), `output_std` and `output_mean`.

    Converters of few bits clip, and a network that was trained behind them is a different one without them: sums of its
    residual paths and batch norms grow from layer to layer. `activations="converted"` measures such a network, layer by
    layer: the inputs of each are those that the layers before, with their ranges set, leave it.

    Args:
        model: A model with analog layers.
        batches: Inputs of the model; gone through twice.
        input_quantile: Part of the inputs that is not clipped, 0 to 1; None leaves the ranges of the DACs as they are.
        output_quantile: Part of the outputs of each tile that is not clipped.
        activations: What is measured. With `converted` and several batches, each batch meets the ranges that those
            before it have set.

    Raises:
        SurrogateError: No analog layer, no batch, a quantile out of range, or a layer that no batch reached.
    """
    kept = list(batches)
    cores = [matrix.core for matrix in weight_matrices(model)]
    faults = [
        f"{name} = {value} must lie above 0 and not above 1"
        for name, value in (("input_quantile", input_quantile), ("output_quantile", output_quantile))
        if value is not None and not 0.0 < value <= 1.0
    ]
    faults += [] if cores else ["there is no analog layer"]
    faults += [] if kept else ["there is no batch"]
    if faults:
        raise SurrogateError("ranges cannot be calibrated:\n  " + "\n  ".join(faults))
    converted = activations == "converted"
    if input_quantile is not None:
        _set_inputs(model, cores, kept, input_quantile, converted=converted)
    _set_all_outputs(model, cores, kept, output_quantile, converted=converted)


def _set_inputs(
    model: nn.Module, cores: list[AnalogCore], batches: list[Tensor], quantile: float, *, converted: bool
) -> None:
    records = {core: _Record() for core in cores}

    def observe(core: AnalogCore, x: Tensor, weight: Tensor) -> Tensor | None:
        del weight
        records[core].see_inputs(x)
        if not converted:
            return None
        _set_input(core, records[core], quantile)
        return _converted(core, x)

    _pass(model, batches, observe, records)
    for core in cores:
        _set_input(core, records[core], quantile)


def _set_all_outputs(
    model: nn.Module, cores: list[AnalogCore], batches: list[Tensor], quantile: float, *, converted: bool
) -> None:
    records = {core: _Record() for core in cores}

    def observe(core: AnalogCore, x: Tensor, weight: Tensor) -> Tensor | None:
        records[core].see_inputs(x)
        for tile, found in core.clean_tile_outputs(x, weight):
            records[core].see_outputs(tile, found)
        return _converted(core, x) if converted else None

    _pass(model, batches, observe, records)
    for core in cores:
        _set_outputs(core, records[core], quantile)


def _pass(
    model: nn.Module, batches: list[Tensor], observe: RangeObserver, records: Mapping[AnalogCore, _Record]
) -> None:
    with observed(model, observe):
        for batch in batches:
            model(batch)
    unreached = [core.name for core, record in records.items() if not record.inputs]
    if unreached:
        raise SurrogateError(f"no batch reached the layers {unreached}: their ranges stay unknown")


def _set_input(core: AnalogCore, record: _Record, quantile: float) -> None:
    if core.config.dac is not None:
        core.set_ranges(input_max=_positive_quantile(record.inputs, quantile))


def _converted(core: AnalogCore, x: Tensor) -> Tensor:
    """Inputs as a core's DAC hands them on, to the nearest level and without its nonlinearity."""
    dac = core.config.dac
    if dac is None:
        return x
    step = core.input_max / dac.highest if core.input_step is None else core.input_step.detach()
    return quantize(x, step, step * dac.lowest, step * dac.highest).to(x)


def _positive_quantile(samples: list[Tensor], quantile: float) -> float:
    values = torch.cat(samples).abs()
    # `torch.quantile` refuses many values; the order statistic next to it is as good.
    rank = max(1, min(values.numel(), round(quantile * values.numel())))
    return max(float(values.kthvalue(rank).values), 1e-12)


def _set_outputs(core: AnalogCore, record: _Record, quantile: float) -> None:
    tiles = sorted(record.outputs)
    adc = core.config.adc
    if adc is not None and adc.range != "products":
        tops = [_positive_quantile(record.outputs[tile], quantile) for tile in tiles]
        core.set_ranges(output_max=torch.tensor(tops).reshape(-1, 1))
    if core.output_std is not None:
        spreads = [max(float(torch.cat(record.outputs[tile]).std()), 1e-12) for tile in tiles]
        core.set_ranges(output_std=torch.tensor(spreads).reshape(-1, 1))
    if core.output_mean is not None:
        sizes = [max(float(torch.cat(record.outputs[tile]).abs().mean()), 1e-12) for tile in tiles]
        core.set_ranges(output_mean=torch.tensor(sizes).reshape(-1, 1))
