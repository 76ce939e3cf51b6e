"""Maximum likelihood of many small problems at once: Newton steps on torch's own second derivatives.

A problem has up to about twenty parameters of order one, and terms whose sum is the negative logarithm of its
likelihood. Problems are stacked; their data are padded, and padded terms are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jacrev, vmap

Terms = Callable[..., Tensor]
"""From the parameters `[p]` of one problem and its data to the terms of its negative log-likelihood, `[n]`."""

# Half the squared length of a Newton step in standard errors, below which a problem is solved.
_SOLVED = 1e-7
# Curvatures below this part of the largest say nothing.
_FLAT = 1e-11


@dataclass(frozen=True)
class Found:
    """Solutions of `B` problems with `p` parameters.

    Attributes:
        parameters: `[B, p]`.
        covariance: Inverse of the second derivatives, `[B, p, p]`; a parameter that the data do not tell has an
            infinite variance.
        loss: Negative log-likelihood, `[B]`.
        solved: Whether Newton's method came to rest, `[B]`.
    """

    parameters: Tensor
    covariance: Tensor
    loss: Tensor
    solved: Tensor

    @property
    def error(self) -> Tensor:
        """Standard errors, `[B, p]`."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()


def maximise(terms: Terms, start: Tensor, data: tuple[Tensor, ...], *, steps: int = 100) -> Found:
    """Finds the most likely parameters of each problem.

    Newton steps along the eigenvectors of the second derivatives, with their magnitudes in place of negative
    curvatures, damped until the loss falls.

    Args:
        terms: Terms of one problem.
        start: Where to begin, `[B, p]`.
        data: Data of all problems, each with first axis `B`.
        steps: Most steps.
    """

    def loss(parameters: Tensor, *one: Tensor) -> Tensor:
        return terms(parameters, *one).sum()

    values = vmap(loss)
    slopes = vmap(grad_and_value(loss))
    curvatures = vmap(jacrev(grad(loss)))
    at, damping = start.clone(), torch.zeros(len(start), dtype=start.dtype)
    solved = torch.zeros(len(start), dtype=torch.bool)
    working = torch.arange(len(start))
    for _ in range(steps):
        mine = tuple(one[working] for one in data)
        here = at[working]
        slope, value = slopes(here, *mine)
        curvature = _symmetric(curvatures(here, *mine))
        sound = torch.isfinite(slope).all(dim=1) & torch.isfinite(curvature).all(dim=2).all(dim=1)
        size, vectors = torch.linalg.eigh(torch.where(sound[:, None, None], curvature, torch.zeros_like(curvature)))
        magnitude = size.abs().clamp(min=1e-300)
        largest = magnitude.amax(dim=1, keepdim=True)
        along = (vectors * torch.where(sound[:, None], slope, torch.zeros_like(slope))[:, :, None]).sum(dim=1)
        floor = magnitude.maximum(_FLAT * largest)
        gain = 0.5 * (along**2 / floor).sum(dim=1)
        damped, open_ = damping[working], sound & (gain >= _SOLVED)
        moved = here.clone()
        for _ in range(30):
            if not bool(open_.any()):
                break
            step = -(vectors * (along / (floor + damped[:, None] * largest))[:, None, :]).sum(dim=2)
            tried = torch.where(open_[:, None], here + step, moved)
            new = values(tried, *mine)
            nearer = open_ & torch.isfinite(new) & (new <= value)
            moved = torch.where(nearer[:, None], tried, moved)
            damped = torch.where(nearer, 0.1 * damped, damped)
            damped = torch.where(open_ & ~nearer, torch.clamp(8.0 * damped, min=1e-6), damped)
            open_ = open_ & ~nearer
        at[working], damping[working] = moved, damped
        # Where no step helps any more, rounding ends the search; what is not finite is given up.
        done = (gain < _SOLVED) | (open_ & (gain < 1e-3))
        solved[working] = sound & done
        working = working[sound & ~done & ~open_]
        if not len(working):
            break
    return Found(at, inverse(curvatures(at, *data)), values(at, *data), solved)


def better(one: Found, other: Found) -> Found:
    """Of each problem the solution with the smaller loss."""
    smaller = other.loss < one.loss
    return Found(
        torch.where(smaller[:, None], other.parameters, one.parameters),
        torch.where(smaller[:, None, None], other.covariance, one.covariance),
        torch.where(smaller, other.loss, one.loss),
        torch.where(smaller, other.solved, one.solved),
    )


def inverse(curvature: Tensor) -> Tensor:
    """Covariances from second derivatives, `[B, p, p]`; infinite for parameters in flat directions."""
    sound = torch.isfinite(curvature).all(dim=2).all(dim=1)
    known = torch.where(sound[:, None, None], _symmetric(curvature), torch.zeros_like(curvature))
    size, vectors = torch.linalg.eigh(known)
    flat = size <= _FLAT * size.abs().amax(dim=1, keepdim=True)
    inverted = torch.where(flat, torch.zeros_like(size), 1.0 / torch.where(flat, torch.ones_like(size), size))
    covariance = (vectors * inverted[:, None, :]) @ vectors.transpose(1, 2)
    unknown = (vectors.square() * flat[:, None, :]).sum(dim=2) > 1e-6
    diagonal = torch.where(unknown, torch.inf, covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0))
    return torch.diagonal_scatter(covariance, diagonal, dim1=1, dim2=2)


def clustered_covariance(
    terms: Terms, found: Found, data: tuple[Tensor, ...], cluster: Tensor, clusters: int
) -> Tensor:
    """Covariance that holds although terms of one cluster depend on each other: the sandwich of Huber and White.

    Args:
        terms: Terms of one problem.
        found: The solution.
        data: Data of all problems.
        cluster: Number of each term's cluster, the same in all problems, `[n]`.
        clusters: How many there are.
    """
    scores = _scores(terms, found, data)
    summed = torch.zeros((len(scores), clusters, scores.shape[2]), dtype=scores.dtype)
    summed.index_add_(1, cluster, scores)
    return _sandwich(found, summed.transpose(1, 2) @ summed * (clusters / max(clusters - 1, 1)))


def serial_covariance(terms: Terms, found: Found, data: tuple[Tensor, ...], lags: Tensor) -> Tensor:
    """Covariance that holds although terms that follow each other depend on each other (Newey and West 1987).

    Args:
        terms: Terms of one problem, in the order of measurement.
        found: The solution.
        data: Data of all problems.
        lags: How far the dependence reaches in each problem, whole numbers, `[B]`.
    """
    scores = _scores(terms, found, data)
    meat = scores.transpose(1, 2) @ scores
    for lag in range(1, int(lags.max()) + 1):
        cross = scores[:, lag:].transpose(1, 2) @ scores[:, :-lag]
        share = (1.0 - lag / (lags + 1.0)).clamp(min=0.0)[:, None, None]
        meat = meat + share * (cross + cross.transpose(1, 2))
    return _sandwich(found, meat)


def _scores(terms: Terms, found: Found, data: tuple[Tensor, ...]) -> Tensor:
    """Slope of each term in each parameter, `[B, n, p]`."""
    count = vmap(terms)(found.parameters, *data).shape[1]

    def one(parameters: Tensor, *mine: Tensor) -> Tensor:
        def slope(weight: Tensor) -> Tensor:
            slopes: Tensor = grad(lambda at: (terms(at, *mine) * weight).sum())(parameters)
            return slopes

        # The slope is linear in the weights of the terms: as many passes as there are parameters, not as terms.
        rows: Tensor = jacrev(slope)(torch.zeros(count, dtype=parameters.dtype))
        return rows.T

    return vmap(one)(found.parameters, *data)


def _sandwich(found: Found, meat: Tensor) -> Tensor:
    bread = torch.where(torch.isfinite(found.covariance), found.covariance, torch.zeros_like(found.covariance))
    covariance = bread @ meat @ bread
    diagonal = covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)
    known = torch.isfinite(found.covariance.diagonal(dim1=1, dim2=2))
    return torch.diagonal_scatter(covariance, torch.where(known, diagonal, torch.inf), dim1=1, dim2=2)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.transpose(1, 2))


def propagate(found: Found, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Values and covariances of functions of the parameters, to first order.

    Args:
        found: The solutions.
        function: From the parameters `[p]` of one problem to `[q]` numbers.

    Returns:
        Values `[B, q]` and covariances `[B, q, q]`; a variance is infinite where it rests on a parameter without one.
    """
    values, slopes = vmap(function)(found.parameters), vmap(jacrev(function))(found.parameters)
    diagonal = found.covariance.diagonal(dim1=1, dim2=2)
    unknown = ~torch.isfinite(diagonal)
    finite = torch.diagonal_scatter(
        found.covariance, torch.where(unknown, torch.zeros_like(diagonal), diagonal), dim1=1, dim2=2
    )
    covariance = slopes @ finite @ slopes.transpose(1, 2)
    rests = (slopes.abs() * unknown[:, None, :]).sum(dim=2) > 1e-9
    variance = torch.where(rests, torch.inf, covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0))
    return values, torch.diagonal_scatter(covariance, variance, dim1=1, dim2=2)
