"""Deep equilibrium: a layer whose output is the fixed point z = phi(W z + U x + b) of a recurrence on an array.

Bai, Kolter and Koltun, "Deep Equilibrium Models" (NeurIPS 2019). The array iterates in the forward pass; the backward
pass solves the linear equation of the implicit function theorem with the Jacobian of one evaluation at the point that
was reached, so that memory does not grow with the iterations and a measured point has the surrogate's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.faults import refuse


@dataclass(frozen=True)
class Iteration:
    """How the fixed point is sought.

    Attributes:
        steps: Evaluations of the recurrence; an array with noise never settles, so the number is fixed.
        averaged: The last evaluations whose mean is the answer; averaging takes read noise out.
        drive_reads: Evaluations of the injection that are averaged. Its noise stays the same during all steps, so
            that averaging states does nothing against it.
        backward_steps: Terms of the Neumann series of the backward pass. With a spectral bound L its error falls as
            `L**backward_steps`; 0 is the one-step gradient.

    Raises:
        SurrogateError: Less than one step or read, or more are averaged than there are.
    """

    steps: int = 20
    averaged: int = 1
    drive_reads: int = 1
    backward_steps: int = 20

    def __post_init__(self) -> None:
        faults = []
        if not 1 <= self.averaged <= self.steps:
            faults.append(f"averaged = {self.averaged} must lie between 1 and steps = {self.steps}")
        if self.drive_reads < 1:
            faults.append(f"drive_reads = {self.drive_reads} must be 1 or more")
        if self.backward_steps < 0:
            faults.append(f"backward_steps = {self.backward_steps} must not be negative")
        refuse("settling of an equilibrium model", faults)


class Equilibrium(nn.Module):
    """The fixed point of `activation(recurrence(z) + injection(x))`, found from z = 0.

    Args:
        recurrence: W: a square linear layer without bias, digital or analog.
        injection: U and b: maps the input to the state.
        activation: phi; the bounds of this module hold where its slope never exceeds one.
        iteration: How the fixed point is sought.
    """

    def __init__(
        self,
        recurrence: nn.Module,
        injection: nn.Module,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        iteration: Iteration | None = None,
    ) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.injection = injection
        self.activation = activation
        self.iteration = iteration or Iteration()

    def forward(self, x: Tensor) -> Tensor:
        """Fixed points `[batch, states]` of inputs `[batch, inputs]`."""
        drive: Tensor = self.injection(x)
        for _ in range(1, self.iteration.drive_reads):
            drive = drive + self.injection(x)
        drive = drive / self.iteration.drive_reads
        with torch.no_grad():
            found = self.settle(drive.detach())
        if not torch.is_grad_enabled():
            return found
        # One more evaluation carries the graph: its Jacobian is the one of the implicit function theorem.
        start = found.requires_grad_()
        reached = self._step(start, drive)
        # The answer is the average over the last states, which has less noise than the evaluation.
        answer = reached + (found - reached).detach()
        if answer.requires_grad and self.iteration.backward_steps:
            answer.register_hook(lambda gradient: self._solve(start, reached, gradient))  # type: ignore[no-untyped-call]
        return answer

    @torch.no_grad()
    def settle(self, drive: Tensor, start: Tensor | None = None) -> Tensor:
        """Iterates on `drive[batch, states]`; the mean of the last states, from `start` or from zero."""
        state = torch.zeros_like(drive) if start is None else start
        total = torch.zeros_like(drive)
        for step in range(self.iteration.steps):
            state = self._step(state, drive)
            if step >= self.iteration.steps - self.iteration.averaged:
                total += state
        return total / self.iteration.averaged

    def _step(self, state: Tensor, drive: Tensor) -> Tensor:
        return self.activation(self.recurrence(state) + drive)

    def _solve(self, start: Tensor, reached: Tensor, gradient: Tensor) -> Tensor:
        """Solves v = gradient + J^T v, the Neumann series summed term by term."""
        term, total = gradient, gradient
        for _ in range(self.iteration.backward_steps):
            (term,) = torch.autograd.grad(reached, start, term, retain_graph=True)
            total = total + term
        return total


@torch.no_grad()
def bound_spectral_norm(weight: Tensor, limit: float) -> float:
    """Brings the largest singular value of `weight` down to `limit`, in place, the others in proportion.

    Call it after each optimiser step; with a slope of the activation of at most one, the recurrence is then a
    contraction by `limit`, and has exactly one fixed point.

    Returns:
        The largest singular value before.

    Raises:
        SurrogateError: The limit is not between 0 and 1, where nothing would contract.
    """
    if not 0.0 < limit < 1.0:
        raise SurrogateError(f"a spectral bound of {limit:g} makes no contraction: it has to lie between 0 and 1")
    norm = float(torch.linalg.matrix_norm(weight.detach().double(), 2))
    if norm > limit:
        weight.mul_(limit / norm)
    return norm


def frozen_error_bound(error: Tensor, weight: Tensor, fixed_point: Tensor) -> Tensor:
    """How far a fixed point can move when the weights are programmed with an error.

    With z = phi(W z + u), z' = phi(W' z' + u) and a slope of at most one,
    |z' - z| <= |W' z' - W z| <= |W'| |z' - z| + |(W' - W) z|, hence |z' - z| <= |(W' - W) z| / (1 - |W'|).

    Args:
        error: W' - W of the programmed array, `[states, states]`.
        weight: W, same shape.
        fixed_point: z without the error, `[batch, states]`.

    Returns:
        Bound of the Euclidean distance for each example, `[batch]`; infinite where |W'| is one or more.
    """
    programmed = torch.linalg.matrix_norm((weight + error).double(), 2)
    moved = torch.linalg.vector_norm(fixed_point.double() @ error.double().T, dim=1)
    room = 1.0 - programmed
    return torch.where(room > 0, moved / room, torch.full_like(moved, torch.inf))


def stationary_spread_bound(sigma: float, states: int, limit: float) -> float:
    """Largest root mean square distance from the fixed point under fresh noise of each state.

    The distance obeys |e'|^2 <= limit^2 |e|^2 + states * sigma^2 on average, where `sigma` is the noise of one product
    in front of the activation; it settles at `sigma * sqrt(states / (1 - limit^2))`.
    """
    return float(sigma * (states / (1.0 - limit**2)) ** 0.5)
