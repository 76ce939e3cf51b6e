"""The page about analog-native models: its examples print what it shows."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from labrig_surrogates.models import classifiers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "analog-native-models.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
EQUILIBRIUM, PROPAGATION, ENERGY, DIFFUSION, RECURRENT = BLOCKS


def run(block: str) -> list[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.random.fork_rng():
        torch.manual_seed(0)
        exec(block, {"__name__": "example"})
    return printed.getvalue().splitlines()


@pytest.mark.parametrize("block", [EQUILIBRIUM, PROPAGATION, ENERGY, RECURRENT])
def test_an_example_prints_what_the_page_shows(block: str) -> None:
    shown = re.findall(r"^print\(.*  # (.*)$", block, re.MULTILINE)
    assert shown
    assert run(block) == shown


def test_every_model_of_a_training_file_is_there() -> None:
    for name in re.findall(r"`(\w+)`", re.search(r"name it in a training file \((.*?)\)", PAGE).group(1)):  # type: ignore[union-attr]
        assert getattr(classifiers, name)((64,), 10)(torch.zeros((2, 64))).shape == (2, 10)


def test_matched_noise_gives_the_variance_of_the_data() -> None:
    unmatched, matched = (float(line.split()[0]) for line in run(DIFFUSION))
    assert abs(unmatched - 1.44) < 0.1
    assert abs(matched - 0.96) < 0.05
