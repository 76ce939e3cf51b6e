"""Which noise the chips of an image study have: how much, relative to what, drawn when, and on tiles of which size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from labrig_drivers.errors import ConfigError
from labrig_surrogates.effect_settings import Adc, OutputNoise, WeightNoise
from labrig_surrogates.noise_levels import Timing

OfWeights = Literal["wmax", "wrange", "wmult", "wrms", "abs"]
"""What a level on the weights is relative to; see `labrig_surrogates.noise_levels`."""

OfOutputs = Literal["ostd", "poisson", "ofs", "aihwkit"]
"""What a level on the outputs is relative to; `poisson` has the power of `ostd`, in proportion to the signal."""

CONVERTER_BITS: Final = 8
"""Of converters that a definition refers to and the method does not have."""


@dataclass(frozen=True)
class NoiseKind:
    """What a level of noise means; the usual one is that of the headline.

    Attributes:
        weights: What the level on the weights is relative to.
        timing: `program`: weights have one error for a chip; `read`: a fresh one at every pass of a batch.
        outputs: What the level on the outputs, fresh at every product, is relative to.
        tile_rows: Inputs of an array; larger layers are added up from several, each with noise at its own outputs.
            None: each layer is one array.
    """

    weights: OfWeights = "wmax"
    timing: Timing = "program"
    outputs: OfOutputs = "ostd"
    tile_rows: int | None = None

    def __str__(self) -> str:
        rows = "" if self.tile_rows is None else f"@{self.tile_rows}"
        return f"{self.weights}/{self.timing}+{self.outputs}{rows}"

    @property
    def needs_converters(self) -> bool:
        """Whether levels on the outputs refer to the range of converters."""
        return self.outputs in {"ofs", "aihwkit"}

    @classmethod
    def parsed(cls, text: str) -> NoiseKind:
        """A kind from its text, such as `wmult/read`, `wmax/program+ofs` or `wmax/program+ostd@256`.

        Raises:
            ConfigError: It is not of that form; every fault is named.
        """
        before, at, rows = text.partition("@")
        of_weights, plus, of_outputs = before.partition("+")
        weights, slash, timing = of_weights.partition("/")
        words: tuple[tuple[str, str, object], ...] = (
            ("the noise of weights", weights, OfWeights),
            ("when it is drawn", timing if slash else cls.timing, Timing),
            ("the noise of outputs", of_outputs if plus else cls.outputs, OfOutputs),
        )
        faults = [
            f"{what} is {word!r}, not one of {', '.join(get_args(allowed))}"
            for what, word, allowed in words
            if word not in get_args(allowed)
        ]
        if at and not (rows.isdecimal() and int(rows) > 0):
            faults.append(f"rows of an array are {rows!r}, not a whole number above zero")
        if faults:
            raise ConfigError(
                f"--noise {text}: expected something like wmax/program+ostd or wmax/read@256; " + "; ".join(faults)
            )
        return cls(
            cast(OfWeights, words[0][1]),
            cast(Timing, words[1][1]),
            cast(OfOutputs, words[2][1]),
            int(rows) if at else None,
        )


HEADLINE: Final = NoiseKind()
"""`wmax`/program, with `ostd`/read where outputs are noisy as well; each layer one array."""


@dataclass(frozen=True)
class Noise:
    """The noise of a chip in a test.

    Attributes:
        weights: N on the weights: 0.1 of `wmax`/program is 10 % of the largest weight of each layer, drawn once.
        outputs: N on the outputs: 0.1 of `ostd` is 10 % of the standard deviation of each layer's outputs.
        kind: What these levels mean.
    """

    weights: float
    outputs: float = 0.0
    kind: NoiseKind = HEADLINE

    def __str__(self) -> str:
        kind = self.kind
        parts = [f"{_told(self.weights, kind.weights)} {kind.weights}/{kind.timing}"] * (self.weights > 0 or self.quiet)
        parts += [f"{_told(self.outputs, kind.outputs)} {kind.outputs}/read"] if self.outputs else []
        return " + ".join(parts) + ("" if kind.tile_rows is None else f", arrays of {kind.tile_rows} rows")

    @classmethod
    def from_document(cls, document: object) -> Noise:
        """A noise from what `dataclasses.asdict` made of it."""
        assert isinstance(document, dict)
        return cls(document["weights"], document["outputs"], NoiseKind(**document["kind"]))

    @property
    def quiet(self) -> bool:
        """Whether there is none."""
        return self.weights == 0.0 and self.outputs == 0.0

    def of_weights(self) -> WeightNoise | None:
        """As layers have it."""
        kind = self.kind
        return WeightNoise(self.weights, kind.weights, timing=kind.timing) if self.weights else None

    def of_outputs(self) -> OutputNoise | None:
        """As layers have it; in front of `adc`."""
        if not self.outputs:
            return None
        match self.kind.outputs:
            case "ostd":
                return OutputNoise(self.outputs, "ostd")
            case "poisson":
                return OutputNoise(self.outputs, "ostd", law="poisson")
            case "ofs":
                return OutputNoise(self.outputs, "ofs")
            case "aihwkit":
                return OutputNoise(self.outputs, "products")

    def adc(self) -> Adc | None:
        """Converters at the outputs, where the noise refers to their full scale."""
        return Adc(CONVERTER_BITS, range="calibrated") if self.outputs and self.kind.outputs == "ofs" else None


def _told(level: float, definition: OfWeights | OfOutputs) -> str:
    return f"{level:g}" if definition == "abs" else f"{100 * level:g} %"
