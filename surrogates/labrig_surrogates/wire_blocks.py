"""Rectangular blocks of a crossbar as linear networks: small ones solved at once, two neighbours joined, and adjoints.

A block is a rectangle of cells with the wire segment in front of each cell (word line) and below each cell (bit
line). Its lines leave it on four sides. What it does to its surroundings is one symmetric matrix `H`:

    inputs   potentials of the left and bottom line ends, currents into the top and right line ends
    outputs  currents into the left and bottom line ends, minus the potentials of the top and right line ends

Ports are in the order left, bottom, top, right. With these inputs nothing is divided by a resistance: a wire without
resistance is no special case, and the effect of a small one is not lost in rounding, as it is in the node matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Sides(NamedTuple):
    """How many lines leave a block on each side; zero where they end at the edge of the array."""

    left: int
    bottom: int
    top: int
    right: int


@dataclass(frozen=True)
class Partner:
    """Which ports of one of two blocks are joined away (`cut`), and where the others go.

    Attributes:
        low: Ports before the cut or before the high ones.
        high: The other ports that remain.
        cut: Ports that meet those of the other block.
        low_at: Where the low ports are in the joined block.
        high_at: Where the high ports are in the joined block.
    """

    low: slice
    high: slice
    cut: slice
    low_at: slice
    high_at: slice

    @property
    def kept(self) -> tuple[tuple[slice, slice, slice], ...]:
        """The groups of remaining ports: in the block, among the remaining ones, in the joined block."""
        split = _length(self.low)
        return (self.low, slice(0, split), self.low_at), (self.high, slice(split, self.width), self.high_at)

    @property
    def width(self) -> int:
        """How many ports remain."""
        return _length(self.low) + _length(self.high)

    def pick(self, ports_last: Tensor) -> Tensor:
        """The remaining ports of the last dimension of a block's matrix."""
        return torch.cat([ports_last[..., self.low], ports_last[..., self.high]], dim=-1)

    def pick_joined(self, ports_last: Tensor) -> Tensor:
        """The same ports from the last dimension of the joined block's matrix."""
        return torch.cat([ports_last[..., self.low_at], ports_last[..., self.high_at]], dim=-1)


@dataclass(frozen=True)
class Joint:
    """How neighbours of one size are joined: all pairs of a grid at once.

    Attributes:
        dim: Dimension of the grid along which neighbours lie: 1 for rows of blocks, 2 for columns.
        first: The upper or left block of a pair.
        second: The lower or right one.
        sides: The lines that leave the joined block.
    """

    dim: int
    first: Partner
    second: Partner
    sides: Sides

    def pairs(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """First and second blocks, as views, of a grid `[N, rows, columns, ports, ports]`."""
        if self.dim == 1:
            return grid[:, 0::2], grid[:, 1::2]
        return grid[:, :, 0::2], grid[:, :, 1::2]


def beside(sides: Sides, *, whole: bool) -> Joint:
    """Joins a left and a right block; `whole` says that nothing is right of them."""
    left, bottom, top, right = sides
    above, end = left + bottom + top, sum(sides)
    last = above if whole else end
    width = left + 2 * bottom + 2 * top + last - above
    first = Partner(
        low=slice(0, left + bottom),
        high=slice(left + bottom, above),
        cut=slice(above, end),
        low_at=slice(0, left + bottom),
        high_at=slice(left + 2 * bottom, left + 2 * bottom + top),
    )
    second = Partner(
        low=slice(left, left + bottom),
        high=slice(left + bottom, last),
        cut=slice(0, left),
        low_at=slice(left + bottom, left + 2 * bottom),
        high_at=slice(left + 2 * bottom + top, width),
    )
    return Joint(2, first, second, Sides(left, 2 * bottom, 2 * top, 0 if whole else right))


def stacked(sides: Sides, *, whole: bool) -> Joint:
    """Joins an upper and a lower block; `whole` says that nothing is above them."""
    left, bottom, top, right = sides
    below, above, end = left + bottom, left + bottom + top, sum(sides)
    uppermost = 0 if whole else top
    middle = 2 * left + bottom
    width = middle + uppermost + 2 * right
    first = Partner(
        low=slice(0, left),
        high=slice(above - uppermost, end),
        cut=slice(left, below),
        low_at=slice(0, left),
        high_at=slice(middle, width - right),
    )
    second = Partner(
        low=slice(0, below),
        high=slice(above, end),
        cut=slice(below, above),
        low_at=slice(left, middle),
        high_at=slice(width - right, width),
    )
    return Joint(1, first, second, Sides(2 * left, bottom, uppermost, 2 * right))


def _length(ports: slice) -> int:
    return int(ports.stop - ports.start)


class Joined(NamedTuple):
    """What the adjoint of a joint needs: the couplings of the cut to the other ports, and the solved cut."""

    first_coupling: Tensor
    second_coupling: Tensor
    inverse: Tensor
    first_core: Tensor
    second_core: Tensor


def join(joint: Joint, grid: Tensor) -> tuple[Tensor, Joined]:
    """Joins all pairs of a grid of blocks (a Redheffer star product).

    At the cut both sides have one potential and one current. With `A`, `B` the cut's parts of the two matrices and
    `c1`, `c2` its couplings to the remaining ports, the cut's inputs `z1`, `z2` follow from those at the ports:

        A z1 + z2 = -c1 x1,   z1 + B z2 = -c2 x2
        z1 = X c1 x1 - E' c2 x2,   z2 = -E c1 x1 + W c2 x2,   E = (1 - A B)^-1,  X = B E,  W = E A

    One of A and -B is a conductance and the other a resistance matrix, neither negative: `1 - A B` has no eigenvalue
    below one.

    Args:
        joint: Which ports meet.
        grid: Matrices, `[N, rows, columns, ports, ports]`.

    Returns:
        The grid of joined blocks, and what `unjoin` needs.
    """
    one, two = joint.pairs(grid)
    first, second = joint.first, joint.second
    a, b = one[..., first.cut, first.cut], two[..., second.cut, second.cut]
    c1, c2 = first.pick(one[..., first.cut, :]), second.pick(two[..., second.cut, :])
    cut = torch.matmul(a, b).neg_()
    cut.diagonal(dim1=-2, dim2=-1).add_(1.0)
    # LAPACK leaves columns behind one another; what is kept has the strides that the operator promises.
    inverse = torch.linalg.inv_ex(cut).inverse.contiguous()
    x, w = b @ inverse, inverse @ a
    own1, own2 = c1.mT @ (x @ c1), c2.mT @ (w @ c2)
    cross = (inverse @ c1).mT @ c2
    ports = sum(joint.sides)
    joined = grid.new_empty(*one.shape[:3], ports, ports)
    for rows, near, to in first.kept:
        for columns, beyond, at in first.kept:
            torch.add(one[..., rows, columns], own1[..., near, beyond], out=joined[..., to, at])
        for _, beyond, at in second.kept:
            torch.neg(cross[..., near, beyond], out=joined[..., to, at])
            torch.neg(cross[..., near, beyond].mT, out=joined[..., at, to])
    for rows, near, to in second.kept:
        for columns, beyond, at in second.kept:
            torch.add(two[..., rows, columns], own2[..., near, beyond], out=joined[..., to, at])
    return joined, Joined(c1, c2, inverse, x, w)


def unjoin(joint: Joint, joined: Joined, cotangent: Tensor, sides: Sides) -> Tensor:
    """Adjoint of `join`: the gradient by the blocks from the gradient by the joined blocks.

    The joined matrix is the blocks' with the cut's inputs eliminated, at which it is stationary. So its differential
    is `dS = Z' dH Z`, with `Z` from the ports to all inputs, and the gradient is `Z S Z'`: products only, no solve.

    Args:
        joint: Which ports meet.
        joined: What `join` left.
        cotangent: Symmetric gradient by the joined blocks, `[N, rows, columns, ports, ports]`.
        sides: The lines that leave a block before joining.

    Returns:
        Symmetric gradient by the blocks, with twice as many of them in the dimension `joint.dim`.
    """
    c1, c2, inverse, x, w = joined
    first, second = joint.first, joint.second
    rows1, rows2 = first.pick_joined(cotangent).mT, second.pick_joined(cotangent).mT
    from1, from2 = c1 @ rows1, c2 @ rows2
    s11, s12 = first.pick_joined(from1), second.pick_joined(from1)
    s21, s22 = first.pick_joined(from2), second.pick_joined(from2)
    own1, own2, cross = s11 @ c1.mT, s22 @ c2.mT, s12 @ c2.mT
    near1, near2 = x @ s11 - inverse.mT @ s21, w @ s22 - inverse @ s12
    # z1 S z1' and z2 S z2'; the cut's own part of either gradient.
    mixed1, mixed2 = x @ cross @ inverse, inverse @ cross @ w
    cut1 = x @ own1 @ x - mixed1 - mixed1.mT + inverse.mT @ own2 @ inverse
    cut2 = inverse @ own1 @ inverse.mT - mixed2 - mixed2.mT + w @ own2 @ w
    shape = list(cotangent.shape[:3])
    shape[joint.dim] *= 2
    grid = cotangent.new_zeros(*shape, sum(sides), sum(sides))
    for block, partner, near, cut in zip(joint.pairs(grid), (first, second), (near1, near2), (cut1, cut2), strict=True):
        block[..., partner.cut, partner.cut] = cut
        for rows, among, at in partner.kept:
            block[..., partner.cut, rows] = near[..., among]
            block[..., rows, partner.cut] = near[..., among].mT
            for columns, _, to in partner.kept:
                block[..., rows, columns] = cotangent[..., at, to]
    return grid
