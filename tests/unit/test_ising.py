"""The Ising square as a Boltzmann machine: against counting all states, and against its transfer matrix."""

from __future__ import annotations

import math

import torch

from labrig_surrogates.models.energy_based import Chain, all_states
from labrig_surrogates.models.hardware_noise import PseudoNormal
from labrig_surrogates.models.ising import exact_ising_energy, ising_energy, ising_machine

COUPLING = 0.35


def energies_by_hand(side: int) -> torch.Tensor:
    """Energy of every state, row by row, neighbour by neighbour."""
    spins = (2.0 * all_states(side * side, torch.empty(0, dtype=torch.float64)) - 1.0).reshape(-1, side, side)
    down = (spins[:, 1:] * spins[:, :-1]).sum(dim=(1, 2))
    right = (spins[:, :, 1:] * spins[:, :, :-1]).sum(dim=(1, 2))
    return -COUPLING * (down + right)


def test_the_exact_energy_is_that_of_all_states() -> None:
    for side in (2, 3):
        energy = energies_by_hand(side)
        mean = float((torch.softmax(-energy, dim=0) * energy).sum())
        assert math.isclose(exact_ising_energy(side, COUPLING), mean, rel_tol=1e-12)


def test_the_machine_has_the_partition_function_of_the_square() -> None:
    """Up to the constant that spins of -1 and 1 differ from units of 0 and 1 by."""
    side, neighbours = 3, 12
    machine = ising_machine(side, COUPLING).double()
    constant = COUPLING * neighbours
    expected = float(torch.logsumexp(-energies_by_hand(side), dim=0))
    assert math.isclose(float(machine.log_partition().detach()) + constant, expected, rel_tol=1e-6)


def test_an_energy_counts_every_pair_once() -> None:
    up = Chain(torch.ones((1, 5)), torch.ones((1, 4)))
    assert math.isclose(float(ising_energy(up, 3, COUPLING)), -12 * COUPLING, rel_tol=1e-6)
    apart = Chain(torch.ones((1, 5)), torch.zeros((1, 4)))
    assert math.isclose(float(ising_energy(apart, 3, COUPLING)), 12 * COUPLING, rel_tol=1e-6)


def test_two_colours_in_turn_sample_the_square() -> None:
    machine, source = ising_machine(4, COUPLING), PseudoNormal(torch.Generator().manual_seed(1))
    chain = machine.gibbs(Chain(torch.zeros((400, 8)), torch.zeros((400, 8))), 60, source)
    found = []
    for _ in range(100):
        chain = machine.gibbs(chain, 2, source)
        found.append(ising_energy(chain, 4, COUPLING).mean())
    assert math.isclose(float(torch.stack(found).mean()), exact_ising_energy(4, COUPLING), rel_tol=0.02)
