"""What `labrig check` finds out: who is there, and what protects the device under test. No output is touched."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from labrig.conditions import rig_conditions
from labrig.config import RigConfig
from labrig.rig import Rig, instrument_specs, open_rig
from labrig.run_control import Condition
from labrig.watchdog.client import Watchdog
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import LabrigError
from labrig_drivers.instrument import HostLossProtection, Identity


@dataclass(frozen=True)
class FoundAxis:
    """An axis and where it stands.

    Attributes:
        quantity: What it is.
        unit: Unit of the values.
        value: Where it stands.
        low: Lowest value that may be set.
        high: Highest value that may be set.
        safe_value: Where it goes when nobody looks after it any more; None where it stays as it is.
    """

    quantity: str
    unit: str
    value: float
    low: float
    high: float
    safe_value: float | None


@dataclass(frozen=True)
class RigSurvey:
    """What is on the bench.

    Attributes:
        identities: Who each instrument said it is, by name.
        info: The board's description.
        protection: What switches each instrument off when the host is lost, by name; None where nothing does.
            Instruments that are simulated in this process are left out.
        open_interlocks: Names of the interlocks that are open.
        watchdog_start_s: Time in s in which a watchdog process stood ready; None where nothing needs one.
        axes: The axes by name.
        conditions: What is wrong with each condition that can be looked at without feeding the board, by name; None
            where it holds.
    """

    identities: Mapping[str, Identity]
    info: BoardInfo
    protection: Mapping[str, HostLossProtection | None]
    open_interlocks: tuple[str, ...]
    watchdog_start_s: float | None
    axes: Mapping[str, FoundAxis]
    conditions: Mapping[str, str | None]


async def survey(config: RigConfig) -> RigSurvey:
    """Opens a rig, asks, and closes it.

    Raises:
        StateError: Somebody else has an instrument, or no watchdog process can be started.
        LabrigError: See `open_rig` and `Rig.open`.
    """
    specs = instrument_specs(config)
    real = {spec.name for spec in specs if spec.addresses}
    # The watchdog is for what is here; what a rig elsewhere serves is protected there.
    elsewhere = {spec.name for spec in specs if spec.link is not None}
    async with open_rig(config) as rig:
        return RigSurvey(
            identities=rig.identities(),
            info=rig.board.info,
            protection={name: found for name, found in rig.host_loss_protection().items() if name in real | elsewhere},
            open_interlocks=tuple(await rig.open_interlocks()),
            watchdog_start_s=await _start_watchdog() if real else None,
            axes=await _axes(rig),
            conditions={one.name: await _fault(one) for one in rig_conditions(rig)},
        )


async def _fault(condition: Condition) -> str | None:
    try:
        return await condition.fault()
    except LabrigError as error:
        # One sensor that does not answer must not hide everything else.
        return f"cannot be looked at: {error}"


async def _axes(rig: Rig) -> dict[str, FoundAxis]:
    return {
        name: FoundAxis(axis.quantity, axis.unit, (await axis.read()).value, axis.low, axis.high, axis.safe_value)
        for name, axis in rig.axes.items()
    }


async def _start_watchdog() -> float:
    started_s = time.monotonic()
    watchdog = Watchdog()
    try:
        await watchdog.start()
        return time.monotonic() - started_s
    finally:
        await watchdog.stop()
