"""Wire resistance to first order: a correction of the conductances that is cheap enough for every training step.

To first order in the resistances, cell (i, j) loses what the currents of its own word line drop in the segments in
front of it, and what those of its own bit line drop in the segments below it:

    d_ij = r_w sum_k (min(j, k) + 1) G_ik + r_b sum_k (rows - max(i, k)) G_kj
    T_ij = G_ij / (1 + d_ij) + O(r^2)

`min(j, k) + 1` word-line segments carry the currents of both cells j and k, `rows - max(i, k)` bit-line segments those
of both cells i and k: row 0 is farthest from ground. The quotient has the first order of `G (1 - d)`, is exact for a
single cell, stays positive, and errs about ten times less (docs/guide/wires.md).
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wire_inputs import Ohm, as_resistance, demand_array, full_precision, working_type
from labrig_surrogates.wire_sums import LineSums


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
    nothing = cells.new_zeros(())
    with full_precision(cells.device):
        along = LineSums.of(columns, cells).along(cells, nothing)
        down = LineSums.of(rows, cells).turned().down(cells, nothing)
        return cells / (1.0 + word[..., None, None] * along + bit[..., None, None] * down)


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

    one: Tensor

    def __init__(self, rows: int, columns: int, *, word_line_ohm: float, bit_line_ohm: float) -> None:
        super().__init__()
        if min(rows, columns) < 1:
            raise SurrogateError(f"an array needs a row and a column, and is {rows} x {columns}")
        like = torch.empty(0)
        word = LineSums.of(columns, like).times(as_resistance("word_line_ohm", word_line_ohm, like))
        bit = LineSums.of(rows, like).turned().times(as_resistance("bit_line_ohm", bit_line_ohm, like))
        self.size = (rows, columns)
        self.register_buffer("one", torch.ones(()), persistent=False)
        for line, sums in (("word", word), ("bit", bit)):
            for name, constant in sums._asdict().items():
                self.register_buffer(f"{line}_{name}", constant, persistent=False)

    def forward(self, conductance_s: Tensor) -> Tensor:
        """Transfer in S from cell conductances in S, both `[..., rows, columns]`.

        Raises:
            SurrogateError: The shape is not that of the array.
        """
        if conductance_s.shape[-2:] != self.size:
            raise SurrogateError(
                f"wires of {self.size[0]} x {self.size[1]} cells got {tuple(conductance_s.shape)} conductances"
            )
        one, word, bit = self.one, self._sums("word"), self._sums("bit")
        if conductance_s.dtype != one.dtype:
            demand_array(conductance_s)
            dtype = working_type(conductance_s, one)
            conductance_s, one, word, bit = conductance_s.to(dtype), one.to(dtype), word.to(dtype), bit.to(dtype)
        with full_precision(conductance_s.device):
            return conductance_s / bit.down(conductance_s, word.along(conductance_s, one))

    def _sums(self, line: Literal["word", "bit"]) -> LineSums:
        # For small arrays looking buffers up as attributes takes as long as one of the products.
        constants = cast("dict[str, Tensor]", self._buffers)
        if line == "word":
            return LineSums(constants["word_near"], constants["word_moments"], constants["word_far"])
        return LineSums(constants["bit_near"], constants["bit_moments"], constants["bit_far"])
