"""Dual adaptive training: what the surrogate gets wrong is learned beside the weights, from every pass.

After Zheng et al., Nature Machine Intelligence 5, 1119 (2023), whose error-prediction networks are replaced here by
what a crossbar can be wrong in: an error of every cell, and gain, offset and curvature of every column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench, gradient_cosine
from labrig.training.methods.base import Method, StepOutcome
from labrig.training.physical import Observation
from labrig_surrogates.backend import SurrogateBackend, TileName


@dataclass(frozen=True)
class ResidualSettings:
    """How the residual is learned.

    Attributes:
        learning_rate: Adam's step size.
        steps: Steps on the measurements of each pass.
        decay: Pull towards zero, which is the calibrated surrogate.
    """

    learning_rate: float = 1e-2
    steps: int = 2
    decay: float = 1e-4


class ArrayResidual(nn.Module):
    """What the surrogate of one array gets wrong; all zero means nothing.

        y = (1 + gain) S(target (1 + cells), v) + scale (offset + curve z |z|),  z = S / scale

    Args:
        rows: Word lines.
        columns: Bit lines.
        scale_a: Current in A that outputs are measured in, so that all parameters are of the order of one.
    """

    scale_a: Tensor

    def __init__(self, rows: int, columns: int, scale_a: float) -> None:
        super().__init__()
        self.cells = nn.Parameter(torch.zeros(rows, columns))
        self.gain = nn.Parameter(torch.zeros(columns))
        self.offset = nn.Parameter(torch.zeros(columns))
        self.curve = nn.Parameter(torch.zeros(columns))
        self.register_buffer("scale_a", torch.tensor(scale_a))

    def target(self, target_s: Tensor) -> Tensor:
        """The targets that stand for what these cells do."""
        return target_s * (1.0 + self.cells)

    def outputs(self, current_a: Tensor) -> Tensor:
        """The surrogate's outputs, corrected."""
        relative = current_a / self.scale_a
        return (1.0 + self.gain) * current_a + self.scale_a * (self.offset + self.curve * relative * relative.abs())


class ResidualBackend:
    """The fitted chip with what was learned of its errors since.

    Args:
        surrogate: The fitted chip.
        placement: Array of every tile.
        settings: How the residual is learned.
    """

    def __init__(
        self, surrogate: SurrogateBackend, placement: Mapping[TileName, int], settings: ResidualSettings
    ) -> None:
        self._surrogate = surrogate
        self._placement = placement
        self.settings = settings
        self.residuals = nn.ModuleDict()
        for tile, array in placement.items():
            one = surrogate.surrogate_of(tile)
            converters = one.converters
            scale_a = float(np.max(np.abs(converters.adc_lsb_a))) * converters.code_max
            if scale_a == 0.0:
                scale_a = converters.voltage_max_v * converters.conductance_max_s
            self.residuals[str(array)] = ArrayResidual(one.rows, one.columns, scale_a)
        self._optimiser = torch.optim.AdamW(
            self.residuals.parameters(), lr=settings.learning_rate, weight_decay=settings.decay
        )
        self._seen: list[Observation] = []

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Column currents with fresh noise; see `Backend.currents`."""
        residual = self._of(tile)
        return residual.outputs(self._surrogate.currents(tile, residual.target(target_s), voltage_v))

    def mean_currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """The mean; see `MeanBackend`."""
        residual = self._of(tile)
        return residual.outputs(self._surrogate.mean_currents(tile, residual.target(target_s), voltage_v))

    def observe(self, observation: Observation) -> None:
        """Keeps a measured batch for `learn`."""
        if observation.tile is not None:
            self._seen.append(observation)

    def forget(self) -> None:
        """Drops what was measured since the last `learn`, as after a pass that failed."""
        self._seen.clear()

    def learn(self) -> float:
        """Fits the residual to what was measured since the last time; returns the relative squared error before."""
        first = 0.0
        for step in range(self.settings.steps):
            self._optimiser.zero_grad()
            with torch.enable_grad():
                errors = [self._error(one) for one in self._seen]
                loss = torch.stack(errors).mean()
                loss.backward()  # type: ignore[no-untyped-call]
            first = float(loss.detach()) if step == 0 else first
            self._optimiser.step()
        self._seen.clear()
        return first

    def state(self) -> dict[str, Tensor]:
        """Residuals and moments, for a checkpoint."""
        found = {f"residual/{name}": one.detach().clone() for name, one in self.residuals.state_dict().items()}
        for name, parameter in self.residuals.named_parameters():
            for key, value in self._optimiser.state.get(parameter, {}).items():
                found[f"moments/{name}/{key}"] = torch.as_tensor(value).clone()
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a checkpoint."""
        own = {key.removeprefix("residual/"): one for key, one in state.items() if key.startswith("residual/")}
        self.residuals.load_state_dict(own)
        for name, parameter in self.residuals.named_parameters():
            prefix = f"moments/{name}/"
            moments = {key.removeprefix(prefix): one.clone() for key, one in state.items() if key.startswith(prefix)}
            if moments:
                self._optimiser.state[parameter] = moments

    def _of(self, tile: TileName) -> ArrayResidual:
        found = self.residuals[str(self._placement[tile])]
        assert isinstance(found, ArrayResidual)
        return found

    def _error(self, one: Observation) -> Tensor:
        assert one.tile is not None
        target_s = torch.as_tensor(one.held.commanded_s, dtype=torch.float32)
        voltage_v = torch.as_tensor(one.voltage_v, dtype=torch.float32)
        kept = torch.as_tensor(~one.result.saturated)
        measured = torch.as_tensor(one.result.current_a, dtype=torch.float32)
        apart = (self.mean_currents(one.tile, target_s, voltage_v) - measured) / self._of(one.tile).scale_a
        return (apart.square() * kept).sum() / kept.sum().clamp_min(1)


def dual_adaptive(residual: ResidualBackend) -> Method:
    """Physics-aware steps through surrogate and residual; the residual learns from every pass.

    Args:
        residual: Surrogate and residual of the chip.
    """

    def begin(bench: TrainingBench) -> None:
        bench.chip.gradient = residual
        bench.backends.offer("surrogate", residual)
        if residual.observe not in bench.chip.observers:
            bench.chip.observers.append(residual.observe)

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        residual.forget()
        result = bench.physical_gradient(batch)
        cosine = gradient_cosine(bench, bench.gradient_through(residual, batch)) if probe else None
        residual.learn()
        bench.computed(len(batch), 2 * residual.settings.steps)  # forward, and back to the residual
        bench.stepper.apply()
        return StepOutcome(result.loss, cosine, result.accuracy)

    return Method("dat", physical_step, begin=begin, learned=residual)
