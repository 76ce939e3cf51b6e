"""Undoing the mean of drift in the digital part: outputs are scaled by what calibration reads have lost.

aihwkit's global compensation (`inference/compensation/drift.py`, 4545f11): every input line is read once by itself, the
mean magnitude of what comes out is noted after programming and again later, and the ratio multiplies the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from labrig_surrogates.cells import own_unit
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import weight_matrices

Per = Literal["layer", "column"]

# Of the largest weight: less than that is no signal to compare with.
_LEAST = 1e-4


def note_response(model: nn.Module, *, per: Per = "layer") -> dict[str, Tensor]:
    """Reads every layer's arrays with one-hot vectors: what `compensate_drift` compares with later.

    Args:
        model: With analog layers, just programmed.
        per: One number for a `layer`, or one for each output `column`.

    Returns:
        Mean magnitude of the weights as they are read, by the name of the core.

    Raises:
        SurrogateError: `per` is another word.
    """
    if per not in get_args(Per):
        raise SurrogateError(f"per = {per!r} is none of {', '.join(get_args(Per))}")
    return {matrix.core.name: _response(matrix.core, matrix.weight, per) for matrix in weight_matrices(model)}


def compensate_drift(model: nn.Module, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads the arrays again and multiplies the layers' outputs by what has been lost since, until the next write.

    Args:
        model: The same model, some time later (`set_age`).
        reference: From `note_response`; layer or column by its shape.

    Returns:
        The factors, by the name of the core.

    Raises:
        SurrogateError: The reference is of another model.
    """
    matrices = weight_matrices(model)
    if unknown := sorted({matrix.core.name for matrix in matrices} ^ set(reference)):
        raise SurrogateError(f"the noted response is of another model: {', '.join(unknown)} are only in one of the two")
    factors = {}
    for matrix in matrices:
        before = reference[matrix.core.name]
        now = _response(matrix.core, matrix.weight, "column" if before.dim() else "layer")
        factors[matrix.core.name] = before / now
        matrix.core.set_output_factor(factors[matrix.core.name])
    return factors


@torch.no_grad()
def _response(core: AnalogCore, weight: Tensor, per: Per) -> Tensor:
    least = _LEAST * weight.detach().abs().max()
    # What an output says to a one-hot vector is a weight; each is read by itself, so converters do not clip it.
    read = torch.stack([one.factor * own_unit(one) for one in core.realise(weight)]).sum(dim=0).abs()
    rows = read.reshape(read.shape[0] if per == "column" else 1, -1)
    found = torch.clamp(rows.mean(dim=1), min=least)
    return found if per == "column" else found[0]
