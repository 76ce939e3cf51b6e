"""Chunks of one batch in flight: the chip measures one chunk while the gradient of the one before is computed.

All chunks meet the same weights, and their gradients are added up in order, so that the step is the step of the whole
batch: nothing is stale, and nothing depends on which thread was quicker.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor, nn

from labrig.training.batches import Batch


@dataclass(frozen=True)
class PassResult:
    """What a pass gave.

    Attributes:
        loss: Mean loss of the batch.
        accuracy: Part of its images that were classified rightly.
    """

    loss: float
    accuracy: float


def accumulate(network: nn.Module, loss: Callable[[Tensor, Batch], Tensor], batch: Batch, chunks: int) -> PassResult:
    """Adds the gradient of a batch to the parameters.

    With more than one chunk, batch normalisation sees each chunk by itself.

    Args:
        network: Its layers have their backends.
        loss: The mean loss of outputs.
        batch: The batch.
        chunks: Parts that it is sent in.
    """
    parts = batch.split(chunks)
    shares = [len(part) / len(batch) for part in parts]

    def forward(part: Batch, share: float) -> tuple[Tensor, int]:
        outputs = network(part.x)
        return share * loss(outputs, part), int((outputs.detach().argmax(dim=1) == part.y).sum())

    if len(parts) == 1:
        only, right = forward(parts[0], 1.0)
        only.backward()  # type: ignore[no-untyped-call]
        return PassResult(float(only.detach()), right / len(batch))
    whole, rights = 0.0, 0
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="labrig-forward") as ahead:
        # One thread makes all forward passes, in order: the board is asked in the same order in every run.
        passes = [ahead.submit(forward, part, share) for part, share in zip(parts, shares, strict=True)]
        try:
            for one in passes:
                value, right = one.result()
                value.backward()  # type: ignore[no-untyped-call]
                whole, rights = whole + float(value.detach()), rights + right
        except BaseException:
            ahead.shutdown(wait=True, cancel_futures=True)
            raise
    return PassResult(whole, rights / len(batch))
