"""The physical backend: forward on the chip, gradient from the surrogate.

Physics-aware training (Wright et al., Nature 601, 2022): the value of every product is the measured one, and its
vector-Jacobian product is that of the noiseless surrogate at the measured inputs. In one line of autograd this is
`mean + (measured - mean).detach()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig.training.ledger import Ledger
from labrig.training.writing import Wear, WriteRule
from labrig_drivers.crossbar import MvmResult, ProgramReport
from labrig_surrogates.backend import MeanBackend, TileName

FloatArray = NDArray[np.float64]


class BlockingBoard(Protocol):
    """A crossbar board called from ordinary code; whoever makes one decides what is recorded."""

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array."""
        ...

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch."""
        ...


class PendingMvm(Protocol):
    """A batch that a board is busy with."""

    def result(self) -> MvmResult:
        """Its answer; waits for it."""
        ...

    def abandon(self) -> None:
        """Stops it, and waits until it has stopped; an answer that is there is dropped."""
        ...


@runtime_checkable
class AheadBoard(BlockingBoard, Protocol):
    """A board that measures while its caller computes."""

    def begin_mvm(self, array: int, voltage_v: FloatArray) -> PendingMvm:
        """Has one batch measured; whoever began it asks for its result or abandons it."""
        ...


@dataclass(frozen=True)
class Held:
    """What is on an array.

    Attributes:
        commanded_s: Targets in S of the last programming, `[rows, columns]`.
        time_s: Board clock in s at its end.
    """

    commanded_s: FloatArray
    time_s: float


@dataclass(frozen=True)
class Observation:
    """One measured batch, as those see it who learn from it.

    Attributes:
        tile: Which tile; None for vectors that no layer asked for.
        array: Its array.
        held: What was on the array.
        voltage_v: Inputs in V, `[batch, rows]`.
        result: What the board answered.
    """

    tile: TileName | None
    array: int
    held: Held
    voltage_v: FloatArray
    result: MvmResult


@dataclass
class _Kept:
    """What was measured and is kept back, for later."""

    observations: list[Observation] = field(default_factory=list)
    gaps: dict[TileName, float] = field(default_factory=dict)


class PhysicalBackend:
    """Asks the chip for every product and programs an array whenever its target changed.

    Args:
        board: The chip.
        gradient: Lends its gradient.
        placement: Array of every tile.
        ledger: Account that the passes and writes go to.
        rule: Which changes are written.

    Attributes:
        board: The chip; another connection to it may be put in its place.
        gradient: Lends its gradient; another model may be put in its place.
        held: What is on each array, by what this backend wrote.
        wear: Writes of each cell.
        observers: Called with every measured batch.
        gaps: Root mean square of measured less modelled over that of the measured, of each tile's last pass.
        launches: Called before each pass that goes on while its caller does something else, and before whatever else
            is kept back until all of it is there.
    """

    def __init__(
        self,
        board: BlockingBoard,
        gradient: MeanBackend,
        placement: Mapping[TileName, int],
        ledger: Ledger,
        *,
        rule: WriteRule | None = None,
    ) -> None:
        self.board = board
        self.gradient = gradient
        self.placement = placement
        self.ledger = ledger
        self.held: dict[int, Held] = {}
        self.wear = Wear()
        self.observers: list[Callable[[Observation], None]] = []
        self.gaps: dict[TileName, float] = {}
        self.launches: list[Callable[[], None]] = []
        self._rule = rule or WriteRule()
        self._kept: _Kept | None = None

    @property
    def holding(self) -> bool:
        """Whether what is measured is kept back, because not all of it is there."""
        return self._kept is not None

    def hold_back(self) -> None:
        """Keeps back what is measured from now on, so that observers hear of it when their own thread wants to.

        What an earlier pass measured and nobody had delivered, because it failed, is forgotten.
        """
        for one in self.launches:
            one()
        self._kept = _Kept()

    def forget(self) -> None:
        """Keeps back nothing any more; observers never hear of what was kept back, because the rest of it failed."""
        self._kept = None

    def deliver(self) -> None:
        """Shows the observers what was kept back, and keeps back nothing any more."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        self.gaps.update(kept.gaps)
        for observation in kept.observations:
            for observer in self.observers:
                observer(observation)

    def new_write(self) -> None:
        """Has every array programmed anew at its next use, also where the target is the same."""
        self.held.clear()

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Measured column currents that carry the surrogate's gradient; see `Backend.currents`."""
        array = self.placement[tile]
        commanded_s = self._program(array, target_s.detach().double().numpy())
        asked_v = voltage_v.detach().double().numpy()
        if not torch.is_grad_enabled() or not (target_s.requires_grad or voltage_v.requires_grad):
            result = self.measure(array, asked_v, tile)
            return torch.as_tensor(result.current_a, dtype=voltage_v.dtype)
        # The gradient is taken at the commanded cells and passes straight through to the weights.
        commanded = torch.as_tensor(commanded_s, dtype=target_s.dtype)

        def modelled() -> Tensor:
            return self.gradient.mean_currents(tile, target_s + (commanded - target_s).detach(), voltage_v)

        if isinstance(self.board, AheadBoard):
            # The model's mean needs no answer of the chip: it is computed while the chip measures.
            pending = self.board.begin_mvm(array, asked_v)
            try:
                mean = modelled()
            except BaseException:
                pending.abandon()
                raise
            result = self._seen(array, asked_v, tile, pending.result())
        else:
            result = self.measure(array, asked_v, tile)
            mean = modelled()
        measured = torch.as_tensor(result.current_a, dtype=voltage_v.dtype)
        apart = (measured - mean).detach()
        gaps = self.gaps if self._kept is None else self._kept.gaps
        gaps[tile] = float(apart.square().mean().sqrt() / measured.square().mean().sqrt().clamp_min(1e-30))
        return mean + apart

    def measure(self, array: int, voltage_v: FloatArray, tile: TileName | None = None) -> MvmResult:
        """Measures a batch on what is on an array now, and shows it to the observers."""
        return self._seen(array, voltage_v, tile, self.board.mvm(array, voltage_v))

    def _seen(self, array: int, voltage_v: FloatArray, tile: TileName | None, result: MvmResult) -> MvmResult:
        self.ledger.mvms += voltage_v.shape[0]
        observation = Observation(tile, array, self.held[array], voltage_v, result)
        if self._kept is not None:
            self._kept.observations.append(observation)
            return result
        for observer in self.observers:
            observer(observation)
        return result

    def _program(self, array: int, wanted_s: FloatArray) -> FloatArray:
        before = self.held.get(array)
        held_s = None if before is None else before.commanded_s
        commanded_s = self._rule.commanded(wanted_s, held_s)
        if held_s is not None and np.array_equal(held_s, commanded_s):
            return commanded_s
        # Should the board fail, nobody knows any more what is on the array.
        self.held.pop(array, None)
        report = self.board.program(array, commanded_s)
        self.held[array] = Held(commanded_s, report.time_s)
        self.ledger.writes += 1
        self.ledger.cell_writes += self.wear.count(array, held_s, commanded_s)
        return commanded_s
