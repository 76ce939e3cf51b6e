"""How leases are told: to those who ask for one, and to everybody; and what those who ask call themselves."""

from __future__ import annotations

import json
import time
from typing import Final

from labrig.remote.leases import Lease, Place
from labrig.remote.messages import Request, Values

_LONGEST_TEXT: Final = 200


def who_asks(request: Request) -> str:
    """What somebody calls itself, or else its client name."""
    return plain_text(request.values.get("who")) or request.client


def plain_text(value: object) -> str:
    """A text of somebody else as it may go to a terminal; empty where it is none."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else "?" for letter in value[:_LONGEST_TEXT])


def granted(lease: Lease, now_s: float) -> Values:
    """What the new holder is told."""
    return {"granted": True, "lease": lease.token, "until_s": lease.until_s, "now_s": now_s}


def place_values(place: Place, now_s: float) -> Values:
    """What somebody who waits is told."""
    return {
        "granted": False,
        "position": place.position,
        "holder": place.holder,
        "until_s": place.until_s,
        "now_s": now_s,
    }


def lease_document(lease: Lease | None, waiting: int, now_s: float) -> bytes:
    """What the retained topic says: who has the rig, until when unless it is renewed, and how many wait."""
    if lease is None:
        return json.dumps({"who": None, "until_unix_s": None, "waiting": waiting}).encode()
    until_unix_s = round(time.time() + lease.until_s - now_s, 3)
    fields = {"who": lease.who, "until_unix_s": until_unix_s, "waiting": waiting}
    return json.dumps(fields).encode()
