"""Cells that do not follow what is programmed: stuck at the lowest level, at the highest, or anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights
from labrig_surrogates.cell_pairs import WeightCells
from labrig_surrogates.faults import refuse


@dataclass(frozen=True)
class StuckCells:
    """Stuck cells at random places, which belong to the chip: an entry of `AnalogConfig.weight_effects`.

    The places stay the same over all writes, until `new_chip`; noise that comes later in the list acts on stuck cells
    too. `noise_off` leaves them where they are: they are no noise.

    Attributes:
        off: Fraction of cells stuck at the lowest conductance.
        on: Fraction of cells stuck at the highest.
        between: Fraction of cells stuck at one of `levels`.
        levels: Measured values of stuck cells, relative to the range of conductances, 0 to 1; each is as likely.
            Without any, every level is.

    Raises:
        SurrogateError: A value is no fraction, or there are more stuck cells than cells; every fault is named.
    """

    off: float = 0.0
    on: float = 0.0
    between: float = 0.0
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        named = {"off": self.off, "on": self.on, "between": self.between}
        faults = [f"{name} = {value} is no fraction of cells" for name, value in named.items() if not 0 <= value <= 1]
        faults += (
            [f"{sum(named.values()):g} of all cells are stuck, more than 1"]
            if not faults and sum(named.values()) > 1
            else []
        )
        faults += [f"level {one} lies outside of 0 to 1" for one in self.levels if not 0 <= one <= 1]
        faults += ["levels need a fraction `between`"] if self.levels and not self.between else []
        refuse("stuck cells", faults)

    @property
    def fresh_at_read(self) -> bool:
        """False: stuck is stuck."""
        return False

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        """The cells with the stuck ones among them."""
        return cells.changed(lambda name, level: self._stick(name, level, known))

    def _stick(self, name: str, level: Tensor, known: ProgrammedWeights) -> Tensor:
        fate = torch.special.ndtr(known.of_chip(f"stuck {name}", level.shape))
        level = torch.where(fate < self.off, torch.zeros_like(level), level)
        level = torch.where((fate >= self.off) & (fate < self.off + self.on), torch.ones_like(level), level)
        if not self.between:
            return level
        anywhere = torch.special.ndtr(known.of_chip(f"level of stuck {name}", level.shape))
        if self.levels:
            table = torch.tensor(self.levels, dtype=level.dtype, device=level.device)
            anywhere = table[(anywhere * len(table)).long().clamp(max=len(table) - 1)]
        first = self.off + self.on
        return torch.where((fate >= first) & (fate < first + self.between), anywhere, level)
