"""The squared residuals of a fit with the features of its noise law, and what they say of the noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.columns import ColumnState, Factor, moments
from labrig_calibration.likelihood import Outputs, pull
from labrig_calibration.measurements import Measurements
from labrig_calibration.noise_law import (
    DRIFT_SPREAD,
    TERMS,
    USUAL,
    NoiseLaw,
    NoiseTerms,
    fit_noise_law,
    loads,
    term_features,
)
from labrig_calibration.noise_law import variance as law_of

# What is held at once: so many columns, and so many outputs.
_COLUMN_CHUNK, _MOST_OUTPUTS = 32, 2**21
# MVMs that are enough for the law of the noise: a variance is then known to 0.3 %.
_ENOUGH_MVMS = 2**18
# An MVM is left out where its squared residuals over all columns lie as far above what they should be as six standard
# deviations of a normal variable; so many MVMs can be wrong before it is the model that is wrong.
_ROW_LIMIT = 6.0
_MOST_FLAGGED = 0.05


@dataclass(frozen=True)
class NoiseFit:
    """The noise of all columns.

    Attributes:
        terms: The law.
        error: Standard errors of the terms that were fitted, `[k, columns]`.
        covariance: Their covariance, `[columns, k, k]`.
        active: Which terms were fitted, in the order of `TERMS`.
    """

    terms: NoiseTerms
    error: Tensor
    covariance: Tensor
    active: tuple[int, ...]


@dataclass(frozen=True)
class _Squares:
    """Of all MVMs and some columns: corrected squares, weights, and what the features are made of."""

    squared: Tensor
    kept: Tensor
    currents: Tensor
    squares: Tensor
    slope: Tensor
    aging: Tensor

    def fit(self, terms: tuple[int, ...], floor_a2: Tensor) -> NoiseLaw:
        features = term_features(self.currents, self.squares, self.slope, self.aging, terms)
        return fit_noise_law(self.squared, features, floor_a2, self.kept)

    def gains(self, terms: tuple[int, ...], others: list[int], floor_a2: Tensor) -> Tensor:
        """Log likelihood that each other term would add, by its efficient score, over these columns: `[others]`."""
        law = self.fit(terms, floor_a2)
        features = term_features(self.currents, self.squares, self.slope, self.aging, (*terms, *others))
        k = len(terms)
        expected = law_of(law.value, features[:k], floor_a2).clamp(min=1e-300)
        features = features / expected
        excess = 0.5 * self.kept * (self.squared / expected - 1.0)
        score = torch.einsum("anc,nc->ca", features, excess)
        information = 0.5 * torch.einsum("anc,nc,bnc->cab", features, self.kept, features)
        scale = torch.sqrt(information.diagonal(dim1=1, dim2=2).clamp(min=1e-300))
        score, information = score / scale, information / scale[:, :, None] / scale[:, None, :]
        inner = information[:, :k, :k] + 1e-9 * torch.eye(k, dtype=scale.dtype)
        across = torch.linalg.solve(inner, information[:, :k, k:])
        own = 1.0 - (information[:, :k, k:] * across).sum(dim=1)
        effective = score[:, k:] - torch.einsum("ck,cko->co", score[:, :k], across)
        # What the usual terms can do as well has no score of its own.
        gained = torch.where(own > 1e-4, effective.clamp(min=0.0) ** 2 / (2.0 * own.clamp(min=1e-4)), 0.0)
        return gained.sum(dim=0)


def fit_noise(
    data: Measurements, state: ColumnState, factor: Factor, floor_a2: Tensor, active: tuple[int, ...]
) -> NoiseFit:
    """The law of every column with the given terms; of a large recording part of the MVMs tell it, spread over all."""
    some = data.thinned(_ENOUGH_MVMS // data.dataset.writes)
    parts = [(squares.fit(active, floor_a2[chunk]), chunk) for squares, chunk in _chunks(some, state, factor)]
    columns = state.shared.shape[1]
    value = torch.zeros((len(TERMS), columns), dtype=torch.float64)
    for law, chunk in parts:
        value[list(active), chunk] = law.value
    return NoiseFit(
        NoiseTerms(value, floor_a2),
        torch.cat([law.error for law, _ in parts], dim=1),
        torch.cat([law.covariance for law, _ in parts]),
        active,
    )


def choose_terms(
    data: Measurements, state: ColumnState, factor: Factor, floor_a2: Tensor, *, drifting: bool
) -> tuple[int, ...]:
    """Which terms the data ask for: the usual ones, and each other one whose score test over all columns says so.

    A term that is not there gains each column a quarter of a nat on average, with a spread of 0.56 (half the time it is
    zero, else half of a chi-square): four standard deviations more than that is asked for.
    """
    chosen: tuple[int, ...] = USUAL
    candidates = [term for term in range(len(TERMS)) if term not in USUAL and (drifting or term != DRIFT_SPREAD)]
    chunks = list(_chunks(data, state, factor))
    columns = state.shared.shape[1]
    price = 0.25 * columns + 4.0 * 0.56 * float(np.sqrt(columns))
    while candidates:
        gains = torch.stack([squares.gains(chosen, candidates, floor_a2[chunk]) for squares, chunk in chunks]).sum(
            dim=0
        )
        best = int(gains.argmax())
        if float(gains[best]) < price:
            break
        chosen = tuple(sorted((*chosen, candidates.pop(best))))
    return chosen


def wrong_rows(data: Measurements, state: ColumnState, flagged: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """MVMs that no column follows, bool `[N]` beside those in `flagged`, and the number of single wrong outputs.

    Where more than a twentieth of all MVMs look wrong it is the model that is: none is flagged then.
    """
    columns = state.shared.shape[1]
    excess = np.zeros(len(data.dataset))
    single = np.zeros(len(data.dataset), dtype=np.int64)
    for block in data.blocks():
        mean, _, _, variance = moments(block, state)
        pulled = pull(block.outputs, mean, variance)
        inside = torch.ones_like(mean) if block.outputs.rail is None else (block.outputs.rail == 0).double()
        squared = inside * (block.outputs.current_a - mean) ** 2 / variance
        count = inside.sum(dim=1).clamp(min=1.0)
        # One wild output is an outlier of its own; a wrong MVM shows in most columns.
        middle = squared.clamp(max=16.0).sum(dim=1)
        # Wilson and Hilferty (PNAS 17, 1931): the cube root of a chi-square is nearly normal.
        narrow = 2.0 / (9.0 * count)
        excess[block.rows] = (((middle / count) ** (1 / 3) - (1.0 - narrow)) / torch.sqrt(narrow)).numpy()
        single[block.rows] = (pulled.genuine < 0.5).sum(dim=1).numpy()
    wrong = (excess > _ROW_LIMIT) | (single > max(1, columns // 2))
    if wrong.sum() > _MOST_FLAGGED * max(int(data.counts().sum()), 1):
        wrong[:] = False
    wrong |= flagged
    return wrong, int(single[~wrong & data.keep].sum())


def _chunks(data: Measurements, state: ColumnState, factor: Factor) -> Iterator[tuple[_Squares, slice]]:
    columns = state.shared.shape[1]
    together = min(_COLUMN_CHUNK, max(1, _MOST_OUTPUTS // max(int(data.counts().sum()), 1)))
    for first in range(0, columns, together):
        chunk = slice(first, min(first + together, columns))
        yield _squares(data, state, factor, chunk), chunk


def _squares(data: Measurements, state: ColumnState, factor: Factor, chunk: slice) -> _Squares:
    offset = data.columns.start
    part = data.of_columns(slice(offset + chunk.start, offset + chunk.stop))
    own = ColumnState(
        state.shared[:, chunk],
        state.conductance_s[..., chunk],
        NoiseTerms(state.noise.value[:, chunk], state.noise.floor_a2[chunk]),
    )
    inverse = factor.inverse[:, chunk].double()
    # Leverage of an input: exact for the mean of the columns' blocks, scaled to each column's size.
    size = inverse.diagonal(dim1=2, dim2=3).mean(dim=2)
    mean_inverse = (inverse / size[:, :, None, None]).mean(dim=1)
    shared_part = state.shared.shape[0] / max(int(data.counts().sum()), 1)
    pieces: list[tuple[Tensor, ...]] = []
    for block in part.blocks():
        mean, _, slope, variance = moments(block, own)
        pulled = pull(block.outputs, mean, variance)
        decay = torch.exp(-block.log_age * own.shared[2])
        currents, squares = loads(block.voltage_v, own.conductance_s[block.write], decay)
        reach = ((block.voltage_v @ mean_inverse[block.write]) * block.voltage_v).sum(dim=1, keepdim=True)
        leverage = (reach * size[block.write] * (slope * decay) ** 2 / variance + shared_part).clamp(max=0.9)
        kept = pulled.genuine * block.outputs.keep * (1.0 - leverage)
        squared = (block.outputs.current_a - mean) ** 2 / (1.0 - leverage)
        if block.outputs.rail is not None:
            squared, kept = _with_clipped(block.outputs, mean, variance, squared, kept)
        pieces.append((squared, kept, currents, squares, slope, block.aging))
    return _Squares(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _with_clipped(
    outputs: Outputs, mean: Tensor, variance: Tensor, squared: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Clipped outputs count with the square that is expected of them; what is likely to be clipped counts less.

    The weight depends on the mean alone, so that it takes sides with neither.
    """
    sigma = torch.sqrt(variance).expand_as(mean)
    free = torch.special.ndtr((outputs.high_a - mean) / sigma) * torch.special.ndtr((mean - outputs.low_a) / sigma)
    pulled = pull(outputs, mean, variance)
    assert outputs.rail is not None
    edge = torch.where(outputs.rail > 0, outputs.high_a, outputs.low_a)
    # The score of a clipped output is mills / sigma: E[r^2] = var (1 + (edge - mean) mills / sigma).
    expected = variance + variance * pulled.score * torch.where(outputs.rail != 0, edge - mean, torch.zeros_like(mean))
    return torch.where(outputs.rail != 0, expected, squared), kept * free
