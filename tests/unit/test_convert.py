"""`to_analog` and `to_digital` on nets as people have them: there and back changes nothing, refusals are clear."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.attention import AnalogMultiheadAttention
from labrig_surrogates.calibrate_ranges import calibrate_ranges
from labrig_surrogates.convert import to_analog, to_digital
from labrig_surrogates.convolution import AnalogConv2d
from labrig_surrogates.describe import describe
from labrig_surrogates.effect_settings import (
    Adc,
    BackwardPass,
    Dac,
    DigitalColumns,
    Mapping,
    OutputNoise,
    WeightNoise,
    WeightQuantization,
    WeightSpread,
)
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear, analog_modules, weight_matrices
from labrig_surrogates.model_tools import clip_weights, erase, new_write, noise_off, program, seed_noise
from labrig_surrogates.recurrent import AnalogRecurrent
from labrig_surrogates.tilemap import ArrayGeometry

NOISY = AnalogConfig(
    dac=Dac(input_max=3.0),
    adc=Adc(range="calibrated"),
    weight_quantization=WeightQuantization(6),
    weight_noise=WeightNoise(0.02),
    output_noise=OutputNoise(0.02),
    geometry=ArrayGeometry.relative(rows=64, columns=64),
)


class Residual(nn.Module):
    """A residual network with batch norm, grouped, depthwise and strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, padding="same", dilation=2, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, padding_mode="reflect")
        self.pointwise = nn.Conv2d(16, 32, 1, stride=2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.grouped(torch.relu(self.depthwise(x)))
        result: Tensor = self.head(torch.relu(self.pointwise(x)).mean(dim=(2, 3)))
        return result


class Speech(nn.Module):
    """A one-dimensional convolution, two recurrent layers and a classifier."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.front = nn.Conv1d(4, 8, 5, stride=2, padding=2)
        self.body = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.body(torch.relu(self.front(x)).transpose(1, 2))
        result: Tensor = self.head(outputs[:, -1])
        return result


class Transformer(nn.Module):
    """Embeddings, an encoder with a padding mask, and a head that shares its weights with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        result: Tensor = self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=padding))
        return result[~padding]


def tokens() -> Tensor:
    found = torch.randint(1, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    found[1, 4:] = 0
    return found


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "residual": (Residual, lambda: torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))),
    "lstm": (lambda: Speech(nn.LSTM), lambda: torch.randn((3, 4, 12), generator=torch.Generator().manual_seed(0))),
    "gru": (lambda: Speech(nn.GRU), lambda: torch.randn((3, 4, 12), generator=torch.Generator().manual_seed(0))),
    "transformer": (Transformer, tokens),
}


def net(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, inputs = NETS[name]
    return build(), inputs()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", NETS)
def test_there_and_back_is_the_identity(name: str) -> None:
    model, x = net(name)
    model.eval()
    analog = to_analog(model, AnalogConfig())
    back = to_digital(analog)
    state, returned = model.state_dict(), back.state_dict()
    assert list(state) == list(returned)
    assert all(torch.equal(state[key], returned[key]) for key in state)
    assert [type(module) for module in model.modules()] == [type(module) for module in back.modules()]
    assert [key for key in analog.state_dict() if key in state] == list(state)
    torch.testing.assert_close(analog(x), model(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(back(x), model(x))
    with torch.no_grad():  # where torch's transformer layers would take a fused kernel
        torch.testing.assert_close(analog(x), model(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(back(x), model(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NETS)
def test_a_noisy_model_calibrates_trains_and_comes_back(name: str) -> None:
    model, x = net(name)
    analog = to_analog(model, NOISY)
    calibrate_ranges(analog, [x], output_quantile=1.0)
    with noise_off(analog):
        clean = analog.eval()(x)
        assert torch.equal(analog(x), clean)
    noisy = analog(x)
    assert not torch.equal(noisy, analog(x))
    reference = model.eval()(x)
    assert (clean - reference).std() < 0.2 * reference.std()
    optimiser = torch.optim.Adam(analog.parameters(), lr=0.02)
    targets = torch.arange(reference.shape[0]) % reference.shape[1]
    losses = []
    analog.train()
    for _ in range(12):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(analog(x), targets)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in analog.parameters())
    assert losses[-1] < 0.97 * losses[0]
    twin = to_digital(analog).eval()
    weights = dict(twin.named_parameters())
    assert all(torch.equal(value, weights[key]) for key, value in analog.named_parameters() if ".core" not in key)


def test_evaluation_of_a_transformer_does_not_pass_the_arrays_by() -> None:
    model, x = net("transformer")
    analog = to_analog(model, replace(NOISY, adc=None, output_noise=OutputNoise(0.1, "abs"))).eval()
    with torch.no_grad():
        assert not torch.equal(analog(x), analog(x))
        partly = to_analog(
            model,
            lambda name, _: AnalogConfig(output_noise=OutputNoise(0.1, "abs")) if "linear1" in name else None,
        ).eval()
        assert len(analog_modules(partly)) == 2
        assert not torch.equal(partly(x), partly(x))


def test_parameters_are_the_same_objects_in_place_and_ties_hold() -> None:
    model, x = net("transformer")
    before = {id(parameter) for parameter in model.parameters()}
    analog = to_analog(model, AnalogConfig(dac=Dac()), in_place=True)
    assert analog is model
    assert {id(parameter) for parameter in analog.parameters()} == before
    assert isinstance(analog.head, AnalogLinear)
    assert isinstance(analog.embedding, nn.Embedding)
    assert analog.head.weight is analog.embedding.weight
    copied, _ = net("transformer")
    other = to_analog(copied, AnalogConfig())
    assert isinstance(other.head, AnalogLinear)
    assert isinstance(other.embedding, nn.Embedding)
    assert other.head.weight is other.embedding.weight
    assert other.head.weight is not copied.get_parameter("head.weight")
    assert to_digital(analog, in_place=True) is model
    assert x.shape == (3, 7)


def test_shared_layers_are_converted_once_and_a_layer_alone_is_a_model() -> None:
    layer = nn.Linear(4, 4)
    analog = to_analog(nn.Sequential(layer, nn.ReLU(), layer), AnalogConfig())
    assert isinstance(analog, nn.Sequential)
    assert analog[0] is analog[2]
    assert isinstance(to_analog(layer, AnalogConfig()), AnalogLinear)
    cell = nn.LSTMCell(3, 5)
    x = torch.randn((2, 3), generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(to_analog(cell, AnalogConfig())(x), cell(x), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_attention_has_the_arguments_of_torch() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, kdim=8, vdim=10, batch_first=True).eval()
    analog = to_analog(attention, AnalogConfig())
    assert isinstance(analog, AnalogMultiheadAttention)
    query, key, value = torch.randn(2, 4, 12), torch.randn(2, 5, 8), torch.randn(2, 5, 10)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    mask = torch.randn(6, 4, 5)
    for options in (
        {},
        {"need_weights": False, "key_padding_mask": padding},
        {"attn_mask": mask, "key_padding_mask": padding.float() * -3.0, "average_attn_weights": False},
        {"attn_mask": torch.ones(4, 5, dtype=torch.bool).triu(2)},
    ):
        theirs, their_weights = attention(query, key, value, **options)
        mine, my_weights = analog(query, key, value, **options)
        torch.testing.assert_close(mine, theirs)
        assert (my_weights is None) == (their_weights is None)
        if my_weights is not None:
            torch.testing.assert_close(my_weights, their_weights)
    single = analog(query[0], key[0], value[0])[0]
    torch.testing.assert_close(single, attention(query[0], key[0], value[0])[0])
    with pytest.raises(SurrogateError, match="is_causal is a hint on attn_mask"):
        analog(query, key, value, is_causal=True)


def test_one_sequence_sees_one_draw_of_the_weights() -> None:
    torch.manual_seed(0)
    analog = to_analog(nn.RNN(3, 4), AnalogConfig(weight_noise=WeightNoise(0.2)))
    assert isinstance(analog, AnalogRecurrent)
    x = torch.randn(6, 1, 3)
    seed_noise(analog, 1)
    outputs, last = analog(x)
    ih, hh = (matrix.core for matrix in analog.matrices())
    ih.stream.restart(1, 0)
    hh.stream.restart(1, 1)
    (input_cells,), (state_cells,) = (matrix.core.realise(matrix.weight) for matrix in analog.matrices())
    state = torch.zeros(1, 4)
    for time in range(6):
        sums = x[time] @ (input_cells.codes * input_cells.unit).T + analog.get_parameter("bias_ih_l0")
        state = torch.tanh(sums + state @ (state_cells.codes * state_cells.unit).T + analog.get_parameter("bias_hh_l0"))
        torch.testing.assert_close(outputs[time], state)
    torch.testing.assert_close(last[0], state)


def test_a_column_scale_goes_into_the_weights_of_the_twin() -> None:
    model, x = net("residual")
    analog = to_analog(model.eval(), AnalogConfig(digital=DigitalColumns(scale=True)))
    assert all(torch.equal(a, b) for a, b in zip(to_digital(analog).parameters(), model.parameters(), strict=True))
    for _, layer in analog_modules(analog):
        assert isinstance(layer, AnalogLinear | AnalogConv2d)
        assert layer.scale is not None
        nn.init.uniform_(layer.scale, 0.5, 2.0)
    torch.testing.assert_close(to_digital(analog)(x), analog(x), rtol=1e-4, atol=1e-5)


def test_programmed_weights_stay_until_erased() -> None:
    torch.manual_seed(0)
    config = AnalogConfig(weight_quantization=WeightQuantization(4), weight_noise=WeightNoise(0.1, timing="program"))
    analog = to_analog(nn.Linear(20, 10), config).eval()
    assert isinstance(analog, AnalogLinear)
    x = torch.randn(5, 20)
    written = analog(x)
    program(analog)
    assert torch.equal(analog(x), written)
    with torch.no_grad():
        analog.weight.mul_(3.0)
    assert torch.equal(analog(x), written)
    analog.train()
    assert not torch.equal(analog(x), written)
    analog.eval()
    new_write(analog)
    rewritten = analog(x)
    assert not torch.allclose(rewritten, written)
    assert torch.equal(analog(x), rewritten)
    analog.load_state_dict({**analog.state_dict(), "weight": torch.zeros(10, 20)})
    torch.testing.assert_close(analog(x), analog.bias.expand(5, -1))  # type: ignore[union-attr]
    program(analog)
    erase(analog)
    read = to_analog(nn.Linear(20, 10), replace(config, weight_noise=WeightNoise(0.1))).eval()
    program(read)
    assert not torch.equal(read(x), read(x))
    x.requires_grad_()
    read(x).sum().backward()
    assert x.grad is not None


def test_weights_are_clipped_to_their_range() -> None:
    torch.manual_seed(0)
    analog = to_analog(nn.Linear(50, 40), AnalogConfig(mapping=Mapping("sigma", 2.0, per_column=True)))
    assert isinstance(analog, AnalogLinear)
    nn.init.normal_(analog.weight)
    weight = analog.weight.detach().clone()
    bound = torch.minimum(2.0 * weight.std(dim=1, correction=0), weight.abs().amax(dim=1))
    clip_weights(analog)
    torch.testing.assert_close(analog.weight.detach().abs().amax(dim=1), bound)


def test_the_prior_of_the_weights_is_what_the_hardware_makes_likely() -> None:
    torch.manual_seed(0)
    config = AnalogConfig(
        weight_quantization=WeightQuantization(4), weight_noise=WeightNoise(0.1), spread=WeightSpread(per="column")
    )
    analog = to_analog(nn.Sequential(nn.Linear(6, 5), nn.Conv2d(1, 2, 3)), config)
    matrices = weight_matrices(analog)
    assert [one.core.name for one in matrices] == ["0", "1"]
    for one in matrices:
        prior, top = one.prior(), one.weight.detach().abs().max()
        torch.testing.assert_close(prior.mean, torch.round(one.weight.detach() / top * 7) * top / 7)
        torch.testing.assert_close(prior.std, torch.full_like(prior.mean, 0.1) * top)
        assert one.log_spread is not None
        assert one.log_spread.shape == (one.weight.shape[0], *[1] * (one.weight.dim() - 1))
    plain = to_analog(nn.Linear(2, 2), AnalogConfig())
    with pytest.raises(SurrogateError, match="takes its width from weight_noise"):
        weight_matrices(plain)[0].prior()


@pytest.mark.parametrize("weights", ["fresh", "clean"])
def test_a_backward_pass_of_its_own_leaves_ranges_priors_and_programming_alone(
    weights: Literal["fresh", "clean"],
) -> None:
    torch.manual_seed(0)
    same = replace(NOISY, weight_noise=WeightNoise(0.05))
    plain, x = nn.Linear(20, 10), torch.randn(30, 20)
    found = []
    for config in (same, replace(same, backward=BackwardPass(weights))):
        analog = to_analog(plain, config).eval()
        calibrate_ranges(analog, [x])
        (matrix,) = weight_matrices(analog)
        program(analog)
        with noise_off(analog):
            found.append((matrix.core.output_max, matrix.prior().std, matrix.prior().mean, analog(x)))
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_copies_and_seeds_draw_alike() -> None:
    model, x = net("residual")
    analog = to_analog(model, replace(NOISY, adc=None, output_noise=OutputNoise(0.1, "abs"))).eval()
    copied = copy.deepcopy(analog)
    assert torch.equal(analog(x), copied(x))
    seed_noise(analog, 5)
    seed_noise(copied, 5)
    assert torch.equal(analog(x), copied(x))
    assert not torch.equal(analog(x), analog(x))
    again = to_analog(model, replace(NOISY, adc=None, output_noise=OutputNoise(0.1, "abs")), seed=9).eval()
    assert not torch.equal(again(x), to_analog(model, again.head.core.config, seed=8).eval()(x))  # type: ignore[union-attr,arg-type]


def test_what_cannot_be_converted_is_named_all_at_once() -> None:
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.ModuleDict(
        {
            "up": nn.ConvTranspose2d(1, 1, 2),
            "own": Own(2, 2),
            "hooked": hooked,
            "lazy": nn.LazyLinear(3),
            "hollow": nn.Linear(2, 2, device="meta"),
            "fine": nn.Linear(2, 2),
            "done": AnalogLinear(2, 2),
        }
    )
    with pytest.raises(SurrogateError) as caught:
        to_analog(model, AnalogConfig(), digital=["nowhere"])
    said = str(caught.value)
    for part in (
        "digital='nowhere': there is no such module",
        "up (ConvTranspose2d) has no analog form here; leave it digital with digital=['up']",
        "own (Own) is a class of its own",
        "hooked (Linear) has hooks",
        "lazy (LazyLinear)",
        "hollow (Linear) has weights without values",
        "done is analog already; to_digital makes it digital again",
    ):
        assert part in said, part
    assert "fine" not in said
    del model["done"]
    analog = to_analog(model, AnalogConfig(), digital=["up", "own", "hooked", "lazy", "hollow"])
    assert [name for name, _ in analog_modules(analog)] == ["fine"]


def test_layers_that_fit_no_array_are_named_all_at_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 1, 5), nn.LSTM(2, 2, proj_size=1), nn.MultiheadAttention(4, 2, add_zero_attn=True)
    )
    with pytest.raises(SurrogateError) as caught:
        to_analog(model, AnalogConfig(geometry=ArrayGeometry.relative(rows=16, columns=16)))
    said = str(caught.value).splitlines()
    assert said[0] == "this model cannot be put on these arrays:"
    assert any(line.strip().startswith("0: cannot map 25 inputs in units of 25") for line in said)
    assert any("proj_size has no analog form" in line for line in said)
    assert any("add_zero_attn has no analog form" in line for line in said)
    with pytest.raises(SurrogateError, match="no layer to put on analog arrays"):
        to_analog(nn.Sequential(nn.ReLU()), AnalogConfig())
    with pytest.raises(SurrogateError, match="it is digital already"):
        to_digital(nn.Sequential(nn.ReLU()))
    recurrent, packed = to_analog(nn.GRU(3, 2), AnalogConfig()), nn.utils.rnn.pack_sequence([torch.ones(2, 3)])
    with pytest.raises(SurrogateError, match="takes tensors, not PackedSequence"):
        recurrent(packed)


def test_a_model_is_described() -> None:
    model, _ = net("residual")
    described = describe(to_analog(model, NOISY))
    by_name = {one.name: one for one in described.matrices}
    assert list(by_name) == ["stem.0", "depthwise", "grouped", "pointwise", "head"]
    stem, grouped = by_name["stem.0"], by_name["grouped"]
    assert (stem.outputs, stem.inputs, stem.tiles) == (16, 27, 1)
    assert stem.utilisation == pytest.approx(16 * 2 * 27 / 64**2)
    assert (grouped.groups, grouped.tiles, grouped.inputs) == (4, 4, 36)
    assert described.analog_weights == sum(one.weight.numel() for one in weight_matrices(to_analog(model, NOISY)))
    assert described.analog_weights + described.digital_weights == sum(p.numel() for p in model.parameters())
    text = str(described)
    assert "outputs 2 % of ostd per tile" in text
    assert "weights 2 % of wmax (read)" in text
    assert f"{described.tiles} tiles" in text.splitlines()[-1]
    assert describe(to_analog(model, NOISY).to("meta")).analog_weights == described.analog_weights
    wide = nn.Linear(100, 70)
    large = describe(
        to_analog(
            wide, replace(NOISY, weight_quantization=WeightQuantization(5, slice_bits=2), adc=None, output_noise=None)
        )
    )
    assert large.matrices[0].tiles == 2 * 3 * 2
    assert "W 5 b in 2 x 2 b" in str(large)
