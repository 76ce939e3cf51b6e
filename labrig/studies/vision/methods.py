"""What is compared: ways to train a network for noisy arrays, each a value.

All begin with the same digital network of their seed and see as many images from there on. Levels of noise in a
training are multiples of the level that it is made for, N, in the definitions `wmax` (weights) and `ostd` (outputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, cast, get_args

from labrig_drivers.errors import ConfigError
from labrig_surrogates.quantization import Rounding
from labrig_surrogates.schedules import Constant, Exponential, Linear, Overshoot, Schedule, Then, Vant

Ramp = Literal["constant", "linear", "exponential", "vant", "overshoot"]

Precision = Literal["4", "8", "float"]
"""Bits of the weights and of the inputs of every layer: 4 symmetric, 8 affine (see `AFFINE_BITS`), or floats."""

_RAMP_PART: Final = 0.25
_EXPONENTIAL_START: Final = 0.05
_VANT_SPREAD: Final = 0.66
_VANT_LEVEL: Final = 1.4


@dataclass(frozen=True)
class Method:
    """A way to train from a digital network on.

    Attributes:
        name: Of the row in a table.
        weight_bits: Levels of the weights, symmetric; None leaves them as they are.
        activation_bits: Levels of the inputs of every layer but the first, unsigned; None leaves them as they are.
        rounding: Of the weights while training; programmed weights are rounded to the nearest.
        clip_sigmas: Weights beyond so many standard deviations of their layer are clipped after each step; None: no.
        weight_noise: Multiple of N that weights are trained with; zero without.
        output_noise: Multiple of N that outputs are trained with.
        ramp: How the noise grows over the first quarter of the training; `vant` varies it from then on, and
            `overshoot` goes half as far again and back over another quarter.
        distillation: Weight of what the digital network says; zero leaves it out.
        temperature: Of the distillation.
        activation: Nonlinearity; see `ACTIVATIONS`.
        spread: Whether weights have a learnable spread, held up by a Kullback-Leibler term with a hardware prior.
        kl: Weight of that term.
        statistics: Weight of the distance between noisy and clean statistics of the activations.
        residual: Whether layers amplify the noise of their outputs by a learnable gain of one or more.
        average: Decay of a moving average of the weights over the last quarter; zero without.
    """

    name: str
    weight_bits: int | None = 4
    activation_bits: int | None = 4
    rounding: Rounding = "stochastic"
    clip_sigmas: float | None = None
    weight_noise: float = 0.0
    output_noise: float = 0.0
    ramp: Ramp = "linear"
    distillation: float = 0.0
    temperature: float = 4.0
    activation: str = "relu"
    spread: bool = False
    kl: float = 0.0
    statistics: float = 0.0
    residual: bool = False
    average: float = 0.0

    @property
    def analog(self) -> bool:
        """Whether it trains for arrays at all, with levels or with noise."""
        levels = (self.weight_bits, self.activation_bits)
        return any(bits is not None for bits in levels) or self.weight_noise > 0.0 or self.output_noise > 0.0

    def schedule(self, level: float, steps: int) -> Schedule:
        """How a noise of `level` is reached in a training of so many steps."""
        rise = max(1, round(_RAMP_PART * steps))
        match self.ramp:
            case "constant":
                return Constant(level)
            case "linear":
                return Then(Linear(0.0, level, rise), rise, Constant(level))
            case "exponential":
                return Then(Exponential(_EXPONENTIAL_START * level, level, rise), rise, Constant(level))
            case "vant":
                # Published for absolute levels around 1.4; what varies is kept in proportion to the level.
                return Vant(level, rise, spread=_VANT_SPREAD * level / _VANT_LEVEL)
            case "overshoot":
                return Overshoot(level, rise, rise)


_NOISE: Final = Method("noise injection", weight_noise=1.0, output_noise=1.0)
# The levels of aihwkit's `StandardHWATrainingPreset` (Rasch et al., Nature Communications 14, 5282, 2023) at the N of
# the studies, 0.2: 1.75 % of the largest weight, and 4 % at the outputs, here of their standard deviation. They stay
# what they are from the first step on, whatever the chips; bits are those of all methods.
_PRESET: Final = Method("hardware-aware preset", weight_noise=0.0875, output_noise=0.2, ramp="constant")
_OURS: Final = Method(
    "ours",
    clip_sigmas=2.0,
    weight_noise=0.75,
    output_noise=0.75,
    distillation=0.7,
    average=0.99,
)

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        one.name: one
        for one in (
            Method("digital", weight_bits=None, activation_bits=None),
            Method("QAT", rounding="nearest"),
            Method("QAT, clipped", rounding="nearest", clip_sigmas=2.0),
            _NOISE,
            replace(_NOISE, name="noise injection, distilled", distillation=0.7),
            replace(_NOISE, name="VANT", ramp="vant"),
            _PRESET,
            _OURS,
        )
    }
)
"""The methods of the robustness table. The batch norm of each is judged as trained and re-estimated on every chip."""

HEADLINE_METHODS: Final = ("digital", "QAT", "QAT, clipped", "noise injection, distilled", "ours")
"""Those of them that are always there; the others come with `--full`."""


def at_precision(method: Method, precision: Precision) -> Method:
    """A method with weights and inputs of another precision; one that has no levels at all stays as it is."""
    if precision == "4" or method.weight_bits is None:
        return method
    bits = None if precision == "float" else int(precision)
    return replace(method, weight_bits=bits, activation_bits=bits)


def precision_named(text: str) -> Precision:
    """A precision from its text.

    Raises:
        ConfigError: It is none.
    """
    for one in get_args(Precision):
        if one == text:
            return cast(Precision, one)
    raise ConfigError(f"--precision {text}: expected one of {', '.join(get_args(Precision))}")
