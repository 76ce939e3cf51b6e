"""The page on training: its training file is valid, and its code runs as it stands."""

import re
from pathlib import Path

import pytest

from labrig import Recording, shipped_rig
from labrig.testing.known_chip import KnownChip
from labrig.training.config import parse_training
from labrig.training.datasets import load_images
from labrig.training.models import build_model
from labrig.training.plan import METHODS
from labrig.training.task_loss import TaskLoss
from labrig_drivers.errors import ConfigError
from labrig_surrogates.io import save_chip
from labrig_surrogates.parameters import ChipParameters

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "train.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_training_file_of_the_page_is_valid() -> None:
    (text,) = blocks("toml")
    config = parse_training(text, Path("train.toml"))
    recipe = config.file.recipe()
    assert recipe.in_loop.most_passes() == 40
    assert recipe.in_loop.noise.level(1000) == 1.5
    loss = recipe.in_loop.optimisation.loss
    assert isinstance(loss, TaskLoss)
    assert loss.distillation == 0.5
    for method in METHODS:
        assert f"| `{method}` |" in PAGE


def test_keys_that_the_page_names_are_those_of_training_files() -> None:
    text = """\
[run]
folder = "run"
[chip]
calibration = "chip.safetensors"
replay = "earlier/training.h5"
[training]
method = "surrogate"
distillation = 0.5
distillation_temperature = 2.0
layers = { output = "replay" }
"""
    assert {"chip.replay", "training.distillation_temperature"} <= set(re.findall(r"`([a-z]+\.[a-z_]+)`", PAGE))
    file = parse_training(text, Path("train.toml")).file
    loss = file.recipe().in_loop.optimisation.loss
    assert isinstance(loss, TaskLoss)
    assert (file.chip.replay, loss.temperature) == ("earlier/training.h5", 2.0)
    with pytest.raises(ConfigError, match=r"chip\.replay names no recording"):
        parse_training(text.replace('replay = "earlier/training.h5"\n', ""), Path("train.toml"))


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rig.toml").write_text(shipped_rig("mock").read_text())
    like = KnownChip(rows=64, columns=64, conductance_max_s=50e-6, voltage_max_v=0.3, noise=0.02).calibration()
    for array in like.arrays.values():
        object.__setattr__(array.converters, "conductance_min_s", 4e-6)
    save_chip(tmp_path / "chip.safetensors", ChipParameters("SIM-0001", like.arrays, {}))
    notebook, _ = blocks("python")
    assert len(notebook.split("\n\n")[1].splitlines()) <= 10
    names: dict[str, object] = {}
    exec(notebook, names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[:12]] == [
        [str(step), "physical" if step % 6 == 0 else "surrogate"] for step in range(1, 13)
    ]
    assert "passes=2" in printed[12]
    with Recording.open(tmp_path / "notebook.h5") as recording:
        assert recording.status == "finished"
        assert [recording.writes(array) for array in recording.arrays] == [2, 2]


def test_the_own_task_of_the_page_is_one(tmp_path: Path) -> None:
    import torch

    (tmp_path / "my_task.py").write_text(blocks("python")[1])
    data = load_images("my_task.py:images", tmp_path)
    assert data.input_shape == (3,)
    network = build_model("my_task.py:network", data, 0, torch.Generator().manual_seed(0), tmp_path)
    again = build_model("my_task.py:network", data, 0, torch.Generator().manual_seed(0), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
