"""Wire resistance of a crossbar, solved exactly: currents, transfer matrix, admittance, all differentiable.

Circuit (Joksas and Mehonic, SoftwareX 2020): `rows` word lines, each driven at its left end, and `columns` bit lines,
each held at ground at its bottom end. A segment of `word_line_ohm` lies in front of every cell of a word line, one of
`bit_line_ohm` below every cell of a bit line. The potentials `w_ij`, `b_ij` of the two ends of cell `G_ij` obey

    (w_i,j-1 - w_ij) / r_w - (w_ij - w_i,j+1) / r_w = G_ij (w_ij - b_ij)
    (b_ij - b_i+1,j) / r_b - (b_i-1,j - b_ij) / r_b = G_ij (w_ij - b_ij)

with `w_i,-1 = V_i`, `b_rows,j = 0` and no current beyond the first and last cell; `I_j = b_rows-1,j / r_b`. With linear
cells the answer is a matrix, so that it is computed once and a product costs what a product costs. Wires without
resistance are no special case (`labrig_surrogates.wire_blocks` says why).
"""

from __future__ import annotations

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wire_inputs import (
    Ohm,
    as_resistance,
    broadcast_batch,
    demand_array,
    demand_voltages,
    full_precision,
    working_type,
)
from labrig_surrogates.wire_operator import crossbar_admittance


def terminal_admittance(conductance_s: Tensor, word_line_ohm: Ohm, bit_line_ohm: Ohm) -> Tensor:
    """What the array is to its surroundings: currents into all line ends per volt at each of them.

    Exact, symmetric and, for conductances that are not negative, positive semidefinite; every row adds up to zero. One
    factorisation serves all right-hand sides, and the gradient reuses it (adjoint method): it costs about as much as
    the solution. Only first derivatives exist.

    Args:
        conductance_s: Cell conductances in S, `[..., rows, columns]`. Small negative values, as noise makes them, are
            solved as they are.
        word_line_ohm: Resistance in ohm of a word-line segment, a number or broadcast against the leading dimensions.
        bit_line_ohm: Resistance in ohm of a bit-line segment, likewise.

    Returns:
        Admittance in S, `[..., rows + columns, rows + columns]`, driven ends of word lines first, grounded ends of
        bit lines after them. In the precision of `conductance_s`, at least float32, also under autocast.

    Raises:
        SurrogateError: Shapes that do not fit, conductances that are not floating point, a resistance that is negative
            or not finite (tensors on a device other than the CPU are not looked into).
    """
    demand_array(conductance_s)
    cells = conductance_s.to(working_type(conductance_s))
    word, bit = as_resistance("word_line_ohm", word_line_ohm, cells), as_resistance("bit_line_ohm", bit_line_ohm, cells)
    rows, columns = conductance_s.shape[-2:]
    batch = broadcast_batch(cells.shape[:-2], word.shape, bit.shape)
    arrays = cells.expand(*batch, rows, columns).reshape(-1, rows, columns)
    word, bit = word.expand(batch).reshape(-1), bit.expand(batch).reshape(-1)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (arrays, word, bit))
    admittance, _ = crossbar_admittance(arrays, word, bit, keep)
    whole: Tensor = admittance.reshape(*batch, rows + columns, rows + columns)
    return whole


def transfer_matrix(
    conductance_s: Tensor,
    word_line_ohm: Ohm,
    bit_line_ohm: Ohm,
    *,
    open_word_lines: Tensor | None = None,
    open_bit_lines: Tensor | None = None,
) -> Tensor:
    """The exact matrix between word-line voltages and bit-line currents: `current = voltage @ transfer`.

    Equal to `conductance_s` when both resistances are zero. The network is reciprocal: driven at the bit-line ends
    and read at the word-line ends, it is the transposed matrix.

    Lines that are left open float: no current flows at their end, and what reaches them through cells leaves them
    through other cells (sneak paths). Their rows and columns of the matrix are zero.

    Args:
        conductance_s: Cell conductances in S, `[..., rows, columns]`.
        word_line_ohm: Resistance in ohm of a word-line segment, a number or broadcast against the leading dimensions.
        bit_line_ohm: Resistance in ohm of a bit-line segment, likewise.
        open_word_lines: Word lines that are not driven, bool, `[..., rows]`; leading dimensions broadcast, so that one
            array is solved once for many masks.
        open_bit_lines: Bit lines that are not held at ground, bool, `[..., columns]`, likewise.

    Returns:
        Transfer in S, `[..., rows, columns]`.

    Raises:
        SurrogateError: As `terminal_admittance`, and masks that do not fit the array.
        torch.linalg.LinAlgError: Open lines that no cell connects with a driven or held one, not even by way of others.
    """
    demand_array(conductance_s)
    rows, columns = conductance_s.shape[-2:]
    masks = {"open_word_lines": (open_word_lines, rows), "open_bit_lines": (open_bit_lines, columns)}
    for name, (mask, lines) in masks.items():
        if mask is not None and (mask.dtype != torch.bool or mask.ndim < 1 or mask.shape[-1] != lines):
            raise SurrogateError(
                f"{name} has to be a bool tensor of shape [..., {lines}], and is {mask.dtype} {tuple(mask.shape)}"
            )
    admittance = terminal_admittance(conductance_s, word_line_ohm, bit_line_ohm)
    if open_word_lines is None and open_bit_lines is None:
        # A current out of the array is read, and the admittance counts those into it.
        return -admittance[..., :rows, rows:]
    driven, held = (torch.zeros(lines, dtype=torch.bool, device=conductance_s.device) for lines in (rows, columns))
    with full_precision(conductance_s.device):
        return _with_open_lines(
            admittance,
            driven if open_word_lines is None else open_word_lines,
            held if open_bit_lines is None else open_bit_lines,
        )


def crossbar_currents(
    conductance_s: Tensor,
    voltage_v: Tensor,
    word_line_ohm: Ohm,
    bit_line_ohm: Ohm,
    *,
    open_word_lines: Tensor | None = None,
    open_bit_lines: Tensor | None = None,
) -> Tensor:
    """Exact bit-line currents of a crossbar with wire resistance, differentiable in all but the masks.

    This is `voltage_v @ transfer_matrix(...)`. Keep that matrix where many products use the same conductances.

    Args:
        conductance_s: Cell conductances in S, `[..., rows, columns]`.
        voltage_v: Word-line voltages in V, `[..., batch, rows]` or `[rows]`.
        word_line_ohm: Resistance in ohm of a word-line segment, a number or broadcast against the leading dimensions.
        bit_line_ohm: Resistance in ohm of a bit-line segment, likewise.
        open_word_lines: Word lines that are not driven, bool, `[..., rows]`; their voltages are ignored.
        open_bit_lines: Bit lines that are not held at ground, bool, `[..., columns]`.

    Returns:
        Currents in A, `[..., batch, columns]` or `[columns]`; zero on open bit lines.

    Raises:
        SurrogateError: As `transfer_matrix`, and voltages that do not fit the array.
    """
    demand_array(conductance_s)
    demand_voltages(voltage_v, conductance_s.shape[-2])
    dtype = working_type(conductance_s, voltage_v)
    transfer = transfer_matrix(
        conductance_s.to(dtype),
        word_line_ohm,
        bit_line_ohm,
        open_word_lines=open_word_lines,
        open_bit_lines=open_bit_lines,
    )
    with full_precision(conductance_s.device):
        return voltage_v.to(dtype) @ transfer


def _with_open_lines(admittance: Tensor, open_word: Tensor, open_bit: Tensor) -> Tensor:
    """Transfer with open line ends: at each end either the potential is known or the current is zero."""
    rows, ports = open_word.shape[-1], admittance.shape[-1]
    batch = broadcast_batch(open_word.shape[:-1], open_bit.shape[:-1])
    open_ends = torch.cat([open_word.expand(*batch, -1), open_bit.expand(*batch, -1)], dim=-1)[..., None]
    unit = torch.eye(ports, dtype=admittance.dtype, device=admittance.device)
    # The balance of an open end, scaled to one. A line without any conducting cell stays at 0 V.
    own = admittance.diagonal(dim1=-2, dim2=-1)[..., None]
    balance = torch.where(own == 0, unit, admittance / torch.where(own == 0, torch.ones_like(own), own))
    potential = torch.linalg.solve(
        torch.where(open_ends, balance, unit), torch.where(open_ends, torch.zeros_like(unit), unit)[..., :rows]
    )
    current = -(admittance[..., rows:, :] @ potential)
    return torch.where(open_bit[..., None], torch.zeros_like(current), current).mT
