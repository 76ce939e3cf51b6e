"""Where a recurrence settles on a chip, against where its measured cells and the bounds of the equilibrium say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labrig.studies.reads import response
from labrig_surrogates.models.equilibrium import Equilibrium, Iteration, stationary_spread_bound

# Reads that an average is taken over, and steps, of which the last are averaged.
_READS, _STEPS, _AVERAGED = 16, 60, 40
_EXACT_STEPS = 300


@dataclass(frozen=True)
class MeasuredCells:
    """What z <- phi(W z + drive) is made of on a chip.

    Attributes:
        matrix: W as the chip has it, `[states, states]`.
        drive: What the injection and the offsets of both come to, `[batch, states]`.
    """

    matrix: Tensor
    drive: Tensor

    @property
    def norm(self) -> float:
        """Spectral norm of the programmed weights."""
        return float(torch.linalg.matrix_norm(self.matrix.double(), 2))

    def fixed_points(self, like: Equilibrium) -> Tensor:
        """Where it settles without noise, `[batch, states]`."""
        state = torch.zeros_like(self.drive)
        for _ in range(_EXACT_STEPS):
            state = like.activation(state @ self.matrix.T + self.drive)
        return state


@dataclass(frozen=True)
class Settled:
    """Fixed points on a chip.

    Attributes:
        states: As measured, averaged, `[batch, states]`.
        core: The recurrence, for its activation.
        numbers: `chip bound`: largest distance from the point that was meant over its bound; `chip unamplified`: over
            that bound without the recurrence; `chip distance` and `foretold`: mean distance from the point that was
            meant, and from the one of the measured cells; `chip noise`: spread of a state under fresh noise over
            its bound; `chip norm`: spectral norm of the programmed weights.
    """

    states: Tensor
    core: Equilibrium
    numbers: dict[str, float]

    def distance_from(self, cells: MeasuredCells) -> float:
        """Mean distance of the states from where some cells would settle."""
        return _distance(self.states, cells.fixed_points(self.core)).mean().item()


@torch.no_grad()
def measured_cells(carried: Equilibrium, x: Tensor) -> MeasuredCells:
    """Measures both layers of an equilibrium on a chip.

    Args:
        carried: On the chip.
        x: Its inputs, `[batch, inputs]`.
    """
    matrix = response(carried.recurrence, amplitude=1.0, reads=_READS)
    drive: Tensor = carried.injection(x.repeat(_READS, 1)).unflatten(0, (_READS, len(x))).mean(dim=0)
    offset = carried.recurrence(torch.zeros((64, matrix.shape[1]))).mean(dim=0)
    return MeasuredCells(matrix, drive + offset)


@torch.no_grad()
def settle_on_chip(carried: Equilibrium, meant: Equilibrium, cells: MeasuredCells, x: Tensor) -> Settled:
    """Lets a chip settle, and compares.

    With z = phi(W z + u) as it was meant and z' = phi(W' z' + u') on the chip, |z' - z| <= |W' z + u' - W z - u| /
    (1 - |W'|), by the same steps as `frozen_error_bound`.

    Args:
        carried: On the chip.
        meant: The same without a chip.
        cells: What the chip's cells are.
        x: Inputs, `[batch, inputs]`.
    """
    carried.iteration = Iteration(steps=_STEPS, averaged=_AVERAGED, drive_reads=_READS)
    states = carried(x)
    weight, drive = meant.recurrence.get_parameter("weight"), meant.injection(x)
    wanted = MeasuredCells(weight, drive).fixed_points(meant)
    kick = (wanted @ cells.matrix.T + cells.drive - wanted @ weight.T - drive).double().norm(dim=1)
    moved = _distance(states, wanted)
    # From here on with one drive: fresh noise of the recurrence alone.
    carried.iteration = Iteration(steps=_STEPS)
    driven = carried.injection(x)
    one, two = carried.settle(driven), carried.settle(driven)
    products = [carried.recurrence(states) for _ in range(2)]
    sigma = float((products[0] - products[1]).square().mean().sqrt() * 0.5**0.5)
    spread = float(_distance(one, two).square().mean().sqrt() * 0.5**0.5)
    # Where nothing contracts there is no bound, and no claim about one holds.
    contracts = cells.norm < 1.0
    bound = stationary_spread_bound(sigma, states.shape[1], cells.norm) if contracts else 0.0
    return Settled(
        states,
        meant,
        {
            "chip bound": float((moved * (1.0 - cells.norm) / kick).max()) if contracts else math.inf,
            "chip unamplified": float((moved / kick).max()),
            "chip distance": moved.mean().item(),
            "foretold": _distance(states, cells.fixed_points(meant)).mean().item(),
            "chip noise": spread / bound if contracts else math.inf,
            "chip norm": cells.norm,
        },
    )


def _distance(a: Tensor, b: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm((a - b).double(), dim=1)
    return distance
