"""All that an array's lines do to its products, as one setting, and the correction C(x) that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from labrig_surrogates.crosstalk import apply_crosstalk
from labrig_surrogates.faults import refuse, value_faults
from labrig_surrogates.wire_first_order import first_order_transfer
from labrig_surrogates.wire_inputs import Ohm, demand_array, demand_voltages, full_precision, working_type
from labrig_surrogates.wires import transfer_matrix


@dataclass(frozen=True)
class Crosstalk:
    """Coupling between the lines of one direction.

    Attributes:
        coupling: Share of a line's signal that appears on each neighbour at distance 1, 2, ....
        conserving: Whether the line loses that share.
    """

    coupling: tuple[float, ...]
    conserving: bool


@dataclass(frozen=True)
class Wiring:
    """The lines of an array.

    Attributes:
        word_line_ohm: Resistance of a word-line segment in ohm; a tensor where it is fitted.
        bit_line_ohm: Resistance of a bit-line segment in ohm, likewise.
        solution: `exact`, or `first-order` for training where lines drop little.
        word_line_crosstalk: Between the word lines' voltages, in front of the cells; None for none.
        bit_line_crosstalk: Between the bit lines' currents, behind the cells; None for none.

    Raises:
        SurrogateError: `solution` is another word, or a resistance is not finite.
    """

    word_line_ohm: Ohm
    bit_line_ohm: Ohm
    solution: Literal["exact", "first-order"] = "exact"
    word_line_crosstalk: Crosstalk | None = None
    bit_line_crosstalk: Crosstalk | None = None

    def __post_init__(self) -> None:
        refuse("wiring", value_faults(self))


def wired_transfer(conductance_s: Tensor, wiring: Wiring) -> Tensor:
    """The matrix between commanded voltages and read currents: `current = voltage @ transfer`.

    Word-line crosstalk, then the array with its wires, then bit-line crosstalk, all linear and so one matrix.

    Args:
        conductance_s: Cell conductances in S, `[..., rows, columns]`.
        wiring: The lines.

    Returns:
        Transfer in S, `[..., rows, columns]`.

    Raises:
        SurrogateError: Shapes that do not fit, a negative resistance, a coupling that is not finite.
    """
    solve = transfer_matrix if wiring.solution == "exact" else first_order_transfer
    transfer = solve(conductance_s, wiring.word_line_ohm, wiring.bit_line_ohm)
    # The matrices of crosstalk are symmetric: applying one to the rows is multiplying with it from the left.
    if (word := wiring.word_line_crosstalk) is not None:
        transfer = apply_crosstalk(transfer.mT, word.coupling, conserving=word.conserving).mT
    if (bit := wiring.bit_line_crosstalk) is not None:
        transfer = apply_crosstalk(transfer, bit.coupling, conserving=bit.conserving)
    return transfer


def wiring_correction(conductance_s: Tensor, voltage_v: Tensor, wiring: Wiring) -> Tensor:
    """The systematic part C(x) of a surrogate: what the lines change in the products of ideal wires.

    `C = voltage @ (transfer - conductance)`. It depends on the conductances of the whole array, so on the weights, and
    through the drops on the total currents; it is zero for wires without resistance and crosstalk.

    Args:
        conductance_s: Cell conductances in S, `[..., rows, columns]`.
        voltage_v: Word-line voltages in V, `[..., batch, rows]` or `[rows]`.
        wiring: The lines.

    Returns:
        Currents in A to add to `voltage @ conductance`, `[..., batch, columns]` or `[columns]`.

    Raises:
        SurrogateError: As `wired_transfer`, and voltages that do not fit the array.
    """
    demand_array(conductance_s)
    demand_voltages(voltage_v, conductance_s.shape[-2])
    dtype = working_type(conductance_s, voltage_v)
    cells = conductance_s.to(dtype)
    with full_precision(cells.device):
        return voltage_v.to(dtype) @ (wired_transfer(cells, wiring) - cells)
