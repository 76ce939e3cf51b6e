"""Boltzmann machines on a chip: their cells are the weights, they sample rightly, biases learn without writes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from labrig.studies.chip import StudyChip, open_chip, without_drift, without_noise
from labrig.studies.machines import Ascent, MachineOnChip, exact_divergence, learn_patterns, sampled_divergence
from labrig_drivers.capabilities import TRANSPOSED_MVM
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.models.energy_based import BoltzmannMachine, Chain, bars_and_stripes
from labrig_surrogates.models.hardware_noise import PseudoNormal

IDEAL = replace(
    without_drift(without_noise(ChipSettings(arrays=3, rows=16, columns=24, adc_bits=14, dac_bits=14))),
    programming_scale=0.0,
    mismatch_sigma=0.0,
    stuck_fraction=0.0,
    wire_ohm=0.0,
    gain_sigma=0.0,
    offset_sigma_a=0.0,
    compression_a=1.0,
)


def pseudo(seed: int) -> PseudoNormal:
    return PseudoNormal(torch.Generator().manual_seed(seed))


def one_sided(chip: StudyChip) -> StudyChip:
    return replace(chip, info=replace(chip.info, capabilities=chip.info.capabilities - {TRANSPOSED_MVM}))


@pytest.mark.parametrize("both_ways", [True, False])
def test_on_ideal_cells_it_is_the_machine_that_was_put_there(both_ways: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    machine = BoltzmannMachine(9, 12, generator, scale=0.5)
    chain = Chain(torch.randint(0, 2, (100, 9), generator=generator).float(), torch.empty(0))
    with open_chip(None, IDEAL) as chip:
        on_chip = MachineOnChip(chip if both_ways else one_sided(chip), machine)
        found = on_chip.measured()
        assert on_chip.writes == (1 if both_ways else 2)
        torch.testing.assert_close(found.weight, machine.weight, atol=0.01, rtol=0.0)
        torch.testing.assert_close(found.visible_bias, machine.visible_bias, atol=0.02, rtol=0.0)
        torch.testing.assert_close(found.hidden_bias, machine.hidden_bias, atol=0.02, rtol=0.0)
        exact = exact_divergence(machine)
        assert math.isclose(sampled_divergence(on_chip.machine, chain, 200, pseudo(2)), exact, abs_tol=0.15)
        # The negative control: chance that is too small visits other states.
        assert abs(sampled_divergence(on_chip.machine, chain, 100, Halved(pseudo(2))) - exact) > 0.2


class Halved:
    """Numbers half as large as they should be."""

    def __init__(self, source: PseudoNormal) -> None:
        self._source = source

    def normal(self, count: int, size: int) -> torch.Tensor:
        return 0.5 * self._source.normal(count, size)


def test_on_a_chip_with_errors_learning_there_takes_them_out() -> None:
    settings = without_drift(ChipSettings(seed=2, arrays=2, rows=16, columns=24, adc_bits=12))
    machine, chain = learn_patterns(1, 1500, pseudo(1))
    patterns = bars_and_stripes(3)
    with open_chip(None, settings) as chip:
        on_chip = MachineOnChip(chip, machine)
        deployed = sampled_divergence(on_chip.machine, chain, 60, pseudo(2))
        before = machine.weight.clone()
        on_chip.learn(lambda: patterns, chain, Ascent(80, 0.05, 0.1, sweeps=1), pseudo(3))
        # A write for each step of the weights and the first; none while biases learnt alone.
        assert on_chip.writes == 81
        assert torch.equal(machine.weight, before)  # the digital one stays as it was
        assert sampled_divergence(on_chip.machine, chain, 60, pseudo(2)) < 0.8 * deployed


def test_a_pattern_that_is_never_visited_counts_as_half_a_visit() -> None:
    machine, _ = learn_patterns(1, 1, pseudo(1))
    with torch.no_grad():
        machine.weight.zero_()
        machine.visible_bias.fill_(50.0)  # always all on
        machine.tie()
    chain = Chain(torch.ones((10, 9)), torch.zeros((10, 12)))
    found = sampled_divergence(machine, chain, 10, pseudo(1))
    part = torch.tensor([100.5] + [0.5] * 13, dtype=torch.float64) / 100.0
    assert math.isclose(found, float(-(14.0 * part).log().mean()), rel_tol=1e-9)
