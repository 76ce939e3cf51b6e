"""Where a recurrence settles on a chip: foretold by its own cells, within its bounds, and not by another chip's."""

from __future__ import annotations

import torch
from torch import nn

from labrig.studies.chip import open_chip, without_drift
from labrig.studies.settled_states import MeasuredCells, measured_cells, settle_on_chip
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.models.equilibrium import Equilibrium, Iteration, bound_spectral_norm

STATES = 12


def core() -> Equilibrium:
    generator = torch.Generator().manual_seed(4)
    recurrence, injection = nn.Linear(STATES, STATES, bias=False), nn.Linear(6, STATES)
    with torch.no_grad():
        recurrence.weight.normal_(generator=generator)
        injection.weight.normal_(generator=generator)
        injection.bias.zero_()
    bound_spectral_norm(recurrence.weight, 0.7)
    return Equilibrium(recurrence, injection, iteration=Iteration(40))


def chip(seed: int) -> ChipSettings:
    return without_drift(ChipSettings(seed=seed, arrays=2, rows=16, columns=24))


def test_exact_cells_settle_where_the_layer_does() -> None:
    layer = core()
    x = torch.randn((5, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cells = MeasuredCells(layer.recurrence.get_parameter("weight").detach(), layer.injection(x))
        torch.testing.assert_close(cells.fixed_points(layer), layer(x), atol=1e-5, rtol=0.0)
    assert abs(cells.norm - 0.7) < 1e-5


def test_a_chip_settles_where_its_own_cells_say_and_within_the_bounds() -> None:
    layer = core()
    x = torch.randn((20, 6), generator=torch.Generator().manual_seed(1))
    with open_chip(None, chip(1)) as right, open_chip(None, chip(2)) as wrong:
        carried, _ = right.carry(layer, x)
        elsewhere, _ = wrong.carry(layer, x)
        assert isinstance(carried, Equilibrium)
        assert isinstance(elsewhere, Equilibrium)
        cells, others = measured_cells(carried, x), measured_cells(elsewhere, x)
        found = settle_on_chip(carried, layer, cells, x)
    numbers = found.numbers
    assert numbers["chip distance"] > 0.1
    assert numbers["foretold"] < 0.2 * numbers["chip distance"]
    assert found.distance_from(others) > 0.5 * numbers["chip distance"]
    assert 0.0 < numbers["chip bound"] < 1.0
    assert numbers["chip unamplified"] > numbers["chip bound"]
    assert 0.0 < numbers["chip noise"] < 1.0


def test_where_nothing_contracts_no_bound_holds() -> None:
    layer = core()
    with torch.no_grad():
        layer.recurrence.get_parameter("weight").mul_(3.0)
    x = torch.randn((4, 6), generator=torch.Generator().manual_seed(1))
    with open_chip(None, chip(1)) as board:
        carried, _ = board.carry(layer, x)
        assert isinstance(carried, Equilibrium)
        found = settle_on_chip(carried, layer, measured_cells(carried, x), x)
    assert found.numbers["chip norm"] > 1.0
    assert found.numbers["chip bound"] == float("inf")
    assert found.numbers["chip noise"] == float("inf")
