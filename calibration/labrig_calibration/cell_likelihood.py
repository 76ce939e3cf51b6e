"""The likelihood of the cells of an array: what they show of their targets, their wires and their neighbours.

The model is that of `labrig_calibration.cells`: devices and programming errors are integrated out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labrig_surrogates.wire_sums import LineSums
from labrig_surrogates.wires import transfer_matrix

LAW = ("programming", "programming", "programming", "mismatch", "wire_ohm", "wire_ohm", "crosstalk")
"""Names of the shared parameters; those of a model that lacks some are left out."""
MISMATCH, WORD, BIT, CROSSTALK = 3, 4, 5, 6

# Of a hundred cells one is taken to be stuck, anywhere up to 1.3 times the highest conductance and steady within a
# hundredth of it; of a thousand one follows no story, within a third of the highest conductance around its target.
STUCK_SHARE, _STUCK_RANGE, STUCK_STEADY = 0.01, 1.3, 0.01
_WILD_SHARE, WILD_SPREAD = 0.001, 0.33
_LEAST_SIGMA = 1e-4
LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class CellData:
    """Conductances of the recorded writes, `[writes, rows, columns]` each, in S.

    Attributes:
        cells_s: Gain times conductance.
        error_s: Standard errors.
        target_s: Targets.
        highest_s: Highest programmable conductance.
        left: What drift had left of the conductances when each write was read, on average, `[writes]`. They are those
            at age zero, but what they lost in the wires is what the drifted ones lost.
    """

    cells_s: Tensor
    error_s: Tensor
    target_s: Tensor
    highest_s: float
    left: Tensor

    def first_writes(self, count: int) -> CellData:
        """Only the first writes."""
        return replace(
            self,
            cells_s=self.cells_s[:count],
            error_s=self.error_s[:count],
            target_s=self.target_s[:count],
            left=self.left[:count],
        )


@dataclass(frozen=True)
class CellModel:
    """Which parts of the model are fitted.

    Attributes:
        pattern: Fixed pattern, stuck and wild cells.
        wires: Wire resistance.
        crosstalk: Crosstalk of neighbouring columns.
        exact: Whether the network of wires is solved exactly.
    """

    pattern: bool = True
    wires: bool = True
    crosstalk: bool = True
    exact: bool = False

    @property
    def law(self) -> tuple[int, ...]:
        """Indices into `LAW` of what is fitted."""
        extra = [MISMATCH] * self.pattern + [WORD, BIT] * self.wires + [CROSSTALK] * self.crosstalk
        return (0, 1, 2, *extra)


@dataclass(frozen=True)
class View:
    """Cells in units of their column's gain, with what is held fixed while the law is fitted.

    Attributes:
        y: Conductances in S, error and target beside them.
        word: Sum of wire segments times conductances along the word line, in S: `d = ohm * word`.
        bit: Along the bit line.
        share: What the wires pass, as solved at `origin`, over its first order there.
        neighbours: Sum of the conductances of both neighbours in S.
    """

    y: Tensor
    error: Tensor
    target: Tensor
    word: Tensor
    bit: Tensor
    share: Tensor
    neighbours: Tensor
    highest_s: float

    def of_columns(self, every: int) -> View:
        """Every so many-th column of the same view; wires and neighbours stay those of the whole array."""
        if every == 1:
            return self
        return replace(
            self,
            y=self.y[..., ::every],
            error=self.error[..., ::every],
            target=self.target[..., ::every],
            word=self.word[..., ::every],
            bit=self.bit[..., ::every],
            share=self.share[..., ::every],
            neighbours=self.neighbours[..., ::every],
        )


def sigma_s(law: Tensor, target_s: Tensor, highest_s: float) -> Tensor:
    """Standard deviation in S of the programming error at each target."""
    relative = target_s / highest_s
    return highest_s * torch.clamp(law[0] + law[1] * relative + law[2] * relative**2, min=_LEAST_SIGMA)


def neighbour_sum(cells: Tensor) -> Tensor:
    """Sum over the columns to the left and right of each cell, `[..., rows, columns]`."""
    both = torch.zeros_like(cells)
    both[..., 1:] += cells[..., :-1]
    both[..., :-1] += cells[..., 1:]
    return both


def line_sums(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Segments times conductances along word and bit lines, `[writes, rows, columns]` each."""
    rows, columns = cells.shape[-2:]
    nothing = cells.new_zeros(())
    return (
        LineSums.of(columns, cells).along(cells, nothing),
        LineSums.of(rows, cells).turned().down(cells, nothing),
    )


def pass_share(cells: Tensor, left: Tensor, law: Tensor, model: CellModel) -> Tensor:
    """Share of a cell's conductance that wires let through, `[writes, rows, columns]`, with `left[writes]` of it."""
    if not model.wires or not bool((law[WORD : BIT + 1] > 0).any()):
        return torch.ones_like(cells)
    loading = left[:, None, None] * cells
    if model.exact:
        safe = loading.clamp(min=1e-3 * float(cells.abs().mean()))
        return transfer_matrix(safe, float(law[WORD]), float(law[BIT])) / safe
    word, bit = line_sums(loading)
    return 1.0 / (1.0 + law[WORD] * word + law[BIT] * bit)


def view_of(data: CellData, gain: Tensor, law: Tensor, model: CellModel) -> View:
    """The cells in units of these gains, seen behind the wires of this law."""
    y = data.cells_s / gain
    neighbours = neighbour_sum(y) if model.crosstalk else torch.zeros_like(y)
    if not model.wires:
        nothing = torch.zeros_like(y)
        return View(
            y, data.error_s / gain, data.target_s, nothing, nothing, torch.ones_like(y), neighbours, data.highest_s
        )
    # What sits in front of the wires follows from what is seen behind them, by repetition.
    seen = (y - law[CROSSTALK] * neighbours).clamp(min=0.0)
    cells = seen
    for _ in range(4):
        cells = seen / pass_share(cells, data.left, law, model)
    left = data.left[:, None, None]
    word, bit = line_sums(left * cells)
    # Of its own current a cell gets what its target says: with its own slope in both, a large slope would look like
    # a wire that passes more, and resistances would come out too low.
    rows, columns = cells.shape[-2:]
    excess = left * (data.target_s - cells)
    word = word + torch.arange(1.0, columns + 1.0, dtype=cells.dtype) * excess
    bit = bit + torch.arange(float(rows), 0.0, -1.0, dtype=cells.dtype)[:, None] * excess
    share = pass_share(cells, data.left, law, model) * (1.0 + law[WORD] * word + law[BIT] * bit)
    return View(y, data.error_s / gain, data.target_s, word, bit, share, neighbours, data.highest_s)


def following(view: View, law: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log likelihood of each cell that follows, and its parts: residual, reach f t, variance, share f.

    With the weights of the cells the gain of each column is the best one for this law, not the one it was given:
    wires and gains trade off, so that the law's errors have to know of it.
    """
    share = view.share / (1.0 + law[WORD] * view.word + law[BIT] * view.bit)
    reach = share * view.target
    residual = view.y - law[CROSSTALK] * view.neighbours - reach
    variance = (share * sigma_s(law, view.target, view.highest_s)) ** 2 + view.error**2
    information = (reach**2 / variance).sum(dim=0)
    drive = (reach * residual / variance).sum(dim=0)
    spread = law[MISMATCH] ** 2
    if weight is not None:
        part = weight / (1.0 + spread * information)
        step = (part * drive).sum(dim=0) / (part * information).sum(dim=0).clamp(min=1e-300)
        residual = residual - step * reach
        drive = drive - step * information
    square = (residual**2 / variance).sum(dim=0) - spread * drive**2 / (1.0 + spread * information)
    volume = torch.log(variance).sum(dim=0) + torch.log1p(spread * information)
    likelihood = -0.5 * (square + volume + view.y.shape[0] * LOG_2PI)
    return likelihood, residual, reach, variance, share


def _others(view: View, law: Tensor) -> tuple[Tensor, Tensor]:
    """Log likelihoods, shares included, of cells that are stuck at a constant and of those that follow no story."""
    share = view.share / (1.0 + law[WORD] * view.word + law[BIT] * view.bit)
    level = (view.y - law[CROSSTALK] * view.neighbours) / share
    variance = (view.error / share) ** 2 + (STUCK_STEADY * view.highest_s) ** 2
    precision = (1.0 / variance).sum(dim=0)
    centre = (level / variance).sum(dim=0) / precision
    writes = view.y.shape[0]
    stuck = -0.5 * (((level - centre) ** 2 / variance).sum(dim=0) + torch.log(variance).sum(dim=0) + writes * LOG_2PI)
    stuck = stuck + 0.5 * (LOG_2PI - torch.log(precision)) - math.log(_STUCK_RANGE * view.highest_s)
    wide = (WILD_SPREAD * view.highest_s) ** 2 + view.error**2
    wild = -0.5 * ((view.y - view.target) ** 2 / wide + torch.log(wide) + LOG_2PI).sum(dim=0)
    return stuck + math.log(STUCK_SHARE), wild + math.log(_WILD_SHARE)


def mixture(view: View, law: Tensor, model: CellModel, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log likelihood of each cell, and the probabilities that it follows, is stuck, is wild: `[3, rows, columns]`."""
    follows = following(view, law, weight)[0]
    if not model.pattern:
        return follows, torch.stack([torch.ones_like(follows), torch.zeros_like(follows), torch.zeros_like(follows)])
    stories = torch.stack([follows + math.log(1.0 - STUCK_SHARE - _WILD_SHARE), *_others(view, law)])
    return torch.logsumexp(stories, dim=0), torch.softmax(stories, dim=0)
