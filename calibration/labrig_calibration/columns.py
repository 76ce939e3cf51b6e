"""Batched Gauss-Newton: offset, curve, drift and every write's conductances of all columns at once.

Model of one column (equations in `labrig_surrogates.parameters.ArrayParameters`), with w = gain * g in S:

    u = (1 + age / reference) ** -drift * (v @ w[write]),   y = offset + curve(u; compression, skew)

At most four parameters belong to the column, `rows` conductances to each write. The normal equations have the shape
of an arrow: one block for each write and a narrow border. The border is solved by the Schur complement, which also
gives the standard errors. Gradients are always exact; the blocks, which cost most, are kept over several steps. Without
a skew a curve depends on the square of its compression alone, and steps are taken in that square: a column that hardly
bends has no gradient in the compression itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labrig_calibration.likelihood import pull
from labrig_calibration.measurements import Block, Measurements
from labrig_calibration.noise_law import NoiseTerms, law_variance
from labrig_surrogates.transfer import compress, compress_slope

SHARED = ("offset", "compression", "drift", "skew")
# Weak priors for what a recording may not show at all: exponents of real devices lie within 0.1 of zero (phase-change
# memory: 0.05 to 0.1), skews within one. Where the data say more they change nothing.
_PRIOR = {"drift": 0.1, "skew": 1.0}
# Columns handled together: bounds the memory of the per-column Gram matrices.
_COLUMN_CHUNK = 16
# Above this many multiplications the Gram matrices are summed in single precision: they only steer and give errors.
_SINGLE_ABOVE = 2e9
# Decrease of the negative log likelihood of a column below which nothing is left to gain.
_TOLERANCE = 0.01
# A column that gained more than this has moved so far that the blocks are summed anew.
_RENEWED = 2.0
# Steps below this part of a standard error change nothing.
_SMALL_STEP = 0.03
# Nats for each conductance that a step may cost: the law of the noise, whose score is left out, moves the best place.
_MORE_LOSS = 0.01
# A step that costs more is tried again at this part of its length.
_SHORTER = 0.3


@dataclass(frozen=True)
class ColumnState:
    """Parameters of some columns.

    Attributes:
        shared: Offset in A, compression in 1/A, drift exponent, skew: `[4, columns]`.
        conductance_s: Gain times conductance of each write, `[writes, rows, columns]`.
        noise: What gives the variance of an output.
    """

    shared: Tensor
    conductance_s: Tensor
    noise: NoiseTerms


@dataclass(frozen=True)
class Normal:
    """Sums over the data at one state.

    Attributes:
        loss: Negative log likelihood of each column, `[columns]`.
        score_shared: Its negative gradient by the free shared parameters, `[columns, p]`.
        score_cells: By the conductances, `[writes, rows, columns]`.
        border: Information of the shared ones, `[columns, p, p]`.
        cross: Information between both, `[writes, columns, rows, p]`.
        gram: Information of the conductances, `[writes, columns, rows, rows]`.
    """

    loss: Tensor
    score_shared: Tensor
    score_cells: Tensor
    border: Tensor
    cross: Tensor
    gram: Tensor


@dataclass(frozen=True)
class Factor:
    """The solved normal equations.

    Attributes:
        inverse: Inverse blocks, `[writes, columns, rows, rows]`.
        coupling: Change of the conductances with the shared parameters, negative, `[writes, columns, rows, p]`.
        covariance: Of the free shared parameters, `[columns, p, p]`.
    """

    inverse: Tensor
    coupling: Tensor
    covariance: Tensor

    def scaled(self, factor: float) -> Factor:
        """For `1 / factor` times as many data."""
        return Factor(self.inverse * factor, self.coupling, self.covariance * factor)

    def at_noise(self, ratio: Tensor) -> Factor:
        """For variances that are `ratio[columns]` times as large."""
        return Factor(
            self.inverse * ratio[None, :, None, None].to(self.inverse.dtype),
            self.coupling,
            self.covariance * ratio[:, None, None],
        )

    def cell_error_s(self) -> Tensor:
        """Standard errors of the conductances, `[writes, rows, columns]`."""
        extra = torch.einsum("pcia,cab,pcib->pci", self.coupling, self.covariance, self.coupling)
        own = self.inverse.diagonal(dim1=2, dim2=3)
        return torch.sqrt((own + extra).clamp(min=0.0)).transpose(1, 2)

    def shared_error(self) -> Tensor:
        """Standard errors of the free shared parameters, `[p, columns]`."""
        return torch.sqrt(self.covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)).T

    def step(self, normal: Normal, state: ColumnState, free: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The Gauss-Newton step `(d shared [p, columns], d conductance [writes, rows, columns])`.

        It ends where the square of a compression would fall below zero: a straight line.
        """
        score = normal.score_cells.transpose(1, 2).unsqueeze(-1).to(self.inverse.dtype)
        inner = (self.inverse @ score).squeeze(-1).double()
        pushed = torch.einsum("pcia,pic->ca", self.coupling, normal.score_cells)
        shared = torch.einsum("cab,cb->ca", self.covariance, normal.score_shared - pushed)
        if 1 in free and 3 not in free:
            place = free.index(1)
            shared[:, place] = torch.maximum(shared[:, place], -(state.shared[1] ** 2))
        cells = inner - torch.einsum("pcia,ca->pci", self.coupling, shared)
        return shared.T, cells.transpose(1, 2)


def moments(block: Block, state: ColumnState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, current before the curve, slope of the curve and variance of a block's outputs, each `[n, columns]`."""
    cells = state.conductance_s[block.write]
    decay = torch.exp(-block.log_age * state.shared[2])
    u = decay * (block.voltage_v @ cells)
    skew = state.shared[3] if bool((state.shared[3] != 0).any()) else None
    slope = compress_slope(u, state.shared[1], skew)
    mean = state.shared[0] + compress(u, state.shared[1], skew)
    return mean, u, slope, law_variance(state.noise, block.voltage_v, cells, decay, slope, block.aging)


def accumulate(data: Measurements, state: ColumnState, free: tuple[int, ...], *, blocks: bool) -> Normal:
    """Sums scores, and with `blocks` the information too, over all data at a state."""
    writes, rows, columns = state.conductance_s.shape
    p = len(free)
    new = state.shared.new_zeros
    exact = data.counts().sum() * rows * rows * columns < _SINGLE_ABOVE
    gram = torch.zeros((writes, columns, rows, rows), dtype=torch.float64 if exact else torch.float32)
    normal = Normal(
        new(columns),
        new(columns, p),
        new(writes, rows, columns),
        new(columns, p, p),
        new(writes, columns, rows, p),
        gram if blocks else new(0),
    )
    for block in data.blocks():
        mean, u, slope, variance = moments(block, state)
        pulled = pull(block.outputs, mean, variance)
        gain = slope * torch.exp(-block.log_age * state.shared[2])
        border = _border(block, state, u, slope, free)
        normal.loss.add_(pulled.loss.sum(dim=0))
        for index, direction in enumerate(border):
            normal.score_shared[:, index] += (direction * pulled.score).sum(dim=0)
        normal.score_cells[block.write] += block.voltage_v.T @ (gain * pulled.score)
        if blocks:
            _add_information(normal, block, border, gain, pulled.weight)
    return normal


def factorise(normal: Normal, state: ColumnState, free: tuple[int, ...]) -> Factor:
    """Solves the normal equations, weak priors included."""
    schur = normal.border.clone()
    for index, name in enumerate(SHARED[one] for one in free):
        if name in _PRIOR:
            schur[:, index, index] += 1.0 / _PRIOR[name] ** 2
    inverse, coupling = torch.empty_like(normal.gram), torch.empty_like(normal.cross)
    for write in range(state.conductance_s.shape[0]):
        for first in range(0, schur.shape[0], _COLUMN_CHUNK):
            chunk = slice(first, first + _COLUMN_CHUNK)
            gram = normal.gram[write, chunk].double()
            # Keeps a row that was never driven, or a dead column, from breaking the others.
            floor = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True) + 1e-300
            inverted = _inverse(gram + torch.diag_embed(floor.expand(-1, gram.shape[1])))
            inverse[write, chunk] = inverted.to(inverse.dtype)
            coupling[write, chunk] = inverted @ normal.cross[write, chunk]
        schur -= normal.cross[write].transpose(1, 2) @ coupling[write]
    return Factor(inverse, coupling, _inverse_information(schur))


def _inverse(gram: Tensor) -> Tensor:
    """Inverse of symmetric matrices, by Cholesky where they are positive definite, which rounding may prevent."""
    root, failed = torch.linalg.cholesky_ex(gram)
    inverted: Tensor = torch.linalg.inv(gram) if bool((failed > 0).any()) else torch.cholesky_inverse(root)
    return inverted


def climb(
    data: Measurements, state: ColumnState, free: tuple[int, ...], *, iterations: int = 25
) -> tuple[ColumnState, Factor, bool]:
    """Gauss-Newton with the blocks renewed while steps are long, at a fixed noise; a column accepts what helps it.

    Returns:
        The state, the factor there, and whether every column came to rest.
    """
    normal = _with_priors(accumulate(data, state, free, blocks=True), state, free)
    factor = factorise(normal, state, free)
    length = torch.ones_like(normal.loss)
    resting = torch.zeros_like(normal.loss, dtype=torch.bool)
    for _ in range(iterations):
        shared, cells = factor.step(normal, state, free)
        trial = _moved(state, free, shared * length, cells * length)
        there = _with_priors(accumulate(data, trial, free, blocks=False), trial, free)
        gained = normal.loss - there.loss
        better = (gained > 0) & torch.isfinite(there.loss)
        resting = (better & (gained < _TOLERANCE)) | (~better & (length < 1e-3)) | (gained.abs() < 1e-6)
        state, normal = _merged(better, trial, state), _merged_scores(better, there, normal)
        length = torch.where(better, (3.0 * length).clamp(max=1.0), 0.3 * length)
        if bool(resting.all()):
            break
        if bool((better & (gained > _RENEWED)).any()):
            normal = _with_priors(accumulate(data, state, free, blocks=True), state, free)
            factor = factorise(normal, state, free)
    if 1 in free and 3 in free:
        state, factor = _upright(state, factor, free)
    return state, factor, bool(resting.all())


def settle(
    data: Measurements, state: ColumnState, free: tuple[int, ...], factor: Factor, *, iterations: int = 10
) -> tuple[ColumnState, bool]:
    """Steps with kept blocks and exact scores until they are small against the errors.

    The noise follows the state; its own score is left out (it carries little, and a wrong law would bend the means).
    Kept blocks may say too little of the curvature: they are of fewer MVMs, or of a state at which many outputs looked
    wrong. Steps then go too far and come back. How far they do says how long they should be (Barzilai and Borwein, IMA
    J. Numer. Anal. 8, 141, 1988), in each column by itself; those that make it much less likely are not taken.
    """
    scale_shared = factor.shared_error().clamp(min=1e-300)
    scale_cells = torch.sqrt(factor.inverse.diagonal(dim1=2, dim2=3).clamp(min=1e-300)).transpose(1, 2)
    count = scale_cells.shape[0] * scale_cells.shape[1]
    normal = _with_priors(accumulate(data, state, free, blocks=False), state, free)
    length = torch.ones_like(normal.loss)
    before: Tensor | None = None
    better = torch.ones_like(length, dtype=torch.bool)
    size = float("inf")
    for _ in range(iterations):
        shared, cells = factor.step(normal, state, free)
        step = (cells / scale_cells).clamp(-1e6, 1e6)
        size = float(torch.sqrt((step**2).sum(dim=(0, 1)).max() / count))
        if free:
            size = max(size, float((shared / scale_shared).abs().max()))
        if before is not None:
            left = (step * before).sum(dim=(0, 1)) / (before**2).sum(dim=(0, 1)).clamp(min=1e-300)
            length = torch.where(better, (length / (1.0 - left).clamp(min=1e-3)).clamp(max=1.0), _SHORTER * length)
        before = step
        trial = _moved(state, free, length * shared, length * cells)
        if size < _SMALL_STEP:
            return trial, True
        there = _with_priors(accumulate(data, trial, free, blocks=False), trial, free)
        better = there.loss < normal.loss + _MORE_LOSS * count
        state, normal = _merged(better, trial, state), _merged_scores(better, there, normal)
    return state, size < 10.0 * _SMALL_STEP


def in_own_units(factor: Factor, state: ColumnState, free: tuple[int, ...]) -> Factor:
    """The factor for the compression itself, where steps were taken in its square.

    Near a straight line the error of the square says how large the compression may be.
    """
    if 1 not in free or 3 in free:
        return factor
    place = free.index(1)
    error = torch.sqrt(factor.covariance[:, place, place].clamp(min=0.0))
    twice = torch.maximum(2.0 * state.shared[1], torch.sqrt(2.0 * error)).clamp(min=1e-300)
    unit = torch.ones_like(factor.covariance[:, 0])
    unit[:, place] = 1.0 / twice
    return Factor(
        factor.inverse,
        factor.coupling / unit[None, :, None, :],
        factor.covariance * unit[:, :, None] * unit[:, None, :],
    )


def _upright(state: ColumnState, factor: Factor, free: tuple[int, ...]) -> tuple[ColumnState, Factor]:
    """The same curves with compressions above zero: a curve does not change when both signs do."""
    flip = torch.where(state.shared[1] < 0, -1.0, 1.0).to(state.shared)
    shared = state.shared.clone()
    shared[1], shared[3] = shared[1] * flip, shared[3] * flip
    turned = torch.stack([flip if one in {1, 3} else torch.ones_like(flip) for one in free], dim=1)
    return replace(state, shared=shared), Factor(
        factor.inverse,
        factor.coupling * turned[None, :, None, :],
        factor.covariance * turned[:, :, None] * turned[:, None, :],
    )


def _border(block: Block, state: ColumnState, u: Tensor, slope: Tensor, free: tuple[int, ...]) -> list[Tensor]:
    """Derivatives of the mean by the free shared parameters, each `[n, columns]`."""
    compression, skew = state.shared[1], state.shared[3]
    safe = torch.where(compression == 0, torch.full_like(compression, 1e-30), compression)
    derivatives = []
    for index in free:
        if index == 0:
            derivatives.append(torch.ones_like(u))
        elif index == 2:
            derivatives.append(-slope * u * block.log_age)
        else:
            curve = compress(u, compression, skew)
            if index == 1 and 3 in free:
                derivatives.append((u * slope - curve) / safe)
            elif index == 1:
                bend = (compression * u) ** 2
                near = u**3 * (0.8 * bend - 1.0) / 3.0
                derivatives.append(torch.where(bend < 2.5e-3, near, (u * slope - curve) / (2.0 * safe**2)))
            else:
                derivatives.append((1.0 - slope) / safe + 2.0 * torch.tanh(skew) * curve)
    return derivatives


def _add_information(normal: Normal, block: Block, border: list[Tensor], gain: Tensor, weight: Tensor) -> None:
    for first, one in enumerate(border):
        weighted = one * weight
        for second, other in enumerate(border[: first + 1]):
            value = (weighted * other).sum(dim=0)
            normal.border[:, first, second] += value
            if second != first:
                normal.border[:, second, first] += value
        normal.cross[block.write, :, :, first] += (block.voltage_v.T @ (weighted * gain)).T
    gram = normal.gram[block.write]
    voltage = block.voltage_v.to(gram.dtype)
    weights = (weight * gain**2).T.to(gram.dtype)
    for first in range(0, gram.shape[0], _COLUMN_CHUNK):
        chunk = slice(first, first + _COLUMN_CHUNK)
        gram[chunk] += (voltage.T[None] * weights[chunk, None, :]) @ voltage


def _with_priors(normal: Normal, state: ColumnState, free: tuple[int, ...]) -> Normal:
    loss, score = normal.loss.clone(), normal.score_shared.clone()
    for index, one in enumerate(free):
        if SHARED[one] in _PRIOR:
            precision = 1.0 / _PRIOR[SHARED[one]] ** 2
            loss += 0.5 * precision * state.shared[one] ** 2
            score[:, index] -= precision * state.shared[one]
    return replace(normal, loss=loss, score_shared=score)


def _inverse_information(schur: Tensor) -> Tensor:
    """Inverse of `[columns, p, p]`, scaled, so that parameters of different units do not disturb one another."""
    if schur.shape[-1] == 0:
        return schur
    scale = torch.sqrt(schur.diagonal(dim1=1, dim2=2).clamp(min=1e-300))
    scaled = schur / scale[:, :, None] / scale[:, None, :]
    scaled = scaled + 1e-10 * torch.eye(schur.shape[-1], dtype=schur.dtype)
    inverse: Tensor = torch.linalg.inv(scaled)
    return inverse / scale[:, :, None] / scale[:, None, :]


def _moved(state: ColumnState, free: tuple[int, ...], shared: Tensor, cells: Tensor) -> ColumnState:
    moved = state.shared.clone()
    for index, one in enumerate(free):
        if one == 1 and 3 not in free:
            moved[1] = torch.sqrt((moved[1] ** 2 + shared[index]).clamp(min=0.0))
        else:
            moved[one] += shared[index]
    return replace(state, shared=moved, conductance_s=state.conductance_s + cells)


def _merged(better: Tensor, new: ColumnState, old: ColumnState) -> ColumnState:
    return replace(
        old,
        shared=torch.where(better, new.shared, old.shared),
        conductance_s=torch.where(better, new.conductance_s, old.conductance_s),
    )


def _merged_scores(better: Tensor, new: Normal, old: Normal) -> Normal:
    """Losses and scores of the columns that moved; the information stays what it was."""
    return replace(
        old,
        loss=torch.where(better, new.loss, old.loss),
        score_shared=torch.where(better[:, None], new.score_shared, old.score_shared),
        score_cells=torch.where(better, new.score_cells, old.score_cells),
    )
