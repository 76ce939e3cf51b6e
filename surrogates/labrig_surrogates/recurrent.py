"""Recurrent layers on analog arrays: the products with inputs and states are analog, gates are digital.

A sequence is one forward pass: the weights are realised once for it (one draw of weight noise with timing `read`),
while read noise and output noise are fresh at every step. The products with the inputs of all steps are one batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import WeightMatrix, noise_seed
from labrig_surrogates.products import LinearProduct

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


def _lstm(from_input: Tensor, from_state: Tensor, state: State) -> State:
    (i, f, g, o) = (from_input + from_state).chunk(4, dim=-1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru(from_input: Tensor, from_state: Tensor, state: State) -> State:
    (input_r, input_z, input_n), (state_r, state_z, state_n) = from_input.chunk(3, dim=-1), from_state.chunk(3, dim=-1)
    reset, update = torch.sigmoid(input_r + state_r), torch.sigmoid(input_z + state_z)
    new = torch.tanh(input_n + reset * state_n)
    return (new + update * (state[0] - new),)


def _tanh(from_input: Tensor, from_state: Tensor, _state: State) -> State:
    return (torch.tanh(from_input + from_state),)


def _relu(from_input: Tensor, from_state: Tensor, _state: State) -> State:
    return (functional.relu(from_input + from_state),)


def _step_of(digital: nn.RNNBase | nn.RNNCellBase) -> Step:
    if isinstance(digital, nn.LSTM | nn.LSTMCell):
        return _lstm
    if isinstance(digital, nn.GRU | nn.GRUCell):
        return _gru
    return _relu if nonlinearity_of(digital) == "relu" else _tanh


def nonlinearity_of(digital: nn.RNNBase | nn.RNNCellBase) -> str:
    """`tanh` or `relu`; what a plain RNN puts its sums through."""
    return str(getattr(digital, "nonlinearity", "tanh"))


def _core(weight: Tensor, config: AnalogConfig, name: str, seed: int, stream: int) -> AnalogCore:
    if config.digital.scale:
        raise SurrogateError(f"layer {name!r}: digital.scale has no place in a recurrent layer; switch it off")
    return AnalogCore(weight, LinearProduct(), config, name=name, seed=seed, stream=stream)


class AnalogCell(nn.Module):
    """One step of an RNN, LSTM or GRU.

    Args:
        cell: `nn.RNNCell`, `nn.LSTMCell` or `nn.GRUCell`; its parameters, the same objects, are taken with their names.
        config: What is not ideal about the arrays.
        name: First part of the names of the tiles.
        seed: Of the noise; None takes one from torch's own generator.
        stream: Number of the first of its two cores among those with the same seed.

    Raises:
        SurrogateError: The config does not fit.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self,
        cell: nn.RNNCellBase,
        config: AnalogConfig,
        *,
        name: str = "cell",
        seed: int | None = None,
        stream: int = 0,
    ) -> None:
        super().__init__()
        self.digital_type: type[nn.Module] = type(cell)
        self.hidden_size, self.input_size = cell.hidden_size, cell.input_size
        self.nonlinearity = nonlinearity_of(cell)
        self.weight_ih, self.weight_hh = cell.weight_ih, cell.weight_hh
        self.bias_ih, self.bias_hh = cell.bias_ih, cell.bias_hh
        self._step = _step_of(cell)
        chosen = noise_seed(None) if seed is None else seed
        self.input_core = _core(cell.weight_ih, config, f"{name}.ih", chosen, stream)
        self.state_core = _core(cell.weight_hh, config, f"{name}.hh", chosen, stream + 1)

    def forward(self, x: Tensor, state: Tensor | State | None = None) -> Tensor | State:
        """One step, as the digital cell: `[batch, input]` (or without the batch) and the state, zero if None."""
        pair = self._step is _lstm
        if state is None:
            zero = x.new_zeros(*x.shape[:-1], self.hidden_size)
            state = (zero, zero) if pair else (zero,)
        held = state if isinstance(state, tuple) else (state,)
        from_input = self.input_core(x, self.weight_ih, self.bias_ih)
        from_state = self.state_core(held[0], self.weight_hh, self.bias_hh)
        after = self._step(from_input, from_state, held)
        return after if pair else after[0]

    def matrices(self) -> list[WeightMatrix]:
        """Weights of the inputs, then of the state."""
        return [WeightMatrix(self.input_core, self.weight_ih), WeightMatrix(self.state_core, self.weight_hh)]

    def bare_digital(self) -> nn.Module:
        """The digital cell without values for its parameters."""
        options = {"nonlinearity": self.nonlinearity} if self.digital_type is nn.RNNCell else {}
        made: nn.Module = self.digital_type(
            self.input_size, self.hidden_size, self.bias_ih is not None, device="meta", **options
        )
        return made

    def extra_repr(self) -> str:
        """Kind, sizes and path."""
        return f"{self.digital_type.__name__}, {self.input_size}, {self.hidden_size}, {self.input_core.path}"


class AnalogRecurrent(nn.Module):
    """An RNN, LSTM or GRU over sequences.

    Layers, both directions, `batch_first` and dropout between layers are as in the digital layer; packed sequences
    and projections of the state (`proj_size`) are refused.

    Args:
        layer: `nn.RNN`, `nn.LSTM` or `nn.GRU`; its parameters, the same objects, are taken with their names.
        config: What is not ideal about the arrays.
        name: First part of the names of the tiles.
        seed: Of the noise; None takes one from torch's own generator.
        stream: Number of the first of its cores among those with the same seed.

    Raises:
        SurrogateError: The layer projects its state, or the config does not fit.
    """

    def __init__(
        self,
        layer: nn.RNNBase,
        config: AnalogConfig,
        *,
        name: str = "recurrent",
        seed: int | None = None,
        stream: int = 0,
    ) -> None:
        super().__init__()
        if layer.proj_size:
            raise SurrogateError(f"layer {name!r}: an LSTM with proj_size has no analog form here")
        self.digital_type: type[nn.Module] = type(layer)
        self.input_size, self.hidden_size = layer.input_size, layer.hidden_size
        self.num_layers, self.bias, self.batch_first = layer.num_layers, layer.bias, layer.batch_first
        self.dropout, self.bidirectional = layer.dropout, layer.bidirectional
        self.nonlinearity = nonlinearity_of(layer)
        self._step = _step_of(layer)
        for parameter, value in layer.named_parameters(recurse=False):
            self.register_parameter(parameter, value)
        self.cores = nn.ModuleDict()
        chosen = noise_seed(None) if seed is None else seed
        for number, parameter in enumerate(self._weight_names()):
            part = parameter.removeprefix("weight_")
            self.cores[part] = _core(self._parameter(parameter), config, f"{name}.{part}", chosen, stream + number)

    def _parameter(self, name: str) -> Tensor:
        found = getattr(self, name)
        assert isinstance(found, Tensor)
        return found

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def _weight_names(self) -> list[str]:
        return [f"weight_{kind}_{suffix}" for suffix in self._suffixes() for kind in ("ih", "hh")]

    def matrices(self) -> list[WeightMatrix]:
        """Weights of inputs and states, layer by layer."""
        return [
            WeightMatrix(self._core_of(name.removeprefix("weight_")), self._parameter(name))
            for name in self._weight_names()
        ]

    def _core_of(self, part: str) -> AnalogCore:
        core = self.cores[part]
        assert isinstance(core, AnalogCore)
        return core

    def forward(self, x: Tensor, state: Tensor | State | None = None) -> tuple[Tensor, Tensor | State]:
        """A sequence `[time, batch, input]` (with `batch_first` `[batch, time, input]`) or one without a batch.

        Args:
            x: The sequence.
            state: The first state, as the digital layer takes it; None is zero.

        Returns:
            Outputs of all steps, and the last state, as the digital layer returns them.

        Raises:
            SurrogateError: `x` is not a tensor.
        """
        if not isinstance(x, Tensor):
            raise SurrogateError(f"an analog {self.digital_type.__name__} takes tensors, not {type(x).__name__}")
        single, pair = x.dim() == 2, self._step is _lstm
        steps = x.unsqueeze(1) if single else x.transpose(0, 1) if self.batch_first else x
        suffixes = self._suffixes()
        if state is None:
            zeros = steps.new_zeros(len(suffixes), steps.shape[1], self.hidden_size)
            state = (zeros, zeros) if pair else (zeros,)
        held = state if isinstance(state, tuple) else (state,)
        starts = [part.unsqueeze(1) if single and part.dim() == 2 else part for part in held]
        ends: list[State] = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            made = []
            for direction in range(directions):
                row = layer * directions + direction
                outputs, last = self._run(steps, suffixes[row], tuple(part[row] for part in starts), direction == 1)
                made.append(outputs)
                ends.append(last)
            steps = torch.cat(made, dim=-1) if directions == 2 else made[0]
            if self.dropout and layer + 1 < self.num_layers:
                steps = functional.dropout(steps, self.dropout, self.training)
        finals = [torch.stack(parts) for parts in zip(*ends, strict=True)]
        if single:
            steps, finals = steps.squeeze(1), [part.squeeze(1) for part in finals]
        elif self.batch_first:
            steps = steps.transpose(0, 1)
        return steps, tuple(finals) if pair else finals[0]

    def _run(self, steps: Tensor, suffix: str, state: State, backwards: bool) -> tuple[Tensor, State]:
        """One layer in one direction."""
        bias_ih, bias_hh = (self._parameter(f"bias_{kind}_{suffix}") if self.bias else None for kind in ("ih", "hh"))
        from_inputs = self._core_of(f"ih_{suffix}")(steps, self._parameter(f"weight_ih_{suffix}"), bias_ih)
        product = self._core_of(f"hh_{suffix}").held(self._parameter(f"weight_hh_{suffix}"), bias_hh)
        outputs: list[Tensor] = []
        order = range(steps.shape[0] - 1, -1, -1) if backwards else range(steps.shape[0])
        for time in order:
            state = self._step(from_inputs[time], product(state[0]), state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs), state

    def bare_digital(self) -> nn.Module:
        """The digital layer without values for its parameters."""
        options = {"nonlinearity": self.nonlinearity} if self.digital_type is nn.RNN else {}
        made: nn.Module = self.digital_type(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            device="meta",
            **options,
        )
        return made

    def extra_repr(self) -> str:
        """Kind, sizes and path."""
        core = self._core_of(f"ih_{self._suffixes()[0]}")
        return (
            f"{self.digital_type.__name__}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"batch_first={self.batch_first}, bidirectional={self.bidirectional}, {core.path}"
        )
