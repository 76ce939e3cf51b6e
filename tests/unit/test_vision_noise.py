"""Kinds of noise of an image study: as texts, and on the layers beside the definitions that everything else uses."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labrig.studies.definitions import kinds_at
from labrig.studies.vision.arrays import calibrate_inputs, on_chip
from labrig.studies.vision.methods import METHODS, Method, at_precision
from labrig.studies.vision.noise import HEADLINE, Noise, NoiseKind, OfOutputs, OfWeights
from labrig_drivers.errors import ConfigError
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.model_tools import noise_off, program, seed_noise
from labrig_surrogates.noise_levels import NoiseSpec, Timing, weight_sigma

PLAIN = Method("plain", weight_bits=None, activation_bits=None)
kinds = st.builds(
    NoiseKind,
    st.sampled_from(get_args(OfWeights)),
    st.sampled_from(get_args(Timing)),
    st.sampled_from(get_args(OfOutputs)),
    st.none() | st.integers(1, 1024),
)


@given(kinds, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_kinds_come_back_from_their_text_and_noises_from_their_document(
    kind: NoiseKind, weights: float, outputs: float
) -> None:
    assert NoiseKind.parsed(str(kind)) == kind
    noise = Noise(weights, outputs, kind)
    assert Noise.from_document(asdict(noise)) == noise


def test_what_is_left_out_of_a_text_is_that_of_the_headline() -> None:
    assert NoiseKind.parsed("wmax") == HEADLINE
    assert NoiseKind.parsed("wmult/read") == NoiseKind("wmult", "read")
    assert NoiseKind.parsed("wmax+ofs@64") == NoiseKind(outputs="ofs", tile_rows=64)


def test_every_fault_of_a_text_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        NoiseKind.parsed("wmx/often+osd@none")
    for part in ("'wmx', not one of wmax", "'often', not one of program", "'osd', not one of ostd", "'none', not a"):
        assert part in str(caught.value)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 40, bias=False)).eval()


def inputs(count: int) -> Tensor:
    return torch.rand((count, 256), generator=torch.Generator().manual_seed(1))


def on(noise: Noise, method: Method = PLAIN) -> nn.Module:
    chip = on_chip(network(), method, noise, seed=0)
    calibrate_inputs(chip, [inputs(500)])
    seed_noise(chip, 3)
    program(chip)
    return chip.eval()


@pytest.mark.parametrize("definition", get_args(OfWeights))
def test_errors_of_weights_are_as_large_as_their_definition_says(definition: OfWeights) -> None:
    level = 0.002 if definition == "abs" else 0.1
    chip = on(Noise(level, kind=NoiseKind(definition)))
    weight = next(iter(weight_matrices(chip))).weight.detach()
    eye = torch.eye(256)
    with torch.no_grad():
        error = (chip(eye) - network()(eye)).T
    expected = weight_sigma(NoiseSpec(level, definition, "program", "weight"), weight)
    assert float((error / expected).std()) == pytest.approx(1.0, abs=0.03)
    with torch.no_grad():
        assert torch.equal(chip(eye), chip(eye))


def test_errors_that_are_drawn_at_every_batch_are_fresh() -> None:
    chip = on(Noise(0.1, kind=NoiseKind(timing="read")))
    with torch.no_grad():
        first, second = chip(inputs(4)), chip(inputs(4))
    assert not torch.equal(first, second)


def output_error(noise: Noise) -> tuple[Tensor, Tensor]:
    """Errors of many outputs, and the outputs without noise."""
    chip, x = on(noise), inputs(2000)
    with torch.no_grad():
        noisy = chip(x)
        with noise_off(chip):
            clean = chip(x)
    return noisy - clean, clean


def test_errors_of_outputs_are_as_large_as_their_definition_says() -> None:
    error, clean = output_error(Noise(0.0, 0.1))
    assert float(error.std()) == pytest.approx(0.1 * float(clean.std()), rel=0.03)
    of_counts, _ = output_error(Noise(0.0, 0.1, NoiseKind(outputs="poisson")))
    assert float(of_counts.std()) == pytest.approx(float(error.std()), rel=0.05)
    large = clean.abs() > clean.abs().median()
    assert float(of_counts[large].std()) > 1.2 * float(of_counts[~large].std())
    product = float(inputs(500).max()) * float(network()[0].weight.detach().abs().max())  # type: ignore[index]
    of_products, _ = output_error(Noise(0.0, 0.1, NoiseKind(outputs="aihwkit")))
    assert float(of_products.std()) == pytest.approx(0.1 * product, rel=0.03)


def test_noise_of_a_full_scale_is_larger_than_that_of_a_standard_deviation() -> None:
    error, clean = output_error(Noise(0.0, 0.1, NoiseKind(outputs="ofs")))
    # Converters clip what leaves their range, so that the error is a little smaller than the noise.
    full_scale = float(clean.abs().max())
    assert 0.85 * 0.1 * full_scale < float(error.std()) < 1.1 * 0.1 * full_scale


def test_noise_on_smaller_arrays_adds_up_with_each_array() -> None:
    whole, clean = output_error(Noise(0.0, 0.1))
    parts, _ = output_error(Noise(0.0, 0.1, NoiseKind(tile_rows=64)))
    # Each of the four has the spread of its own outputs; those of weights of either sign add up like noise.
    assert float(parts.std()) == pytest.approx(0.1 * float(clean.std()), rel=0.25)
    assert not torch.equal(whole, parts)


def test_noises_say_what_they_are() -> None:
    assert str(Noise(0.1)) == "10 % wmax/program"
    assert str(Noise(0.1, 0.2)) == "10 % wmax/program + 20 % ostd/read"
    assert str(Noise(0.0, 0.1, NoiseKind(tile_rows=256))) == "10 % ostd/read, arrays of 256 rows"
    assert str(Noise(0.1, kind=NoiseKind("abs"))) == "0.1 abs/program"


def test_the_definitions_of_the_study_are_all_there_are() -> None:
    noises = kinds_at(0.1)
    assert {one.kind.weights for one in noises if one.weights} == set(get_args(OfWeights))
    assert {one.kind.outputs for one in noises if one.outputs} == set(get_args(OfOutputs))
    assert len(set(noises)) == len(noises)


def test_eight_bits_are_affine_and_cost_next_to_nothing() -> None:
    qat = METHODS["QAT"]
    assert at_precision(METHODS["digital"], "8") == METHODS["digital"]
    assert at_precision(qat, "float").weight_bits is None
    x = inputs(200)
    with torch.no_grad():
        clean = network()(x)
        errors = [float((on(Noise(0.0), at_precision(qat, bits))(x) - clean).std()) for bits in ("4", "8")]
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 0.02 * float(clean.std())
