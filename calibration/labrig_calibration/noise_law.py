"""The noise law of every column from its residuals: a Gamma regression with identity link, non-negative.

The variance of an output is linear in known features,

    var = a + b F1 + c F2 + slope**2 (a' + b' F1 + c' F2) + lsb**2 / 12,

with F1 = sum |v w| and F2 = sum (v w)**2 of the drifted conductances. Terms without a dash act after the transfer
curve (amplifier, ADC), those with one before it (line, cells); where a curve is nearly straight the two are one. Where
the cells of a column drift apart there is d slope**2 F2 (L - mean L)**2 too, with L = log(1 + age / reference). A
squared Gaussian residual is Gamma distributed with twice its squared mean as variance, so the likelihood is a Gamma
one, and its Fisher information gives the errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

TERMS = (
    "amplifier_noise",
    "shot_noise",
    "conductance_noise",
    "line_noise",
    "output_shot_noise",
    "output_relative_noise",
    "drift_spread",
)
"""Names of the terms: a, b', c', a', b, c, d."""
UNITS = ("A^2", "A", "1", "A^2", "A", "1", "1")
DRIFT_SPREAD = 6
USUAL = (0, 1, 2)
"""The terms that are always fitted: amplifier after the curve, shot and conductance noise before it."""


@dataclass(frozen=True)
class NoiseTerms:
    """What gives the variance of an output.

    Attributes:
        value: Terms in the order of `TERMS`, `[7, columns]`.
        floor_a2: Known variance of the ADC in A^2, `[columns]`.
    """

    value: Tensor
    floor_a2: Tensor

    @classmethod
    def constant(cls, variance_a2: Tensor, floor_a2: Tensor) -> NoiseTerms:
        """One variance for each column, the ADC's included."""
        value = variance_a2.new_zeros((len(TERMS), variance_a2.shape[0]))
        value[0] = (variance_a2 - floor_a2).clamp(min=0.0)
        # An ADC much coarser than the noise leaves residuals below its nominal variance.
        return cls(value, torch.minimum(floor_a2, variance_a2))


@dataclass(frozen=True)
class NoiseLaw:
    """Fitted terms.

    Attributes:
        value: `[k, columns]` in A^2, A and 1.
        error: Standard errors, same shape.
        covariance: `[columns, k, k]`.
        log_likelihood: Of the squares of each column, without constants, `[columns]`.
    """

    value: Tensor
    error: Tensor
    covariance: Tensor
    log_likelihood: Tensor


def variance(law: Tensor, features: Tensor, floor_a2: Tensor) -> Tensor:
    """Variance in A^2 of every output, `[N, columns]`, from `law[k, columns]` and `features[k, N, columns]`."""
    total: Tensor = torch.einsum("kc,knc->nc", law, features) + floor_a2
    return total


def law_variance(
    noise: NoiseTerms, voltage_v: Tensor, cells_s: Tensor, decay: Tensor, slope: Tensor, aging: Tensor
) -> Tensor:
    """Variance in A^2 of a block's outputs, `[n, columns]` or, where it is constant, `[1, columns]`.

    Args:
        noise: The terms.
        voltage_v: Inputs in V, `[n, rows]`.
        cells_s: Gain times conductance in S, `[rows, columns]`.
        decay: What drift has left of the conductances, `[n, columns]`.
        slope: Slope of the curve, `[n, columns]`.
        aging: `(L - mean L)**2`, `[n, 1]`.
    """
    a, b_before, c_before, a_before, b, c, d = noise.value.unbind()
    if not bool((noise.value[1:] != 0).any()):
        return (a + noise.floor_a2)[None]
    currents, squares = loads(voltage_v, cells_s, decay)
    before = a_before + b_before * currents + (c_before + d * aging) * squares
    total: Tensor = a + noise.floor_a2 + slope**2 * before + b * currents + c * squares
    return total.clamp(min=1e-60)


def loads(voltage_v: Tensor, cells_s: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """`sum |v w|` in A and `sum (v w)**2` in A^2 of a block, each `[n, columns]`."""
    return decay * (voltage_v.abs() @ cells_s.abs()), decay**2 * (voltage_v**2 @ cells_s**2)


def term_features(currents: Tensor, squares: Tensor, slope: Tensor, aging: Tensor, terms: tuple[int, ...]) -> Tensor:
    """Features of some terms, `[k, n, columns]`."""
    slope2 = slope**2
    inner = slope2 * squares
    whole = (torch.ones_like(slope2), slope2 * currents, inner, slope2, currents, squares, inner * aging)
    return torch.stack([whole[term] for term in terms])


def fit_noise_law(
    squared_residual: Tensor, features: Tensor, floor_a2: Tensor, keep: Tensor, *, iterations: int = 12
) -> NoiseLaw:
    """Fits the law of each column by iteratively re-weighted non-negative least squares.

    Args:
        squared_residual: Residuals squared, corrected for the parameters spent, A^2, `[N, columns]`.
        features: `[k, N, columns]`.
        floor_a2: Known variance of the ADC, `[columns]`.
        keep: How much each output counts: zero for none, less than one for what parameters took, `[N, columns]`.
        iterations: Most re-weightings.
    """
    k, _, columns = features.shape
    # Columns first: then every sum over the MVMs is one product of ordinary matrices.
    squared = squared_residual.T.contiguous()
    kept = keep.to(squared.dtype).T.contiguous()
    features = features.permute(2, 0, 1).contiguous()
    # Scaling makes the features comparable, so that the small systems are well conditioned.
    count = kept.sum(dim=1).clamp(min=1.0)
    scale = ((features @ kept[:, :, None]).squeeze(2) / count[:, None]).clamp(min=1e-300)
    scaled = features / scale[:, :, None]
    target = squared - floor_a2[:, None]
    total = (squared * kept).sum(dim=1) / count
    least = (1e-3 * total + 1e-300)[:, None]
    law = torch.zeros((columns, k), dtype=features.dtype)
    law[:, 0] = (total - floor_a2).clamp(min=1e-3 * total)
    information, expected = torch.empty(0), torch.empty(0)
    for _ in range(iterations):
        expected = torch.maximum((law[:, None, :] @ scaled).squeeze(1) + floor_a2[:, None], least)
        # In units of the mean square: in A^4 the sums would leave the range of numbers.
        weighted = scaled * (kept * (total[:, None] / expected) ** 2)[:, None, :]
        information = weighted @ scaled.transpose(1, 2)
        right = (weighted @ target[:, :, None]).squeeze(2)
        unit = total.clamp(min=1e-300)[:, None]
        last, law = law, unit * _non_negative_solution(information, right / unit)
        if bool(((law - last).abs() <= 3e-4 * total[:, None]).all()):
            break
    # A column whose means ran away knows nothing; whether the fit came to rest is for others to say.
    known = torch.isfinite(information).all(dim=2, keepdim=True).all(dim=1, keepdim=True)
    inverse = torch.linalg.pinv(torch.where(known, information, torch.zeros_like(information)), hermitian=True)
    covariance = 2.0 * torch.where(known, inverse, torch.inf) * (total**2)[:, None, None]
    covariance = covariance / scale[:, :, None] / scale[:, None, :]
    error = torch.sqrt(covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)).T
    likelihood = -0.5 * (kept * (torch.log(expected) + squared / expected)).sum(dim=1)
    return NoiseLaw((law / scale).T, error, covariance, likelihood)


def _non_negative_solution(matrix: Tensor, right: Tensor) -> Tensor:
    """Minimises x^T M x / 2 - r^T x over x >= 0 for a batch of small problems, by trying every active set."""
    size = right.shape[1]
    best = torch.zeros_like(right)
    best_value = torch.zeros(right.shape[0], dtype=right.dtype)
    eye = torch.eye(size, dtype=right.dtype)
    # A ridge far below any information keeps terms that no input tells apart from breaking the solution.
    ridged = matrix + 1e-12 * matrix.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * eye + 1e-300 * eye
    for free in product((False, True), repeat=size):
        if not any(free):
            continue
        mask = torch.tensor(free, dtype=right.dtype)
        reduced = ridged * mask[:, None] * mask[None, :] + eye * (1.0 - mask)
        solution = torch.linalg.solve(reduced, right * mask)
        value = 0.5 * torch.einsum("ca,cab,cb->c", solution, matrix, solution) - (right * solution).sum(dim=1)
        better = (solution >= 0.0).all(dim=1) & (value < best_value)
        best = torch.where(better[:, None], solution, best)
        best_value = torch.where(better, value, best_value)
    return best
