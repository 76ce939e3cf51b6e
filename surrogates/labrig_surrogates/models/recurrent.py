"""A recurrent network whose state lives on an array: h <- (1 - leak) h + leak * phi(W h + U x + b), and its readout.

With W and U fixed at random and only the readout fitted it is an echo state network (Jaeger, GMD report 148, 2001);
with all of them trained through time it is an ordinary recurrent network that happens to be physical.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError


class PhysicalRecurrence(nn.Module):
    """Runs a sequence through the recurrence, and reads every state out.

    Args:
        recurrence: W: a square linear layer without bias, digital or analog.
        injection: U and b: maps an input to the state.
        readout: Maps a state to the output; digital, as it is on most rigs.
        leak: Share of the state that is renewed in each step, above 0 and at most 1.
        activation: phi.

    Raises:
        SurrogateError: The leak lies outside its range.
    """

    def __init__(
        self,
        recurrence: nn.Module,
        injection: nn.Module,
        readout: nn.Linear,
        *,
        leak: float = 1.0,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        if not 0.0 < leak <= 1.0:
            raise SurrogateError(f"a leak of {leak:g} renews nothing or too much: it has to be above 0 and at most 1")
        self.recurrence = recurrence
        self.injection = injection
        self.readout = readout
        self.leak = leak
        self.activation = activation

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> Tensor:
        """Outputs `[batch, time, outputs]` of inputs `[batch, time, inputs]`."""
        outputs: Tensor = self.readout(self.states(inputs, state))
        return outputs

    def states(self, inputs: Tensor, state: Tensor | None = None) -> Tensor:
        """States `[batch, time, states]` after each input, from `state[batch, states]` or from zero."""
        drive = self.injection(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        h = torch.zeros_like(drive[:, 0]) if state is None else state
        found = []
        for step in range(inputs.shape[1]):
            h = (1.0 - self.leak) * h + self.leak * self.activation(self.recurrence(h) + drive[:, step])
            found.append(h)
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def fit_readout(self, states: Tensor, targets: Tensor, ridge: float) -> None:
        """Sets the readout to the ridge regression of targets on states.

        Args:
            states: `[..., states]`, as measured.
            targets: `[..., outputs]`.
            ridge: Penalty on the squared weights, relative to the mean square of the states; the bias is free.
        """
        x = states.reshape(-1, states.shape[-1]).double()
        y = targets.reshape(-1, targets.shape[-1]).double()
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        centred = x - x_mean
        gram = centred.T @ centred
        penalty = ridge * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype)
        weight = torch.linalg.solve(gram + penalty, centred.T @ (y - y_mean)).T
        self.readout.weight.copy_(weight)
        self.readout.bias.copy_(y_mean - weight @ x_mean)


@torch.no_grad()
def scale_spectral_radius(weight: Tensor, radius: float) -> float:
    """Scales a square matrix in place so that its largest eigenvalue has the modulus `radius`.

    Returns:
        The modulus before.

    Raises:
        SurrogateError: All eigenvalues are zero.
    """
    before = float(torch.linalg.eigvals(weight.double()).abs().max())
    if before == 0.0:
        raise SurrogateError("a matrix without eigenvalues other than zero cannot be scaled to a spectral radius")
    weight.mul_(radius / before)
    return before


def noise_growth(radius: float, steps: int | None = None) -> float:
    """Variance of a state over the variance of the noise of one step, for a linear mode that decays by `radius`.

    Each step adds noise and shrinks what came before, so that the sum is geometric:
    1 + radius^2 + radius^4 + ... = (1 - radius^(2 steps)) / (1 - radius^2).

    Args:
        radius: Modulus of the mode's eigenvalue, below 1.
        steps: Steps since the state was exact; None for ever.
    """
    grown = 1.0 if steps is None else 1.0 - radius ** (2 * steps)
    return grown / (1.0 - radius**2)
