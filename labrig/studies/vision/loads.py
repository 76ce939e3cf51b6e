"""What a network asks of arrays in one inference, counted by sending one image through it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from labrig_surrogates.energy import LayerLoad


@torch.no_grad()
def layer_loads(
    network: nn.Module, image: Tensor, *, rows: int, columns: int, input_bits: int, output_bits: int
) -> list[LayerLoad]:
    """The load of every linear layer and convolution that an image reaches, in the order of the modules.

    Args:
        network: Digital.
        image: One image, `[1, channels, height, width]`.
        rows: Inputs of an array.
        columns: Signed outputs of an array.
        input_bits: Precision of the inputs.
        output_bits: Precision of the outputs.
    """
    vectors: dict[str, int] = {}

    def count(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        positions = outputs[0, 0].numel() if outputs.dim() > 2 else 1
        vectors[name] = vectors.get(name, 0) + positions

    layers = {name: one for name, one in network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
    hooks = [one.register_forward_hook(partial(count, name)) for name, one in layers.items()]
    training = network.training
    network.eval()
    try:
        network(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return [
        LayerLoad.of_matrix(
            name,
            layers[name].weight[0].numel(),
            layers[name].weight.shape[0],
            mvms,
            rows=rows,
            columns=columns,
            input_bits=input_bits,
            output_bits=output_bits,
        )
        for name, mvms in vectors.items()
    ]
