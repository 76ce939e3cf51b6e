"""What stays the same between two writes of a layer's arrays, or as long as the chip does: the numbers drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labrig_surrogates.draws import DrawStream
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.quantization import wide


class WriteMemory:
    """The numbers of one layer that belong to a write or to the chip, and the age of the write.

    Args:
        stream: Where new numbers come from.
    """

    def __init__(self, stream: DrawStream) -> None:
        self._stream = stream
        self._of_write: dict[str, Tensor] = {}
        self._of_chip: dict[str, Tensor] = {}
        self._carried: dict[str, tuple[float, Tensor]] = {}
        self.age_s = 0.0

    def forget_write(self) -> None:
        """Begins a new write, of age zero."""
        self._of_write.clear()
        self._carried.clear()
        self.age_s = 0.0

    def forget_chip(self) -> None:
        """Begins with another chip; what was written stays until `forget_write`."""
        self._of_chip.clear()

    def of_write(self, like: Tensor) -> Callable[[str, Sequence[int]], Tensor]:
        """Standard normal numbers of a shape that stay until the next write, by name, of the type of `like`."""
        return self._keep(like, self._of_write)

    def of_chip(self, like: Tensor) -> Callable[[str, Sequence[int]], Tensor]:
        """The same that stay until the next chip."""
        return self._keep(like, self._of_chip)

    def _keep(self, like: Tensor, where: dict[str, Tensor]) -> Callable[[str, Sequence[int]], Tensor]:
        def kept(name: str, shape: Sequence[int]) -> Tensor:
            values = wide(like.detach())
            found = where.get(name)
            if found is None or found.shape != tuple(shape):
                # What an evaluation in inference mode draws first is trained with later.
                with torch.inference_mode(mode=False), torch.no_grad():
                    found = where[name] = self._stream.normal(shape, values).tensor()
            return found.to(values)

        return kept

    def carried(self, name: str, begin: Callable[[], Tensor], go_on: Callable[[Tensor, float], Tensor]) -> Tensor:
        """A state that goes on with the age; see `labrig_surrogates.analog_effects.Carry`.

        Raises:
            SurrogateError: The age is before the one at which it was last asked for.
        """
        if name not in self._carried:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._carried[name] = (self.age_s, begin())
        last_s, state = self._carried[name]
        if self.age_s < last_s:
            raise SurrogateError(
                f"noise with a memory cannot go back from an age of {last_s} s to {self.age_s} s: ages have to rise "
                "from one write to the next; `new_write` begins anew"
            )
        if self.age_s > last_s:
            with torch.inference_mode(mode=False), torch.no_grad():
                state = go_on(state, self.age_s - last_s)
            self._carried[name] = (self.age_s, state)
        return state
