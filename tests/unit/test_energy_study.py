"""The energy grid: loads counted from a network against those counted by hand, and a verdict for every cell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from labrig.studies.energy import run
from labrig.studies.running import StudySettings
from labrig.studies.vision.loads import layer_loads
from labrig_drivers.errors import ConfigError


def test_loads_are_those_of_the_layers_that_an_image_reaches() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 16, 10), nn.Dropout()
    )
    network.train()
    loads = layer_loads(network, torch.zeros(1, 3, 8, 8), rows=256, columns=16, input_bits=4, output_bits=6)
    assert network.training
    assert [(one.name, one.tiles, one.mvms, one.macs) for one in loads] == [
        ("0", 2, 16, 27 * 20 * 16),
        ("3", 2, 1, 320 * 10),
    ]


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
    assert one_phase.figure.value == pytest.approx(19.0, rel=0.07)
    assert {len(table.rows) for table in found.tables[1:]} == {5}


def test_a_rig_is_not_taken() -> None:
    with pytest.raises(ConfigError, match="--plan energy"):
        run(StudySettings(rig=Path("rig.toml")), lambda _what, _done, _all: None)
