"""Wire resistance to first order: a fixed-size correction of the conductances, cheap enough for every training step.

To first order in the resistances, cell (i, j) loses what the currents of its own word line drop in the segments in
front of it, and what those of its own bit line drop in the segments below it:

    d_ij = r_w sum_k (min(j, k) + 1) G_ik + r_b sum_k (rows - max(i, k)) G_kj
    T_ij = G_ij / (1 + d_ij) + O(r^2)

`min(j, k) + 1` word-line segments carry the currents of both cells j and k, `rows - max(i, k)` bit-line segments those
of both cells i and k: row 0 is farthest from ground. The quotient has the first order of `G (1 - d)`, is exact for a
single cell, stays positive, and errs about ten times less (docs/guide/wires.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wire_inputs import Ohm, as_resistance, demand_array, working_type


def first_order_transfer(conductance_s: Tensor, word_line_ohm: Ohm, bit_line_ohm: Ohm) -> Tensor:
    """The matrix between word-line voltages and bit-line currents, right to first order in the resistances.

    Differentiable in everything. For fixed resistances `FirstOrderWires` keeps the constants and is faster.

    Args:
        conductance_s: Cell conductances in S, `[..., rows, columns]`.
        word_line_ohm: Resistance in ohm of a word-line segment, a number or broadcast against the leading dimensions.
        bit_line_ohm: Resistance in ohm of a bit-line segment, likewise.

    Returns:
        Transfer in S, `[..., rows, columns]`, in the precision of `conductance_s`, at least float32.

    Raises:
        SurrogateError: Shapes that do not fit, conductances that are not floating point, a number that is negative or
            not finite (values of tensors are not looked into).
    """
    demand_array(conductance_s)
    cells = conductance_s.to(working_type(conductance_s))
    word, bit = as_resistance("word_line_ohm", word_line_ohm, cells), as_resistance("bit_line_ohm", bit_line_ohm, cells)
    rows, columns = cells.shape[-2:]
    return _quotient(
        cells,
        word[..., None, None] * _shared_segments(columns, cells),
        bit[..., None, None] * _shared_segments(rows, cells).flip(0, 1),
    )


class FirstOrderWires(nn.Module):
    """`first_order_transfer` for one size of array and known resistances.

    Args:
        rows: Word lines.
        columns: Bit lines.
        word_line_ohm: Resistance of a word-line segment in ohm.
        bit_line_ohm: Resistance of a bit-line segment in ohm.

    Raises:
        SurrogateError: A size below one, a resistance that is negative or not finite.
    """

    word_ohm: Tensor
    bit_ohm: Tensor

    def __init__(self, rows: int, columns: int, *, word_line_ohm: float, bit_line_ohm: float) -> None:
        super().__init__()
        if min(rows, columns) < 1:
            raise SurrogateError(f"an array needs a row and a column, and is {rows} x {columns}")
        like = torch.empty(0)
        word, bit = (
            as_resistance("word_line_ohm", word_line_ohm, like),
            as_resistance("bit_line_ohm", bit_line_ohm, like),
        )
        self.register_buffer("word_ohm", word * _shared_segments(columns, like), persistent=False)
        self.register_buffer("bit_ohm", bit * _shared_segments(rows, like).flip(0, 1), persistent=False)

    def forward(self, conductance_s: Tensor) -> Tensor:
        """Transfer in S from cell conductances in S, both `[..., rows, columns]`.

        Raises:
            SurrogateError: The shape is not that of the array.
        """
        demand_array(conductance_s)
        size = (self.bit_ohm.shape[0], self.word_ohm.shape[0])
        if conductance_s.shape[-2:] != size:
            raise SurrogateError(f"wires of {size[0]} x {size[1]} cells got {tuple(conductance_s.shape)} conductances")
        cells = conductance_s.to(working_type(conductance_s, self.word_ohm))
        return _quotient(cells, self.word_ohm.to(cells.dtype), self.bit_ohm.to(cells.dtype))


def _shared_segments(cells: int, like: Tensor) -> Tensor:
    """How many segments between the fed end and each of two cells of a line both currents flow through."""
    place = torch.arange(1, cells + 1, device=like.device)
    return torch.minimum(place[:, None], place).to(like.dtype)


def _quotient(conductance_s: Tensor, word_ohm: Tensor, bit_ohm: Tensor) -> Tensor:
    # Two small products are faster than the four cumulative sums that would do for arrays of up to 256 lines.
    with torch.autocast(conductance_s.device.type, enabled=False):
        drop = conductance_s @ word_ohm + bit_ohm @ conductance_s
        return conductance_s / (1.0 + drop)
