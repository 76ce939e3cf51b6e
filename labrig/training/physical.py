"""The physical backend: forward on the chip, gradient from the surrogate.

Physics-aware training (Wright et al., Nature 601, 2022): the value of every product is the measured one, and its
vector-Jacobian product is that of the noiseless surrogate at the measured inputs. In one line of autograd this is
`mean + (measured - mean).detach()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig.training.ledger import Ledger
from labrig_drivers.crossbar import MvmResult, ProgramReport
from labrig_surrogates.backend import SurrogateBackend, TileName

FloatArray = NDArray[np.float64]


class BlockingBoard(Protocol):
    """A crossbar board called from ordinary code; whoever makes one decides what is recorded."""

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array."""
        ...

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch."""
        ...


class PhysicalBackend:
    """Asks the chip for every product and programs an array whenever its target changed.

    Args:
        board: The chip.
        surrogate: Lends its gradient.
        placement: Array of every tile.
        ledger: Account that the passes and writes go to.
    """

    def __init__(
        self,
        board: BlockingBoard,
        surrogate: SurrogateBackend,
        placement: Mapping[TileName, int],
        ledger: Ledger,
    ) -> None:
        self._board = board
        self._surrogate = surrogate
        self._placement = placement
        self.ledger = ledger
        self._held: dict[int, FloatArray] = {}

    def new_write(self) -> None:
        """Has every array programmed anew at its next use, also where the target is the same."""
        self._held.clear()

    def currents(self, tile: TileName, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        """Measured column currents that carry the surrogate's gradient; see `Backend.currents`."""
        array = self._placement[tile]
        target = target_s.detach().double().numpy()
        held = self._held.get(array)
        if held is None or not np.array_equal(held, target):
            self._held.pop(array, None)
            self._board.program(array, target)
            self._held[array] = target
            self.ledger.writes += 1
        result = self._board.mvm(array, voltage_v.detach().double().numpy())
        self.ledger.mvms += voltage_v.shape[0]
        measured = torch.as_tensor(result.current_a, dtype=voltage_v.dtype)
        if not (target_s.requires_grad or voltage_v.requires_grad):
            return measured
        mean = self._surrogate.mean_currents(tile, target_s, voltage_v)
        return mean + (measured - mean).detach()
