"""Sequences for a recurrent network to learn: NARMA-10, the Mackey-Glass series, and digits row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig.training.datasets import load_digits

WASH_OUT = 20
"""Steps at the beginning of a series that do not count: a state has to forget where it began."""

_OUT_OF_STEP = 50


@dataclass(frozen=True)
class Amount:
    """How much there is.

    Attributes:
        series: Series to train on, and as many to judge by.
        length: Values of a series that count.
        digits: Digits to train on, and to judge by.
    """

    series: int
    length: int
    digits: int


@dataclass(frozen=True)
class Sequences:
    """Inputs `[sequences, time, inputs]` and what has to come out, `[sequences, time or 1, outputs]`, in two parts.

    Attributes:
        name: Of the task.
        train_x: Inputs to train on.
        train_y: What has to come out.
        test_x: Inputs to judge by.
        test_y: What has to come out.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classified(self) -> bool:
        """Whether one answer at the end counts, not one after each input."""
        return self.train_y.shape[1] == 1


def narma10(amount: Amount, generator: torch.Generator) -> Sequences:
    """y(t+1) = 0.3 y(t) + 0.05 y(t) (y(t) + ... + y(t-9)) + 1.5 u(t-9) u(t) + 0.1, u uniform in 0 ... 0.5."""
    count, length = 2 * amount.series, amount.length + WASH_OUT
    u = 0.5 * torch.rand((count, length), generator=generator, dtype=torch.float64)
    y = torch.zeros((count, length), dtype=torch.float64)
    for t in range(length - 1):
        recent = y[:, max(0, t - 9) : t + 1].sum(dim=1)
        earlier = u[:, t - 9] if t >= 9 else torch.zeros(count, dtype=torch.float64)
        # As is usual, a sequence that runs away is held at one.
        y[:, t + 1] = (0.3 * y[:, t] + 0.05 * y[:, t] * recent + 1.5 * earlier * u[:, t] + 0.1).clamp(max=1.0)
    x, target = (4.0 * u[:, :-1, None] - 1.0).float(), y[:, 1:, None].float()
    return Sequences(
        "NARMA-10", x[: amount.series], target[: amount.series], x[amount.series :], target[amount.series :]
    )


def mackey_glass(amount: Amount, generator: torch.Generator) -> Sequences:
    """dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x by steps of 0.1, read every 3; six readings ahead."""
    count, length, ahead, every, delay = 2 * amount.series, amount.length + WASH_OUT, 6, 30, 170
    history = [1.2 + 0.2 * (torch.rand(count, generator=generator, dtype=torch.float64) - 0.5)] * (delay + 1)
    for _ in range((length + ahead + _OUT_OF_STEP + 60) * every):
        now, then = history[-1], history[-1 - delay]
        history.append(now + 0.1 * (0.2 * then / (1.0 + then**10) - 0.1 * now))
    # The first sixty readings are those of the transient.
    read = torch.stack(history[delay + 1 + 60 * every :: every], dim=1)
    # Each begins elsewhere, or all would be in step.
    first = torch.randint(_OUT_OF_STEP, (count, 1), generator=generator)
    series = read.gather(1, first + torch.arange(length + ahead))
    scaled = ((series - 0.93) / 0.23).float()[..., None]
    x, target = scaled[:, :length], scaled[:, ahead : length + ahead]
    return Sequences(
        "Mackey-Glass", x[: amount.series], target[: amount.series], x[amount.series :], target[amount.series :]
    )


def digit_rows(amount: Amount, generator: torch.Generator) -> Sequences:
    """8 x 8 digits, one row of pixels from -1 to 1 after another; which digit it is is asked at the end."""
    data = load_digits()
    chosen = torch.randperm(len(data.train_y), generator=generator)[: amount.digits]
    parts = (
        (data.train_x[chosen], data.train_y[chosen]),
        (data.test_x[: amount.digits], data.test_y[: amount.digits]),
    )
    (train_x, train_y), (test_x, test_y) = (
        (2.0 * x.reshape(-1, 8, 8) - 1.0, nn.functional.one_hot(y, 10).float()[:, None]) for x, y in parts
    )
    return Sequences("digits by rows", train_x, train_y, test_x, test_y)
