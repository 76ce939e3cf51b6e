"""Noise of cells with a memory: 1/f noise and telegraph noise that go on as a write gets older (`set_age`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from labrig_surrogates.analog_effects import ProgrammedWeights
from labrig_surrogates.cell_pairs import WeightCells
from labrig_surrogates.faults import refuse, value_faults
from labrig_surrogates.noise_traces import Flicker, Telegraph


@dataclass(frozen=True)
class CellTrace:
    """Puts a trace of noise on every cell: an entry of `AnalogConfig.weight_effects`.

    Every cell has a trace of its own, which begins in equilibrium at a write and is moved on, exactly for any step, by
    `set_age`; between two ages it stands still. Ages have to rise from one write to the next.

    Attributes:
        law: 1/f noise between two frequencies, or a trap that is full or empty.
        relative_to: What the law's amplitude is a part of: the `cell`'s own level, or the whole `range`.

    Raises:
        SurrogateError: `relative_to` is another word.
    """

    law: Flicker | Telegraph
    relative_to: Literal["cell", "range"] = "cell"

    def __post_init__(self) -> None:
        refuse("trace of noise", value_faults(self))

    @property
    def fresh_at_read(self) -> bool:
        """False: it changes with the age only."""
        return False

    @property
    def carries_state(self) -> bool:
        """True: it has to be moved on at every age."""
        return True

    def on_cells(self, cells: WeightCells, known: ProgrammedWeights) -> WeightCells:
        """The cells with what their traces are at this age."""
        if known.quiet:
            return cells
        return cells.changed(lambda name, level: self._with_trace(name, level, known))

    def _with_trace(self, name: str, level: Tensor, known: ProgrammedWeights) -> Tensor:
        law, shape = self.law, tuple(level.shape)
        state = known.carried(
            f"{law.label}, relative to the {self.relative_to}, of {name}",
            lambda: law.begin(known.fresh(law.numbers(shape))),
            lambda before, step_s: law.go_on(before, step_s, known.fresh(law.numbers(shape))),
        )
        trace = law.value(state).to(level)
        return level * (1.0 + trace) if self.relative_to == "cell" else level + trace
