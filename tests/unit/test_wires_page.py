"""The page about wires is true: its example runs, and its table is what is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from labrig_surrogates.wire_first_order import first_order_transfer
from labrig_surrogates.wires import transfer_matrix

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "wires.md").read_text()
ROW = re.compile(r"^\| (\d+) x \d+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


def test_the_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(example, "wires.md", "exec"), names)
    for name in ("conductance_s", "word_line_ohm"):
        leaf = names[name]
        assert isinstance(leaf, torch.Tensor)
        assert leaf.grad is not None


@pytest.mark.parametrize("row", [row for row in ROW.findall(PAGE) if int(row[0]) < 256], ids="-".join)
def test_errors_of_the_first_order_are_those_of_the_table(row: tuple[str, ...]) -> None:
    size, ohm, *claimed = int(row[0]), float(row[1]), *map(float, row[2:])
    generator = torch.Generator().manual_seed(7)
    conductance_s = 10.0 ** (torch.rand(size, size, generator=generator, dtype=torch.float64) - 5.0)
    voltage_v = torch.rand(64, size, generator=generator, dtype=torch.float64)
    exact, ideal = voltage_v @ transfer_matrix(conductance_s, ohm, ohm), voltage_v @ conductance_s
    form = voltage_v @ first_order_transfer(conductance_s, ohm, ohm)
    lost = float(1.0 - exact.sum() / ideal.sum())
    errors = [float((currents - exact).abs().max() / exact.max()) for currents in (ideal, form)]
    # Another draw of cells and inputs: the largest of some thousand errors moves by a tenth or two.
    assert [100.0 * value for value in (lost, *errors)] == pytest.approx(claimed, rel=0.3)


def test_the_table_is_there() -> None:
    assert len(ROW.findall(PAGE)) >= 9
