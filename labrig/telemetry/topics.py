"""The topics of version 1: `labrig/1/SITE/RIG/...`, and the words for the state of a rig (those of Homie)."""

from __future__ import annotations

from typing import Literal

ROOT = "labrig/1"
"""What every topic begins with; the number is the version of topics and documents."""

STATE = "state"
"""The topic of the state, below `labrig/1/SITE/RIG/`: one word as plain text, retained, QoS 1."""

RigState = Literal["init", "ready", "busy", "sleeping", "disconnected", "lost"]
"""`init`: a program started and measures nothing yet; `busy`: a run is under way; `sleeping`: it is paused; `ready`: it
ended; `disconnected`: the program ended; `lost`: it died or its network did, which the broker itself says."""

_LONGEST_LEVEL = 200


def rig_topic(site: str, rig: str) -> str:
    """What the topics of a rig begin with.

    Args:
        site: Where the rig is.
        rig: Its name.
    """
    return f"{ROOT}/{topic_level(site)}/{topic_level(rig)}"


def topic_level(name: str) -> str:
    """A name as one level of a topic: what is no letter, digit, `.`, `_` or `-` becomes `-`."""
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return kept[:_LONGEST_LEVEL] or "-"
