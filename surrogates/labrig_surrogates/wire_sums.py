"""Sums over the cells of a line, each weighted with the wire segments that it shares with the cell at hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LONGEST_DENSE = 128
"""Up to this many cells one product with the whole matrix of weights is fastest."""


class LineSums(NamedTuple):
    """The matrix `K_jk = min(j, k) + 1` as a product with few operations.

    A line is cut into pieces of `size` cells. Within a piece the weights are those of a short line. To other pieces
    they depend on `j` or `k` alone, so that of each piece the sum and the first moment are all that others need.

    Attributes:
        near: Weights within a piece, `[size, size]`.
        moments: Weights of sum and first moment, `[size, 2]`.
        far: From sums and moments of all pieces to what each of them gets, `[2 * pieces, 2 * pieces]`; empty for one.
    """

    near: Tensor
    moments: Tensor
    far: Tensor

    @classmethod
    def of(cls, cells: int, like: Tensor) -> LineSums:
        """For a line that is fed at cell 0."""
        size = _piece(cells)
        pieces = cells // size
        place = torch.arange(1, size + 1, device=like.device)
        piece = torch.arange(pieces, device=like.device)
        far = torch.zeros(pieces, 2, pieces, 2, dtype=like.dtype, device=like.device)
        far[:, 0, :, 0] = (size * torch.minimum(piece[:, None], piece)).to(like)
        far[:, 0, :, 1] = (piece[:, None] > piece).to(like)
        far[:, 1, :, 0] = (piece[:, None] < piece).to(like)
        return cls(
            near=torch.minimum(place[:, None], place).to(like),
            moments=torch.stack([torch.ones_like(place), place], dim=1).to(like),
            far=far.flatten(2).flatten(0, 1) if pieces > 1 else like.new_empty(0, 0),
        )

    def turned(self) -> LineSums:
        """For a line that is fed at its last cell."""
        pieces = self.far.shape[0] // 2
        far = self.far.reshape(pieces, 2, pieces, 2).flip(0, 2).reshape(self.far.shape)
        return LineSums(self.near.flip(0, 1), self.moments.flip(0), far)

    def times(self, factor: Tensor) -> LineSums:
        """The same with every weight multiplied."""
        return LineSums(factor * self.near, self.moments, factor * self.far)

    def to(self, dtype: torch.dtype) -> LineSums:
        """The same in another precision."""
        return LineSums(*(tensor.to(dtype) for tensor in self))

    def along(self, cells: Tensor, onto: Tensor) -> Tensor:
        """`onto` plus the sums along the last dimension of `[..., rows, columns]`."""
        pieces = self.far.shape[0] // 2
        if not pieces:
            return torch.addmm(onto, cells, self.near) if cells.ndim == 2 else onto + cells @ self.near
        parts = cells.reshape(-1, self.near.shape[0])
        others = (parts @ self.moments).reshape(-1, 2 * pieces) @ self.far
        total = torch.addmm(onto.expand(cells.shape).reshape(parts.shape), others.reshape(-1, 2), self.moments.mT)
        return torch.addmm(total, parts, self.near).reshape(cells.shape)

    def down(self, cells: Tensor, onto: Tensor) -> Tensor:
        """`onto` plus the sums along the last dimension but one of `[..., rows, columns]`."""
        pieces = self.far.shape[0] // 2
        if not pieces:
            return torch.addmm(onto, self.near, cells) if cells.ndim == 2 else onto + self.near @ cells
        parts = cells.reshape(-1, self.near.shape[0], cells.shape[-1])
        moments, near = (factor.expand(parts.shape[0], -1, -1) for factor in (self.moments, self.near))
        others = self.far.mT @ (moments.mT @ parts).reshape(-1, 2 * pieces, cells.shape[-1])
        total = onto.expand(cells.shape).reshape(parts.shape)
        total = torch.baddbmm(total, moments, others.reshape(-1, 2, cells.shape[-1]))
        return torch.baddbmm(total, near, parts).reshape(cells.shape)


def _piece(cells: int) -> int:
    """The divisor of `cells` with the fewest operations; all cells where one product is best."""
    if cells <= LONGEST_DENSE:
        return cells
    return min((size for size in range(1, cells + 1) if cells % size == 0), key=lambda size: size + 4 * cells // size)
