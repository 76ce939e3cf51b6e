"""`AnalogCore`: the arrays of one weight matrix. Every analog layer has one for each of its matrices.

It holds ranges, converters' parameters and the source of noise, and computes products with weights that the layer
hands it; the layer owns weights and biases under the names that the digital layer gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from labrig_surrogates.analog_config import EFFECTS, AnalogConfig, composed_only
from labrig_surrogates.array_layout import channel_blocks, table_faults, tile_map_of
from labrig_surrogates.backend import Backend
from labrig_surrogates.backend_product import backend_faults, backend_outputs
from labrig_surrogates.cells import ArrayWeights, StreamedWeights, WeightState, weight_limit
from labrig_surrogates.composed import TileState, composed_outputs, tile_outputs
from labrig_surrogates.draws import Draw, DrawStream
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.fused import fused_outputs
from labrig_surrogates.fused_plan import OutputNoiseDraw, Ranges, fused_plan, output_draws, stays_narrow
from labrig_surrogates.passes import Number, a_backward_pass_may_follow, autocast_type, number
from labrig_surrogates.products import ConvProduct, LinearProduct
from labrig_surrogates.programming import (
    STREAMED_FROM,
    StoredWeights,
    WeightPrior,
    array_weights,
    composed_weights_only,
    store_weights,
    streamed_weights,
    weight_prior,
)
from labrig_surrogates.quantization import wide
from labrig_surrogates.range_start import RANGES, first_parameters, first_ranges, range_faults
from labrig_surrogates.write_memory import WriteMemory

Drawer = Callable[[Sequence[int]], Draw]

RangeObserver = Callable[["AnalogCore", Tensor, Tensor], Tensor | None]
"""Sees a core, its inputs and its weights at every product; what it returns is multiplied in the inputs' place."""


class AnalogCore(nn.Module):
    """The arrays of one weight matrix or kernel.

    Args:
        weight: The weights, whose shape and size decide ranges; not kept.
        product: What the arrays compute.
        config: Which effects are on.
        name: First part of the names of the tiles.
        seed: Of the noise; shared by the layers of a model.
        stream: Number of this core among those with the same seed.

    Raises:
        SurrogateError: The weights cannot be mapped to the arrays of the config, or a table of converters does not
            fit; every fault is listed.
    """

    weight_max: Tensor | None
    input_max: Tensor
    output_max: Tensor | None
    output_std: Tensor | None
    output_mean: Tensor | None
    weight_step: nn.Parameter | None
    log_spread: nn.Parameter | None
    input_step: nn.Parameter | None
    output_step: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        product: LinearProduct | ConvProduct,
        config: AnalogConfig,
        *,
        name: str,
        seed: int,
        stream: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.product = product
        self.name = name
        self.shape = tuple(weight.shape)
        self.backend: Backend | None = None
        self.noise = True
        self.observer: RangeObserver | None = None
        self.stream = DrawStream(config.draws.source, config.draws.pool_size, seed=seed, stream=stream)
        self.tile_map = tile_map_of(self.shape, product.groups, config)
        self._blocks = channel_blocks(self.tile_map, self.shape)
        self._memory = WriteMemory(self.stream)
        self._output_factor: Tensor | None = None
        self._programmed: list[StoredWeights] | None = None
        if faults := table_faults(self.shape, product.groups, config):
            raise SurrogateError(f"layer {name!r} cannot honour its config:\n  " + "\n  ".join(faults))
        self._add_tensors(weight)
        self._ideal = not config.effects_on and config.mapping.weight_range == "max"
        self._composed_only = config.path == "composed" or bool(composed_only(config))
        simple = not (self._composed_only or composed_weights_only(config))
        self._may_stream = simple and isinstance(product, LinearProduct) and len(self._blocks) == 1
        self._calibrated = self.output_max is not None or self.output_std is not None
        self.unmeasured: list[str] = []
        self.note_ranges()
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def _add_tensors(self, weight: Tensor) -> None:
        ranges = first_ranges(weight, self.config, self.tiles_of_an_output)
        for name, value in ranges.items():
            self.register_buffer(name, value)
        for name, value in first_parameters(weight, self.config, self.tiles_of_an_output, ranges).items():
            self.register_parameter(name, None if value is None else nn.Parameter(value))

    def note_ranges(self) -> None:
        """Looks which ranges have no value yet; whoever changes the buffers calls it."""
        found = {name: getattr(self, name) for name in RANGES}
        self.unmeasured = [name for name, one in found.items() if one is not None and bool(torch.isnan(one).any())]

    @property
    def tiles_of_an_output(self) -> int:
        """How many tiles' outputs are added up for one output."""
        return len(self.tile_map.input_blocks)

    @property
    def path(self) -> str:
        """What computes the products: `digital`, `fused`, `composed`, or the name of a backend."""
        if self.backend is not None:
            return type(self.backend).__name__
        if self._ideal:
            return "digital"
        if self._composed_only:
            return "composed"
        return "composed weights, fused" if composed_weights_only(self.config) else "fused"

    def use_backend(self, backend: Backend | None) -> None:
        """Has a backend compute the products; None: the model of the config.

        Raises:
            SurrogateError: The config has effects on that only its own model knows, or names no arrays.
        """
        faults = [] if backend is None else [*backend_faults(self.config)]
        if faults:
            raise SurrogateError(f"layer {self.name!r} cannot run on a backend:\n  " + "\n  ".join(faults))
        self.backend = backend

    @torch.inference_mode(mode=False)  # what is set in inference mode is trained with later
    @torch.no_grad()
    def set_ranges(
        self,
        *,
        weight_max: float | Tensor | None = None,
        input_max: float | None = None,
        output_max: float | Tensor | None = None,
        output_std: float | Tensor | None = None,
        output_mean: float | Tensor | None = None,
    ) -> None:
        """Sets ranges; what is None stays.

        Args:
            weight_max: Weight that uses the full conductance range, one or one for each output (`[outputs, 1, ...]`).
            input_max: Input that uses the full range of the DAC, in the unit of the inputs.
            output_max: Full scale of the ADC in the unit of the outputs, one, or `[tiles, 1]`, or `[tiles, outputs]`.
            output_std: Standard deviation of the clean outputs, one or `[tiles, 1]`.
            output_mean: Mean size of the clean outputs, likewise.

        Raises:
            SurrogateError: The config does not use such a range; every fault is listed.
        """
        wanted = zip(RANGES, (weight_max, input_max, output_max, output_std, output_mean), strict=True)
        given = {name: torch.as_tensor(value) for name, value in wanted if value is not None}
        in_use = {name: getattr(self, name) for name in RANGES}
        in_use["output_max"] = self.output_max if self.output_step is None else self.output_step
        if faults := range_faults(given, in_use):
            raise SurrogateError(f"layer {self.name!r} cannot take these ranges:\n  " + "\n  ".join(faults))
        for name, value in given.items():
            if name == "input_max" and self.input_step is not None and self.config.dac is not None:
                self.input_step.copy_(value / self.config.dac.highest)
            if name == "output_max" and self.output_step is not None and self.config.adc is not None:
                self.output_step.copy_(value / self.config.adc.highest)
            else:
                old = getattr(self, name)
                setattr(self, name, value.to(old) + torch.zeros_like(old))
        self.note_ranges()

    @torch.no_grad()
    def clip(self, weight: Tensor) -> None:
        """Clips weights in place to what the conductances can express; does nothing where the range follows them."""
        if self.config.mapping.weight_range != "max":
            limit = torch.as_tensor(self.weight_limit(weight)).to(weight)
            weight.copy_(torch.minimum(torch.maximum(weight, -limit), limit))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of one batch with one draw of the weights.

        Args:
            x: Inputs.
            weight: The weights, of the shape that the core was made for.
            bias: Digital bias, `[outputs]`.

        Raises:
            SurrogateError: A range was never measured.
        """
        if self.observer is not None:
            seen = self.observer(self, x, weight)
            x = x if seen is None else seen
        if self.backend is None and (self._ideal or self.observer is not None):
            return self.product.plain(x, weight, bias)
        if self.backend is not None:
            return backend_outputs(self.backend, self, x, weight, bias)
        weights = self._streamed(weight) if self._streams(x, weight, bias) else self.realise(weight)
        return self.multiply(x, weights, bias)

    def weight_limit(self, weight: Tensor) -> Number:
        """The weight that the whole conductance range stands for: one number, or one for each output."""
        return weight_limit(weight, self.config, self.weight_max, self.weight_step)

    def realise(self, weight: Tensor) -> list[ArrayWeights]:
        """The weights as they stand in the arrays now, for one or several calls of `multiply`."""
        if self._programmed is not None and not self.training:
            fresh = self._draws(weight)[1]
            return [one.read(wide(weight), fresh) for one in self._programmed]
        return array_weights(weight, self.config, self._weight_state(weight))

    def _streams(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether the weights of one product need not stand in memory as a whole: no gradient asks for them."""
        large = self._may_stream and x.is_cpu and weight.numel() >= STREAMED_FROM
        return large and not torch.compiler.is_compiling() and not a_backward_pass_may_follow(x, weight, bias)

    def _streamed(self, weight: Tensor) -> list[ArrayWeights] | StreamedWeights:
        if self._programmed is not None and not self.training:
            found = self._programmed[0].streamed(wide(weight), self._draws(weight)[1])
        else:
            found = streamed_weights(weight, self.config, self._weight_state(weight))
        return found if isinstance(found, StreamedWeights) else [found]

    def _weight_state(self, weight: Tensor) -> WeightState:
        uniform, normal = self._draws(weight)
        return WeightState(
            weight_max=self.weight_max,
            step=self.weight_step,
            log_spread=self.log_spread,
            uniform=uniform,
            fresh=normal,
            kept=self._memory.of_write(weight),
            of_chip=self._memory.of_chip(weight),
            carried=self._memory.carried,
            age_s=self._memory.age_s,
            groups=self.product.groups,
        )

    def _quiet_state(self, weight: Tensor) -> WeightState:
        return self._weight_state(weight)._replace(log_spread=None, uniform=None, fresh=None)

    @torch.no_grad()
    def prior(self, weight: Tensor) -> WeightPrior:
        """What the hardware makes likely of each weight; see `labrig_surrogates.programming.weight_prior`."""
        return weight_prior(weight, self.config, self._quiet_state(weight))

    @torch.no_grad()
    def new_write(self, weight: Tensor) -> None:
        """Draws the errors of programming anew; a programmed core is programmed again with these weights."""
        self._memory.forget_write()
        self._output_factor = None
        programmed = self._programmed is not None
        self._programmed = None
        noise = self.config.weight_noise
        if self.config.weight_effects or (noise is not None and noise.timing == "program"):
            self.realise(weight)  # makes the draws now, so that none has to be made in a compiled region
        if programmed:
            self.program(weight)

    @torch.no_grad()
    def new_chip(self, weight: Tensor) -> None:
        """Draws anew what belongs to the chip whatever is written on it, such as stuck cells, and the next write."""
        self._memory.forget_chip()
        self.new_write(weight)

    @torch.no_grad()
    def set_age(self, weight: Tensor, age_s: float) -> None:
        """Lets the cells be as old as that since they were programmed; the errors of programming stay what they are."""
        if not age_s >= 0.0:
            raise SurrogateError(f"layer {self.name!r}: an age of {age_s} s lies before programming")
        self._memory.age_s = age_s
        if self._programmed is not None:
            self.program(weight)
        elif any(getattr(effect, "carries_state", False) for effect in self.config.weight_effects):
            self.realise(weight)  # moves what goes on with the age, so that nothing has to in a compiled region

    @torch.inference_mode(mode=False)
    def set_output_factor(self, factor: Tensor | None) -> None:
        """Multiplies all outputs, after their conversion and before the bias, until the next write; None: not."""
        self._output_factor = None if factor is None else factor.clone()

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def program(self, weight: Tensor) -> None:
        """Programs the weights: in evaluation they stay as they are now, whatever happens to `weight`.

        Raises:
            SurrogateError: An effect is drawn anew at every reading.
        """
        if fresh := [type(one).__name__ for one in self.config.weight_effects if one.fresh_at_read]:
            raise SurrogateError(
                f"layer {self.name!r}: {', '.join(fresh)} draws new numbers at every reading and cannot be programmed "
                "once: choose the timing 'program', or leave `program` out"
            )
        self._programmed = store_weights(weight, self.config, self._weight_state(weight))

    def erase(self) -> None:
        """Undoes `program`."""
        self._programmed = None

    def held(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The product with the weights as they stand in the arrays now, for many batches; see `forward`."""
        if self._ideal or self.backend is not None or self.observer is not None:
            return lambda x: self.forward(x, weight, bias)
        weights = self.realise(weight)
        return lambda x: self.multiply(x, weights, bias)

    def multiply(self, x: Tensor, weights: list[ArrayWeights] | StreamedWeights, bias: Tensor | None = None) -> Tensor:
        """The product of one batch with realised weights; see `forward`."""
        if self.unmeasured:
            raise SurrogateError(
                f"layer {self.name!r} has no value for {', '.join(self.unmeasured)}: run calibrate_ranges or set_ranges"
            )
        factor = self._output_factor
        inner = bias if factor is None else None
        if isinstance(weights, StreamedWeights):
            outputs = self._fused(x, weights, inner)
        elif self._composed_only or torch.compiler.is_compiling():
            outputs = self._composed(x, weights, inner)
        else:
            outputs = self._fused(x, weights[0], inner)
        if factor is not None:
            outputs = outputs * (factor if factor.dim() == 0 else self.product.columns(factor))
            outputs = outputs if bias is None else outputs + self.product.columns(bias)
        half = autocast_type(x)
        return outputs if half is None else outputs.to(half)

    def _composed(self, x: Tensor, weights: list[ArrayWeights], bias: Tensor | None) -> Tensor:
        state = self._tile_state(x, *self._draws(x))
        outputs = composed_outputs(x, weights, self._blocks, self.product, self.config, state)
        return outputs if bias is None else outputs + self.product.columns(bias)

    def _tile_state(self, like: Tensor, uniform: Drawer | None, normal: Drawer | None) -> TileState:
        values = wide(like.detach())
        return TileState(
            input_max=self.input_max,
            input_step=self.input_step,
            output_max=self.output_max,
            output_step=self.output_step,
            output_std=self.output_std,
            output_mean=self.output_mean,
            normal=normal,
            uniform=uniform,
            of_chip=self._memory.of_chip(values),
            poisson=self.stream.poisson,
        )

    @torch.no_grad()
    def clean_tile_outputs(self, x: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What each tile puts out in front of integrator and ADC without any noise: number of the tile, outputs."""
        clean = self.config.without(*(effect for effect in EFFECTS if effect not in {"dac", "weight_quantization"}))
        quiet = replace(clean, path="auto")
        weights = array_weights(weight, quiet, self._quiet_state(weight))
        yield from tile_outputs(x, weights, self._blocks, self.product, quiet, self._tile_state(x, None, None))

    def _fused(self, x: Tensor, weights: ArrayWeights | StreamedWeights, bias: Tensor | None) -> Tensor:
        config, product = self.config, self.product
        compute = autocast_type(x)
        values = x.to(compute) if compute is not None and stays_narrow(config, product) else wide(x)
        flat = isinstance(product, ConvProduct) or values.dim() == 2
        rows = values if flat else values.reshape(-1, values.shape[-1])
        known = (self.output_max, self.output_std) if self._calibrated else (None, None)
        ranges = Ranges(weights.limit, number(self.input_max), *known)
        learns = isinstance(weights, ArrayWeights) and a_backward_pass_may_follow(x, weights.source, bias)
        plan = fused_plan(config, product, self._blocks, weights.unit, ranges, compute=compute, learns=learns)
        noise: tuple[OutputNoiseDraw, ...] = ()
        if self.noise:
            shape = product.output_shape(rows, self.shape)
            noise = output_draws(config, plan, ranges, lambda: self.stream.normal(shape, rows))
        outputs = fused_outputs(rows, weights, bias, plan, noise)
        return outputs if flat else outputs.view(*x.shape[:-1], outputs.shape[-1])

    def _draws(self, like: Tensor) -> tuple[Drawer | None, Drawer | None]:
        """Uniform and normal numbers; None where noise is switched off."""
        if not self.noise:
            return None, None
        values = wide(like.detach())
        return (lambda shape: self.stream.uniform(shape, values)), (lambda shape: self.stream.normal(shape, values))


def _after_loading(module: nn.Module, incompatible_keys: object) -> None:
    """Loaded ranges count as measured, and weights that were programmed are no longer those of the layer."""
    del incompatible_keys
    assert isinstance(module, AnalogCore)
    module.erase()
    module.note_ranges()
