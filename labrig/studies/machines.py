"""Boltzmann machines of the study `ebm`: learning, with exact products or on a chip, and judging what was learnt.

On the chip every product of Gibbs sampling and of the gradient is read there, upwards and downwards through the same
cells where the board can be driven from both sides, and every unit is switched by the chip's own read noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from labrig.studies.chip import StudyChip
from labrig.studies.reads import NoisyProduct, response
from labrig.studies.reversed_reads import ReversedReads
from labrig.training.datasets import load_digits
from labrig_surrogates.layers import AnalogLinear, weight_matrices
from labrig_surrogates.models.energy_based import BoltzmannMachine, Chain, all_states, bars_and_stripes, divergence_from
from labrig_surrogates.models.hardware_noise import NormalSource

SIDE = 3
HIDDEN = 12
WEIGHT_LIMIT = 4.0
CHAINS = 100
# So few that a machine can learn them by heart.
FEW_DIGITS = 200
_READS = 64


@dataclass(frozen=True)
class Ascent:
    """How a machine learns by persistent contrastive divergence.

    Attributes:
        updates: Steps up the gradient.
        rate: Size of the first.
        fall: Size of the last over that of the first; the end should not be the noise of the last steps.
        sweeps: Gibbs sweeps before each.
        biases_only: Whether the weights, and with them what was written, stay as they are.
    """

    updates: int
    rate: float
    fall: float
    sweeps: int = 1
    biases_only: bool = False


def learn(
    machine: BoltzmannMachine, batch: Callable[[], Tensor], chain: Chain, ascent: Ascent, source: NormalSource
) -> Chain:
    """Trains a machine in place.

    Args:
        machine: The machine.
        batch: Draws data, `[batch, visible]`.
        chain: Where the chains begin.
        ascent: How.
        source: Of the chance.

    Returns:
        Where the chains end.
    """
    for update in range(ascent.updates):
        chain = machine.gibbs(chain, ascent.sweeps, source)
        gradient = machine.gradient(batch(), chain)
        if ascent.biases_only:
            gradient["weight"] = torch.zeros_like(gradient["weight"])
        machine.ascend(gradient, ascent.rate * ascent.fall ** (update / ascent.updates), weight_limit=WEIGHT_LIMIT)
    return chain


def learn_patterns(seed: int, updates: int, source: NormalSource) -> tuple[BoltzmannMachine, Chain]:
    """A machine that learnt bars and stripes with exact products, and where its chains are."""
    generator = torch.Generator().manual_seed(seed)
    patterns = bars_and_stripes(SIDE)
    machine = BoltzmannMachine(SIDE**2, HIDDEN, generator)
    start = torch.randint(0, 2, (CHAINS, SIDE**2), generator=generator).float()
    chain = Chain(start, torch.zeros((CHAINS, HIDDEN)))
    return machine, learn(machine, lambda: patterns, chain, Ascent(updates, 0.2, 0.01, sweeps=2), source)


def exact_divergence(machine: BoltzmannMachine) -> float:
    """Divergence in nat of a machine, by its stored weights, from bars and stripes that are all alike likely."""
    patterns = bars_and_stripes(SIDE)
    states = all_states(SIDE**2, patterns)
    places = (states[:, None, :] == patterns[None, :, :]).all(dim=2).any(dim=1)
    return divergence_from(machine, places.double() / places.sum())


@torch.no_grad()
def sampled_divergence(machine: BoltzmannMachine, chain: Chain, sweeps: int, source: NormalSource) -> float:
    """The same divergence of the states that the machine visits, whatever its products are read from.

    A pattern that is never visited counts as half a visit.
    """
    patterns, visited = bars_and_stripes(SIDE), []
    for _ in range(sweeps):
        chain = machine.gibbs(chain, 2, source)
        visited.append((chain.visible[:, None, :] == patterns[None, :, :]).all(dim=2).double().sum(dim=0))
    count = torch.stack(visited).sum(dim=0) + 0.5
    part = count / (sweeps * chain.visible.shape[0])
    return float(-(part * len(patterns)).log().mean())


@dataclass(frozen=True)
class Digits:
    """Binary 8 x 8 digits.

    Attributes:
        train: The few that are learnt, `[count, 64]`.
        test: Others.
        draw: Draws as many of the first as there are chains.
    """

    train: Tensor
    test: Tensor
    draw: Callable[[], Tensor]


def few_digits(generator: torch.Generator) -> Digits:
    """Digits to learn, which are drawn with a generator, and to judge by."""
    data = load_digits()
    train, test = ((x > 0.5).float() for x in (data.train_x[:FEW_DIGITS], data.test_x))
    return Digits(train, test, lambda: train[torch.randint(len(train), (CHAINS,), generator=generator)])


def learn_digits(seed: int, level: float, updates: int, source: NormalSource) -> tuple[BoltzmannMachine, Digits]:
    """A machine that learnt digits, its products noisy while it learnt, and exact again at the end.

    Args:
        seed: Of the initial weights and the order of the digits.
        level: Standard deviation of the noise of a product over its root mean square.
        updates: Steps.
        source: Of the chance and the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    machine = BoltzmannMachine(64, HIDDEN, generator)
    digits = few_digits(generator)
    up, down = machine.up, machine.down
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    if level:
        machine.up, machine.down = NoisyProduct(up, level, source), NoisyProduct(down, level, source)
    learn(machine, digits.draw, Chain(digits.draw(), torch.empty(0)), Ascent(updates, 0.1, 0.05), source)
    machine.up, machine.down = up, down
    return machine, digits


class _BothWays(nn.Module):
    """Both layers of a machine, one after the other, for whoever puts it on arrays."""

    def __init__(self, machine: BoltzmannMachine) -> None:
        super().__init__()
        self.up, self.down = machine.up, machine.down

    def forward(self, visible: Tensor) -> Tensor:
        """Fields of the visible units after one sweep without chance."""
        field: Tensor = self.down(torch.sigmoid(self.up(visible)))
        return field


class MachineOnChip:
    """A machine whose products are read on a chip.

    Args:
        chip: The chip; its last array is left alone.
        digital: The machine; stays as it is.

    Attributes:
        machine: Samples and learns on the chip.
        writes: Programmings so far.
        mvms: Products so far.
    """

    def __init__(self, chip: StudyChip, digital: BoltzmannMachine) -> None:
        hidden, visible = digital.weight.shape
        self.machine = BoltzmannMachine(visible, hidden, torch.Generator())
        self.machine.load_state_dict(digital.state_dict())
        if chip.two_sided:
            up, self._backend = chip.carry(self.machine.up, torch.ones((1, visible)))
            down: nn.Module | None = None
        else:
            carried, self._backend = chip.carry(_BothWays(self.machine), torch.ones((1, visible)))
            assert isinstance(carried, _BothWays)
            up, down = carried.up, carried.down
        assert isinstance(up, AnalogLinear)
        self.machine.up = up
        self._reversed = None
        if down is None:
            bias = self.machine.visible_bias
            self._reversed = ReversedReads(up, chip.board, self._backend.placement, 1.0, bias)
            down = self._reversed
        self.machine.down = down
        for matrix in weight_matrices(self.machine):
            matrix.core.set_ranges(weight_max=WEIGHT_LIMIT, input_max=1.0)
        with torch.no_grad():  # before anything comes down through cells, they have to hold the weights
            up(torch.zeros((1, visible)))

    @property
    def writes(self) -> int:
        """Programmings so far."""
        return self._backend.ledger.writes

    @property
    def mvms(self) -> int:
        """Products so far, in both directions."""
        return self._backend.ledger.mvms + (0 if self._reversed is None else self._reversed.mvms)

    @torch.no_grad()
    def measured(self) -> BoltzmannMachine:
        """The machine of the cells as they answer: the mean of both directions, and the offsets of both as biases."""
        hidden, visible = self.machine.weight.shape
        up = response(self.machine.up, amplitude=1.0, reads=_READS)
        down = response(self.machine.down, amplitude=1.0, reads=_READS)
        found = BoltzmannMachine(visible, hidden, torch.Generator())
        found.weight.copy_(0.5 * (up + down.T))
        found.hidden_bias.copy_(self.machine.up(torch.zeros((_READS, visible))).mean(dim=0))
        found.visible_bias.copy_(self.machine.down(torch.zeros((_READS, hidden))).mean(dim=0))
        found.tie()
        return found

    def learn(self, batch: Callable[[], Tensor], chain: Chain, ascent: Ascent, source: NormalSource) -> Chain:
        """Learns in the loop, then goes on with the biases alone, which takes out what the last write was off by."""
        chain = learn(self.machine, batch, chain, ascent, source)
        return learn(self.machine, batch, chain, replace(ascent, biases_only=True), source)
