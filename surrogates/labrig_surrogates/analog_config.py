"""`AnalogConfig`: everything that is not ideal about the arrays of a layer; an effect that is None is off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Literal

from labrig_surrogates.analog_effects import CellEffect, OutputEffect, WeightEffect
from labrig_surrogates.converters import Nonlinearity
from labrig_surrogates.effect_settings import (
    Adc,
    BackwardPass,
    Dac,
    DigitalColumns,
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
from labrig_surrogates.faults import value_faults
from labrig_surrogates.quantization import Rounding
from labrig_surrogates.tilemap import ArrayGeometry

Path = Literal["auto", "fused", "composed"]


@dataclass(frozen=True)
class AnalogConfig:
    """Everything that is not ideal about the arrays of a layer; by default nothing is.

    Attributes:
        geometry: The arrays; None is one array as large as the layer.
        mapping: Weights to conductances.
        dac: Converters at the inputs.
        weight_quantization: Levels of the weights.
        weight_noise: Error of each cell, shared by a batch.
        spread: Learnable spread of the weights.
        weight_effects: Further effects on the programmed weights and their cells, in this order.
        read_noise: Noise of each cell, fresh for every vector.
        output_effects: Further effects on the outputs, in this order, after `read_noise`.
        saturation: Integrators.
        output_noise: Noise in front of the ADC.
        adc: Converters at the outputs of every tile.
        backward: What the backward pass sees of it.
        draws: Where random numbers come from.
        digital: Digital work on the outputs.
        path: `fused` is fast and serves a part of the effects, `composed` serves all, `auto` takes the first that
            serves what is on. See `composed_only`.

    Raises:
        SurrogateError: A value is out of range, a word is unknown, a setting would have no effect, or two settings
            contradict one another; every fault is listed.
    """

    geometry: ArrayGeometry | None = None
    mapping: Mapping = field(default_factory=Mapping)
    dac: Dac | None = None
    weight_quantization: WeightQuantization | None = None
    weight_noise: WeightNoise | None = None
    spread: WeightSpread | None = None
    weight_effects: tuple[WeightEffect | CellEffect, ...] = ()
    read_noise: ReadNoise | None = None
    output_effects: tuple[OutputEffect, ...] = ()
    saturation: Saturation | None = None
    output_noise: OutputNoise | None = None
    adc: Adc | None = None
    backward: BackwardPass = field(default_factory=BackwardPass)
    draws: NoiseDraws = field(default_factory=NoiseDraws)
    digital: DigitalColumns = field(default_factory=DigitalColumns)
    path: Path = "auto"

    def __post_init__(self) -> None:
        found = [*value_faults(self)]
        for name in (one.name for one in fields(self)):
            part = getattr(self, name)
            faults = value_faults(part, f"{name}.") if is_dataclass(part) else []
            limits = getattr(part, "faults", None)
            # What is no number cannot be compared with a limit.
            found += faults if faults or limits is None else [*limits()]
        found += self._contradictions()
        if found:
            raise SurrogateError("this AnalogConfig cannot be honoured:\n  " + "\n  ".join(found))

    def _contradictions(self) -> Iterator[str]:
        quantization, learned = self.weight_quantization, False
        if quantization is not None:
            learned = quantization.learned_step
            if not quantization.symmetric and self.mapping.scheme != "offset_column":
                yield "weight_quantization.symmetric=False needs mapping.scheme='offset_column'"
            if not quantization.symmetric and self.mapping.weight_range != "max":
                yield "weight_quantization.symmetric=False needs mapping.weight_range='max'"
        if learned and self.mapping.weight_range != "max":
            yield "weight_quantization.learned_step decides the range: leave mapping.weight_range='max'"
        if self.output_noise is not None and self.output_noise.relative_to == "ofs" and self.adc is None:
            yield "output_noise.relative_to='ofs' needs an adc"
        if self.dac is None:
            yield from self._without_input_range()
        if self.backward.weights != "same" and self.weight_noise is None:
            yield f"backward.weights={self.backward.weights!r} needs weight_noise"
        if self.backward.weights != "same" and (self.spread is not None or self.weight_effects):
            yield f"backward.weights={self.backward.weights!r} excludes spread and weight_effects"
        if self.spread is not None and self.spread.beside_weight_noise and self.weight_noise is None:
            yield "spread.beside_weight_noise=True needs weight_noise"
        for effect in self.weight_effects:
            if getattr(effect, "needs_conductances", False) and (self.geometry is None or self.geometry.is_relative):
                yield f"weight_effects: {type(effect).__name__} needs AnalogConfig.geometry with conductances in S"
        yield from self._slices()
        reasons = composed_only(self)
        if self.path == "fused" and reasons:
            yield f"path='fused' does not serve {', '.join(reasons)}"

    def _without_input_range(self) -> Iterator[str]:
        if self.adc is not None and self.adc.range != "calibrated":
            yield f"adc.range={self.adc.range!r} counts products, which needs a dac for the input range"
        if self.saturation is not None:
            yield "saturation.limit_products counts products, which needs a dac for the input range"
        if self.output_noise is not None and self.output_noise.relative_to == "products":
            yield "output_noise.relative_to='products' needs a dac for the input range"
        for effect in self.output_effects:
            if getattr(effect, "needs_dac", False):
                yield f"output_effects: {type(effect).__name__} needs a dac, which says what inputs are"

    def _slices(self) -> Iterator[str]:
        quantization, noise, adc, output = self.weight_quantization, self.weight_noise, self.adc, self.output_noise
        of_weights = quantization is not None and quantization.slice_bits is not None
        of_inputs = self.dac is not None and self.dac.slice_bits is not None
        if of_weights and (self.spread is not None or self.weight_effects):
            yield "weight_quantization.slice_bits excludes spread and weight_effects"
        if of_weights and noise is not None and noise.relative_to not in {"wmax", "range"}:
            yield f"weight_noise.relative_to={noise.relative_to!r} has no meaning for weight_quantization.slice_bits"
        if of_weights and self.backward.weights != "same":
            yield "weight_quantization.slice_bits needs backward.weights='same'"
        if (of_weights or of_inputs) and adc is not None and adc.range != "products":
            yield f"slices are converted one by one: adc.range={adc.range!r} must be 'products'"
        if (of_weights or of_inputs) and output is not None and output.relative_to not in {"ofs", "products"}:
            yield f"slices are converted one by one: output_noise.relative_to={output.relative_to!r} has no meaning"
        if (of_weights or of_inputs) and output is not None and output.law == "poisson":
            yield "slices are converted one by one: output_noise.law='poisson' would need the mean size of each"

    def without(self, *effects: str) -> AnalogConfig:
        """A copy with some effects off, and with `weight_noise` what `backward` says of it.

        Raises:
            SurrogateError: An effect is not one of the fields that can be off.
        """
        unknown = sorted(set(effects) - set(EFFECTS))
        if unknown:
            raise SurrogateError(f"{', '.join(unknown)} cannot be switched off; the effects are {', '.join(EFFECTS)}")
        off: dict[str, object] = {name: () if name.endswith("_effects") else None for name in effects}
        if "weight_noise" in effects:
            off["backward"] = BackwardPass()
            if self.spread is not None and "spread" not in effects:
                off["spread"] = replace(self.spread, beside_weight_noise=False)
        # `replace` cannot know that each name goes with its own type; `__post_init__` checks the result as a whole.
        return replace(self, **off)  # type: ignore[arg-type]

    @property
    def drawn_weight_noise(self) -> WeightNoise | None:
        """The weight noise, unless a learnable spread stands in its place."""
        replaced = self.spread is not None and not self.spread.beside_weight_noise
        return None if replaced else self.weight_noise

    @property
    def effects_on(self) -> tuple[str, ...]:
        """Names of the effects that are on."""
        return tuple(name for name in EFFECTS if getattr(self, name))


EFFECTS = (
    "dac",
    "weight_quantization",
    "weight_noise",
    "spread",
    "weight_effects",
    "read_noise",
    "output_effects",
    "saturation",
    "output_noise",
    "adc",
)
"""Fields of `AnalogConfig` that can be off."""


def composed_only(config: AnalogConfig) -> list[str]:
    """The settings of a config that only the composed path serves, by name; empty where the fused path serves all."""
    reasons = [name for name in ("read_noise", "output_effects", "saturation") if getattr(config, name)]
    if any(getattr(effect, "fresh_for_each_vector", False) for effect in config.weight_effects):
        reasons.append("weight_effects with noise for each vector")
    dac, adc, quantization = config.dac, config.adc, config.weight_quantization
    if dac is not None:
        reasons += [name for name, on in _converter_extras("dac", dac.rounding, dac.range, dac.nonlinearity) if on]
        reasons += ["dac.slice_bits"] if dac.slice_bits is not None else []
    if adc is not None:
        reasons += [name for name, on in _converter_extras("adc", adc.rounding, adc.range, adc.nonlinearity) if on]
    if quantization is not None and quantization.slice_bits is not None:
        reasons.append("weight_quantization.slice_bits")
    if config.output_noise is not None and config.output_noise.law == "poisson":
        reasons.append("output_noise.law='poisson'")
    return reasons


def _converter_extras(
    name: str, rounding: Rounding, chosen_range: str, nonlinearity: Nonlinearity | None
) -> Iterator[tuple[str, bool]]:
    yield f"{name}.rounding='stochastic'", rounding == "stochastic"
    yield f"{name}.range='learned'", chosen_range == "learned"
    yield f"{name}.nonlinearity", nonlinearity is not None
