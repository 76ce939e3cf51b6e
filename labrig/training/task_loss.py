"""The loss of a batch: cross entropy, and what a teacher would say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from labrig.training.batches import Batch

Loss = Callable[[Tensor, Batch], Tensor]
"""The mean loss of a batch, of the network's outputs for it."""


@dataclass(frozen=True)
class TaskLoss:
    """`(1 - b) CE + b T^2 KL(teacher || student)`, Hinton's distillation beside the classes.

    The setting b = 0.7, T = 4 is that of Noisy Machines (Zhou et al., arXiv 2001.04974) for networks under noise.

    Attributes:
        label_smoothing: Part of the target that is spread over all classes.
        distillation: b; zero leaves the teacher out.
        temperature: T.
    """

    label_smoothing: float = 0.05
    distillation: float = 0.0
    temperature: float = 4.0

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        plain = functional.cross_entropy(outputs, batch.y, label_smoothing=self.label_smoothing)
        if self.distillation == 0.0 or batch.teacher is None:
            return plain
        student = functional.log_softmax(outputs / self.temperature, dim=1)
        teacher = functional.log_softmax(batch.teacher / self.temperature, dim=1)
        apart = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1.0 - self.distillation) * plain + self.distillation * self.temperature**2 * apart
