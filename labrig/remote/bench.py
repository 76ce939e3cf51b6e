"""The instruments of a rig as they are offered: opened and made safe one by one, behind the envelope of the rig."""

from __future__ import annotations

import asyncio
from typing import Final

from labrig.remote.board_verbs import BOARD_VERBS, Outcome, board_card
from labrig.remote.messages import Request, Values
from labrig.remote.meter_verbs import METER_VERBS, meter_card
from labrig.rig import BOARD_NAME, Rig
from labrig_drivers.errors import CapabilityError, StateError
from labrig_drivers.instrument import Instrument
from labrig_drivers.settling import undivided

OPEN: Final = "open"
CLOSE: Final = "close"


class ServedBench:
    """The board and the source-meters of an open rig.

    A client that opens an instrument finds it open already, or has it opened; one that closes it has it made safe by
    the instrument's own `close()`, so that what is safe is written in one place.

    Args:
        rig: The rig, open. It belongs to whoever opened it.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._open = {BOARD_NAME, *rig.source_meters}

    @property
    def names(self) -> tuple[str, ...]:
        """The instruments, the board first."""
        return (BOARD_NAME, *self._rig.source_meters)

    async def carry_out(self, request: Request) -> Outcome:
        """Does what a request says.

        Raises:
            CapabilityError: There is no such instrument, or it has no such verb.
            StateError: The instrument is closed.
            LabrigError: What the instrument raises.
        """
        name = request.instrument
        if name not in self.names:
            raise CapabilityError(f"this rig has no instrument {name!r}; it has {', '.join(self.names)}")
        if request.verb == OPEN:
            return Outcome(await self._opened(name))
        if request.verb == CLOSE:
            await self.close(name)
            return Outcome()
        if name not in self._open:
            raise StateError(f"{name} is not open; use `async with` or call open() first")
        await self._rig.keep_watch()
        if name == BOARD_NAME:
            if request.verb in BOARD_VERBS:
                return await BOARD_VERBS[request.verb](self._rig.board, request)
        elif request.verb in METER_VERBS:
            return await METER_VERBS[request.verb](self._rig.source_meters[name], request)
        raise CapabilityError(f"{name} has no verb {request.verb!r} that could be used from another machine")

    async def close(self, name: str) -> None:
        """Makes one instrument safe; harmless when it is."""
        # Before, and not after: one that failed to close has to be closed again by whoever looks after it.
        await undivided(self._instrument(name).close())
        self._open.discard(name)

    async def make_safe(self) -> dict[str, BaseException]:
        """Makes all of them safe: source-meters first, as a board is safe only when nothing feeds it.

        Returns:
            What went wrong, by instrument.
        """
        meters = [name for name in self.names if name != BOARD_NAME]
        failures: dict[str, BaseException] = {}
        for group in (meters, [BOARD_NAME]):
            results = await asyncio.gather(*(self.close(name) for name in group), return_exceptions=True)
            failures |= {
                name: result for name, result in zip(group, results, strict=True) if isinstance(result, BaseException)
            }
        return failures

    async def _opened(self, name: str) -> Values:
        instrument = self._instrument(name)
        if name not in self._open:
            await undivided(instrument.open())
            self._open.add(name)
        return board_card(self._rig.board) if name == BOARD_NAME else meter_card(self._rig.source_meters[name])

    def _instrument(self, name: str) -> Instrument:
        return self._rig.board if name == BOARD_NAME else self._rig.source_meters[name]
