"""Surrogate steps that several processes share: each takes a part of every batch, and their gradients are added up.

`torchrun --nproc-per-node 2 -m labrig train train.toml` starts such processes. All of them hold the same weights and
draw the same batches; each meets programmings and reads of its own, as parts of a batch with several `noise.draws` do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from labrig.training.batches import Batch
from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """One of the processes of a training.

    Attributes:
        rank: Which one, from 0 on; the first one writes the files.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def part(self, batch: Batch) -> Batch:
        """What this process takes of a batch; all parts together are the batch.

        Raises:
            ConfigError: There are fewer images than processes.
        """
        if len(batch) < self.size:
            raise ConfigError(f"a batch of {len(batch)} images cannot be shared between {self.size} processes")
        return batch if self.size == 1 else batch.split(self.size)[self.rank]

    def add_up(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Puts the sum over all processes in the place of each gradient, and returns that of the loss."""
        if self.size == 1:
            return loss
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([*(one.flatten() for one in gradients), torch.tensor([loss])])
        distributed.all_reduce(flat)
        pieces = torch.split(flat, [*(one.numel() for one in parameters), 1])
        for parameter, piece in zip(parameters, pieces, strict=False):
            parameter.grad = piece.reshape(parameter.shape).clone()
        return float(pieces[-1])


ALONE = Ranks()
"""A training in one process."""


@contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """The ranks of a process that torchrun started; a single one in any other process."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
