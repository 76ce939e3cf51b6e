"""A config refuses what it cannot honour, all of it at once, and says what it is relative to."""

import math
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from labrig_surrogates.analog_config import EFFECTS, AnalogConfig, composed_only
from labrig_surrogates.cell_traces import CellTrace
from labrig_surrogates.converters import Nonlinearity
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.current_noise import ShotNoise
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_presets import pcm_like
from labrig_surrogates.drift_compensation import note_response
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
from labrig_surrogates.monotone_spline import MonotoneSpline
from labrig_surrogates.noise_traces import Flicker
from labrig_surrogates.output_transfer import Compression, MeasuredTransfer
from labrig_surrogates.products import ConvProduct, LinearProduct
from labrig_surrogates.tilemap import ArrayGeometry, TileMap
from labrig_surrogates.wiring import Wiring

SIEMENS = ArrayGeometry(8, 8, conductance_min_s=1e-6, conductance_max_s=25e-6, voltage_max_v=0.2)


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
        ({"spread": WeightSpread(beside_weight_noise=True)}, "spread.beside_weight_noise=True needs weight_noise"),
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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": "fast"}, "path = 'fast' is none of 'auto', 'fused', 'composed'"),
        ({"mapping": Mapping("largest")}, "mapping.weight_range = 'largest' is none of"),  # type: ignore[arg-type]
        ({"mapping": Mapping(scheme="pairs")}, "mapping.scheme = 'pairs' is none of"),  # type: ignore[arg-type]
        ({"dac": Dac(rounding="up")}, "dac.rounding = 'up' is none of"),  # type: ignore[arg-type]
        ({"dac": Dac(range="measured")}, "dac.range = 'measured' is none of"),  # type: ignore[arg-type]
        ({"dac": Dac(signed=1)}, "dac.signed = 1 is neither True nor False"),  # type: ignore[arg-type]
        ({"adc": Adc(bits=7.5)}, "adc.bits = 7.5 is no whole number"),  # type: ignore[arg-type]
        ({"weight_noise": WeightNoise(0.1, "wmx")}, "weight_noise.relative_to = 'wmx'"),  # type: ignore[arg-type]
        ({"weight_noise": WeightNoise(0.1, timing="once")}, "weight_noise.timing = 'once'"),  # type: ignore[arg-type]
        ({"weight_noise": WeightNoise(math.inf)}, "weight_noise.level = inf is not finite"),
        ({"output_noise": OutputNoise(math.nan, "abs")}, "output_noise.level = nan is not finite"),
        ({"saturation": Saturation(1.0, "soft"), "dac": Dac()}, "saturation.shape = 'soft'"),  # type: ignore[arg-type]
        ({"spread": WeightSpread(per="cell")}, "spread.per = 'cell' is none of"),  # type: ignore[arg-type]
        ({"draws": NoiseDraws("pond")}, "draws.source = 'pond' is none of"),  # type: ignore[arg-type]
        ({"geometry": ArrayGeometry(8.0, 8, 0.0, 1.0, 1.0)}, "geometry.rows = 8.0 is no whole number"),  # type: ignore[arg-type]
        (
            {"weight_noise": WeightNoise(0.1), "backward": BackwardPass("none")},  # type: ignore[arg-type]
            "backward.weights = 'none' is none of 'same', 'fresh', 'clean'",
        ),
        ({"mapping": Mapping("max", clip_sigmas=2.0)}, "clip_sigmas has no effect with weight_range='max'"),
        ({"mapping": Mapping("fixed", clip_sigmas=2.0)}, "clip_sigmas has no effect with weight_range='fixed'"),
        ({"adc": Adc(range="calibrated", bound_products=4.0)}, "bound_products has no effect"),
        ({"weight_noise": WeightNoise(0.1, "abs", per_column=True)}, "per_column has no effect"),
        ({"weight_noise": WeightNoise(0.1, "range", per_column=True)}, "per_column has no effect"),
        ({"draws": NoiseDraws("exact", pool_size=2**18)}, "pool_size has no effect"),
    ],
)
def test_words_and_numbers_that_mean_nothing_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SurrogateError, match=re.escape(said)):
        AnalogConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Compression(5.0, "cube"), "shape = 'cube' is none of"),  # type: ignore[arg-type]
        (lambda: MeasuredTransfer((0.0, 1.0), ((0.0, 1.0),), extrapolation="steep"), "extrapolation"),  # type: ignore[arg-type]
        (lambda: MonotoneSpline(torch.arange(2.0), torch.arange(2.0), "steep"), "extrapolation"),  # type: ignore[arg-type]
        (lambda: ShotNoise(SIEMENS, 1e6, law="normal"), "law = 'normal' is none of"),  # type: ignore[arg-type]
        (lambda: DeviceEffect(pcm_like(), read="always"), "read = 'always' is none of"),  # type: ignore[arg-type]
        (lambda: CellTrace(Flicker(0.1, (1.0,)), "weight"), "relative_to = 'weight' is none of"),  # type: ignore[arg-type]
        (lambda: Wiring(1.0, 1.0, "first order"), "solution = 'first order' is none of"),  # type: ignore[arg-type]
        (lambda: TileMap(2, 2, SIEMENS, scheme="pair"), "scheme = 'pair' is none of"),  # type: ignore[arg-type]
        (lambda: note_response(torch.nn.Identity(), per="tile"), "per = 'tile' is none of"),  # type: ignore[arg-type]
    ],
)
def test_words_of_effects_that_mean_nothing_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SurrogateError, match=re.escape(said)):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    made = AnalogConfig(dac=Dac(bits=np.int64(6)), weight_noise=WeightNoise(np.float64(0.1)))  # type: ignore[arg-type]
    assert made == AnalogConfig(dac=Dac(bits=6), weight_noise=WeightNoise(0.1))


def test_effects_are_switched_off_by_name() -> None:
    config = AnalogConfig(dac=Dac(), adc=Adc(), weight_noise=WeightNoise(0.1))
    assert config.effects_on == ("dac", "weight_noise", "adc")
    assert config.without("adc", "weight_noise") == AnalogConfig(dac=Dac())
    assert config.without(*EFFECTS) == AnalogConfig()
    with pytest.raises(SurrogateError, match="mapping cannot be switched off; the effects are dac, "):
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
        "output_max = -1 must be",
        "input_max = nan must be",
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


def test_noise_that_is_switched_off_takes_what_stands_beside_it_along() -> None:
    config = AnalogConfig(weight_noise=WeightNoise(0.1), spread=WeightSpread(beside_weight_noise=True))
    assert config.without("weight_noise").spread == WeightSpread()
    assert config.without("spread").spread is None
    assert config.without("spread", "weight_noise") == AnalogConfig()
