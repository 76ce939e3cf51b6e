"""Scale and bias of every column from passes through the chip: what turns a zero-shot chip into a calibrated one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labrig_surrogates.backend import Backend
from labrig_surrogates.convolution import AnalogConv1d, AnalogConv2d
from labrig_surrogates.layers import AnalogLinear, set_backend

Columns = AnalogLinear | AnalogConv1d | AnalogConv2d


def column_layers(network: nn.Module) -> list[Columns]:
    """The layers that have a digital scale and bias of their own for each column."""
    return [one for one in network.modules() if isinstance(one, Columns) and one.scale is not None]


@torch.no_grad()
def calibrate_columns(network: nn.Module, backend: Backend, x: Tensor, reference: Backend | None = None) -> int:
    """Fits scale and bias of each column of each layer, so that the chip gives on average what a reference gives.

    Layer by layer, since each shifts what the next one sees. Nothing is programmed that was not on the chip already,
    and no classes are needed.

    Args:
        network: The analog network; its scales and biases are changed.
        backend: The chip.
        x: Images, without their classes.
        reference: What the chip should be like: the model that the network was trained on, whose errors its weights
            have made up for. None for exact products.

    Returns:
        Passes of `x` that it took.
    """
    training = network.training
    network.eval()
    set_backend(network, backend)
    layers = column_layers(network)
    try:
        for layer in layers:
            _calibrate_layer(network, layer, x, backend, reference)
    finally:
        network.train(training)
    return len(layers)


def _calibrate_layer(
    network: nn.Module, layer: Columns, x: Tensor, backend: Backend, reference: Backend | None
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        del module
        seen.append((inputs[0], outputs))

    handle = layer.register_forward_hook(keep)
    try:
        network(x)
    finally:
        handle.remove()
    assert layer.scale is not None
    shape = (-1, *[1] * (seen[0][1].dim() - 2)) if not isinstance(layer, AnalogLinear) else (-1,)
    bias = torch.zeros_like(layer.scale) if layer.bias is None else layer.bias
    measured, wanted = [], []
    for inputs, outputs in seen:
        measured.append(_by_column((outputs - bias.reshape(shape)) / layer.scale.reshape(shape), layer))
        if reference is None:
            wanted.append(_by_column(layer.core.product.plain(inputs, layer.weight), layer))
            continue
        set_backend(layer, reference)
        expected = layer(inputs)
        set_backend(layer, backend)
        wanted.append(_by_column((expected - bias.reshape(shape)) / layer.scale.reshape(shape), layer))
    measured_all, wanted_all = torch.cat(measured), torch.cat(wanted)
    mean_measured, mean_wanted = measured_all.mean(0), wanted_all.mean(0)
    centred = measured_all - mean_measured
    slope = (centred * (wanted_all - mean_wanted)).mean(0) / centred.square().mean(0).clamp_min(1e-30)
    # A column that says nothing of what it should is left as it is.
    slope = torch.where(slope > 0.0, slope, torch.ones_like(slope))
    if layer.bias is not None:
        layer.bias.add_(layer.scale * (mean_wanted - slope * mean_measured))
    layer.scale.mul_(slope)


def _by_column(values: Tensor, layer: Columns) -> Tensor:
    """Outputs as `[vectors, columns]`."""
    if isinstance(layer, AnalogLinear):
        return values.reshape(-1, values.shape[-1])
    return values.flatten(2).transpose(1, 2).reshape(-1, values.shape[1])
