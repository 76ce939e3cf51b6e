"""The pages about layers and devices are true: their examples run, and say what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labrig_surrogates import device_presets
from labrig_surrogates.analog_config import AnalogConfig

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"


def run(page: str, capsys: pytest.CaptureFixture[str]) -> str:
    (example,) = re.findall(r"^```python\n(.*?)^```", (GUIDE / page).read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(example, page, "exec"), {})
    return capsys.readouterr().out


def test_the_layers_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run("layers.md", capsys)
    assert "tiles" in shown
    fields = re.findall(r"^\| (`.*?`) \|", (GUIDE / "layers.md").read_text(), re.MULTILINE)
    named = {name for row in fields for name in re.findall(r"`(\w+)`", row)}
    assert named | {"digital", "path"} == set(AnalogConfig.__dataclass_fields__)


def test_the_devices_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.fullmatch(r"a day later ([\d.]+) off, compensated ([\d.]+)\n", run("devices.md", capsys))
    assert found is not None
    assert float(found[2]) < 0.5 * float(found[1])


def test_every_preset_is_on_the_page() -> None:
    page = (GUIDE / "devices.md").read_text()
    for name in re.findall(r"^def (\w+)\(", Path(device_presets.__file__).read_text(), re.MULTILINE):
        assert f"`{name}(" in page
