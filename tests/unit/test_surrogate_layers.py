"""Tiles, converters, backends and the fitted array as modules."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.backend import DigitalBackend, NominalBackend, SurrogateBackend
from labrig_surrogates.effect_settings import DigitalColumns, Mapping
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear, set_backend
from labrig_surrogates.parameters import ArrayParameters, ConverterRange, Estimate
from labrig_surrogates.quantization import quantize
from labrig_surrogates.tilemap import ArrayGeometry, TileMap

GEOMETRY = ArrayGeometry(rows=8, columns=6, conductance_min_s=2e-6, conductance_max_s=50e-6, voltage_max_v=0.3)


def parameters(rows: int = 8, columns: int = 6, seed: int = 0) -> ArrayParameters:
    rng = np.random.default_rng(seed)

    def estimate(value: np.ndarray, unit: str = "1") -> Estimate:
        return Estimate(value, np.zeros_like(value), unit)

    return ArrayParameters(
        array=0,
        gain=estimate(rng.uniform(0.8, 1.2, columns)),
        offset=estimate(rng.normal(0, 1e-6, columns), "A"),
        compression=estimate(1.0 / rng.uniform(80e-6, 160e-6, columns), "1/A"),
        drift=estimate(np.full(columns, 0.04)),
        amplifier_noise=estimate(np.full(columns, (0.2e-6) ** 2), "A^2"),
        shot_noise=estimate(np.full(columns, 1e-9), "A"),
        conductance_noise=estimate(np.full(columns, 0.02**2)),
        programming=estimate(np.array([0.01, 0.05, -0.03])),
        cell_slope=rng.uniform(0.8, 1.2, (rows, columns)),
        cell_intercept_s=np.zeros((rows, columns)),
        stuck=np.zeros((rows, columns), dtype=np.bool_),
        write_conductance_s=np.zeros((1, rows, columns)),
        drift_reference_s=1.0,
        converters=ConverterRange(
            voltage_max_v=0.3,
            dac_step_v=0.6 / 254,
            adc_lsb_a=np.full(columns, 160e-6 / 512),
            code_min=-512,
            code_max=511,
            conductance_min_s=2e-6,
            conductance_max_s=50e-6,
        ),
    )


def layer(inputs: int = 10, outputs: int = 5) -> AnalogLinear:
    config = AnalogConfig(geometry=GEOMETRY, mapping=Mapping(weight_range="fixed"), digital=DigitalColumns(scale=True))
    made = AnalogLinear(inputs, outputs, config=config, name="layer", generator=torch.Generator().manual_seed(0))
    made.core.use_backend(DigitalBackend())
    with torch.no_grad():
        assert made.bias is not None
        made.bias.uniform_(-1, 1)
    return made


@given(inputs=st.integers(1, 30), outputs=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_tiles_give_back_the_weights_that_they_were_made_of(inputs: int, outputs: int, seed: int) -> None:
    tile_map = TileMap(outputs, inputs, GEOMETRY)
    weight = torch.randn((outputs, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    limit = float(weight.abs().max())
    targets = tile_map.conductances(weight, limit)
    assert all(target.shape == (8, 6) for target in targets)
    assert all(target.min() >= 2e-6 - 1e-15 and target.max() <= 50e-6 + 1e-15 for target in targets)
    torch.testing.assert_close(tile_map.weight(targets, limit), weight, rtol=1e-9, atol=1e-12)


@given(inputs=st.integers(1, 30), outputs=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_on_the_ideal_array_a_layer_is_linear_algebra(inputs: int, outputs: int) -> None:
    analog = layer(inputs, outputs)
    analog.set_ranges(weight_max=float(analog.weight.detach().abs().max()), input_max=2.0)
    x = 2.0 * torch.rand((4, inputs)) - 1.0
    torch.testing.assert_close(
        analog(x), torch.nn.functional.linear(x, analog.weight, analog.bias), rtol=1e-4, atol=1e-5
    )


def test_inputs_and_weights_beyond_the_range_are_clipped() -> None:
    analog = layer(2, 1)
    with torch.no_grad():
        analog.weight.copy_(torch.tensor([[3.0, 0.5]]))
        assert analog.bias is not None
        analog.bias.zero_()
    analog.set_ranges(weight_max=1.0, input_max=1.0)
    assert analog.weight.tolist() == [[1.0, 0.5]]
    torch.testing.assert_close(analog(torch.tensor([[5.0, 1.0]])), torch.tensor([[1.5]]), rtol=1e-5, atol=1e-5)


def test_quantize_rounds_clips_and_passes_gradients_inside_only() -> None:
    x = torch.tensor([-2.0, -0.26, 0.24, 0.9, 2.0], requires_grad=True)
    y = quantize(x, 0.5, -1.0, 1.0)
    assert y.tolist() == [-1.0, -0.5, 0.0, 1.0, 1.0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_gradients_of_the_mean_agree_with_finite_differences() -> None:
    surrogate = ArraySurrogate(parameters()).double()
    generator = torch.Generator().manual_seed(1)
    target_s = 2e-6 + 48e-6 * torch.rand((8, 6), generator=generator, dtype=torch.float64)
    # Volts on DAC levels: in between the straight-through gradient differs from the staircase on purpose.
    voltage_v = torch.randint(-120, 120, (3, 8), generator=generator) * surrogate.converters.dac_step_v

    def outputs(relative: torch.Tensor) -> torch.Tensor:
        conductance_s = surrogate.new_write(target_s * relative)
        current_a: torch.Tensor = surrogate(conductance_s, voltage_v.double(), age_s=2.0, convert=False)
        return 1e6 * current_a

    relative = torch.ones((8, 6), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (relative,), eps=1e-4, atol=1e-4)


def test_read_noise_has_the_moments_of_its_law() -> None:
    surrogate = ArraySurrogate(parameters()).double()
    voltage_v = torch.full((20000, 8), 0.2, dtype=torch.float64)
    conductance_s = surrogate.new_write(torch.full((8, 6), 30e-6, dtype=torch.float64))
    draw = torch.randn((20000, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    currents = surrogate(conductance_s, voltage_v, read_draw=draw, convert=False)
    mean, sigma = surrogate.moments(conductance_s, voltage_v)
    torch.testing.assert_close(currents.mean(dim=0), mean[0], rtol=5e-3, atol=0.0)
    torch.testing.assert_close(currents.std(dim=0), sigma[0], rtol=3e-2, atol=0.0)
    line_v = round(0.2 / surrogate.converters.dac_step_v) * surrogate.converters.dac_step_v
    cells = surrogate.gain * conductance_s * line_v
    u = cells.sum(dim=0)
    slope = 1.0 - torch.tanh(surrogate.compression_per_a * u) ** 2
    variance = (0.2e-6) ** 2 + slope**2 * (1e-9 * cells.abs().sum(dim=0) + 0.02**2 * (cells**2).sum(dim=0))
    torch.testing.assert_close(sigma[0] ** 2, variance, rtol=1e-5, atol=0.0)


def test_programming_errors_stay_until_the_next_write_and_read_noise_does_not() -> None:
    analog = layer(8, 3)
    surrogates = {0: ArraySurrogate(parameters())}
    backend = SurrogateBackend(surrogates, {"layer/0": 0}, torch.Generator().manual_seed(0), age_range_s=(1.0, 1.0))
    target_s, voltage_v = analog.target_conductances()["layer/0"].detach(), torch.full((200, 8), 0.1)

    def mean_of_reads() -> torch.Tensor:
        return torch.stack([backend.currents("layer/0", target_s, voltage_v) for _ in range(10)]).mean(dim=(0, 1))

    first, second = mean_of_reads(), mean_of_reads()
    backend.new_write()
    third = mean_of_reads()
    assert not torch.equal(first, second)
    assert (first - second).abs().max() < 0.2 * (first - third).abs().max()


def test_equal_seeds_give_equal_draws_and_backends_share_a_state_dict() -> None:
    analog = layer(8, 3)
    outputs = []
    for _ in range(2):
        backend = SurrogateBackend({0: ArraySurrogate(parameters())}, {"layer/0": 0}, torch.Generator().manual_seed(4))
        set_backend(analog, backend)
        outputs.append(analog(torch.ones((2, 8))))
    assert torch.equal(outputs[0], outputs[1])
    buffer = io.BytesIO()
    torch.save(analog.state_dict(), buffer)
    buffer.seek(0)
    copy = layer(8, 3)
    copy.load_state_dict(torch.load(buffer, weights_only=True))
    set_backend(analog, DigitalBackend())
    assert torch.equal(copy(torch.ones((2, 8))), analog(torch.ones((2, 8))))


def test_the_nominal_array_differs_from_the_ideal_one_by_its_converters_only() -> None:
    converters = parameters().converters
    target_s, voltage_v = torch.full((8, 6), 20e-6), torch.linspace(-0.1, 0.1, 8).repeat(3, 1)
    nominal = NominalBackend(converters).currents("t", target_s, voltage_v)
    ideal = DigitalBackend().currents("t", target_s, voltage_v)
    bound_a = 0.5 * float(converters.adc_lsb_a[0]) + 8 * 0.5 * converters.dac_step_v * 20e-6
    assert (nominal - ideal).abs().max() <= bound_a
    codes = nominal / torch.as_tensor(converters.adc_lsb_a, dtype=torch.float32)
    torch.testing.assert_close(codes, codes.round(), rtol=0.0, atol=1e-3)


def test_a_training_step_compiles() -> None:
    surrogate = ArraySurrogate(parameters())
    compiled = torch.compile(surrogate, backend="eager", fullgraph=True)
    conductance_s = surrogate.new_write(torch.full((8, 6), 20e-6))
    draw = torch.zeros((2, 6))
    arguments = {"age_s": torch.tensor(1.0), "read_draw": draw}
    voltage_v = torch.full((2, 8), 0.1)
    torch.testing.assert_close(
        compiled(conductance_s, voltage_v, **arguments), surrogate(conductance_s, voltage_v, **arguments)
    )


def test_misuse_is_refused_with_the_shapes() -> None:
    surrogate = ArraySurrogate(parameters())
    with pytest.raises(SurrogateError, match=r"takes conductances .* = \[8, 6\] .* not \[8, 5\] and \[1, 8\]"):
        surrogate(torch.ones((8, 5)), torch.ones((1, 8)))
    with pytest.raises(SurrogateError, match=r"no fit of arrays \[3\]; it has \[0\]"):
        SurrogateBackend({0: surrogate}, {"layer/0": 3}, torch.Generator())
    with pytest.raises(SurrogateError, match="cannot map"):
        TileMap(0, 3, GEOMETRY)
