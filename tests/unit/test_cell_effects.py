"""Effects that act on single cells one after another: wires load both cells of a pair, traces go on, mismatch stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.analog_effects import CellEffect, ProgrammedWeights, WeightEffect
from labrig_surrogates.cell_pairs import WeightCells, weight_cells
from labrig_surrogates.cell_traces import CellTrace
from labrig_surrogates.convert import to_analog
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_presets import pcm_like, sonos
from labrig_surrogates.effect_settings import Dac, Mapping, NoiseDraws, OutputNoise
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear
from labrig_surrogates.mismatch import CellMismatch, ColumnMismatch
from labrig_surrogates.model_tools import new_chip, new_write, noise_off, program, seed_noise, set_age
from labrig_surrogates.noise_traces import Flicker, Telegraph
from labrig_surrogates.products import LinearProduct
from labrig_surrogates.tilemap import ArrayGeometry, Scheme
from labrig_surrogates.wires import crossbar_currents
from labrig_surrogates.wiring import Wiring
from labrig_surrogates.wiring_effect import WiringEffect

GEOMETRY = ArrayGeometry(rows=24, columns=17, conductance_min_s=2e-6, conductance_max_s=5e-5, voltage_max_v=0.4)
SPAN_S = 4.8e-5
EXACT = NoiseDraws(source="exact")
SCHEMES: tuple[Scheme, Scheme] = ("differential_pair", "offset_column")


@dataclass(frozen=True)
class Raised:
    """Cells that are all higher than they should be, by amounts of their own."""

    amount: float
    fresh_at_read: bool = False

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        def raised(name: str, level: Tensor) -> Tensor:
            return level + self.amount * torch.sin(torch.arange(level.numel()).view_as(level) + len(name)).abs()

        return cells.changed(raised)


@dataclass(frozen=True)
class Halved:
    """An effect that knows weights only."""

    fresh_at_read: bool = False

    def on_weights(self, weights: Tensor, known: ProgrammedWeights) -> Tensor:
        return 0.5 * weights


def double_linear(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=False).double()


def on_arrays(cells: WeightCells, x: Tensor, limit: Tensor, word_ohm: float, bit_ohm: float) -> Tensor:
    """Outputs of one block of rows from exact currents of full arrays, cells laid out by hand."""
    own, reference = cells.of_weights, cells.of_references
    pairs = cells.reference_of is None
    outputs, per_array = len(own), 8 if pairs else 16
    found = x.new_zeros(len(x), outputs)
    for number, first in enumerate(range(0, outputs, per_array)):
        part = own[first : first + per_array]
        levels = torch.zeros(24, 17, dtype=torch.float64)
        if pairs:
            levels[: x.shape[1], 0 : 2 * len(part) : 2] = part.T
            levels[: x.shape[1], 1 : 2 * len(part) : 2] = reference[first : first + per_array].T
        else:
            levels[: x.shape[1], : len(part)] = part.T
            levels[: x.shape[1], len(part)] = reference[number]
        voltage_v = torch.nn.functional.pad(x, (0, 24 - x.shape[1]))
        current_a = crossbar_currents(2e-6 + SPAN_S * levels, voltage_v, word_ohm, bit_ohm)
        if pairs:
            difference_a = (current_a[:, 0::2][:, :8] - current_a[:, 1::2])[:, : len(part)]
        else:
            difference_a = current_a[:, : len(part)] - current_a[:, len(part) : len(part) + 1]
        found[:, first : first + per_array] = difference_a * limit / (SPAN_S if pairs else 0.5 * SPAN_S)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_wires_are_loaded_by_what_earlier_effects_have_made_of_every_cell(scheme: Scheme) -> None:
    plain = double_linear(20, 19)
    x = torch.randn(5, 20, dtype=torch.float64)
    limit = plain.weight.detach().abs().max()

    def outputs(*effects: WeightEffect | CellEffect) -> Tensor:
        config = AnalogConfig(geometry=GEOMETRY, mapping=Mapping(scheme=scheme), weight_effects=effects)
        found: Tensor = to_analog(plain, config)(x)
        return found.detach()

    raised, wires = Raised(0.8), WiringEffect(Wiring(4.0, 6.0))
    target = weight_cells(plain.weight.detach(), limit, scheme, GEOMETRY)
    known = ProgrammedWeights(*[None] * 7)  # type: ignore[arg-type]
    expected = on_arrays(raised.on_cells(target, known), x, limit, 4.0, 6.0)
    torch.testing.assert_close(outputs(raised, wires), expected, rtol=1e-9, atol=1e-12)
    # The same differences on cells that are not raised load the lines less: that is another result.
    if scheme == "differential_pair":
        weights = outputs(raised)
        lower = weight_cells(raised.on_cells(target, known).weights(), limit, scheme, GEOMETRY)
        assert not torch.allclose(on_arrays(lower, x, limit, 4.0, 6.0), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(weights, expected, rtol=1e-2, atol=1e-3)
    # An effect that knows weights only moves both cells of a pair, and leaves what they have in common.
    moved = raised.on_cells(target, known).moved_to(0.5 * raised.on_cells(target, known).weights())
    halved = on_arrays(moved, x, limit, 4.0, 6.0)
    torch.testing.assert_close(outputs(raised, Halved(), wires), halved, rtol=1e-9, atol=1e-12)


def test_reference_columns_belong_to_their_group_and_block() -> None:
    weights = torch.randn(2 * 20, 3, 2, 2)
    cells = weight_cells(weights, weights.abs().max(), "offset_column", GEOMETRY, groups=2)
    assert cells.reference_of is not None
    assert cells.reference_of.tolist() == [0] * 16 + [1] * 4 + [2] * 16 + [3] * 4
    assert cells.of_references.shape == (4, 3, 2, 2)
    torch.testing.assert_close(cells.weights(), weights, rtol=1e-5, atol=1e-6)
    alone = weight_cells(weights, weights.abs().max(), "offset_column", None, groups=2)
    assert alone.of_references.shape == (2, 3, 2, 2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gradient_of_a_weight_of_zero_is_that_of_its_neighbours(scheme: Scheme) -> None:
    weights = torch.tensor([[0.0, 1e-3, -1e-3, 1.0]], dtype=torch.float64, requires_grad=True)
    cells = weight_cells(weights, torch.ones(()), scheme, None)
    (grad,) = torch.autograd.grad(cells.weights().sum(), weights)
    torch.testing.assert_close(grad, torch.ones_like(grad))


def vector_noise(scheme: Scheme, read: str, count: int) -> Tensor:
    """Noise of a layer on devices that is read with one input `count` times."""
    config = AnalogConfig(
        geometry=replace(GEOMETRY, columns=65),
        mapping=Mapping(scheme=scheme),
        weight_effects=(DeviceEffect(sonos(), read="vector" if read == "vector" else "read"),),
        draws=EXACT,
    )
    model = to_analog(double_linear(20, 4), config)
    seed_noise(model, 3)  # one write
    x = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)[None]
    with torch.no_grad():
        if read == "vector":
            outputs: Tensor = model(x.expand(count, 20))
        else:
            outputs = torch.cat([model(x) for _ in range(count)])
    return outputs - outputs.mean(dim=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_for_each_vector_in_closed_form_is_that_of_drawing_every_device(scheme: Scheme) -> None:
    closed, drawn = vector_noise(scheme, "vector", 100_000), vector_noise(scheme, "read", 4000)
    covariance, expected = torch.cov(closed.T), torch.cov(drawn.T)
    size = float(expected.diagonal().mean())
    # Of 4,000 draws a variance is known to 2.2 %, a covariance to 1.6 % of it.
    torch.testing.assert_close(covariance, expected, rtol=0.0, atol=5 * 0.023 * size)
    share = float(covariance[0, 1] / size)
    assert share > 0.1 if scheme == "offset_column" else abs(share) < 0.02


def test_noise_for_each_vector_adds_up_over_tiles_and_can_be_programmed_and_switched_off() -> None:
    config = AnalogConfig(
        geometry=GEOMETRY, weight_effects=(DeviceEffect(sonos(), read="vector"), WiringEffect(Wiring(1.0, 1.0)))
    )
    model = to_analog(double_linear(50, 4), config).eval()
    assert isinstance(model, AnalogLinear)
    assert model.core.path == "composed"
    with pytest.raises(SurrogateError, match="does not serve weight_effects with noise for each vector"):
        replace(config, path="fused")
    x = torch.ones(1, 50, dtype=torch.float64)
    program(model)
    noise = (model(x.expand(50_000, 50)) - model(x)).detach()
    (cells,) = model.core.realise(model.weight)
    assert cells.cells is not None
    assert cells.cells.read_variance is not None
    own, reference = cells.cells.read_variance
    sigma = ((own + reference).sum(dim=1)).sqrt() * model.weight.detach().abs().max()
    torch.testing.assert_close(noise.std(dim=0), sigma, rtol=0.03, atol=0.0)
    with noise_off(model):
        assert torch.equal(model(x), model(x))


def trace_of(model: AnalogLinear, ages_s: Sequence[float]) -> Tensor:
    """Relative deviation of the weights at some ages, `[ages, outputs, inputs]`."""
    seen, weight = [], model.weight.detach()
    for age_s in ages_s:
        set_age(model, age_s)
        seen.append((model(torch.eye(weight.shape[1], dtype=weight.dtype)).detach().T - weight) / weight)
    return torch.stack(seen)


def model_with(*effects: WeightEffect | CellEffect, size: int = 320) -> AnalogLinear:
    config = AnalogConfig(weight_effects=effects, draws=EXACT)
    model = AnalogLinear(size, size, bias=False, config=config, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        model.weight.fill_(0.7)
    return model


def test_one_over_f_noise_of_cells_remembers_and_forgets_with_its_time() -> None:
    model = model_with(CellTrace(Flicker(0.1, (2.0,))))
    trace = trace_of(model, (0.0, 0.5, 0.5, 3.0, 60.0))
    for at in trace:
        assert float(at.std()) == pytest.approx(0.1, rel=0.02)
        assert abs(float(at.mean())) < 5 * 0.1 / 320
    assert torch.equal(trace[1], trace[2])  # between two ages it stands still
    flat = trace.flatten(1)
    for index, passed_s in ((1, 0.5), (3, 3.0), (4, 60.0)):
        found = float((flat[0] * flat[index]).mean() / 0.01)
        assert found == pytest.approx(math.exp(-passed_s / 2.0), abs=0.02)
    with pytest.raises(SurrogateError, match="cannot go back from an age"):
        trace_of(model, (1.0,))
    set_age(model, 60.0)
    new_write(model)
    other = trace_of(model, (0.0,))
    assert abs(float((other[0].flatten() * flat[0]).mean() / 0.01)) < 0.02


def test_traps_of_cells_are_up_as_often_and_as_long_as_their_rates_say() -> None:
    law = Telegraph(0.2, up_hz=1.0, down_hz=3.0)
    model = model_with(CellTrace(law, relative_to="range"))
    trace = trace_of(model, (0.0, 0.1, 10.0)) > 0.1  # of a pair the idle cell has a trap too, which counts down
    up = trace.double()
    one_of_pair = 0.25 * 0.75  # its own trap full, that of the idle cell empty
    assert torch.allclose(up.mean(dim=(1, 2)), torch.full((3,), one_of_pair, dtype=torch.float64), atol=0.006)
    stay, decay = law.share_up, math.exp(-4.0 * 0.1)
    both_up = stay + (1 - stay) * decay
    both_down = (1 - stay) + stay * decay
    stayed = (trace[0] & trace[1]).double().sum() / trace[0].double().sum()
    assert float(stayed) == pytest.approx(both_up * both_down, abs=0.02)
    with noise_off(model):
        torch.testing.assert_close(model(torch.eye(320, dtype=torch.float64)), model.weight.T)


def test_a_copy_of_a_layer_goes_on_with_its_traces_by_itself() -> None:
    model = model_with(CellTrace(Flicker(0.1, (1.0,))), size=30)
    trace_of(model, (0.0,))
    other = copy.deepcopy(model)
    assert torch.equal(trace_of(model, (0.0,)), trace_of(other, (0.0,)))
    assert torch.equal(trace_of(model, (1.0,)), trace_of(other, (1.0,)))
    set_age(other, 2.0)
    new_write(other)
    assert not torch.equal(trace_of(model, (1.0,)), trace_of(other, (1.0,)))


def test_cells_that_are_not_alike_stay_so_over_writes_and_not_over_chips() -> None:
    model = model_with(CellMismatch(gain=0.05, offset=0.01))
    first = trace_of(model, (0.0,))[0] * 0.7
    # The largest weight of all: its cell is at the top, with gain and offset; its idle cell has the offset only.
    assert float(first.std()) == pytest.approx(0.7 * math.sqrt(0.05**2 + 2 * 0.01**2), rel=0.02)
    new_write(model)
    assert torch.equal(trace_of(model, (0.0,))[0] * 0.7, first)
    new_chip(model)
    other = trace_of(model, (0.0,))[0] * 0.7
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1])) < 0.02
    with pytest.raises(SurrogateError, match="gain = -1 must not be negative; offset = -2 must"):
        CellMismatch(gain=-1, offset=-2)


def test_columns_that_are_not_alike_have_gains_and_offsets_of_their_own_in_every_tile() -> None:
    config = AnalogConfig(
        geometry=ArrayGeometry.relative(rows=4, columns=4000),
        dac=Dac(input_max=2.0),
        output_effects=(ColumnMismatch(gain=0.1, offset_products=0.5),),
        draws=EXACT,
    )
    weight = torch.full((2000, 8), 0.5, dtype=torch.float64)
    core = AnalogCore(weight, LinearProduct(), config, name="a", seed=1, stream=0).double()
    x = torch.stack([torch.zeros(8), torch.full((8,), 2.0)]).double()
    zero, full = core(x, weight)
    # Two tiles of four inputs each: offsets of one product, 0.5 * 2.0, and gains of 4 products.
    assert float(zero.std()) == pytest.approx(0.5 * 1.0 * math.sqrt(2), rel=0.06)
    assert float((full - zero).std()) == pytest.approx(0.1 * 4.0 * math.sqrt(2), rel=0.06)
    assert float((full - zero).mean()) == pytest.approx(8.0, abs=5 * 0.4 * math.sqrt(2 / 2000))
    core.new_write(weight)
    assert torch.equal(core(x, weight)[1], full)
    core.new_chip(weight)
    assert not torch.equal(core(x, weight)[1], full)
    with pytest.raises(SurrogateError, match="ColumnMismatch needs a dac"):
        replace(config, dac=None)


@pytest.mark.parametrize(
    ("scheme", "backend"),
    [
        ("differential_pair", "eager"),
        pytest.param("differential_pair", "aot_eager", marks=pytest.mark.nightly),
        pytest.param("offset_column", "aot_eager", marks=pytest.mark.nightly),
    ],
)
def test_effects_on_cells_compile_as_one_graph_and_draw_what_eager_mode_draws(scheme: Scheme, backend: str) -> None:
    config = AnalogConfig(
        geometry=replace(GEOMETRY, conductance_max_s=26e-6),
        mapping=Mapping(scheme=scheme),
        dac=Dac(input_max=3.0),
        weight_effects=(
            DeviceEffect(pcm_like(), read="vector"),
            CellTrace(Flicker(0.02, (1.0,))),
            WiringEffect(Wiring(1.0, 1.0)),
        ),
        output_effects=(ColumnMismatch(0.1),),
        output_noise=OutputNoise(0.01, "products"),
    )
    plain, x, results = double_linear(30, 5), torch.randn(4, 30, dtype=torch.float64), []
    for compiles in (False, True):
        model = to_analog(plain, config)
        seed_noise(model, 2)
        model(x)  # what belongs to the chip is drawn at the first product
        set_age(model, 1.0)
        run = torch.compile(model, backend=backend, fullgraph=True) if compiles else model
        outputs = [run(x), run(x)]
        outputs[1].square().sum().backward()
        assert isinstance(model, AnalogLinear)
        assert isinstance(model.weight, nn.Parameter)
        results.append([*outputs, model.weight.grad])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-9)
    assert not torch.equal(results[0][0], results[0][1])
