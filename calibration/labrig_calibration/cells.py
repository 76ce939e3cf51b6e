"""What a new write will leave in every cell: gains, fixed pattern, stuck cells, wires, law of the programming error.

The conductances of the recorded writes, each with its error, are compared with their targets. In units of a column's
gain a healthy cell of write p shows, behind wires that pass the share f_p and beside its neighbours' crosstalk x,

    y_p = f_p (s t_p + e_p) + x (y_p,left + y_p,right),   s ~ N(1, mismatch^2),   e_p ~ N(0, sigma(t_p)^2):

`s` is the device (fixed pattern, the same at every write), `e_p` the programming (cycle to cycle). Both are integrated
out; what all cells share (law of `sigma`, mismatch, wires, crosstalk) is the maximum of the marginal likelihood, by
L-BFGS-B on torch gradients, with errors from the Hessian. A cell may also be stuck at a constant, or fit neither story.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from labrig_calibration.cell_likelihood import (
    BIT,
    CROSSTALK,
    LAW,
    LOG_2PI,
    MISMATCH,
    STUCK_SHARE,
    STUCK_STEADY,
    WILD_SPREAD,
    WORD,
    CellData,
    CellModel,
    View,
    following,
    mixture,
    neighbour_sum,
    pass_share,
    sigma_s,
    view_of,
)

FloatArray = NDArray[np.float64]

_ROUNDS = 12
# Programming errors over the highest conductance that a fit may begin with.
_PROGRAMMING_STARTS = (0.001, 0.003, 0.01, 0.03, 0.1)
# Cells of all writes that are enough to come near; only the last rounds look at all of them.
_ENOUGH_CELLS = 2**14
# Nats that a round may gain over the one before for the fit to be at rest.
_RESTING = 0.05
# After so many it is settled how much the resistances of both lines may differ.
_ROUNDS_OF_LIKENESS = 2
# Both kinds of lines are made of similar metal: their resistances differ by less than this part of their sum, more or
# less. Where the data tell them apart it changes nothing; where they do not, it keeps one from hiding the other.
_WIRE_LIKENESS = 0.3
# Relative errors of gains from which on nothing is known: targets of zero leave some 1e150, and nothing below.
_UNKNOWN = 1e6


@dataclass(frozen=True)
class CellFit:
    """Cells of one array.

    Attributes:
        model: What was fitted.
        law: Shared parameters in the order of `LAW`, zero where not fitted, `[7]`.
        law_covariance: Covariance of the fitted ones (`model.law`), `[m, m]`.
        gain: Mean slope of the healthy cells of each column, `[columns]`.
        gain_error: Its standard error; programming and wires have their part in it, `[columns]`; infinite where all
            targets are zero, which tell nothing of a gain.
        slope: Slope of each cell relative to its column's gain, zero where stuck, `[rows, columns]`.
        slope_error: Its standard error.
        intercept_s: Conductance at target zero in S (stuck cells: where they sit), `[rows, columns]`.
        stuck: Cells that do not follow, bool, `[rows, columns]`.
        log_likelihood: At the maximum, of all cells that the law was fitted to.
        looked_at: How many conductances these have over all writes.
        unseen: Relative standard error that wires and crosstalk add to the gains where they are taken to be absent
            because the data do not show them, `[columns]`; None where they were fitted, or nobody asked.
    """

    model: CellModel
    law: FloatArray
    law_covariance: FloatArray
    gain: FloatArray
    gain_error: FloatArray
    slope: FloatArray
    slope_error: FloatArray
    intercept_s: FloatArray
    stuck: NDArray[np.bool_]
    log_likelihood: float
    looked_at: int
    unseen: FloatArray | None = None


def fit_cells(data: CellData, model: CellModel, start: CellFit | None = None, *, part: bool = False) -> CellFit:
    """Fits all cells of an array; at least two writes with different targets, or no pattern can be told.

    Args:
        data: Conductances of the recorded writes.
        model: What is fitted.
        start: The fit of another model, of other writes or of part of the same array, from where it is not far.
        part: Whether some of the columns of a large array are enough for what all cells share. Models that are
            compared by likelihood have to be fitted to the same ones.
    """
    target, cells = data.target_s, data.cells_s
    if target.shape[0] < 2:
        model = replace(model, pattern=False)
    slope = (target * cells).sum(dim=0) / (target**2).sum(dim=0).clamp(min=1e-300)
    gain = slope.median(dim=0).values
    gain = torch.where(gain.abs() > 1e-3 * gain.abs().median(), gain, gain.abs().median().clamp(min=1e-12))
    law = torch.tensor([0.02, 0.02, 0.0, 0.1 * model.pattern, 0.0, 0.0, 0.0], dtype=torch.float64)
    if start is not None:
        gain = torch.as_tensor(start.gain)
        shared = [one for one in model.law if one in start.model.law]
        law[shared] = torch.as_tensor(start.law)[shared]
    value, last, unlike_ohm = 0.0, float("inf"), float("inf")
    view = view_of(data, gain, law, model)
    likeness = _ROUNDS_OF_LIKENESS * model.wires
    steps = _steps_of_columns(data)
    if part:
        steps = steps[:1]
    elif start is not None:
        steps = steps[-1:]
    law = _with_programming(view.of_columns(steps[0]), law, model)
    for every in steps:
        for _ in range(_ROUNDS):
            some = view.of_columns(every)
            law, value = _fit_law(some, law, model, unlike_ohm)
            if likeness > 0:
                unlike_ohm = _unlike_ohm(law, _law_covariance(some, law, model, unlike_ohm), model)
                likeness -= 1
            gain = gain * _own_gain(view, law, model, *_raw_slopes(view, law))
            view = view_of(data, gain, law, model)
            if abs(last - value) < _RESTING * every:
                break
            last = value
        last = float("inf")
    some = view.of_columns(steps[-1])
    covariance = _law_covariance(some, law, model, unlike_ohm)
    # The view's numbers are divided by the gains, which differ between models: the density of what was measured.
    value -= target.shape[0] * target.shape[1] * float(torch.log(gain[:: steps[-1]].abs()).sum())
    return _finished(view, law, covariance, gain, model, value, some.y.numel())


def _with_programming(view: View, law: Tensor, model: CellModel) -> Tensor:
    """The likeliest of a few programming errors to begin with.

    Far from it a first step may lead to where they are smaller than the least that counts, from where none leads back.
    """
    found = [law]
    for sigma in _PROGRAMMING_STARTS:
        other = law.clone()
        other[:3] = torch.tensor([sigma, sigma, 0.0])
        found.append(other)
    with torch.no_grad():
        return max(found, key=lambda one: float(mixture(view, one, model)[0].sum()))


def _steps_of_columns(data: CellData) -> tuple[int, ...]:
    """Every how many-th column is looked at, first and in the end; one number where an array is small."""
    every = data.target_s.numel() // _ENOUGH_CELLS
    return (every, 1) if every > 1 else (1,)


def predict_write(
    fit: CellFit, target_s: Tensor, error_s: Tensor, highest_s: float, left: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of what a new write will show, times gain: S and S^2, each `[rows, columns]`.

    Args:
        fit: The fitted cells.
        target_s: Its target in S.
        error_s: Standard error in S with which it will be measured.
        highest_s: Highest programmable conductance in S.
        left: What drift will have left of its conductances when it is read, on average.
    """
    law, gain = torch.as_tensor(fit.law), torch.as_tensor(fit.gain)
    cells = torch.as_tensor(fit.slope) * target_s + torch.as_tensor(fit.intercept_s)
    share = pass_share(cells[None], left[None], law, fit.model)[0]
    mean = share * cells
    if fit.model.crosstalk:
        mean = mean + law[CROSSTALK] * neighbour_sum(mean)
    spread = torch.where(torch.as_tensor(fit.stuck), STUCK_STEADY * highest_s, sigma_s(law, target_s, highest_s))
    variance = share**2 * (spread**2 + (torch.as_tensor(fit.slope_error) * target_s) ** 2)
    return gain * mean, gain**2 * variance + error_s**2


def last_write_nll(data: CellData, model: CellModel, start: CellFit | None = None) -> tuple[FloatArray, CellFit]:
    """How well the last write is predicted by all others: negative log likelihood in nats of each column.

    The spread has heavy tails (one in fifty cells may be stuck without having shown it).

    Args:
        data: Conductances of the recorded writes.
        model: What is fitted to all but the last.
        start: See `fit_cells`; it must not have seen the last write.

    Returns:
        The scores, `[columns]`, and the fit of the other writes.
    """
    fit = fit_cells(data.first_writes(data.target_s.shape[0] - 1), model, start, part=True)
    mean, variance = predict_write(fit, data.target_s[-1], data.error_s[-1], data.highest_s, data.left[-1])
    residual = data.cells_s[-1] - mean
    normal = -0.5 * (residual**2 / variance + torch.log(variance) + LOG_2PI)
    wide = (WILD_SPREAD * data.highest_s * torch.as_tensor(fit.gain)) ** 2
    wild = -0.5 * (residual**2 / wide + torch.log(wide) + LOG_2PI)
    mixed = torch.logaddexp(math.log(1.0 - 2.0 * STUCK_SHARE) + normal, math.log(2.0 * STUCK_SHARE) + wild)
    return np.asarray(-mixed.sum(dim=0).numpy()), fit


def _scales(view: View, model: CellModel) -> Tensor:
    """Natural sizes of the law's parameters: a hundredth, and for wires a percent of drop on average."""
    word, bit = view.word.mean().clamp(min=1e-30), view.bit.mean().clamp(min=1e-30)
    scales = torch.full((len(LAW),), 0.01, dtype=torch.float64)
    scales[WORD], scales[BIT] = 0.01 / word, 0.01 / bit
    return scales if model.wires else torch.full_like(scales, 0.01)


def _unlike_ohm(law: Tensor, covariance: FloatArray, model: CellModel) -> float:
    """How much the resistances of both lines may differ, in ohm.

    By their sum and its error: after the sum alone it would be too little wherever that came out small by chance.
    """
    place = [model.law.index(WORD), model.law.index(BIT)]
    error2 = float(covariance[np.ix_(place, place)].sum())
    return _WIRE_LIKENESS * math.hypot(float(law[WORD] + law[BIT]), math.sqrt(max(error2, 0.0)))


def _loss(
    view: View, model: CellModel, base: Tensor, scales: Tensor, weight: Tensor, x: Tensor, unlike_ohm: float
) -> Tensor:
    free = list(model.law)
    law = base.clone()
    law = law.index_copy(0, torch.tensor(free), x * scales[free])
    loss = -mixture(view, law, model, weight)[0].sum()
    if model.wires:
        loss = loss + 0.5 * ((law[WORD] - law[BIT]) / unlike_ohm) ** 2
    return loss


def _fit_law(view: View, law: Tensor, model: CellModel, unlike_ohm: float) -> tuple[Tensor, float]:
    scales, free = _scales(view, model), list(model.law)
    weight = mixture(view, law, model)[1][0]

    def value_and_gradient(x: FloatArray) -> tuple[float, FloatArray]:
        at = torch.tensor(x, requires_grad=True)
        value = _loss(view, model, law, scales, weight, at, unlike_ohm)
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.numpy()

    bounds = [(None, None) if one in {0, 1, 2, CROSSTALK} else (0.0, None) for one in free]
    if MISMATCH in free:
        bounds[free.index(MISMATCH)] = (0.01, None)
    start: FloatArray = (law[free] / scales[free]).numpy()
    first = value_and_gradient(start)

    def known_at_first(x: FloatArray) -> tuple[float, FloatArray]:
        return first if np.array_equal(x, start) else value_and_gradient(x)

    # What is gained in the end of a round is less than what the next round's view changes.
    part = 0.1 * _RESTING / max(abs(first[0]), 1.0)
    found = minimize(
        known_at_first,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 40, "ftol": part},
    )
    fitted = law.clone()
    fitted[free] = torch.as_tensor(found.x) * scales[free]
    return fitted, -float(found.fun)


def _law_covariance(view: View, law: Tensor, model: CellModel, unlike_ohm: float) -> FloatArray:
    scales, free = _scales(view, model), list(model.law)
    at = (law[free] / scales[free]).requires_grad_()
    loss = _loss(view, model, law, scales, mixture(view, law, model)[1][0], at, unlike_ohm)
    (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
    rows = [torch.autograd.grad(one, at, retain_graph=True)[0] for one in gradient]
    hessian = torch.stack(rows)
    covariance = torch.linalg.pinv(0.5 * (hessian + hessian.T), hermitian=True)
    unit = scales[free]
    return np.asarray((covariance * unit[:, None] * unit[None, :]).detach().numpy())


def _raw_slopes(view: View, law: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of each cell from its own writes alone, and its information; `[rows, columns]` each."""
    _, residual, reach, variance, _ = following(view, law)
    information = (reach**2 / variance).sum(dim=0).clamp(min=1e-300)
    return 1.0 + (reach * residual / variance).sum(dim=0) / information, information


def _own_gain(view: View, law: Tensor, model: CellModel, raw: Tensor, information: Tensor) -> Tensor:
    """What each column's gain has to be multiplied with so that its healthy cells have a mean slope of one.

    `raw` and `information` are those of `_raw_slopes` at the law.
    """
    healthy = mixture(view, law, model)[1][0]
    if not model.pattern:
        # Without a pattern all cells have one slope: its best estimate weights them.
        healthy = information
    weight = healthy.sum(dim=0)
    mean = (healthy * raw).sum(dim=0) / weight.clamp(min=1e-300)
    return torch.where((weight > 0) & (mean > 0.05), mean, torch.ones_like(mean))


def _finished(
    view: View, law: Tensor, covariance: FloatArray, gain: Tensor, model: CellModel, value: float, looked_at: int
) -> CellFit:
    raw, information = _raw_slopes(view, law)
    probability = mixture(view, law, model)[1]
    stuck = probability[1] > 0.5
    wild = (probability[2] > 0.5) & ~stuck
    healthy = (~stuck & ~wild).double()
    count = healthy.sum(dim=0).clamp(min=1.0)
    # Wires and crosstalk move the gains too, and by their gradient over the array the slopes.
    nudged = [_nudged(law, one, covariance[place, place]) for place, one in enumerate(model.law)]
    moved = [_raw_slopes(view, one) for one in nudged]
    here = _own_gain(view, law, model, raw, information)
    there = torch.stack([_own_gain(view, one, model, *of) for one, of in zip(nudged, moved, strict=True)])
    unit = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = torch.as_tensor(covariance / unit[:, None] / unit[None, :])
    shared = _variance(there - here, correlation)
    if model.pattern:
        own = (healthy / information).sum(dim=0) / count**2
        prior = 1.0 / max(float(law[MISMATCH]) ** 2, 1e-12)
        slope, slope_error = (raw * information + prior) / (information + prior), (information + prior) ** -0.5
        slope_error = torch.where(wild, torch.full_like(slope_error, WILD_SPREAD), slope_error)
        slopes = torch.stack([one / of for (one, _), of in zip(moved, there, strict=True)])
        trusted = information / (information + prior)
        slope_error = torch.sqrt(slope_error**2 + _variance(trusted * (slopes - raw / here), correlation))
        # Slopes scatter around the mean of their own column, which took one of each column's degrees of freedom.
        rows = float(count.mean())
        law = law.clone()
        law[MISMATCH] *= math.sqrt(rows / max(rows - 1.0, 1.0))
        # The Hessian takes slopes for normal; tails make their spread less certain.
        tails = math.sqrt(
            1.0 + 0.5 * _excess_kurtosis((raw - 1.0) / torch.sqrt(law[MISMATCH] ** 2 + 1.0 / information), healthy)
        )
        covariance = covariance.copy()
        place = model.law.index(MISMATCH)
        covariance[place] *= tails
        covariance[:, place] *= tails
    else:
        own = 1.0 / (healthy * information).sum(dim=0).clamp(min=1e-300)
        slope, slope_error = torch.ones_like(raw), torch.zeros_like(raw)
    share = following(view, law)[4]
    level = ((view.y - law[CROSSTALK] * view.neighbours) / share).mean(dim=0)
    relative = torch.sqrt(own + shared)
    relative = torch.where(relative < _UNKNOWN, relative, torch.inf)
    return CellFit(
        model=model,
        law=np.asarray(law.numpy()),
        law_covariance=covariance,
        gain=np.asarray(gain.numpy()),
        gain_error=np.asarray((gain.abs() * relative).numpy()),
        slope=np.asarray(torch.where(stuck, torch.zeros_like(slope), slope).numpy()),
        slope_error=np.asarray(torch.where(stuck, torch.zeros_like(slope), slope_error).numpy()),
        intercept_s=np.asarray(torch.where(stuck, level, torch.zeros_like(level)).numpy()),
        stuck=np.asarray(stuck.numpy()),
        log_likelihood=value,
        looked_at=looked_at,
    )


def _variance(moved: Tensor, correlation: Tensor) -> Tensor:
    """What parameters with a `correlation[p, p]` make of what each moves by its standard error, `[p, ...]`."""
    return torch.einsum("a...,ab,b...->...", moved, correlation, moved).clamp(min=0.0)


def _excess_kurtosis(values: Tensor, weight: Tensor) -> float:
    """Of the values with weight, not below zero."""
    total = weight.sum().clamp(min=1.0)
    centred = values - (weight * values).sum() / total
    square = (weight * centred**2).sum() / total
    return max(float((weight * centred**4).sum() / total / square.clamp(min=1e-300) ** 2) - 3.0, 0.0)


def _nudged(law: Tensor, index: int, variance: float) -> Tensor:
    moved = law.clone()
    moved[index] += math.sqrt(max(variance, 0.0))
    return moved
