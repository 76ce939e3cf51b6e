"""Joules per MVM from a recording whose board draws exactly what the test says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from labrig.cli import app
from labrig.energy import energy_report
from labrig.plans import EnergyPlan, MvmPoint
from labrig.recording import RecordingHeader, RecordingWriter
from labrig.recording.header import versions_now
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import StorageError
from labrig_drivers.source_meter import Reading

INFO = BoardInfo("X", 1, 8, 4, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1.6e-4,) * 4, 1e-5, 5e-3)
PLAN = EnergyPlan(loads=(0.0, 1.0), bursts=3, mvms=50, batch=20, rest_s=0.5)
IDLE_W, SUPPLY_V, STEP_S = 5e-3, 1.25, 4e-3
JOULES = {0.0: 2e-6, 1.0: 5e-6}


async def record(path: Path, *, drift_w: float = 0.0, cut: int = 0) -> None:
    """Records the plan; each burst lasts 60 ms, and its power is what its energy makes over that time."""
    header = RecordingHeader("bench", "", PLAN.describe(), {}, {}, "2026-01-01T00:00:00+00:00", versions_now())
    async with await RecordingWriter.create(path, header, INFO, PLAN.capacity(INFO)) as writer:
        await writer.append_write(0, np.full((8, 4), 1e-5), ProgramReport(0, 0.0, 1, 0.0))
        now_s, powers = 1000.0, list[tuple[float, float, float]]()
        points = [point async for point in PLAN.points(INFO) if isinstance(point, MvmPoint)]
        for point in points[: len(points) - cut]:
            rows = len(point.voltage_v)
            now_s += point.rest_s
            lasts_s = 0.06 * rows / PLAN.mvms
            if point is not points[-1]:
                powers.append((now_s, now_s + lasts_s, rows * JOULES[PLAN.load_of(point.block)] / lasts_s))
            zeros = np.zeros((rows, 4))
            result = MvmResult(zeros.astype(np.int16), zeros, zeros.astype(bool), np.arange(rows, dtype=float), 0)
            interval_s = (now_s, now_s + lasts_s)
            await (await writer.put_mvms(0, point.kind, point.voltage_v, result, point.hash, interval_s=interval_s))
            now_s += lasts_s
        for index in range(int((now_s - 1000.0 + 1.0) / STEP_S)):
            stop_s = 1000.0 - 0.5 + index * STEP_S
            start_s = stop_s - STEP_S
            drawn_w = sum(w * max(0.0, min(stop_s, b) - max(start_s, a)) / STEP_S for a, b, w in powers)
            power_w = IDLE_W + drift_w * (stop_s - 1000.0) + drawn_w
            await writer.append_supply(Reading(SUPPLY_V, power_w / SUPPLY_V, False, stop_s))


async def test_energy_is_what_was_drawn_above_idling(tmp_path: Path) -> None:
    await record(tmp_path / "run.h5")
    report = energy_report(tmp_path / "run.h5")
    assert report.idle_w == pytest.approx(IDLE_W)
    for load in report.loads:
        assert load.bursts == 3
        assert load.joules_per_mvm == pytest.approx(JOULES[load.load], rel=1e-6)
        assert load.standard_error_j < 1e-3 * load.joules_per_mvm
        assert load.operations_per_joule == pytest.approx(2 * 8 * 4 / JOULES[load.load], rel=1e-6)


async def test_a_supply_that_drifts_is_no_energy_of_the_mvms(tmp_path: Path) -> None:
    # 1 mW/s: more in a second than an MVM draws in the mean.
    await record(tmp_path / "run.h5", drift_w=1e-3)
    for load in energy_report(tmp_path / "run.h5").loads:
        assert load.joules_per_mvm == pytest.approx(JOULES[load.load], rel=1e-6)


async def test_a_burst_that_is_not_whole_does_not_count(tmp_path: Path) -> None:
    await record(tmp_path / "run.h5", cut=2)  # the closing MVM and the last block of the last burst
    assert [load.bursts for load in energy_report(tmp_path / "run.h5").loads] == [3, 2]
    await record(tmp_path / "none.h5", cut=18)
    with pytest.raises(StorageError, match="not one burst"):
        energy_report(tmp_path / "none.h5")


async def test_show_prints_it(tmp_path: Path) -> None:
    await record(tmp_path / "run.h5")
    result = CliRunner().invoke(app, ["show", str(tmp_path / "run.h5")])
    assert result.exit_code == 0, result.output
    assert re.search(r"5 \+- .* mW", result.output)
    assert re.search(r"│ 0 +│ 1 +│ 3 +│ 5000 ", result.output)
