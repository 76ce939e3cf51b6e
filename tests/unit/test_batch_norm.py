"""Batch norms folded into the digital scale and bias of analog layers, against the models that still have them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.batch_norm import FoldedNorm, fold_batch_norm
from labrig_surrogates.calibrate_ranges import calibrate_ranges
from labrig_surrogates.convert import to_analog, to_digital
from labrig_surrogates.convolution import AnalogConv2d
from labrig_surrogates.effect_settings import (
    Adc,
    Dac,
    DigitalColumns,
    OutputNoise,
    ReadNoise,
    WeightNoise,
    WeightQuantization,
)
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import analog_modules
from labrig_surrogates.model_tools import program
from labrig_surrogates.models.resnet import ResNet, ResNetShape
from labrig_surrogates.tilemap import ArrayGeometry

NOISY = AnalogConfig(
    geometry=ArrayGeometry.relative(rows=24, columns=32),
    dac=Dac(bits=8, input_max=3.0),
    weight_quantization=WeightQuantization(bits=4),
    weight_noise=WeightNoise(0.05),
    output_noise=OutputNoise(0.05, relative_to="ostd"),
    adc=Adc(bits=8, range="calibrated"),
)


def used(norm: nn.Module, seed: int = 0) -> nn.Module:
    """A norm as training leaves it, with factors of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in norm.state_dict().items():
        if name != "num_batches_tracked":
            value.uniform_(0.3 if name == "running_var" else -1.5, 2.0, generator=generator)
    return norm


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "linear": (nn.Sequential(nn.Linear(40, 7), used(nn.BatchNorm1d(7)), nn.ReLU()), torch.randn(6, 40)),
        "linear without bias": (nn.Sequential(nn.Linear(9, 7, bias=False), used(nn.BatchNorm1d(7))), torch.randn(6, 9)),
        "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3), used(nn.BatchNorm1d(6, affine=False))), torch.randn(3, 4, 9)),
        "conv2d": (
            nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), used(nn.SyncBatchNorm(6, eps=1e-2))),
            torch.randn(3, 4, 5, 5),
        ),
    }


@pytest.mark.parametrize("config", [AnalogConfig(), NOISY, replace(NOISY, read_noise=ReadNoise(0.02))])
@pytest.mark.parametrize("name", models())
def test_outputs_with_the_same_noise_are_those_of_the_norm(name: str, config: AnalogConfig) -> None:
    model, x = models()[name]
    analog = to_analog(model.eval(), config)
    calibrate_ranges(analog, [x])
    folded = fold_batch_norm(analog)
    outputs = analog(x)
    torch.testing.assert_close(folded(x), outputs, rtol=1e-5, atol=1e-5)
    assert config.effects_on == () or not torch.equal(analog(x), outputs)
    assert isinstance(folded.get_submodule("1"), FoldedNorm)
    assert isinstance(analog.get_submodule("1"), (nn.BatchNorm1d, nn.SyncBatchNorm))
    assert torch.equal(folded.get_parameter("0.weight"), analog.get_parameter("0.weight"))


def test_in_float64_it_is_exact_and_a_scale_of_the_layer_counts() -> None:
    model, x = models()["conv2d"]
    analog = to_analog(model.double().eval(), AnalogConfig(digital=DigitalColumns(scale=True)))
    nn.init.uniform_(analog.get_parameter("0.scale"), -2.0, 2.0)
    torch.testing.assert_close(fold_batch_norm(analog)(x.double()), analog(x.double()), rtol=1e-12, atol=1e-13)


def test_the_digital_twin_of_a_folded_model_is_that_of_the_model() -> None:
    torch.manual_seed(1)
    model = ResNet(ResNetShape(blocks=(1, 1), widths=(4, 6), classes=3), generator=torch.Generator().manual_seed(0))
    for seed, norm in enumerate(one for one in model.modules() if isinstance(one, nn.BatchNorm2d)):
        used(norm, seed)
    x = torch.randn(4, 3, 8, 8)
    analog = to_analog(model.eval(), AnalogConfig())
    folded = fold_batch_norm(analog)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_digital(folded)(x), to_digital(analog)(x), rtol=1e-4, atol=1e-4)
    assert not analog_modules(to_digital(folded))


def test_weights_and_their_range_stay_unlike_when_the_norm_goes_into_the_weights_first() -> None:
    model, x = models()["conv2d"]
    config = AnalogConfig(weight_quantization=WeightQuantization(bits=4))
    analog = to_analog(model.eval(), config)
    into_weights = to_analog(to_digital(fold_batch_norm(to_analog(model, AnalogConfig()))), config)
    with torch.no_grad():
        assert float((fold_batch_norm(analog)(x) - analog(x)).abs().max()) < 1e-5
        assert float((into_weights(x) - analog(x)).abs().max()) > 0.01


def test_a_folded_model_trains_is_programmed_and_keeps_its_objects_in_place() -> None:
    model, x = models()["linear"]
    analog = to_analog(model.eval(), NOISY)
    calibrate_ranges(analog, [x])
    program(analog)
    expected = fold_batch_norm(analog)(x)
    weight = analog.get_parameter("0.weight")
    assert fold_batch_norm(analog, in_place=True) is analog
    torch.testing.assert_close(analog(x), expected)
    assert analog.get_parameter("0.weight") is weight
    torch.autograd.backward(analog.train()(x).square().sum())
    for name in ("weight", "scale", "bias"):
        assert float(analog.get_parameter(f"0.{name}").grad.abs().max()) > 0.0  # type: ignore[union-attr]


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), used(nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x))
        return y if y.sum() > 0 else -y


def test_pairs_of_a_model_that_cannot_be_traced_are_named() -> None:
    torch.manual_seed(2)
    analog, x = to_analog(Branching().eval(), AnalogConfig()), torch.randn(5, 4)
    with pytest.raises(SurrogateError, match=r"cannot be traced .*name the pairs"):
        fold_batch_norm(analog)
    torch.testing.assert_close(fold_batch_norm(analog, {"layer": "norm"})(x), analog(x))
    with pytest.raises(SurrogateError) as caught:
        fold_batch_norm(analog, {"layer": "norm", "norm": "layer", "nowhere": "norm"})
    for part in ("'norm' is BatchNorm1d, not", "'layer' is AnalogLinear, not", "'nowhere' is no module", "2 layers"):
        assert part in str(caught.value), part


class Faulty(nn.Module):
    """Norms that cannot be folded, one for each reason."""

    def __init__(self) -> None:
        super().__init__()
        kinds = ("learning", "batch", "seen", "often", "hooked", "other")
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in kinds})
        self.norms = nn.ModuleDict({name: nn.BatchNorm1d(4) for name in kinds if name != "batch"})
        self.norms["batch"] = nn.BatchNorm1d(4, track_running_stats=False)
        self.norms["other"] = nn.BatchNorm1d(3)
        self.norms["hooked"].register_forward_hook(lambda *_: None)
        self.fine, self.fine_norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("learning", "batch", "hooked", "other", "often", "often"):
            x = self.norms[name](self.layers[name](x))
        seen = self.layers["seen"](x)
        fine: Tensor = self.fine_norm(self.fine(self.norms["seen"](seen) + seen))
        return fine


def test_what_cannot_be_folded_is_named_all_at_once_and_nothing_is_changed() -> None:
    model = Faulty().eval()
    model.norms["learning"].train()
    analog = to_analog(model, AnalogConfig())
    with pytest.raises(SurrogateError) as caught:
        fold_batch_norm(analog, in_place=True)
    said = str(caught.value)
    for part in (
        "norms.learning: is in training mode, where its factors depend on the batch: call eval() first",
        "norms.batch: has no running statistics",
        "norms.hooked: it or layers.hooked has hooks",
        "norms.other: normalises 3 channels, and layers.other has 4 columns",
        "norms.often: layers.often is called 2 times",
        "norms.often: it is called 2 times",
        "sees the outputs of layers.seen without the norm",
    ):
        assert part in said, part
    assert "fine" not in said
    assert not any(isinstance(one, FoldedNorm) for one in analog.modules())


def test_norms_elsewhere_stay_and_nothing_to_fold_is_said() -> None:
    pooled = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), used(nn.BatchNorm2d(3)))
    with pytest.raises(SurrogateError, match="no batch norm of this model takes the outputs of an analog layer"):
        fold_batch_norm(to_analog(pooled.eval(), AnalogConfig()))
    both = nn.Sequential(pooled, nn.Conv2d(3, 3, 1), used(nn.BatchNorm2d(3)))
    analog, x = to_analog(both.eval(), AnalogConfig()), torch.randn(2, 2, 8, 8)
    folded = fold_batch_norm(analog)
    torch.testing.assert_close(folded(x), analog(x))
    assert sum(isinstance(one, nn.BatchNorm2d) for one in folded.modules()) == 1
    assert isinstance(folded.get_submodule("1"), AnalogConv2d)


def test_outputs_over_whose_columns_the_norm_did_not_run_are_refused() -> None:
    # A norm over [batch, 4, 4] normalises the middle axis, the columns of a linear layer are the last one.
    folded = fold_batch_norm(to_analog(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval(), AnalogConfig()))
    with pytest.raises(SurrogateError, match="folded for outputs with 2 axes and meets 3"):
        folded(torch.randn(2, 4, 5))
