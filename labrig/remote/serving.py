"""A rig file served at a broker, from opening the rig to the last word of its retained state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

from labrig.events import EventBus
from labrig.remote.bench import ServedBench
from labrig.remote.broker_side import BrokerSide
from labrig.remote.card import rig_card
from labrig.remote.direct import DirectSettings, direct_door
from labrig.remote.manners import Manners
from labrig.remote.notices import Notices
from labrig.remote.service import RigService
from labrig.remote.tasks import end_tasks
from labrig.rig import Rig
from labrig.telemetry.broker import Broker
from labrig_drivers.settling import undivided


@asynccontextmanager
async def served(
    rig: Rig,
    broker: Broker,
    topic: str,
    say: Callable[[str], None],
    manners: Manners | None = None,
    client_id: str | None = None,
    direct: DirectSettings | None = None,
    bus: EventBus | None = None,
) -> AsyncIterator[tuple[RigService, BrokerSide]]:
    """Serves an open rig as long as the block lasts; at its end outputs are off before anybody is told goodbye.

    Args:
        rig: The rig, open; it stays with whoever opened it.
        broker: Where.
        topic: What its topics begin with.
        say: Gets a line for whoever looks after the rig.
        manners: Bounds.
        client_id: How the broker tells the rig from others; a new one when None.
        direct: Where the direct link listens; None offers none.
        bus: Gets what is done under each lease as events of a run.
    """
    notices = Notices()
    service = RigService(ServedBench(rig), notices, say, manners, bus)
    notices.keep("info", rig_card(rig, service.instance, service.manners))
    side = BrokerSide(broker, topic, service, notices, say, client_id)
    connection = asyncio.create_task(side.run(), name="labrig-serve-broker")
    try:
        async with service.running(), nullcontext() if direct is None else direct_door(service, direct):
            yield service, side
    finally:
        await undivided(side.say_goodbye())
        await end_tasks(connection)
