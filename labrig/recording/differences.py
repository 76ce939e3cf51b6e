"""Says how two descriptions of a run differ, for whoever resumes one with the wrong rig, plan or chip."""

from __future__ import annotations

import difflib
import json

_MOST = 3


def difference(recorded: str, wanted: str) -> str:
    """What differs between a text of a recording and that of the run that would go on with it, in a few words.

    Args:
        recorded: As the recording has it: JSON of an object, or any text.
        wanted: As the new run has it.
    """
    try:
        there, here = json.loads(recorded), json.loads(wanted)
    except (ValueError, RecursionError):
        there, here = None, None
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = {key: (_of(there, key), _of(here, key)) for key in {**there, **here}}
        found = [f"{key}: {old} there, {new} here" for key, (old, new) in pairs.items() if old != new]
    elif "\n" in recorded or "\n" in wanted:
        signs = {"- ": "there", "+ ": "here"}
        lines = difflib.ndiff(recorded.splitlines(), wanted.splitlines())
        changed = [(signs[line[:2]], line[2:].strip()) for line in lines if line[:2] in signs]
        found = [f"'{text}' only {where}" for where, text in changed if text]
    else:
        found = [f"{recorded} there, {wanted} here"]
    more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more


def _of(content: dict[str, object], key: str) -> str:
    return json.dumps(content[key]) if key in content else "none"
