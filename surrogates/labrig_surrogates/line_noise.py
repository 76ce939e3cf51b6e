"""Noise of differences between lines, where several outputs may share the line that is subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

_LEAST = 1e-36
"""Smallest variance: the square root of nothing has no slope."""


def difference_noise(
    own: Tensor,
    reference: Tensor,
    reference_of: Tensor | None,
    fresh: Callable[[Sequence[int]], Tensor],
    axis: int,
) -> Tensor:
    """Gaussian noise of lines minus that of their references.

    Args:
        own: Variance of each output's own line, of the shape of the outputs.
        reference: Variance of the lines that are subtracted: of the same shape, or with the references in place of
            the outputs along `axis`.
        reference_of: Number of the reference of each output; None where each has its own.
        fresh: Standard normal numbers of a shape.
        axis: Where the outputs lie.
    """
    if reference_of is None:
        return (own + reference).clamp(min=_LEAST).sqrt() * fresh(own.shape)
    shared = reference.clamp(min=_LEAST).sqrt() * fresh(reference.shape)
    return own.clamp(min=_LEAST).sqrt() * fresh(own.shape) - shared.index_select(axis, reference_of)
