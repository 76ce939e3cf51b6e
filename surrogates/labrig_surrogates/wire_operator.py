"""The admittance of a crossbar as a torch operator with its adjoint.

A registered operator stays whole in a compiled graph: no graph break, and no tree of small products to compile. Only
first derivatives exist; torch refuses to differentiate the adjoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.wire_inputs import full_precision
from labrig_surrogates.wire_network import Dissection, adjoint, solve


@torch.library.custom_op(
    "labrig::crossbar_admittance",
    mutates_args=(),
    schema="(Tensor conductance_s, Tensor word_line_ohm, Tensor bit_line_ohm, bool keep) -> (Tensor, Tensor[])",
)
def crossbar_admittance(
    conductance_s: Tensor, word_line_ohm: Tensor, bit_line_ohm: Tensor, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Admittance between the line ends; see `labrig_surrogates.wire_network.solve`.

    Always in the precision of `conductance_s`, also under autocast. Resistances are checked on the CPU only: elsewhere
    looking at them would wait for the device.

    Raises:
        SurrogateError: A resistance is negative or not finite.
    """
    if conductance_s.device.type == "cpu":
        for line, ohm in (("word", word_line_ohm), ("bit", bit_line_ohm)):
            wrong = ohm[~((ohm >= 0.0) & torch.isfinite(ohm))]
            if wrong.numel():
                few = "" if ohm.numel() == 1 else f" ({wrong.numel()} of {ohm.numel()} are wrong, this is the first)"
                raise SurrogateError(
                    f"resistance of a {line}-line segment: {float(wrong[0]):g} ohm{few}; "
                    "it has to be finite and not negative"
                )
    with full_precision(conductance_s.device):
        return solve(conductance_s, word_line_ohm, bit_line_ohm, keep)


@torch.library.custom_op(
    "labrig::crossbar_admittance_adjoint",
    mutates_args=(),
    schema="(Tensor conductance_s, Tensor[] kept, Tensor cotangent, bool resistances) -> (Tensor, Tensor, Tensor)",
)
def _adjoint(
    conductance_s: Tensor, kept: Sequence[Tensor], cotangent: Tensor, resistances: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(conductance_s.device):
        return adjoint(conductance_s, kept, cotangent, resistances)


@crossbar_admittance.register_fake
def _admittance_shape(
    conductance_s: Tensor, word_line_ohm: Tensor, bit_line_ohm: Tensor, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    del word_line_ohm, bit_line_ohm
    count, rows, columns = conductance_s.shape
    kept = Dissection.of(rows, columns).kept_shapes(count) if keep else []
    ends = rows + columns
    return conductance_s.new_empty(count, ends, ends), [conductance_s.new_empty(shape) for shape in kept]


@_adjoint.register_fake
def _adjoint_shape(
    conductance_s: Tensor, kept: Sequence[Tensor], cotangent: Tensor, resistances: bool
) -> tuple[Tensor, Tensor, Tensor]:
    del kept, cotangent, resistances
    ohm = conductance_s.new_empty(conductance_s.shape[0])
    return torch.empty_like(conductance_s), ohm, torch.empty_like(ohm)


class _Context(Protocol):
    """What torch hands to the functions below."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    save_for_backward: Callable[..., None]
    set_materialize_grads: Callable[[bool], None]


def _remember(ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.save_for_backward(inputs[0], *output[1])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: _Context, cotangent: Tensor | None, _: list[None]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    if cotangent is None:
        return None, None, None, None
    conductance_s, *kept = ctx.saved_tensors
    resistances = any(ctx.needs_input_grad[1:3])
    by_conductance, by_word, by_bit = _adjoint(conductance_s, kept, cotangent, resistances)
    return by_conductance, (by_word if resistances else None), (by_bit if resistances else None), None


crossbar_admittance.register_autograd(_differentiate, setup_context=_remember)
