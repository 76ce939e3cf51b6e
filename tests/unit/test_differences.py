"""How the refusal to resume says what differs."""

from __future__ import annotations

import json

from labrig.recording.differences import difference


def test_options_of_plans_are_compared_one_by_one() -> None:
    there = {"name": "mvm", "seed": 1, "writes": 4, "arrays": None}
    here = {"name": "mvm", "seed": 2, "writes": 4, "batch": 8, "arrays": [0]}
    said = difference(json.dumps(there), json.dumps(here))
    assert said == "seed: 1 there, 2 here; arrays: null there, [0] here; batch: none there, 8 here"


def test_rig_files_are_compared_line_by_line() -> None:
    there = "[rig]\nname = 'a'\n\n[board]\nport = 1\n"
    here = "[rig]\nname = 'a'\n[board]\nport = 2\n"
    assert difference(there, here) == "'port = 1' only there; 'port = 2' only here"


def test_anything_else_is_shown_as_it_is_and_long_lists_are_cut() -> None:
    assert difference("SIM-1", "SIM-2") == "SIM-1 there, SIM-2 here"
    there = json.dumps(dict.fromkeys("abcdef", 1))
    assert difference(there, "{}").endswith("c: 1 there, none here; and 3 more")
