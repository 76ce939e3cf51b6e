"""Simultaneous perturbation: a gradient from two passes through the chip and no model at all.

Spall, IEEE Transactions on Automatic Control 37, 332 (1992). With random signs d the estimate
`(L(w + c d) - L(w - c d)) / (2 c) * d` has a bias that falls as c squared, from the third derivatives of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench
from labrig.training.methods.base import Method, StepOutcome


@torch.no_grad()
def spsa_gradient(
    evaluate: Callable[[], float], parameters: Sequence[Tensor], signs: Sequence[Tensor], sizes: Sequence[float]
) -> tuple[list[Tensor], float]:
    """Estimates the gradient of a function of parameters, which are as they were afterwards, whatever happens.

    Args:
        evaluate: The function at the parameters' present values.
        parameters: What it depends on.
        signs: Plus or minus one for each value, of the shapes of the parameters.
        sizes: Size c of the perturbation of each parameter.

    Returns:
        The estimates, and the mean of both values.
    """
    before = [one.clone() for one in parameters]
    values = []
    try:
        for direction in (1.0, -1.0):
            for parameter, value, sign, size in zip(parameters, before, signs, sizes, strict=True):
                parameter.copy_(value + direction * size * sign)
            values.append(evaluate())
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    slope = 0.5 * (values[0] - values[1])
    # Signs are their own inverse.
    return [slope / size * sign for sign, size in zip(signs, sizes, strict=True)], 0.5 * (values[0] + values[1])


def spsa(relative_size: float) -> Method:
    """Two passes a step; neither surrogate nor gradient.

    Args:
        relative_size: Perturbation of each parameter, over the root mean square of its values.
    """

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        del probe  # there is no gradient to compare
        stepper = bench.stepper
        bench.backends.use("physical")
        parameters = list(stepper.parameters.values())
        signs = [
            torch.randint(2, one.shape, generator=bench.generator, dtype=torch.int64).to(one.dtype) * 2.0 - 1.0
            for one in parameters
        ]
        sizes = [relative_size * max(float(one.detach().square().mean().sqrt()), 1e-3) for one in parameters]

        def evaluate() -> float:
            value = float(stepper.loss(stepper.network(batch.x), batch))
            bench.ledger.passes += 1
            return value

        gradient, loss = spsa_gradient(evaluate, parameters, signs, sizes)
        stepper.zero_grad()
        for parameter, one in zip(parameters, gradient, strict=True):
            parameter.grad = one
        stepper.apply()
        return StepOutcome(loss)

    return Method("spsa", physical_step)
