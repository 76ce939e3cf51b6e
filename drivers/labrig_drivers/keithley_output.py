"""Level and output of a Keithley 2400 while it is on: changed in ramps, and switched off whatever goes wrong."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Literal

from labrig_drivers.errors import InstrumentError, LabrigError, ProtocolError, StateError
from labrig_drivers.scpi import ScpiChannel, format_float

ScpiQuantity = Literal["VOLT", "CURR"]

# A current has no ramp rate of its own: it is ramped in this many steps, each as long as a full voltage step.
_CURRENT_RAMP_STEPS = 20
_OFF_ATTEMPTS = 2


class KeithleyOutput:
    """Ramps the level and switches the output off; the caller holds the channel exclusively.

    Args:
        channel: The instrument.
        ramp_v_per_s: Fastest change of the level in V/s.
        ramp_step_v: Largest single step of the level in V.

    Raises:
        ValueError: Ramp rate or step is not positive.
    """

    def __init__(self, channel: ScpiChannel, *, ramp_v_per_s: float, ramp_step_v: float) -> None:
        if not (ramp_v_per_s > 0.0 and ramp_step_v > 0.0):
            raise ValueError(f"ramp of {ramp_v_per_s} V/s in steps of {ramp_step_v} V: both must be positive")
        self._channel = channel
        self._step_v = ramp_step_v
        self._pause_s = ramp_step_v / ramp_v_per_s
        self._next_step_s = -math.inf

    async def ramp(self, sourced: ScpiQuantity, level: float) -> None:
        """Goes from the instrument's own level to `level` in V or A, never faster than the ramp rate.

        Raises:
            ProtocolError: The instrument's level makes no sense.
            InstrumentError: A step was refused; the level stays where it is.
            LinkError: An exchange failed.
        """
        (present,) = await self._channel.query_floats(f":SOUR:{sourced}:LEV?", count=1)
        if not math.isfinite(present):
            raise ProtocolError(f"{self._channel.name}: {present} is no source level")
        change = level - present
        step = self._step_v if sourced == "VOLT" else abs(change) / _CURRENT_RAMP_STEPS
        # A tiny part of a step less, so that rounding does not make eleven steps out of ten.
        steps = math.ceil(abs(change) / step - 1e-9) if change else 0
        for index in range(1, steps + 1):
            await asyncio.sleep(max(0.0, self._next_step_s - time.monotonic()))
            target = level if index == steps else present + change * index / steps
            await self._channel.write(f":SOUR:{sourced}:LEV {format_float(target)}")
            self._next_step_s = time.monotonic() + self._pause_s * abs(change) / (steps * step)

    async def switch_off(self) -> None:
        """Ramps to zero, switches off and asks whether it is off; each step is tried even when one failed.

        Raises:
            StateError: The output is still on, or cannot be asked: a person must switch it off.
        """
        for _ in range(_OFF_ATTEMPTS):
            # Not the same steps again: a new ramp from the level that the instrument is found at.
            if await self._ramp_down():
                break
        # Off is the one setting that may be sent again: it cannot do harm twice.
        for _ in range(_OFF_ATTEMPTS):
            if not await self._is_on_after_off():
                return
        raise StateError(self._press_off("the output is still on"))

    async def _is_on_after_off(self) -> bool:
        """Sends one `:OUTP 0` and returns whether the output is on after it."""
        try:
            await self._channel.write(":OUTP 0")
        except LabrigError:
            # Neither an error in the queue nor a lost exchange says whether it is off: the instrument is asked.
            await self._recover_if_lost()
        try:
            return await self._channel.query_flag(":OUTP?")
        except LabrigError as error:
            raise StateError(self._press_off(f"it cannot be asked whether the output is off ({error})")) from error

    async def _recover_if_lost(self) -> None:
        """Connects anew when the peer closed the connection; the channel itself recovers from everything else."""
        try:
            await self._channel.recover_if_lost()
        except LabrigError:
            # The next exchange meets the same fault and reports it, with what it means for the output.
            return

    async def _ramp_down(self) -> bool:
        """Ramps to zero if the output is on; returns whether trying again would be no use."""
        try:
            # The instrument knows what is at its terminals; what was sent to it may have been lost.
            if await self._channel.query_flag(":OUTP?"):
                function = (await self._channel.query(":SOUR:FUNC?")).strip().upper()
                await self.ramp("CURR" if function.startswith("CURR") else "VOLT", 0.0)
        except InstrumentError:
            # It refuses the level; off without a ramp is what is left.
            return True
        except LabrigError:
            await self._recover_if_lost()
            return False
        return True

    def _press_off(self, why: str) -> str:
        where = f"{self._channel.name} at {self._channel.address}"
        return f"{where}: {why}; press OUTPUT OFF on its front panel now"
