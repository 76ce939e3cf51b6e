"""The Ising model of a square of spins with free edges, as a Boltzmann machine of its two colours.

Neighbours always differ in colour, so that all spins of one colour can be drawn at once (block Gibbs sampling): the
square is a restricted Boltzmann machine whose visible units are the one colour and whose hidden ones are the other.
Energies are in units of the temperature; with spins s = 2 u - 1 of units u,

    -J sum s_i s_j = -4 J sum u_i u_j + 2 J sum_i degree_i u_i + constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labrig_surrogates.models.energy_based import BoltzmannMachine, Chain, all_states


def ising_machine(side: int, coupling: float) -> BoltzmannMachine:
    """The machine whose states are those of the spins.

    Args:
        side: Spins along an edge.
        coupling: J, positive where neighbours want to be alike.
    """
    adjacent = _adjacent(side)
    machine = BoltzmannMachine(adjacent.shape[1], adjacent.shape[0], torch.Generator())
    with torch.no_grad():
        machine.weight.copy_(4.0 * coupling * adjacent)
        machine.hidden_bias.copy_(-2.0 * coupling * adjacent.sum(dim=1))
        machine.visible_bias.copy_(-2.0 * coupling * adjacent.sum(dim=0))
    machine.tie()
    return machine


def ising_energy(chain: Chain, side: int, coupling: float) -> Tensor:
    """Energy of each chain's spins, `[chains]`."""
    black, white = 2.0 * chain.visible - 1.0, 2.0 * chain.hidden - 1.0
    return -coupling * ((white @ _adjacent(side).to(white.dtype)) * black).sum(dim=1)


def exact_ising_energy(side: int, coupling: float) -> float:
    """Mean energy -J d log Z / d J, with Z row by row from the transfer matrix of `2^side` states of a row."""
    j = torch.tensor(coupling, dtype=torch.float64, requires_grad=True)
    spins = 2.0 * all_states(side, torch.empty(0, dtype=torch.float64)) - 1.0
    along = (spins[:, 1:] * spins[:, :-1]).sum(dim=1)
    across = spins @ spins.T
    log_sums = j * along
    for _ in range(side - 1):
        log_sums = torch.logsumexp(log_sums[:, None] + j * across, dim=0) + j * along
    (slope,) = torch.autograd.grad(torch.logsumexp(log_sums, dim=0), j)
    return float(-j.detach() * slope)


def _adjacent(side: int) -> Tensor:
    """1 where a spin of the second colour and one of the first are neighbours, `[second, first]`."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    first = (row + column).flatten() % 2 == 0
    place = torch.stack([row.flatten(), column.flatten()], dim=1)
    apart = (place[~first][:, None] - place[first][None]).abs().sum(dim=2)
    return (apart == 1).float()
