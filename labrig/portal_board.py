"""An open board that lives in an event loop, for ordinary blocking code."""

from __future__ import annotations

from typing import cast

from labrig.portal import LoopPortal, PendingCall
from labrig_drivers.capabilities import TRANSPOSED_MVM, TransposedMvm, require_capability
from labrig_drivers.crossbar import CrossbarBoard, FloatArray, MvmResult, ProgramReport


class PortalBoard:
    """What a physical backend asks, without a recording.

    Args:
        portal: Runs the loop that the board belongs to.
        board: The board.
    """

    def __init__(self, portal: LoopPortal, board: CrossbarBoard) -> None:
        self._portal, self._board = portal, board

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array."""
        return self._portal.call(self._board.program(array, conductance_s))

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch."""
        return self._portal.call(self._board.mvm(array, voltage_v))

    def begin_mvm(self, array: int, voltage_v: FloatArray) -> PendingCall[MvmResult]:
        """Has one batch measured while the caller computes."""
        return self._portal.begin(self._board.mvm(array, voltage_v))

    def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch from the bit lines to the word lines.

        Raises:
            CapabilityError: The board cannot be driven from its bit lines.
        """
        require_capability(self._board.info, TRANSPOSED_MVM)
        return self._portal.call(cast(TransposedMvm, self._board).mvm_transposed(array, voltage_v))
