"""The energy grid: counts against those made by hand, and a verdict for every cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from labrig.studies.energy import run
from labrig.studies.running import StudySettings
from labrig_drivers.errors import ConfigError


def test_the_grid_has_a_verdict_for_every_cell_and_none_is_left_out() -> None:
    found = run(StudySettings(seeds=1), lambda _what, _done, _all: None)
    assert found.trusted
    assert len(found.findings) == 5 * 3
    by_claim = {one.claim: one for one in found.findings}
    four_phase = by_claim["ResNet-18 on HERMES four-phase: 5 times less than H100 fp8, peak"]
    assert four_phase.verdict == "does not hold"
    assert four_phase.figure.value == pytest.approx(0.33, abs=0.01)  # the reference's own count
    one_phase = by_claim["ResNet-18 on HERMES one-phase: 5 times less than A100 training ResNet-18"]
    assert one_phase.verdict == "holds"
    assert one_phase.figure.value == pytest.approx(19.0, rel=0.1)  # more arrays than by hand
    assert {len(table.rows) for table in found.tables[1:]} == {5}


def test_a_rig_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="--plan energy"):
        run(StudySettings(rig=Path("rig.toml")), lambda _what, _done, _all: None)
