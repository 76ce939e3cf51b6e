"""The settings of each effect of an analog array: frozen dataclasses, put together in `AnalogConfig`.

Numbers say in their name or their docstring what they are relative to:

- *products*: the output that one cell gives with its weight and its input at the ends of their ranges, that is
  `input_max * weight range`, in the unit of the layer's output;
- *range*: the largest weight that the conductances can express.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from labrig_surrogates.converters import Nonlinearity
from labrig_surrogates.draws import Source
from labrig_surrogates.noise_levels import Law as NoiseLaw
from labrig_surrogates.noise_levels import Timing
from labrig_surrogates.noise_pool import WINDOW
from labrig_surrogates.quantization import FEWEST_BITS, MOST_BITS, Rounding
from labrig_surrogates.tilemap import Scheme

WeightRange = Literal["max", "fixed", "sigma"]
InputRange = Literal["fixed", "learned"]
OutputRange = Literal["products", "calibrated", "learned"]
WeightReference = Literal["wmax", "range", "wrange", "wmult", "wrms", "abs"]
OutputReference = Literal["ostd", "ofs", "products", "abs"]


@dataclass(frozen=True)
class Mapping:
    """How weights become conductances.

    Attributes:
        weight_range: What uses the full conductance range. `max`: the largest |weight|, at every forward pass.
            `fixed`: the buffer `weight_max`, set at conversion and by `set_ranges`. `sigma`: `clip_sigmas` times the
            standard deviation of the weights. Weights beyond the range are clipped and get no gradient.
        clip_sigmas: For `weight_range="sigma"`, 2 to 3 is usual.
        per_column: Whether every output column has a range of its own, undone by a digital scale.
        scheme: Two cells for each weight (`differential_pair`) or one and a common reference (`offset_column`).
    """

    weight_range: WeightRange = "max"
    clip_sigmas: float = 2.5
    per_column: bool = False
    scheme: Scheme = "differential_pair"

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if not self.clip_sigmas > 0.0:
            yield f"mapping.clip_sigmas = {self.clip_sigmas} must be positive"
        if self.weight_range != "sigma" and self.clip_sigmas != Mapping.clip_sigmas:
            yield f"mapping.clip_sigmas has no effect with weight_range={self.weight_range!r}: 'sigma' clips"


@dataclass(frozen=True)
class Dac:
    """Converters at the inputs: one range for all of a layer's inputs, clipped at its ends.

    Attributes:
        bits: 2 to 8; `2**bits - 1` levels from `-input_max` to `input_max`, or `2**bits` from zero if unsigned.
        input_max: Largest input, in the unit of the layer's input: the start of the buffer `input_max`.
        range: `fixed` keeps `input_max` (set it, or let `calibrate_ranges` do it); `learned` makes the step a
            parameter `input_step`, trained with the gradient of LSQ.
        signed: Whether there are negative inputs.
        rounding: `nearest` or `stochastic`.
        slice_bits: Bits of each input slice; None sends all bits at once.
        nonlinearity: Integral nonlinearity of the converters in LSB.
    """

    bits: int = 8
    input_max: float = 1.0
    range: InputRange = "fixed"
    signed: bool = True
    rounding: Rounding = "nearest"
    slice_bits: int | None = None
    nonlinearity: Nonlinearity | None = None

    @property
    def highest(self) -> int:
        """Highest code."""
        return int(2 ** (self.bits - 1)) - 1 if self.signed else int(2**self.bits) - 1

    @property
    def lowest(self) -> int:
        """Lowest code."""
        return -self.highest if self.signed else 0

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from _bits_faults("dac.bits", self.bits)
        if not self.input_max > 0.0:
            yield f"dac.input_max = {self.input_max} must be positive"
        if self.slice_bits is not None and not 1 <= self.slice_bits <= self.bits:
            yield f"dac.slice_bits = {self.slice_bits} must lie between 1 and dac.bits = {self.bits}"
        if self.nonlinearity is not None:
            yield from self.nonlinearity.faults("dac.nonlinearity", self.highest - self.lowest + 1)
            if self.slice_bits is not None:
                yield "dac.nonlinearity and dac.slice_bits exclude one another: each slice has a converter of few bits"
        if self.range == "learned" and self.slice_bits is not None:
            yield "dac.range='learned' and dac.slice_bits exclude one another"


@dataclass(frozen=True)
class Adc:
    """Converters at the outputs of every tile: `2**bits - 1` levels, clipped at both ends.

    Attributes:
        bits: 2 to 8.
        range: Where the full scale comes from. `products`: `bound_products` products. `calibrated`: the buffer
            `output_max`, filled by `calibrate_ranges` or `set_ranges`. `learned`: a parameter `output_step`, trained
            with the gradient of LSQ, starting at `bound_products` or where `calibrate_ranges` puts it.
        bound_products: Full scale in products; 10 is what published training presets use for 512-row tiles.
        rounding: `nearest` or `stochastic`.
        nonlinearity: Integral nonlinearity of the converters in LSB.
    """

    bits: int = 8
    range: OutputRange = "products"
    bound_products: float = 10.0
    rounding: Rounding = "nearest"
    nonlinearity: Nonlinearity | None = None

    @property
    def highest(self) -> int:
        """Highest code; the lowest is minus this."""
        return int(2 ** (self.bits - 1)) - 1

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from _bits_faults("adc.bits", self.bits)
        if not self.bound_products > 0.0:
            yield f"adc.bound_products = {self.bound_products} must be positive"
        if self.range == "calibrated" and self.bound_products != Adc.bound_products:
            yield "adc.bound_products has no effect with range='calibrated', which measures the full scale"
        if self.nonlinearity is not None:
            yield from self.nonlinearity.faults("adc.nonlinearity", 2 * self.highest + 1)


@dataclass(frozen=True)
class WeightQuantization:
    """Levels of the programmed weights.

    Attributes:
        bits: 2 to 8; symmetric: `2**bits - 1` levels.
        rounding: `nearest`, or `stochastic` with a fresh choice at every forward pass.
        symmetric: False: `2**bits` levels from the smallest to the largest weight, zero among them; needs the
            mapping `offset_column`.
        learned_step: Whether the step is a parameter `weight_step`, trained with the gradient of LSQ.
        slice_bits: Bits that one cell holds; None puts all of a weight's bits into one cell.
    """

    bits: int = 4
    rounding: Rounding = "nearest"
    symmetric: bool = True
    learned_step: bool = False
    slice_bits: int | None = None

    @property
    def highest(self) -> int:
        """Highest code of a symmetric quantiser."""
        return int(2 ** (self.bits - 1)) - 1

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        yield from _bits_faults("weight_quantization.bits", self.bits)
        if self.slice_bits is not None and not 1 <= self.slice_bits < self.bits:
            yield f"weight_quantization.slice_bits = {self.slice_bits} must lie between 1 and {self.bits - 1}"
        if not self.symmetric and (self.learned_step or self.slice_bits is not None):
            yield "weight_quantization.symmetric=False excludes learned_step and slice_bits"
        if self.learned_step and self.slice_bits is not None:
            yield "weight_quantization.learned_step and slice_bits exclude one another"


@dataclass(frozen=True)
class WeightNoise:
    """Gaussian error of the weights, one draw for each cell, shared by the batch.

    Attributes:
        level: Standard deviation, relative to what `relative_to` names.
        relative_to: `wmax`: the largest |weight| after clipping and quantisation. `range`: the largest weight that
            the conductances can express. `wrange`: largest minus smallest weight. `wmult`: each weight itself.
            `wrms`: the standard deviation of the weights. `abs`: one.
        per_column: Whether `wmax`, `wrange` and `wrms` are taken of each output column.
        timing: `read`: a fresh draw at every forward pass. `program`: one draw, kept until `new_write`.
    """

    level: float
    relative_to: WeightReference = "wmax"
    per_column: bool = False
    timing: Timing = "read"

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if not self.level >= 0.0:
            yield f"weight_noise.level = {self.level} must not be negative"
        if self.per_column and self.relative_to in {"range", "wmult", "abs"}:
            yield f"weight_noise.per_column has no effect with relative_to={self.relative_to!r}"


@dataclass(frozen=True)
class ReadNoise:
    """Gaussian noise of every cell, fresh for every input vector and every position of a convolution.

    Drawn in its exact closed form: independent cells with standard deviation s_ij give the output i the variance
    `sum_j s_ij**2 x_j**2`, which takes one more product and one number for each output.

    Attributes:
        level: Standard deviation of a cell at the largest weight, relative to the range.
        exponent: `s = level * range * (|w| / range)**exponent`: 0 for a constant, 0.5 and 1 for noise that grows with
            the conductance.
    """

    level: float
    exponent: float = 0.0

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if not self.level >= 0.0:
            yield f"read_noise.level = {self.level} must not be negative"
        if not self.exponent >= 0.0:
            yield f"read_noise.exponent = {self.exponent} must not be negative"


@dataclass(frozen=True)
class Saturation:
    """The integrator in front of each ADC saturates.

    Attributes:
        limit_products: Output, in products, at which it does.
        shape: `clip`, or `tanh` for a smooth approach.
    """

    limit_products: float
    shape: Literal["clip", "tanh"] = "tanh"

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if not self.limit_products > 0.0:
            yield f"saturation.limit_products = {self.limit_products} must be positive"


@dataclass(frozen=True)
class OutputNoise:
    """Noise of every tile's output, fresh for every input vector, in front of the ADC.

    Attributes:
        level: Standard deviation, relative to what `relative_to` names.
        relative_to: `ostd`: the standard deviation of the tile's clean outputs, which `calibrate_ranges` measures
            (buffer `output_std`). `ofs`: the full scale of the ADC. `products`: one product. `abs`: one.
        law: `gaussian`: as wide for every output. `poisson`: with the same power in proportion to the signal, variance
            `sigma**2 |y| / E|y|`, as the noise of counted charges; the mean size E|y| of the tile's clean outputs is
            measured by `calibrate_ranges` (buffer `output_mean`).
    """

    level: float
    relative_to: OutputReference = "ostd"
    law: NoiseLaw = "gaussian"

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if not self.level >= 0.0:
            yield f"output_noise.level = {self.level} must not be negative"


@dataclass(frozen=True)
class WeightSpread:
    """A learnable spread of the weights: each forward pass uses `weight + exp(log_spread) * normal`.

    `log_spread` is a parameter of the layer, the logarithm of a standard deviation in the unit of the weights: the
    q(W) of a variational objective, whose KL term reads `weight`, `log_spread` and `weight_prior()`.

    Attributes:
        start_range: First standard deviation, relative to the range.
        per: One spread for the `layer`, for each output `column`, or for each `weight`.
        beside_weight_noise: Whether `weight_noise` is drawn as well. By default the spread stands in its place, and
            `weight_noise` only says how wide the prior is.
    """

    start_range: float = 0.02
    per: Literal["layer", "column", "weight"] = "layer"
    beside_weight_noise: bool = False

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if not self.start_range > 0.0:
            yield f"spread.start_range = {self.start_range} must be positive"


@dataclass(frozen=True)
class BackwardPass:
    """Which weights the backward pass multiplies the output gradients with.

    Attributes:
        weights: `same`: the noisy weights of the forward pass, which is the exact gradient. `fresh`: a draw of its
            own, as an array that is read anew for the backward pass. `clean`: without `weight_noise`.
    """

    weights: Literal["same", "fresh", "clean"] = "same"


@dataclass(frozen=True)
class NoiseDraws:
    """Where random numbers come from.

    Attributes:
        source: `pool` reads numbers drawn once at random offsets (`labrig_surrogates.noise_pool` says what that is
            worth), `exact` draws every number.
        pool_size: Numbers in the pool, shared by all layers of a type and device; 4 bytes each in float32.
    """

    source: Source = "pool"
    pool_size: int = 2**20

    def faults(self) -> Iterator[str]:
        """What is wrong with the values."""
        if self.pool_size < WINDOW:
            yield f"draws.pool_size = {self.pool_size} must be at least {WINDOW}"
        if self.source == "exact" and self.pool_size != NoiseDraws.pool_size:
            yield "draws.pool_size has no effect with source='exact'"


@dataclass(frozen=True)
class DigitalColumns:
    """What the digital side does to the outputs beside adding the bias.

    Attributes:
        scale: Whether each output has a learnable factor, the parameter `scale`.
    """

    scale: bool = False


def _bits_faults(name: str, bits: int) -> Iterator[str]:
    if not FEWEST_BITS <= bits <= MOST_BITS:
        yield f"{name} = {bits} must lie between {FEWEST_BITS} and {MOST_BITS}"
