"""A config refuses what it cannot honour, all of it at once, and says what it is relative to."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from labrig_surrogates.analog_config import EFFECTS, AnalogConfig, composed_only
from labrig_surrogates.converters import Nonlinearity
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.effect_settings import (
    Adc,
    BackwardPass,
    Dac,
    Mapping,
    NoiseDraws,
    OutputNoise,
    ReadNoise,
    Saturation,
    WeightNoise,
    WeightQuantization,
    WeightSpread,
)
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear, set_backend
from labrig_surrogates.products import ConvProduct, LinearProduct
from labrig_surrogates.tilemap import ArrayGeometry


def test_every_fault_is_listed() -> None:
    with pytest.raises(SurrogateError) as caught:
        AnalogConfig(
            dac=Dac(bits=9, input_max=0.0, slice_bits=12),
            adc=Adc(bits=1, bound_products=-1.0),
            weight_quantization=WeightQuantization(bits=1, slice_bits=3, learned_step=True),
            weight_noise=WeightNoise(-0.1),
            read_noise=ReadNoise(-1.0, exponent=-1.0),
            output_noise=OutputNoise(-0.1),
            saturation=Saturation(0.0),
            spread=WeightSpread(start_range=0.0),
            mapping=Mapping(clip_sigmas=0.0),
            draws=NoiseDraws(pool_size=10),
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "this AnalogConfig cannot be honoured:"
    for name in (
        "dac.bits = 9",
        "dac.input_max",
        "dac.slice_bits = 12",
        "adc.bits = 1",
        "adc.bound_products",
        "weight_quantization.bits = 1",
        "weight_quantization.slice_bits = 3",
        "learned_step and slice_bits",
        "weight_noise.level",
        "read_noise.level",
        "read_noise.exponent",
        "output_noise.level",
        "saturation.limit_products",
        "spread.start_range",
        "mapping.clip_sigmas",
        "draws.pool_size",
    ):
        assert any(name in line for line in lines), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adc": Adc()}, "needs a dac for the input range"),
        ({"saturation": Saturation(1.0)}, "saturation.limit_products counts products"),
        ({"output_noise": OutputNoise(0.1, "products")}, "needs a dac"),
        ({"output_noise": OutputNoise(0.1, "ofs")}, "needs an adc"),
        ({"backward": BackwardPass("fresh")}, "needs weight_noise"),
        (
            {"backward": BackwardPass("clean"), "weight_noise": WeightNoise(0.1), "spread": WeightSpread()},
            "excludes spread",
        ),
        ({"weight_quantization": WeightQuantization(symmetric=False)}, "needs mapping.scheme='offset_column'"),
        (
            {"weight_quantization": WeightQuantization(learned_step=True), "mapping": Mapping("fixed")},
            "learned_step decides the range",
        ),
        ({"path": "fused", "read_noise": ReadNoise(0.1)}, "path='fused' does not serve read_noise"),
        (
            {"weight_quantization": WeightQuantization(slice_bits=1), "weight_noise": WeightNoise(0.1, "wrms")},
            "'wrms' has no meaning for weight_quantization.slice_bits",
        ),
        ({"dac": Dac(slice_bits=1), "adc": Adc(range="calibrated")}, "converted one by one"),
        (
            {"dac": Dac(slice_bits=1), "output_noise": OutputNoise(0.1, "abs")},
            "relative_to='abs' has no meaning",
        ),
        ({"dac": Dac(slice_bits=1, nonlinearity=Nonlinearity((0.1,)))}, "exclude one another"),
        ({"adc": Adc(nonlinearity=Nonlinearity()), "dac": Dac()}, "needs either polynomial_lsb or table_lsb"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SurrogateError, match=said.replace("(", r"\(")):
        AnalogConfig(**settings)  # type: ignore[arg-type]


def test_effects_are_switched_off_by_name() -> None:
    config = AnalogConfig(dac=Dac(), adc=Adc(), weight_noise=WeightNoise(0.1))
    assert config.effects_on == ("dac", "weight_noise", "adc")
    assert config.without("adc", "weight_noise") == AnalogConfig(dac=Dac())
    assert config.without(*EFFECTS) == AnalogConfig()
    with pytest.raises(SurrogateError, match=r"\['mapping'\] cannot be switched off"):
        config.without("mapping")
    with pytest.raises(FrozenInstanceError):
        config.dac = None  # type: ignore[misc]


def test_paths_are_chosen_and_named() -> None:
    weight = torch.ones((2, 2))

    def path(config: AnalogConfig) -> str:
        return AnalogCore(weight, LinearProduct(), config, name="n", seed=0, stream=0).path

    fused = AnalogConfig(dac=Dac(), adc=Adc())
    assert path(AnalogConfig()) == "digital"
    assert path(fused) == "fused"
    assert path(replace(fused, path="composed")) == "composed"
    assert path(replace(fused, spread=WeightSpread())) == "composed weights, fused"
    assert composed_only(fused) == []
    slow = replace(
        fused,
        dac=Dac(rounding="stochastic", range="learned"),
        adc=Adc(nonlinearity=Nonlinearity((0.0, 0.1))),
        saturation=Saturation(5.0),
    )
    expected = ["saturation", "dac.rounding='stochastic'", "dac.range='learned'", "adc.nonlinearity"]
    assert composed_only(slow) == expected
    assert path(slow) == "composed"


def test_a_layer_that_does_not_fit_its_arrays_is_refused() -> None:
    arrays = AnalogConfig(geometry=ArrayGeometry.relative(rows=8, columns=8))
    with pytest.raises(SurrogateError, match="one unit has to fit on an array"):
        AnalogCore(torch.ones((4, 2, 3, 3)), ConvProduct((1, 1), (0, 0), (1, 1)), arrays, name="n", seed=0, stream=0)
    rows = AnalogConfig(
        dac=Dac(nonlinearity=Nonlinearity(table_lsb=((0.0,) * 255,) * 3)),
        adc=Adc(nonlinearity=Nonlinearity(table_lsb=((0.0,) * 255,) * 5)),
    )
    with pytest.raises(SurrogateError) as caught:
        AnalogCore(torch.ones((4, 2)), LinearProduct(), rows, name="fc", seed=0, stream=0)
    assert "layer 'fc'" in str(caught.value)
    assert "dac.nonlinearity.table_lsb has 3 rows for 2 converters" in str(caught.value)
    assert "adc.nonlinearity.table_lsb has 5 rows for 4 converters" in str(caught.value)


def test_a_backend_refuses_effects_of_the_config_and_changes_nothing() -> None:
    class Nothing:
        def currents(self, tile: str, target_s: torch.Tensor, voltage_v: torch.Tensor) -> torch.Tensor:
            return voltage_v @ target_s

    good = AnalogLinear(4, 4, config=AnalogConfig(geometry=ArrayGeometry.relative(rows=4, columns=8)))
    bad = AnalogLinear(4, 4, config=AnalogConfig(dac=Dac(), weight_noise=WeightNoise(0.1)))
    model = torch.nn.Sequential(good, bad)
    with pytest.raises(SurrogateError) as caught:
        set_backend(model, Nothing())
    assert "dac is on, but a backend computes with its own arrays" in str(caught.value)
    assert "weight_noise is on" in str(caught.value)
    assert "config.geometry is None" in str(caught.value)
    assert good.backend is None


def test_ranges_are_refused_where_nothing_uses_them() -> None:
    layer = AnalogLinear(4, 3, config=AnalogConfig(dac=Dac(), adc=Adc()))
    with pytest.raises(SurrogateError) as caught:
        layer.core.set_ranges(weight_max=1.0, output_max=-1.0, output_std=1.0, input_max=float("nan"))
    for part in (
        "output_max must be",
        "input_max must be",
        "weight_max: the mapping",
        "output_max: the ADC",
        "output_std",
    ):
        assert part in str(caught.value)
    uncalibrated = AnalogLinear(4, 3, config=AnalogConfig(adc=Adc(range="calibrated"), output_noise=OutputNoise(0.1)))
    with pytest.raises(SurrogateError, match="no value for output_max, output_std: run calibrate_ranges or set_ranges"):
        uncalibrated(torch.ones(4))
    uncalibrated.core.set_ranges(output_max=1.0, output_std=0.1)
    assert uncalibrated(torch.ones(4)).shape == (3,)
    with pytest.raises(SurrogateError, match="only mapping\\.weight_range='fixed' has a limit"):
        _ = layer.weight_max
