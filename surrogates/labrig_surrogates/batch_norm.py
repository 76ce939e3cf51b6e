"""`fold_batch_norm`: batch norms behind analog layers become the digital factor and offset of their columns.

A chip has no batch norm: in inference its running statistics are constants, and `gamma (y - mean) / sqrt(var + eps) +
beta` is one factor and one offset for each column, which the digital side applies behind the ADC. The weights, the
range that they are mapped with, converters and noise stay what they are, unlike when the norm is multiplied into the
weights of the digital model before these are mapped.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from labrig_surrogates.convolution import AnalogConv1d, AnalogConv2d
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLayer, AnalogLinear
from labrig_surrogates.model_tools import replace_modules

Columns = AnalogLinear | AnalogConv1d | AnalogConv2d
"""Layers with a digital factor and offset for each column."""

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm

_COLUMNS = (AnalogLinear, AnalogConv1d, AnalogConv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_AXES = {AnalogLinear: 2, AnalogConv1d: 3, AnalogConv2d: 4}
"""Axes of the outputs that a batch norm normalises over the channels of the layer."""


class FoldedNorm(nn.Module):
    """Stands where a batch norm was that is now in the columns of the layer before it; passes its input on.

    Args:
        axes: Axes of the inputs for which the norm was that of the columns.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """The input itself.

        Raises:
            SurrogateError: The norm would have normalised something else than the columns of this input.
        """
        if x.dim() != self.axes:
            raise SurrogateError(
                f"a batch norm was folded for outputs with {self.axes} axes and meets {x.dim()}: fold only models "
                "whose layers in front of a norm see batches of vectors, sequences or images"
            )
        return x

    def extra_repr(self) -> str:
        """Axes."""
        return f"axes={self.axes}"


@dataclass(frozen=True)
class _Pair:
    """A layer, the norm that takes its outputs, and what stands against folding that the graph shows."""

    layer_name: str
    norm_name: str
    reasons: tuple[str, ...] = ()


def fold_batch_norm(model: nn.Module, norms: Mapping[str, str] | None = None, *, in_place: bool = False) -> nn.Module:
    """Makes each batch norm directly behind an analog layer part of the layer's digital scale and bias.

    In inference the outputs stay what they are, to the last digits of a float, with the same noise; norms elsewhere
    stay. In training the folded factors and offsets are ordinary parameters, with the statistics frozen. `to_digital`
    multiplies the factors into the weights.

    Args:
        model: A model with analog layers, in evaluation; left as it is unless `in_place`.
        norms: Names of norms by the name of the layer in front. None finds them by tracing `forward` with `torch.fx`;
            give them for a model that cannot be traced, and where nothing else sees the layer's outputs.
        in_place: Folds in the model itself; parameters `scale` and `bias` are new objects then.

    Returns:
        The folded model, with a `FoldedNorm` in place of each norm.

    Raises:
        SurrogateError: There is nothing to fold, a norm is in training mode, has no running statistics, is not that
            of the columns, has hooks, or something else sees the layer's outputs; every fault is listed and nothing
            is changed.
    """
    whole = model if in_place else copy.deepcopy(model)
    pairs = _found(whole) if norms is None else _given(norms)
    if not pairs:
        raise SurrogateError("no batch norm of this model takes the outputs of an analog layer directly")
    modules = dict(whole.named_modules(remove_duplicate=False))
    faults = [f"{pair.norm_name}: {fault}" for pair in pairs for fault in (*pair.reasons, *_faults(modules, pair))]
    if faults:
        raise SurrogateError("these batch norms cannot be folded:\n  " + "\n  ".join(faults))
    made: dict[int, nn.Module] = {}
    for pair in pairs:
        layer, norm = modules[pair.layer_name], modules[pair.norm_name]
        assert isinstance(layer, _COLUMNS)
        assert isinstance(norm, _NORMS)
        _fold(layer, norm)
        made[id(norm)] = FoldedNorm(_AXES[type(layer)])
    return replace_modules(whole, made)


def _given(norms: Mapping[str, str]) -> list[_Pair]:
    times = Counter(norms.values())
    return [
        _Pair(layer, norm, (f"is named behind {times[norm]} layers",) if times[norm] > 1 else ())
        for layer, norm in norms.items()
    ]


class _Tracer(fx.Tracer):
    """Looks only into modules that contain what is to be folded, so that all else may branch as it likes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        inside = list(m.modules())[1:]
        return isinstance(m, (AnalogLayer, *_NORMS)) or not any(isinstance(one, (*_COLUMNS, *_NORMS)) for one in inside)


def _found(model: nn.Module) -> list[_Pair]:
    """The norms that take the outputs of an analog layer, by the graph of the model."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a model's own forward makes of a proxy
        raise SurrogateError(
            f"the model's forward cannot be traced ({type(error).__name__}: {error}); "
            "name the pairs: fold_batch_norm(model, {'layer': 'norm', ...})"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[str(node.target)]) for node in calls)
    pairs: dict[tuple[str, str], _Pair] = {}
    for node in calls:
        source = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        layer_name, norm_name = str(source.target), str(node.target)
        layer, norm = modules[layer_name], modules[norm_name]
        if not isinstance(layer, _COLUMNS) or not isinstance(norm, _NORMS):
            continue
        reasons = []
        if len(source.users) > 1:
            others = ", ".join(sorted(str(user) for user in source.users if user is not node))
            reasons.append(f"{others} sees the outputs of {layer_name} without the norm")
        if times[id(layer)] > 1:
            reasons.append(f"{layer_name} is called {times[id(layer)]} times")
        if times[id(norm)] > 1:
            reasons.append(f"it is called {times[id(norm)]} times")
        pairs.setdefault((layer_name, norm_name), _Pair(layer_name, norm_name, tuple(reasons)))
    return list(pairs.values())


def _faults(modules: Mapping[str, nn.Module], pair: _Pair) -> Iterator[str]:
    layer, norm = modules.get(pair.layer_name), modules.get(pair.norm_name)
    if not isinstance(layer, _COLUMNS):
        kind = "no module" if layer is None else type(layer).__name__
        yield f"{pair.layer_name!r} is {kind}, not an analog linear layer or convolution"
    if not isinstance(norm, _NORMS):
        kind = "no module" if norm is None else type(norm).__name__
        yield f"{pair.norm_name!r} is {kind}, not a batch norm"
    if not isinstance(layer, _COLUMNS) or not isinstance(norm, _NORMS):
        return
    columns = len(layer.weight)
    if type(norm) not in _NORMS:
        yield f"{type(norm).__name__} is a class of its own, whose forward may do more than its base's"
    if norm.running_mean is None or norm.running_var is None:
        yield "has no running statistics (track_running_stats=False), so that every batch has a factor of its own"
    elif norm.training:
        yield "is in training mode, where its factors depend on the batch: call eval() first"
    if norm.num_features != columns:
        yield f"normalises {norm.num_features} channels, and {pair.layer_name} has {columns} columns"
    if any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks for one in (layer, norm)):
        yield f"it or {pair.layer_name} has hooks, which would see something else"


@torch.no_grad()
def _fold(layer: Columns, norm: BatchNorm) -> None:
    """Gives a layer the factor and offset of a norm; in float64, so that only the result is rounded."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    factor = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    bias = 0.0 if layer.bias is None else layer.bias.double()
    offset = (bias - mean.double()) * factor
    if norm.bias is not None:
        offset = offset + norm.bias.double()
    scale = factor if layer.scale is None else factor * layer.scale.double()
    layer.scale = nn.Parameter(scale.to(layer.weight.dtype))
    layer.bias = nn.Parameter(offset.to(layer.weight.dtype))
