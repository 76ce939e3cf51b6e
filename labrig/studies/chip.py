"""A chip for studies: the simulated one by default, or that of any rig file, called from ordinary code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

from torch import Tensor, nn

from labrig.placement import geometry_of, plan_placement
from labrig.portal import LoopPortal
from labrig.rig import open_rig
from labrig.studies.running import Report, StudySettings
from labrig.training.deployment import analog_copy, observed_inputs, set_quantile_ranges
from labrig.training.ledger import Ledger
from labrig.training.physical import PhysicalBackend
from labrig_drivers.capabilities import TRANSPOSED_MVM, TransposedMvm, require_capability
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard, FloatArray, MvmResult, ProgramReport
from labrig_drivers.mock.board import MOCK_CAPABILITIES, MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.backend import DigitalBackend
from labrig_surrogates.layers import set_backend

T = TypeVar("T")


class StudyChip:
    """An open board. Use as `with StudyChip(None, ChipSettings(arrays=4)) as chip:`; it is made safe at the end.

    Args:
        rig: A rig file; None for the simulated chip.
        simulated: What the simulated chip is made of.
    """

    def __init__(self, rig: Path | None, simulated: ChipSettings) -> None:
        self._rig = rig
        self._simulated = simulated
        self._portal = LoopPortal()
        self._stack = AsyncExitStack()
        self._board: CrossbarBoard | None = None

    def __enter__(self) -> Self:
        self._portal.__enter__()
        try:
            self._board = self._portal.call(self._open())
        except BaseException:
            self._portal.call(self._stack.aclose())
            self._portal.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self._portal.call(self._stack.aclose())
        finally:
            self._portal.__exit__(None, None, None)

    @property
    def info(self) -> BoardInfo:
        """What the board says of itself."""
        return self._opened().info

    @property
    def name(self) -> str:
        """For the conditions of a study."""
        where = "simulated in this process" if self._rig is None else f"rig {self._rig.name}"
        info = self.info
        return f"chip {info.chip_id}, {where}, {info.arrays} arrays of {info.rows} x {info.columns}"

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """Programs one array."""
        return self._portal.call(self._opened().program(array, conductance_s))

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch."""
        return self._portal.call(self._opened().mvm(array, voltage_v))

    def mvm_transposed(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """Measures one batch from the bit lines to the word lines.

        Raises:
            CapabilityError: The board cannot be driven from its bit lines.
        """
        board = self._opened()
        require_capability(board.info, TRANSPOSED_MVM)
        return self._portal.call(cast(TransposedMvm, board).mvm_transposed(array, voltage_v))

    def carry(self, digital: nn.Module, example: Tensor) -> tuple[nn.Module, PhysicalBackend]:
        """Puts a digital model on the arrays.

        Args:
            digital: The model; stays as it is.
            example: Inputs of the model, whose largest activations use the full range of voltages.

        Returns:
            The model on the chip, and its backend, whose ledger counts what it costs. Gradients are those of ideal
            arrays at the measured points.

        Raises:
            ConfigError: It does not fit on the board.
            SurrogateError: A layer has no analog form.
        """
        analog = analog_copy(digital, geometry_of(self.info))
        set_quantile_ranges(analog, observed_inputs(analog, example), 1.0, 1.0)
        placement = plan_placement(analog, self.info, example, time_multiplexed=False)
        backend = PhysicalBackend(self, DigitalBackend(), placement.arrays, Ledger())
        set_backend(analog, backend)
        return analog, backend

    async def _open(self) -> CrossbarBoard:
        if self._rig is None:
            board = MockBoard(self._simulated, capabilities=MOCK_CAPABILITIES)
            return await self._stack.enter_async_context(board)
        rig = await self._stack.enter_async_context(open_rig(self._rig))
        await self._stack.enter_async_context(rig.powered())
        return rig.board

    def _opened(self) -> CrossbarBoard:
        assert self._board is not None, "use StudyChip as a context manager"
        return self._board


def on_each_chip(
    settings: StudySettings,
    report: Report,
    simulated: Callable[[int], ChipSettings],
    one: Callable[[int, StudyChip], T],
) -> tuple[list[T], str]:
    """Repeats a study on a chip for each seed.

    Args:
        settings: Which seeds, and which rig.
        report: Told after each.
        simulated: The simulated chip of a seed.
        one: The study of one seed on its chip.

    Returns:
        What each seed gave, and the name of the last chip.

    Raises:
        LabrigError: The rig failed.
    """
    found, name = list[T](), ""
    for number, seed in enumerate(settings.all_seeds):
        report("seeds", number, settings.seeds)
        with StudyChip(settings.rig, simulated(seed)) as chip:
            name = chip.name
            found.append(one(seed, chip))
    report("seeds", settings.seeds, settings.seeds)
    return found, name
