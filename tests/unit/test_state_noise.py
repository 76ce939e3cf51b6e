"""How noise of a recurrence adds up: the Lyapunov equation of cells whose noise grows with the state, and the law."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labrig.studies.chip import open_chip, without_drift
from labrig.studies.growth_findings import growth_found
from labrig.studies.state_noise import Cells, corrected, orthogonal_weights, state_noise, written
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.models.recurrent import noise_growth

STATES = 16


class Noisy(nn.Module):
    """A product with noise of one unit, and of a part of the state beside it."""

    def __init__(self, weight: Tensor, part: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._part = part
        self._generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        size = (1.0 + self._part * x.square().mean(dim=1, keepdim=True)).sqrt()
        return x @ self.weight.T + size * torch.randn(x.shape, generator=self._generator)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_noise_that_grows_with_the_state_is_foretold_by_the_noise_at_the_states_that_are_visited() -> None:
    weight = orthogonal_weights(STATES, 0.8, generator())
    found = state_noise(Noisy(weight, 0.2), STATES, 200)
    assert math.isclose(found.measured, found.foretold(weight), rel_tol=0.03)
    assert math.isclose(found.measured, noise_growth(0.8), rel_tol=0.03)
    # Noise at rest is too small: with it in place of `step` the states would be foretold too quiet.
    assert float(found.step.diagonal().mean()) > 1.4


def test_errors_of_the_cells_make_noise_grow_as_the_gain_says() -> None:
    drawn, states = generator(), 48
    weight = orthogonal_weights(states, 0.7, drawn) + 0.05 * torch.randn((states, states), generator=drawn)
    cells = Cells(Noisy(weight, 0.0), weight)
    found = state_noise(cells.layer, states, 200)
    assert math.isclose(found.measured, noise_growth(cells.gain), rel_tol=0.1)
    assert found.measured > 1.2 * noise_growth(0.7)  # the radius that was meant says too little


def test_a_single_mode_of_another_size_is_the_counterexample() -> None:
    """Where the singular vectors are not in general position, as on a diagonal, the gain says too little."""
    weight = torch.diag(torch.tensor([0.97] + [0.3] * (STATES - 1)))
    cells = Cells(Noisy(weight, 0.0), weight)
    found = state_noise(cells.layer, STATES, 600)
    assert math.isclose(found.measured, found.foretold(weight), rel_tol=0.1)
    assert found.measured > 1.5 * noise_growth(cells.gain)


def test_writing_again_brings_the_cells_to_the_weights() -> None:
    weight = orthogonal_weights(STATES, 0.9, generator())
    settings = without_drift(ChipSettings(seed=3, arrays=1, rows=16, columns=32, adc_bits=14, dac_bits=14))
    with open_chip(None, settings) as chip:
        once = written(weight, chip)
        off = float((once.matrix - weight).norm())
        again = corrected(once, weight)
        assert float((again.matrix - weight).norm()) < 0.7 * off
        assert abs(again.gain - 0.9) < abs(once.gain - 0.9) + 0.02


def test_chips_that_do_not_contract_are_left_out_and_told() -> None:
    settles = {"measured": 2.0, "solved": 2.1, "gain": 2.2, "radius": 4.0, "wrong": math.inf, "corrected": 2.0}
    found = growth_found({0.7: [settles, {}], 0.9: [{"corrected": 5.2}, {}]})
    assert [one.verdict for one in found.findings] == ["holds", "holds", "does not hold", "holds"]
    assert found.conditions == {"chips whose cells contract as they were written": "1 of 4, the others are left out"}
    assert "wrong chip" in found.controls[0].name
    assert found.controls[0].passed
