"""Sweeps of training runs: every combination in a folder of its own, gone on with where they stopped, also as jobs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from labrig.cli import main
from labrig_drivers.errors import ConfigError, StorageError

pytest.importorskip("torch")
from labrig.events import EventBus
from labrig.studies.cluster import Cluster
from labrig.studies.run_sweep import run_sweep, swept_runs
from labrig.testing.known_chip import KnownChip
from labrig.training.config import TrainConfig, load_training
from labrig.training.run import train_run
from labrig_surrogates.io import save_chip

TRAINING = """
[run]
folder = "sweep"  # of all runs
checkpoint_every = 10

[chip]
calibration = "chip.safetensors"

[data]
name = "own.py:corners"

[training]
method = "surrogate"
hidden = 4
digital_steps = 20
surrogate_steps = 20
batch = 16

[evaluation]
writes = 1
"""
OWN = """
import torch
from labrig.training.datasets import ImageSet


def corners():
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(96) % 3
    x = (0.2 + 0.6 * torch.eye(3)[y] + 0.1 * torch.randn((96, 3), generator=generator)).clamp(0, 1)
    return ImageSet("corners", x[:64], y[:64], x[64:], y[64:], 3)
"""
NAMES = ["seed=0,method=digital", "seed=0,method=surrogate", "seed=1,method=digital", "seed=1,method=surrogate"]
VARIED = ["run.seed=0,1", "training.method=digital,surrogate"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    save_chip(tmp_path / "chip.safetensors", KnownChip(noise=0.02).calibration())
    (tmp_path / "train.toml").write_text(TRAINING)
    return tmp_path / "train.toml"


@pytest.fixture
def config(file: Path) -> TrainConfig:
    return load_training(file)


def nobody(done: int, total: int) -> None:
    del done, total


def test_a_sweep_is_the_runs_that_one_would_make_by_hand(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for one in VARIED for word in ("--sweep", one)]
    monkeypatch.setattr(sys, "argv", ["labrig", "train", str(file), *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == NAMES
    folder = file.parent / "sweep"
    table = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [one["folder"] for one in table] == NAMES
    assert table[3]["values"] == {"run.seed": 1, "training.method": "surrogate"}
    for one in table:
        judged = json.loads((folder / one["folder"] / "evaluation.json").read_text())
        assert one["accuracy"] == judged["mean"]
        assert ("25 chips drawn" in judged["where"]) == ("surrogate" in one["folder"])
    by_hand = file.with_name("by_hand.toml")
    by_hand.write_text(TRAINING.replace('"sweep"', '"by_hand"\nseed = 1'))
    train_run(load_training(by_hand), EventBus())
    weights = [(run / "network.safetensors").read_bytes() for run in (folder / NAMES[3], file.parent / "by_hand")]
    assert weights[0] == weights[1]
    assert weights[0] != (folder / NAMES[1] / "network.safetensors").read_bytes()


def test_a_sweep_goes_on_with_what_is_missing(config: TrainConfig) -> None:
    first = run_sweep(config, VARIED, 1, nobody)
    interrupted, kept = config.folder / NAMES[1], config.folder / NAMES[3]
    before = (interrupted / "network.safetensors").read_bytes()
    for name in ("run.json", "network.safetensors", "evaluation.json"):
        (interrupted / name).unlink()
    untouched = (kept / "network.safetensors").stat().st_mtime_ns
    again = run_sweep(config, VARIED, 1, nobody)
    assert (interrupted / "network.safetensors").read_bytes() == before
    assert (kept / "network.safetensors").stat().st_mtime_ns == untouched
    without_time = [[{**numbers, "seconds": 0.0} for _, numbers in found] for found in (first, again)]
    assert without_time[0] == without_time[1]


def test_jobs_of_a_cluster_give_the_same_runs(config: TrainConfig, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    cluster = Cluster("local", tmp_path / "jobs", 2, {"timeout_min": 3})
    run_sweep(config, VARIED[:1], cluster, lambda done, total: told.append((done, total)))
    jobs = [(config.folder / name / "network.safetensors").read_bytes() for name in ("seed=0", "seed=1")]
    assert told == sorted(set(told))
    assert told[-1] == (2, 2)
    for seed, found in enumerate(jobs):
        alone = tmp_path / f"alone-{seed}.toml"
        alone.write_text(TRAINING.replace('"sweep"', f'"alone-{seed}"\nseed = {seed}'))
        train_run(load_training(alone), EventBus())
        assert (tmp_path / f"alone-{seed}" / "network.safetensors").read_bytes() == found
    assert jobs[0] != jobs[1]


@pytest.mark.parametrize(
    ("variations", "told"),
    [
        ([], "a sweep varies something"),
        (["seed=1"], "write section.key=value"),
        (["run.seed=1,2", "run.seed=3"], "is varied twice"),
        (["run.folder=a,b"], "every run has a folder of its own"),
        (
            ["run.sead=1", "training.hidden=4,0"],
            "(?s)all 2 combinations: run.sead: unknown.*seed.?\nsead=1,hidden=0: training.hidden: is 0, must",
        ),
        (["training.method=surrogate,guess"], "(?s)method=guess.*training.method"),
    ],
)
def test_what_is_wrong_is_said_before_a_run_begins(config: TrainConfig, variations: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run_sweep(config, variations, 1, nobody)
    assert not config.folder.exists()


def test_names_tell_runs_apart_and_values_keep_their_type(config: TrainConfig) -> None:
    runs = swept_runs(
        config, ["data.name=own.py:corners", "policy.name=fixed,scheduled", "chip.conductance_step_s=0,2e-7"]
    )
    assert [run.name for run in runs[:2]] == [
        "data.name=own.py:corners,policy.name=fixed,conductance_step_s=0",
        "data.name=own.py:corners,policy.name=fixed,conductance_step_s=2e-07",
    ]
    assert len(runs) == 4
    assert runs[1].config.file.chip.conductance_step_s == 2e-7
    assert runs[0].config.calibration == config.calibration


def test_variations_that_would_share_a_folder_or_choose_one_are_refused_together(config: TrainConfig) -> None:
    with pytest.raises(ConfigError) as refused:
        swept_runs(config, ["run.seed=0,1,0", "run.seed =2", "run.folder =x", "policy.ratio=1"])
    assert str(refused.value).splitlines() == [
        "--sweep run.seed: 0 is there twice",
        "--sweep run.seed: is varied twice",
        "--sweep run.folder: every run has a folder of its own in run.folder",
    ]


def test_a_folder_of_something_else_is_left_alone(config: TrainConfig) -> None:
    run_sweep(config, ["run.seed=0"], 1, nobody)
    config.path.write_text(TRAINING.replace("hidden = 4", "hidden = 5"))
    with pytest.raises(StorageError, match="holds a run of another training file"):
        run_sweep(load_training(config.path), ["run.seed=0"], 1, nobody)
    single = replace(config, folder=config.folder / "seed=0")
    with pytest.raises(StorageError, match="folder of a single run"):
        run_sweep(single, ["run.seed=0"], 1, nobody)
