"""A chip for studies: the simulated one by default, or that of any rig file, called from ordinary code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from labrig.placement import geometry_of, plan_placement
from labrig.portal import LoopPortal
from labrig.portal_board import PortalBoard
from labrig.rig import open_rig
from labrig.training.deployment import analog_copy, observed_inputs, set_quantile_ranges
from labrig.training.ledger import Ledger
from labrig.training.physical import PhysicalBackend
from labrig_drivers.capabilities import TRANSPOSED_MVM
from labrig_drivers.crossbar import BoardInfo, CrossbarBoard
from labrig_drivers.mock.board import MOCK_CAPABILITIES, MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.wording import counted
from labrig_surrogates.backend import DigitalBackend
from labrig_surrogates.layers import set_backend


@dataclass(frozen=True)
class StudyChip:
    """An open board.

    Attributes:
        board: Programs and measures.
        info: What the board says of itself.
        where: Where it is, for the conditions of a study.
    """

    board: PortalBoard
    info: BoardInfo
    where: str

    @property
    def name(self) -> str:
        """For the conditions of a study."""
        info = self.info
        return f"chip {info.chip_id}, {self.where}, {counted(info.arrays, 'array')} of {info.rows} x {info.columns}"

    @property
    def two_sided(self) -> bool:
        """Whether its cells can be read from their bit lines too."""
        return TRANSPOSED_MVM in self.info.capabilities

    def carry(self, digital: nn.Module, example: Tensor) -> tuple[nn.Module, PhysicalBackend]:
        """Puts a digital model on the arrays, from the first one on.

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
        backend = PhysicalBackend(self.board, DigitalBackend(), placement.arrays, Ledger())
        set_backend(analog, backend)
        return analog, backend


@contextmanager
def open_chip(rig: Path | None, simulated: ChipSettings) -> Iterator[StudyChip]:
    """Opens a chip, and makes it safe at the end.

    Args:
        rig: A rig file; None for the simulated chip.
        simulated: What the simulated chip is made of.

    Raises:
        LabrigError: The rig cannot be opened.
    """
    with LoopPortal() as portal:
        stack = AsyncExitStack()
        try:
            board = portal.call(_opened(stack, rig, simulated))
            where = "simulated in this process" if rig is None else f"rig {rig.name}"
            yield StudyChip(PortalBoard(portal, board), board.info, where)
        finally:
            portal.call(stack.aclose())


async def _opened(stack: AsyncExitStack, rig: Path | None, simulated: ChipSettings) -> CrossbarBoard:
    if rig is None:
        return await stack.enter_async_context(MockBoard(simulated, capabilities=MOCK_CAPABILITIES))
    opened = await stack.enter_async_context(open_rig(rig))
    await stack.enter_async_context(opened.powered())
    return opened.board


def without_noise(settings: ChipSettings) -> ChipSettings:
    """The same simulated chip, every read of which is equal."""
    return replace(settings, amplifier_noise_a=0.0, shot_noise_a=0.0, conductance_noise=0.0)


def without_drift(settings: ChipSettings) -> ChipSettings:
    """The same simulated chip with cells that keep what was written."""
    return replace(settings, drift_exponent=0.0, drift_exponent_sigma=0.0)
