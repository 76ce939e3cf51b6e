"""Products as studies read them: noise of the size that was asked for, and a layer's weights from its answers."""

from __future__ import annotations

import torch
from torch import nn

from labrig.studies.reads import NoisyProduct, response
from labrig_surrogates.models.hardware_noise import PseudoNormal


def test_noise_is_in_proportion_to_the_product_and_the_bias_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(8, 500)
    x = torch.randn((400, 8), generator=generator)
    with torch.no_grad():
        product = x @ layer.weight.T
        noise = NoisyProduct(layer, 0.2, PseudoNormal(generator))(x) - layer(x)
    assert abs(float(noise.std() / product.square().mean().sqrt()) - 0.2) < 0.002


def test_the_weights_of_a_layer_are_found_from_its_answers_whatever_its_bias() -> None:
    layer = nn.Linear(5, 3)
    torch.testing.assert_close(response(layer, amplitude=0.5, reads=2), layer.weight.detach())
