"""What an array supply at its limit means for a run: off, a rest, on again, and an end after too many times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from labrig.config import RigConfig
from labrig.rig_faults import SUPPLY_COMPLIANCE
from labrig_drivers.errors import PlanAbortedError
from labrig_drivers.source_meter import Reading
from labrig_drivers.wording import counted

# A supply that has fed the board for so long without reaching its limit is well again.
_WELL_AFTER_S: Final = 5.0


class ComplianceWatch:
    """Counts how often in a row the array supply reached its limit, and when it may be tried again.

    Args:
        name: Name of the condition in the rig file.
        supply: Name of the array supply.
        retry_s: How long in s the supply stays off.
        retries: How often in a row it is tried again.
        advice: Where its limit stands, for the person who looks.
        clock: A clock in s that never goes back.
    """

    def __init__(
        self,
        name: str,
        supply: str,
        retry_s: float,
        retries: int,
        advice: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._supply = supply
        self._retry_s = retry_s
        self._retries = retries
        self._advice = advice
        self._clock = clock
        self._on_since_s = clock()
        self._off_until_s: float | None = None
        self._failed = 0
        self._reading: Reading | None = None
        # For whoever waits for it.
        self.reached = asyncio.Event()

    @classmethod
    def of_rig(cls, config: RigConfig) -> ComplianceWatch | None:
        """The watch that a rig file asks for; None where it asks for none."""
        found = [(name, one) for name, one in config.conditions.items() if one.reads == SUPPLY_COMPLIANCE]
        supplies = [name for name, meter in config.source_meters.items() if meter.role == "array-supply"]
        if not found or not supplies:
            return None
        (name, condition), supply = found[0], supplies[0]
        key = f"source_meters.{supply}.limit_current_a"
        limit_a = config.source_meters[supply].limit_current_a
        advice = f"{key} = {limit_a} A ({config.locate(key)})"
        return cls(name, supply, condition.retry_s, condition.retries, advice)

    def note(self, reading: Reading) -> None:
        """Takes a reading of the supply at its limit."""
        self._reading = reading
        self.reached.set()

    def reason(self) -> str | None:
        """What speaks against the next request; None where nothing does."""
        if self._reading is None:
            return None
        if self._off_until_s is None:
            return f"{self._name}: the array supply is at its limit ({_said(self._reading)})"
        rest_s = self._off_until_s - self._clock()
        return f"{self._name}: the array supply rests for {rest_s:.3g} s more" if rest_s > 0.0 else None

    def switched_off(self) -> None:
        """Begins the rest of a supply that reached its limit and is off now; nothing for any other.

        Raises:
            PlanAbortedError: It has been tried often enough.
        """
        if self._reading is None or self._off_until_s is not None:
            return
        if self._clock() - self._on_since_s >= max(_WELL_AFTER_S, self._retry_s):
            self._failed = 0
        self._failed += 1
        if self._failed > self._retries:
            retries = counted(self._retries, "retry", "retries")
            raise PlanAbortedError(
                f"{self._name}: the array supply {self._supply!r} was at its limit ({_said(self._reading)}), also "
                f"after {retries}; it is off now. Look for a short on the chip, the board and its wires, "
                f"and whether {self._advice} is enough for this plan"
            )
        self._off_until_s = self._clock() + self._retry_s

    def switched_on(self) -> None:
        """Begins anew with a supply that is on."""
        self._reading = self._off_until_s = None
        self.reached.clear()
        self._on_since_s = self._clock()


def _said(reading: Reading) -> str:
    return f"{reading.voltage_v:.4g} V, {reading.current_a:.4g} A"
