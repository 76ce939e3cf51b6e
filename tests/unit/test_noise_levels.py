"""The noise definitions: formulas, recovered standard deviations, conversion, refusals."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.noise_conversion import WeightScale, convert
from labrig_surrogates.noise_levels import (
    Definition,
    NoiseSpec,
    OutputScale,
    accumulated_sigma,
    output_sigma,
    weight_sigma,
)

WEIGHT = torch.tensor([[0.5, -1.0, 0.25, 0.0], [2.0, 0.1, -0.1, 0.3]], dtype=torch.float64)

on_weights = partial(NoiseSpec, timing="program", location="weight")
on_layer = partial(NoiseSpec, timing="read", location="layer")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_definitions_are_their_formulas() -> None:
    def sigma(definition: Definition, **rest: object) -> list[list[float]]:
        return weight_sigma(on_weights(0.1, definition, **rest), WEIGHT).tolist()  # type: ignore[arg-type]

    std = math.sqrt(float((WEIGHT**2).mean() - WEIGHT.mean() ** 2))
    assert sigma("wmax") == [[pytest.approx(0.2)]]
    assert sigma("wrange") == [[pytest.approx(0.3)]]
    assert sigma("wrms") == [[pytest.approx(0.1 * std)]]
    assert sigma("abs") == [[0.1]]
    assert sigma("wmult") == (0.1 * WEIGHT.abs()).tolist()
    assert sigma("wmax", per="column") == [[pytest.approx(0.1)], [pytest.approx(0.2)]]
    assert sigma("wrange", per="column") == [[pytest.approx(0.15)], [pytest.approx(0.21)]]
    tiles = weight_sigma(on_weights(0.1, "wmax", per="tile", tile_rows=3, tile_columns=1), WEIGHT)
    expected = [[0.1, 0.1, 0.1, 0.0], [0.2, 0.2, 0.2, 0.03]]
    torch.testing.assert_close(tiles, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("definition", ["wmax", "wrange", "wmult", "wrms", "abs"])
def test_the_level_is_recovered_from_draws(definition: Definition) -> None:
    weight = 0.3 * normal(40, 25)
    spec = on_weights(0.1, definition)
    noise = weight_sigma(spec, weight) * normal(400, 40, 25, seed=1)
    found = noise.std(dim=0)
    units = {
        "wmax": weight.abs().max(),
        "wrange": weight.max() - weight.min(),
        "wmult": weight.abs(),
        "wrms": weight.std(correction=0),
        "abs": torch.ones(()),
    }
    level = (found / units[definition]).square().mean().sqrt()
    assert float(level) == pytest.approx(0.1, rel=0.01)


def test_the_level_of_outputs_is_recovered_and_poisson_has_the_same_power() -> None:
    clean = normal(20_000, 6) * torch.arange(1, 7)
    scale = OutputScale.measure(clean, full_scale=24.0, input_times_weight=4.0)
    columns = OutputScale.measure(clean, per="column")
    for spec, unit in (
        (on_layer(0.2, "ostd"), clean.std(correction=0)),
        (on_layer(0.2, "ofs"), torch.tensor(24.0)),
        (on_layer(0.2, "aihwkit"), torch.tensor(4.0)),
        (on_layer(0.2, "abs"), torch.tensor(1.0)),
        (on_layer(0.2, "ostd", law="poisson"), clean.std(correction=0)),
    ):
        sigma = output_sigma(spec, scale, clean)
        noise = sigma * normal(20_000, 6, seed=3)
        assert float(noise.square().mean().sqrt() / unit) == pytest.approx(0.2, rel=0.01)
    per_column = output_sigma(on_layer(0.2, "ostd", per="column"), columns)
    assert per_column.shape == (1, 6)
    torch.testing.assert_close(per_column[0], 0.2 * clean.std(dim=0, correction=0))
    image = OutputScale.measure(normal(5, 6, 3, 3), per="column")
    assert output_sigma(on_layer(0.1, "ostd", per="column"), image).shape == (1, 6, 1, 1)


def test_poisson_follows_the_signal_and_is_quiet_without_one() -> None:
    clean = torch.tensor([[0.0, 1.0, -4.0]])
    sigma = output_sigma(on_layer(0.1, "ostd", law="poisson"), OutputScale.measure(clean), clean)
    assert float(sigma[0, 0]) == 0.0
    assert float(sigma[0, 2] / sigma[0, 1]) == pytest.approx(2.0)
    silent = torch.zeros((3, 2))
    assert torch.equal(output_sigma(on_layer(0.1, "ostd", law="poisson"), OutputScale.measure(silent), silent), silent)


@pytest.mark.parametrize("tiles", [1, 4, 9])
def test_noise_of_tiles_adds_as_the_square_root(tiles: int) -> None:
    spec = NoiseSpec(0.1, "ostd", "read", "tile", tile_rows=8)
    partial_sums = normal(tiles, 40_000)
    sigma = output_sigma(spec, OutputScale.measure(partial_sums))
    total = (sigma * normal(tiles, 40_000, seed=5)).sum(dim=0).std()
    expected = accumulated_sigma(spec, sigma, tiles)
    assert float(expected) == pytest.approx(math.sqrt(tiles) * float(sigma))
    assert float(total) == pytest.approx(float(expected), rel=0.02)
    assert accumulated_sigma(on_layer(0.1, "ostd"), sigma, tiles) is sigma


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 20)),
    st.sampled_from(["wmax", "wrange", "wrms"]),
    st.integers(1, 7),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(deadline=None)
def test_tiles_agree_with_a_loop_over_them(
    shape: tuple[int, int], definition: Definition, rows: int, dtype: torch.dtype
) -> None:
    weight = normal(*shape, 2, 1).to(dtype)
    spec = on_weights(0.5, definition, per="tile", tile_rows=rows, tile_columns=4)
    sigma = weight_sigma(spec, weight)
    assert sigma.shape == weight.shape
    assert sigma.dtype == dtype
    matrix, found = weight.flatten(1), sigma.flatten(1)
    for row in range(0, matrix.shape[1], rows):
        for column in range(0, matrix.shape[0], 4):
            block = matrix[column : column + 4, row : row + rows]
            whole = weight_sigma(on_weights(0.5, definition), block)
            torch.testing.assert_close(found[column : column + 4, row : row + rows], whole.expand_as(block))


def test_only_wmult_has_a_gradient_and_equal_weights_have_no_nan() -> None:
    weight = torch.ones((2, 3), requires_grad=True)
    for definition in ("wmax", "wrange", "wrms", "abs"):
        assert not weight_sigma(on_weights(0.1, definition), weight).requires_grad
    (gradient,) = torch.autograd.grad(weight_sigma(on_weights(0.1, "wmult"), weight).sum(), weight)
    assert gradient.tolist() == [[pytest.approx(0.1)] * 3] * 2
    assert float(weight_sigma(on_weights(0.1, "wrms"), weight)) == 0.0


@given(st.sampled_from(["wmax", "wrange", "wrms", "abs"]), st.sampled_from(["wmax", "wrange", "wrms", "abs"]))
def test_converted_weight_noise_has_the_same_deviation(first: Definition, second: Definition) -> None:
    weight = normal(7, 11)
    spec = on_weights(0.07, first)
    there = convert(spec, second, WeightScale.of(weight))
    assert (there.timing, there.location) == (spec.timing, spec.location)
    torch.testing.assert_close(weight_sigma(there, weight), weight_sigma(spec, weight), rtol=1e-12, atol=0.0)
    assert convert(there, first, WeightScale.of(weight)).level == pytest.approx(0.07, rel=1e-12)


def test_conversions_that_the_literature_needs() -> None:
    symmetric = WeightScale(maximum=1.0, minimum=-1.0, std=0.25)
    assert convert(on_weights(0.1, "wrange"), "wmax", symmetric).level == pytest.approx(0.2)
    assert convert(on_weights(0.1, "wmax"), "wrms", symmetric).level == pytest.approx(0.1 * symmetric.crest_factor)
    assert symmetric.crest_factor == 4.0
    scale = OutputScale.measure(normal(500, 3), full_scale=5.0)
    sigma_y = float(scale.std)
    assert convert(on_layer(0.1, "ofs"), "ostd", scale).level == pytest.approx(0.5 / sigma_y)
    assert on_layer(0.1, "ostd").snr_db == pytest.approx(20.0)
    assert [round(on_layer(level, "ostd").snr_db) for level in (0.05, 0.2)] == [26, 14]


@pytest.mark.parametrize(
    ("spec", "to", "scale", "message"),
    [
        (on_weights(0.1, "wmax"), "wmult", WeightScale(1, -1, 0.3), "no level makes them equal"),
        (on_weights(0.1, "wmax"), "ostd", WeightScale(1, -1, 0.3), "depends on the inputs"),
        (on_weights(0.1, "wmax", per="column"), "wrms", WeightScale(1, -1, 0.3), "a level for each column"),
        (on_layer(0.1, "ostd"), "ofs", WeightScale(1, -1, 0.3), "needs OutputScale, not WeightScale"),
        (on_layer(0.1, "ostd"), "ofs", OutputScale.measure(normal(9, 2)), "does not hold what ofs refers to"),
        (on_layer(0.1, "ostd"), "abs", OutputScale.measure(normal(9, 2), per="column"), "has 2 columns"),
        (on_weights(0.1, "wmax"), "wrange", WeightScale(1, 1, 0.0), "scale of wrange is zero"),
    ],
)
def test_conversions_that_do_not_exist_are_refused(
    spec: NoiseSpec, to: Definition, scale: WeightScale | OutputScale, message: str
) -> None:
    with pytest.raises(SurrogateError, match=message):
        convert(spec, to, scale)


def test_every_fault_of_a_combination_is_named() -> None:
    with pytest.raises(SurrogateError) as caught:
        NoiseSpec(-0.1, "ostd", "program", "weight", law="poisson", tile_rows=0)
    for part in (
        "level -0.1",
        "cannot enter on the weights",
        "weights have none",
        "tile_rows has no effect",
        "at least one row",
    ):
        assert part in str(caught.value)
    with pytest.raises(SurrogateError) as caught:
        NoiseSpec(0.1, "wmax", "program", "tile", per="tile")
    for part in ("cannot enter at the tile's output", "a frozen error of an output is an offset", "needs tile_rows"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"definition": "wmult", "per": "column"}, "wmult has no scale"),
        ({"definition": "abs", "per": "column"}, "abs has no scale"),
        ({"definition": "wmax", "tile_columns": 4}, "tile_columns has an effect"),
        ({"definition": "percent"}, "definition 'percent' is none of wmax"),
        ({"definition": "wmax", "location": "layer", "timing": "read"}, "wmax is a fraction of weights"),
        (
            {"definition": "ostd", "location": "layer", "timing": "read", "per": "tile", "tile_rows": 4},
            "no scale per tile",
        ),
    ],
)
def test_impossible_noise_is_refused(arguments: dict[str, object], message: str) -> None:
    given_arguments = {"level": 0.1, "timing": "program", "location": "weight", **arguments}
    with pytest.raises(SurrogateError, match=message):
        NoiseSpec(**given_arguments)  # type: ignore[arg-type]


def test_misuse_of_the_functions_is_refused() -> None:
    scale = OutputScale.measure(normal(9, 2))
    with pytest.raises(SurrogateError, match=r"use output_sigma.*not \(3,\)"):
        weight_sigma(on_layer(0.1, "ostd"), torch.ones(3))
    with pytest.raises(SurrogateError, match="use weight_sigma"):
        output_sigma(on_weights(0.1, "wmax"), scale)
    with pytest.raises(SurrogateError, match=r"ofs needs full_scale.*Poisson noise needs the outputs"):
        output_sigma(on_layer(0.1, "ofs", law="poisson"), scale)
    columns = OutputScale.measure(normal(9, 2), per="column", full_scale=3.0)
    with pytest.raises(SurrogateError, match="the noise is per tensor, the scale per column"):
        output_sigma(on_layer(0.1, "ostd"), columns)
    with pytest.raises(SurrogateError, match="the noise is per column, the scale per tensor"):
        output_sigma(on_layer(0.1, "ostd", per="column"), scale)
    with pytest.raises(SurrogateError, match="ofs per column needs a value for each of 2 columns"):
        output_sigma(on_layer(0.1, "ofs", per="column"), columns)
    with pytest.raises(SurrogateError, match=r"enters on the weights.*not 0"):
        accumulated_sigma(on_weights(0.1, "wmax"), torch.ones(()), 0)
    with pytest.raises(SurrogateError, match="does not fix it"):
        _ = on_layer(0.1, "ofs").snr_db


def test_a_noise_reads_like_a_table() -> None:
    assert str(on_weights(0.1, "wmax")) == "wmax/program 10 % of max|W|, on the weights"
    assert (
        str(on_layer(0.05, "ostd", per="column"))
        == "ostd/read 5 % of the output's std of each column, on the layer's output"
    )
    tiled = NoiseSpec(0.004, "aihwkit", "read", "tile", tile_rows=256, law="poisson")
    assert str(tiled) == "aihwkit/read 0.4 % of max|x| max|W|, on each tile's output, tiles of 256 rows, Poisson"
    assert str(on_layer(1.5, "abs")) == "abs/read 1.5 absolute, on the layer's output"
    assert on_weights(0.1, "wmax").at(0.2) == on_weights(0.2, "wmax")
