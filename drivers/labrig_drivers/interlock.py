"""An interlock that an instrument reads: a door, a lid, an emergency stop, an output-enable line."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class InterlockInput(Protocol):
    """An instrument that reads an interlock; a source-meter's or a board's driver may keep this beside its contract."""

    async def interlock_closed(self) -> bool:
        """Asks whether the interlock is closed, so that outputs may be on. Changes nothing.

        Raises:
            CapabilityError: This model has no such line, or cannot tell.
            LinkError: It cannot be asked, which a careful caller takes for open.
            StateError: Not open.
        """
        ...
