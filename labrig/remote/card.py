"""The retained description of a served rig: what it is and what it takes, for people and programs."""

from __future__ import annotations

import json
from importlib.metadata import version

from labrig.remote.envelope import LONGEST_MESSAGE_BYTES, PART_BYTES, VERSION
from labrig.remote.manners import Manners
from labrig.remote.messages import PROTOCOL_VERSION
from labrig.remote.results import identity_values
from labrig.rig import BOARD_NAME, Rig
from labrig_drivers.board_messages import info_to_json


def rig_card(rig: Rig, instance: str, manners: Manners) -> bytes:
    """The JSON text of the retained topic `info`.

    Args:
        rig: The rig, open.
        instance: What tells one start of its program from another.
        manners: Bounds.
    """
    config = rig.config
    drivers = {BOARD_NAME: config.board.driver, **{name: one.driver for name, one in config.source_meters.items()}}
    identities = rig.identities()
    instruments: dict[str, dict[str, object]] = {
        name: {"driver": driver, "identity": identity_values(identities[name])} for name, driver in drivers.items()
    }
    for name, meter in config.source_meters.items():
        instruments[name]["role"] = meter.role
    instruments[BOARD_NAME]["info"] = json.loads(info_to_json(rig.board.info))
    card = {
        "rig": config.rig.name,
        "labrig": version("labrig"),
        "protocol": {"min": PROTOCOL_VERSION, "max": PROTOCOL_VERSION},
        "envelope": VERSION,
        "instance": instance,
        "lease_s": manners.lease_s,
        "limits": {"message_bytes": LONGEST_MESSAGE_BYTES, "part_bytes": PART_BYTES, "window": manners.window},
        "instruments": instruments,
        "safety": config.safety.model_dump(exclude_none=True),
    }
    return json.dumps(card, sort_keys=True).encode()
