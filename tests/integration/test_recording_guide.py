"""The examples of the guide's page about recordings run, on recordings that the commands make."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import xarray

from labrig.acquisition import run_sweep
from labrig.config import parse_rig
from labrig.events import EventBus
from labrig.plans import MvmCalibrationPlan
from labrig.recording.compaction import compact

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "recording.md"
RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
seed = 1
arrays = 1
rows = 16
columns = 4
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")

    async def record() -> None:
        for name in ("calibration.h5", "monday.h5", "tuesday.h5", "run.h5"):
            plan = MvmCalibrationPlan(writes=3, seed=1)
            await run_sweep(parse_rig(RIG, Path("rig.toml")), plan, folder / name, EventBus())

    asyncio.run(record())
    compact(folder / "run.h5", folder / "run.compact.h5")
    return folder


def test_examples_run(bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(bench)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 8
    shown = []
    for example in examples:
        names: dict[str, object] = {}
        exec(example, names)
        if callable(watch := names.get("watch")):
            asyncio.run(watch())
        if isinstance(data := names.get("data"), xarray.Dataset):
            data.close()
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith("(")
    assert shown[5].splitlines()[-1] == "finished"
    assert "saturated" in shown[5]
    # Recovered, not written: nothing is lost of a recording that is right.
    assert "('entry/array_0'," in shown[6]
    assert len(shown[7].strip()) == 64
