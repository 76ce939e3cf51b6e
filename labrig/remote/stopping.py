"""Switching a served rig off from anywhere, whoever has it: the safe direction, for which nobody needs a lease."""

from __future__ import annotations

import asyncio
import secrets

from labrig.remote.addresses import RigAddress
from labrig.remote.carrier import Carrier
from labrig.remote.faults import error_of
from labrig.remote.messages import Request
from labrig.telemetry.broker import Broker
from labrig_drivers.errors import LinkTimeoutError


async def stop_rig(address: RigAddress, broker: Broker, who: str, reason: str, within_s: float = 60.0) -> None:
    """Has every instrument of a rig made safe, and ends the lease of whoever has it; returns when it is done.

    Args:
        address: The rig.
        broker: Its broker, with an account there.
        who: What everybody reads.
        reason: What everybody reads; whoever had the rig is told it.
        within_s: Longest wait in s.

    Raises:
        LinkError: The rig cannot be reached, or did not say in time that it is safe.
        ProtocolError: There is no reason.
        StateError: An instrument could not be made safe; the message says which.
    """
    client = f"labrig-stop-{secrets.token_hex(6)}"
    carrier = Carrier(address, broker, client)
    try:
        await carrier.start(within_s)
        request = Request("stop", client, 0, values={"who": who, "reason": reason})
        try:
            async with asyncio.timeout(within_s):
                answer = await carrier.exchange(request, within_s)
        except TimeoutError:
            raise LinkTimeoutError(f"{address}: did not say within {within_s:g} s that it is safe") from None
        if answer.fault is not None:
            raise error_of(answer.fault)
    finally:
        await carrier.stop()
