"""`to_analog` and `to_digital`: a plain model onto analog arrays, and back, in one call each.

Names of modules and parameters stay, and the parameters are the same objects, so that checkpoints, tied weights and
optimisers go on working. What an analog layer has beside them lies under its `core`, and `to_digital` drops it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.attention import AnalogMultiheadAttention
from labrig_surrogates.convolution import AnalogConv1d, AnalogConv2d
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLayer, AnalogLinear, analog_modules
from labrig_surrogates.model_tools import replace_modules
from labrig_surrogates.recurrent import AnalogCell, AnalogRecurrent

ChooseConfig = Callable[[str, nn.Module], AnalogConfig | None]
"""Gives a layer's config by its name and the digital layer; None leaves it digital."""

_NOT_YET = (
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Bilinear,
)
"""Layers with a weight matrix that have no analog form here."""

_CONVERTIBLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


def to_analog(
    model: nn.Module,
    config: AnalogConfig | ChooseConfig,
    *,
    digital: Iterable[str] = (),
    seed: int = 0,
    in_place: bool = False,
) -> nn.Module:
    """Puts the linear, convolutional, recurrent and attention layers of a model on analog arrays.

    Everything else (normalisation, activations, embeddings, additions) stays digital. With an `AnalogConfig()` in
    which nothing is on the outputs are those of the digital model, to the last bit for linear layers and convolutions.

    Args:
        model: A plain model; left as it is unless `in_place`.
        config: For all layers, or a function that chooses for each.
        digital: Names of modules that stay digital, with everything inside them.
        seed: Of the noise; layer after layer has a stream of its own.
        in_place: Converts the model itself, so that an optimiser that holds its parameters stays valid.

    Returns:
        The analog model.

    Raises:
        SurrogateError: There are analog layers already, layers that cannot be converted, names that do not exist, or
            layers that do not fit the arrays; every fault is listed and nothing is changed.
    """
    choose: ChooseConfig = (lambda _name, _layer: config) if isinstance(config, AnalogConfig) else config
    kept = set(digital)
    faults = [*_faults(model, kept)]
    if faults:
        raise SurrogateError("this model cannot be put on analog arrays:\n  " + "\n  ".join(faults))
    whole = model if in_place else copy.deepcopy(model)
    made, problems, stream = {}, [], 0
    for name, layer in _layers(whole, kept):
        if (chosen := choose(name, layer)) is None:
            continue
        try:
            made[id(layer)] = _analog(layer, chosen, name or "model", seed, stream)
        except SurrogateError as error:
            problems.append(f"{name or 'model'}: {error}")
        stream += 4 if isinstance(layer, nn.MultiheadAttention) else 2 * max(1, _matrix_rows(layer))
    if problems:
        raise SurrogateError("this model cannot be put on these arrays:\n  " + "\n  ".join(problems))
    if not made:
        raise SurrogateError("this model has no layer to put on analog arrays")
    _set_fast_paths(whole, on=False)
    return replace_modules(whole, made)


def to_digital(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """The digital twin of an analog model: plain torch layers with the same names, weights and biases.

    A learnable column scale is multiplied into the weights; ranges, learned steps and spreads are dropped. Straight
    after `to_analog` this gives back the model bit for bit.

    Args:
        model: A model with analog layers; left as it is unless `in_place`.
        in_place: Converts the model itself.

    Raises:
        SurrogateError: There is no analog layer.
    """
    if not analog_modules(model):
        raise SurrogateError("this model has no analog layer: it is digital already")
    whole = model if in_place else copy.deepcopy(model)
    made = {id(layer): _digital(layer) for layer in _outermost(whole)}
    _set_fast_paths(whole, on=True)
    return replace_modules(whole, made)


def _faults(model: nn.Module, digital: set[str]) -> Iterator[str]:
    names = dict(model.named_modules())
    for name in sorted(digital - set(names)):
        yield f"digital={name!r}: there is no such module"
    for name, _ in analog_modules(model):
        yield f"{name or 'the model'} is analog already; to_digital makes it digital again"
    for name, layer in _walk(model, digital, ""):
        plain = type(layer) in _PLAIN
        reason = None
        if isinstance(layer, _NOT_YET):
            reason = "has no analog form here"
        elif isinstance(layer, _CONVERTIBLE) and not plain:
            reason = "is a class of its own, whose forward may do more than its base's"
        elif plain and (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks):
            reason = "has hooks, which the analog layer would not have"
        elif plain and any(isinstance(p, nn.UninitializedParameter) for p in layer.parameters()):
            reason = "has no weights yet (a lazy layer): run the model once"
        elif plain and any(p.is_meta for p in layer.parameters()):
            reason = "has weights without values (the meta device): load them first"
        if reason is not None:
            where = name or "the model"
            yield f"{where} ({type(layer).__name__}) {reason}; leave it digital with digital=[{name!r}]"


_PLAIN: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.MultiheadAttention,
    nn.RNN,
    nn.LSTM,
    nn.GRU,
    nn.RNNCell,
    nn.LSTMCell,
    nn.GRUCell,
)
"""Layers that are converted; subclasses are not."""


def _walk(module: nn.Module, digital: set[str], name: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are not inside a convertible layer nor left digital; one that occurs twice comes twice."""
    if name in digital:
        return
    yield name, module
    if type(module) in _PLAIN:
        return
    for part, child in module._modules.items():
        if child is None:
            continue
        yield from _walk(child, digital, f"{name}.{part}" if name else part)


def _layers(model: nn.Module, digital: set[str]) -> list[tuple[str, nn.Module]]:
    """The layers to convert, each once, in the order of the model's modules."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, layer in _walk(model, digital, ""):
        if type(layer) in _PLAIN:
            found.setdefault(id(layer), (name, layer))
    return list(found.values())


def _matrix_rows(layer: nn.Module) -> int:
    """Layers times directions of a recurrent layer, one for all others."""
    return layer.num_layers * (1 + layer.bidirectional) if isinstance(layer, nn.RNNBase) else 1


def _analog(layer: nn.Module, config: AnalogConfig, name: str, seed: int, stream: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return AnalogLinear.around(layer, config, name=name, seed=seed, stream=stream)
    if isinstance(layer, nn.Conv2d):
        return AnalogConv2d.around(layer, config, name=name, seed=seed, stream=stream)
    if isinstance(layer, nn.Conv1d):
        return AnalogConv1d.around(layer, config, name=name, seed=seed, stream=stream)
    if isinstance(layer, nn.MultiheadAttention):
        made: nn.Module = AnalogMultiheadAttention(layer, config, name=name, seed=seed, stream=stream)
    elif isinstance(layer, nn.RNNBase):
        made = AnalogRecurrent(layer, config, name=name, seed=seed, stream=stream)
    else:
        assert isinstance(layer, nn.RNNCellBase)
        made = AnalogCell(layer, config, name=name, seed=seed, stream=stream)
    return made.train(layer.training)


def _outermost(model: nn.Module) -> Iterator[nn.Module]:
    """Analog layers that are not inside another one."""
    if isinstance(model, AnalogLayer):
        yield model
        return
    for child in model.children():
        yield from _outermost(child)


def _adopt(layer: nn.Module, values: Mapping[str, Tensor | None], *, training: bool) -> nn.Module:
    """Gives a digital layer made without values its parameters."""
    for name, value in values.items():
        assert value is None or isinstance(value, nn.Parameter)
        setattr(layer, name, value)  # recurrent layers keep a list of their own, which only this updates
    return layer.train(training)


def _digital(layer: nn.Module) -> nn.Module:
    if isinstance(layer, AnalogLinear):
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        values = {"weight": _scaled(layer.weight, layer.scale), "bias": layer.bias}
        return _adopt(linear, values, training=layer.training)
    if isinstance(layer, AnalogConv1d | AnalogConv2d):
        values = {"weight": _scaled(layer.weight, layer.scale), "bias": layer.bias}
        return _adopt(_bare_convolution(layer), values, training=layer.training)
    if isinstance(layer, AnalogMultiheadAttention):
        return _digital_attention(layer)
    if isinstance(layer, AnalogRecurrent | AnalogCell):
        return _adopt(layer.bare_digital(), layer._parameters, training=layer.training)
    raise SurrogateError(f"{type(layer).__name__} is no analog layer of this package")


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None or bool((scale == 1.0).all()):
        return weight
    with torch.no_grad():
        return nn.Parameter(weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), weight.requires_grad)


def _bare_convolution(layer: AnalogConv1d | AnalogConv2d) -> nn.Module:
    one, bias = layer.settings, layer.bias is not None
    kind = nn.Conv1d if isinstance(layer, AnalogConv1d) else nn.Conv2d
    return kind(
        one.in_channels,
        one.out_channels,
        one.kernel_size,  # type: ignore[arg-type]
        one.stride,  # type: ignore[arg-type]
        one.padding,  # type: ignore[arg-type]
        one.dilation,  # type: ignore[arg-type]
        one.groups,
        bias,
        one.padding_mode,
        device="meta",
    )


def _digital_attention(layer: AnalogMultiheadAttention) -> nn.Module:
    made = nn.MultiheadAttention(
        layer.embed_dim,
        layer.num_heads,
        dropout=layer.dropout,
        bias=layer.in_proj_bias is not None,
        kdim=layer.kdim,
        vdim=layer.vdim,
        batch_first=layer.batch_first,
        device="meta",
    )
    _adopt(made, layer._parameters, training=layer.training)
    out = layer.out_proj
    _adopt(made.out_proj, {"weight": out.weight, "bias": out.bias}, training=layer.training)
    return made


_FAST_PATHS = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
"""Attributes that send torch's transformer layers past their linear layers in evaluation."""


def _set_fast_paths(model: nn.Module, *, on: bool) -> None:
    """Switches the fused kernels of torch's transformer layers off, and back to what they were."""
    for module in model.modules():
        for kind, attribute in _FAST_PATHS.items():
            if not isinstance(module, kind):
                continue
            memory = f"_{attribute}_when_digital"
            if on and hasattr(module, memory):
                setattr(module, attribute, getattr(module, memory))
                delattr(module, memory)
            elif not on and not hasattr(module, memory):
                setattr(module, memory, getattr(module, attribute))
                setattr(module, attribute, 0)
