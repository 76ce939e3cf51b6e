"""How far read noise drives the states of a linear recurrence on a chip apart, against what its cells foretell.

With h <- M h + noise, and noise whose mean is zero whatever the state, the covariance S of the states obeys
S = M S M^T + Q exactly, Q being the noise's covariance averaged over the states that are visited: the noise of cells
grows with what they are driven by, so that Q at rest is too small.

What S comes to without solving for it: M^k spreads unit noise to |M^k|^2 / n (Frobenius). Where the singular vectors
of M lie in general position to each other, as those of random orthogonal weights with random errors do, the factors of
M^k act apart and |M^k|^2 / n = g^(2k) with the root mean square gain g = |M| / sqrt(n), so that the sum is
1 / (1 - g^2). For exact orthogonal weights g is the spectral radius. Errors of the cells of relative size e raise g^2
to radius^2 (1 + e^2), while the largest eigenvalue is that of a single mode and says little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig.studies.chip import StudyChip
from labrig.studies.reads import response
from labrig_surrogates.layers import AnalogLinear
from labrig_surrogates.models.energy_based import stationary_covariance

_CHAINS = 256
# Writes after which cells that cannot be brought nearer to the weights are as near as they come.
_CORRECTIONS = 4


@dataclass(frozen=True)
class Cells:
    """A recurrence on a chip, and its cells as they answer.

    Attributes:
        layer: The layer.
        matrix: The weights as the chip has them, `[states, states]`.
    """

    layer: nn.Module
    matrix: Tensor

    @property
    def radius(self) -> float:
        """Modulus of the largest eigenvalue."""
        return float(torch.linalg.eigvals(self.matrix.double()).abs().max())

    @property
    def gain(self) -> float:
        """Root mean square gain, |M| / sqrt(n)."""
        return float(torch.linalg.matrix_norm(self.matrix.double()) / self.matrix.shape[0] ** 0.5)


@dataclass(frozen=True)
class StateNoise:
    """Noise of states.

    Attributes:
        measured: Variance of a state over that of one step's noise.
        step: Covariance of one step's noise at the states that were visited, `[states, states]`.
    """

    measured: float
    step: Tensor

    def foretold(self, matrix: Tensor) -> float:
        """The same variance by the discrete Lyapunov equation, for some cells.

        Raises:
            SurrogateError: They do not contract.
        """
        solved = stationary_covariance(matrix, self.step)
        return float(solved.diagonal().mean() / self.step.diagonal().mean())


def orthogonal_weights(states: int, radius: float, generator: torch.Generator) -> Tensor:
    """Random orthogonal weights times a radius: all eigenvalues have that modulus, no direction is favoured."""
    turned, _ = torch.linalg.qr(torch.randn((states, states), generator=generator))
    scaled: Tensor = radius * turned
    return scaled


def written(weight: Tensor, chip: StudyChip) -> Cells:
    """Writes weights once, as they are."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    # As wide as noise makes a state in the end, several times over, so that none is clipped.
    carried, _ = chip.carry(layer, torch.ones((1, weight.shape[1])))
    return Cells(carried, _measured(carried))


@torch.no_grad()
def corrected(cells: Cells, weight: Tensor) -> Cells:
    """Writes the cells again and again, each time less what they were off by; what was written before is gone."""
    layer, matrix = cells.layer, cells.matrix
    assert isinstance(layer, AnalogLinear)
    for _ in range(_CORRECTIONS):
        layer.weight.add_(weight - matrix)
        layer.core.clip(layer.weight)
        matrix = _measured(layer)
    return Cells(layer, matrix)


def _measured(layer: nn.Module) -> Tensor:
    """The cells, so well that an eigenvalue near one is known to a fraction of how far from one it is.

    Close to one the variance of a state changes by 2 / (1 - radius) for every unit of the radius. Larger inputs would
    do with fewer reads, but meet the curve of the amplifiers, which the small states of the recurrence do not.
    """
    return response(layer, amplitude=0.5, reads=1_024)


@torch.no_grad()
def state_noise(layer: nn.Module, states: int, steps: int) -> StateNoise:
    """Runs the recurrence from many equal states, and looks how far they come apart in the second half of the steps.

    Args:
        layer: On the chip; its cells contract.
        states: Number of states.
        steps: How many.
    """
    state = torch.zeros((_CHAINS, states))
    centre = layer(state.repeat(16, 1)).mean(dim=0)
    kept, step_noise = [], torch.zeros((states, states), dtype=torch.float64)
    for step in range(steps):
        # The offset of each column is known and taken off, or it would carry the states away.
        after: Tensor = layer(state) - centre
        if step >= steps // 2:
            kept.append(after.double())
            apart = (after - (layer(state) - centre)).double()
            step_noise += apart.T @ apart / 2.0
        state = after
    step_noise /= _CHAINS * len(kept)
    spread = torch.stack(kept)
    # Less the mean of the chains at each step, which a curved answer can move.
    variance = (spread - spread.mean(dim=1, keepdim=True)).square().mean() * _CHAINS / (_CHAINS - 1)
    return StateNoise(float(variance / step_noise.diagonal().mean()), step_noise)
