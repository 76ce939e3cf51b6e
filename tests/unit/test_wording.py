"""How messages of drivers say numbers, values of rig files and errors without a number of their own."""

from __future__ import annotations

import math

import pytest

from labrig_drivers.bench_lines import compliance_at_zero
from labrig_drivers.errors import ConfigError, InstrumentError
from labrig_drivers.settings_table import SettingsTable, as_toml
from labrig_drivers.wording import beyond, counted, objection


def test_of_an_absent_key_it_is_said_that_it_is_absent() -> None:
    assert objection(KeyError("format")) == "it has no format"
    assert objection(ValueError("format 9")) == "format 9"


def test_one_is_not_several() -> None:
    assert [counted(count, "level") for count in (0, 1, 2)] == ["0 levels", "1 level", "2 levels"]
    assert counted(1, "value is", "values are") == "1 value is"
    assert counted(3, "value is", "values are") == "3 values are"


def test_many_values_beyond_a_limit_are_one_reason() -> None:
    assert beyond("level", [0.5, -1.0], 1.0, "V") == []
    assert beyond("level", [0.1 + 0.2], 0.25, "V") == ["level 0.3 V is not in -0.25 to 0.25 V"]
    assert beyond("level", [0.0, 2.0, -3.0], 1.0, "A") == ["2 levels of 3 are not in -1 to 1 A (the first is 2 A)"]
    assert beyond("level", [math.nan, 0.0], 1.0, "V") == ["1 level of 2 is not in -1 to 1 V (the first is nan V)"]


def test_values_are_told_as_a_rig_file_has_them() -> None:
    assert as_toml([True, "a", {"x": 1}, 0.5]) == "[true, 'a', a table, 0.5]"
    table = SettingsTable({"bits": True, "name": {"x": 1}}, "board.settings")
    table.whole("bits", low=1)
    table.text("name")
    with pytest.raises(ConfigError) as caught:
        table.finish()
    assert str(caught.value).splitlines() == [
        "board.settings.bits: true is not a whole number of at least 1",
        "board.settings.name: a table is not a text",
    ]


def test_a_meter_in_compliance_at_zero_is_named() -> None:
    assert compliance_at_zero(["bit meter 1 (bit line 5)"]).startswith("bit meter 1 (bit line 5) is in compliance with")
    assert "limit_a" in compliance_at_zero(["word source", "bit meter 0"])
    assert "word source, bit meter 0 are in" in compliance_at_zero(["word source", "bit meter 0"])


def test_an_error_without_a_number_shows_none() -> None:
    assert (
        str(InstrumentError(0, "a cell is shorted", "measure", "bench")) == "bench: a cell is shorted after 'measure'"
    )
    assert str(InstrumentError(-222, "out of range", ":LEV 9")) == "error -222 (out of range) after ':LEV 9'"
