"""The last rung: a small network of what physics left over, shrunk to zero.

It sees a column's current before the curve, the age and the load, and is the same for all columns, so that it can only
learn what is common to them. Its output weights start at zero and are held there by a prior.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from labrig_calibration.columns import ColumnState, moments
from labrig_calibration.measurements import Measurements
from labrig_surrogates.parameters import ResidualNetwork

_UNITS = 6
# Outputs that the network is fitted to: enough for its few weights, so that large recordings cost no more.
_OUTPUTS = 40_000
# Prior spread of its output weights, as a part of the largest output; of those within, for the current (steps and dead
# zones are much narrower than its range), age and load, and of biases.
_OUT_SPREAD, _WITHIN_SPREAD, _BIAS_SPREAD = 0.003, (16.0, 1.0, 1.0), 1.0
# Where the weights on the current begin: units that see the whole range, and units that see a thirtieth of it.
_WIDTHS = np.geomspace(1.0, 30.0, _UNITS)


def fit_residual(data: Measurements, state: ColumnState, rng: np.random.Generator) -> ResidualNetwork:
    """Fits the network to the residuals of a state."""
    features, residual, sigma, scale = _sample(data, state, rng)
    sizes = (_UNITS * 3, _UNITS, _UNITS)
    within = rng.normal(0.0, 1.0, (_UNITS, 3))
    within[:, 0] = _WIDTHS
    start = np.concatenate([within.ravel(), rng.normal(0.0, 1.0, _UNITS), np.zeros(_UNITS)])
    spread = torch.tensor([*_WITHIN_SPREAD * _UNITS, *[_BIAS_SPREAD] * _UNITS, *[_OUT_SPREAD] * _UNITS])

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(x, requires_grad=True)
        hidden, bias, out = at[: sizes[0]], at[sizes[0] : -_UNITS], at[-_UNITS:]
        correction = torch.tanh(features @ hidden.reshape(_UNITS, 3).T + bias) @ out
        # Huber's loss: what the physics misses is small, what lies far off is something else.
        fit = torch.nn.functional.huber_loss(correction / sigma, residual / sigma, reduction="sum", delta=3.0)
        value = fit + 0.5 * ((at / spread) ** 2).sum()
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.numpy()

    found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    hidden, bias, out = np.split(found, np.cumsum(sizes)[:-1])
    return ResidualNetwork(hidden.reshape(_UNITS, 3), bias, out, np.asarray(scale.numpy()))


def correction_a(network: ResidualNetwork, u: Tensor, log_age: Tensor, load: Tensor) -> Tensor:
    """The network's correction in A, `[n, columns]`."""
    scale = torch.as_tensor(network.scale_a)
    features = torch.stack([u / scale, log_age.expand_as(u), load.expand_as(u)], dim=-1)
    hidden = torch.tanh(features @ torch.as_tensor(network.hidden).T + torch.as_tensor(network.bias))
    return scale * (hidden @ torch.as_tensor(network.out))


def _sample(data: Measurements, state: ColumnState, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features `[k, 3]`, residuals and spreads over the column's scale `[k]`, and the scales `[columns]`."""
    limit_v = data.dataset.converters.voltage_max_v
    columns = state.shared.shape[1]
    largest = torch.full((columns,), 1e-30, dtype=torch.float64)
    parts: list[tuple[Tensor, ...]] = []
    share = min(1.0, _OUTPUTS / max(int(data.counts().sum()) * columns, 1))
    for block in data.blocks():
        mean, u, _, variance = moments(block, state)
        largest = torch.maximum(largest, u.abs().amax(dim=0))
        chosen = torch.as_tensor(rng.random(u.shape) < share) & (block.outputs.keep > 0)
        if block.outputs.rail is not None:
            chosen &= block.outputs.rail == 0
        load = (block.voltage_v.abs().mean(dim=1, keepdim=True) / limit_v).expand_as(u)
        column = torch.arange(columns).expand_as(u)
        wanted = (u, block.log_age.expand_as(u), load, block.outputs.current_a - mean, variance.expand_as(u), column)
        parts.append(tuple(one[chosen] for one in wanted))
    u, log_age, load, residual, variance, column = (torch.cat(one) for one in zip(*parts, strict=True))
    scale = largest[column.long()]
    return torch.stack([u / scale, log_age, load], dim=1), residual / scale, torch.sqrt(variance) / scale, largest
