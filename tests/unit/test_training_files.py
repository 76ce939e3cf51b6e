"""Files that a training reads and cannot use: each is told with its place, and none ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labrig.training.config import load_training
from labrig.training.datasets import load_digits
from labrig.training.models import build_model
from labrig.training.run_folder import create_folder, load_metrics, load_origin, load_summary
from labrig.training.segments import SEGMENTS, Segments
from labrig_drivers.errors import ConfigError, StorageError


def test_an_own_function_that_cannot_be_used_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def none():\n    return 3\n\nanswer = 42\n")
    data, generator = load_digits(), torch.Generator()
    for name, said in (
        ("own.py:none", "model own.py:none: cannot be made (TypeError: none() takes 0 positional arguments but 2"),
        ("own.py:other", "own.py:other: own.py has no function or class 'other'"),
        ("own.py:answer", "own.py:answer: is of type int; a function or class is needed"),
        ("absent.py:make", "absent.py: there is no such file"),
    ):
        with pytest.raises(ConfigError) as caught:
            build_model(name, data, 8, generator, tmp_path)
        assert said in str(caught.value)


def test_a_damaged_list_of_recordings_is_no_bug(tmp_path: Path) -> None:
    for text in ('{"recordings": [{"file": "a", "step": 0, "fresh": true, "restored": 3}]}', '{"a": 1}', "{"):
        (tmp_path / SEGMENTS).write_text(text)
        with pytest.raises(StorageError, match=r"is no list of the recordings of a training"):
            Segments.load(tmp_path)


def test_a_damaged_run_folder_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text("x = 3\n")
    (tmp_path / "origin.json").write_text('{"file": "elsewhere/mine.toml"}')
    with pytest.raises(StorageError) as caught:
        load_origin(tmp_path)
    assert f"{tmp_path}/train.toml:1: training: is missing" in str(caught.value)
    assert "elsewhere" not in str(caught.value)
    for text in ("3", "{", '{"file": 3}'):
        (tmp_path / "origin.json").write_text(text)
        with pytest.raises(StorageError, match=r"not a run of `labrig train` \(train.toml or origin.json is damaged"):
            load_origin(tmp_path)
    for text in ("{}", "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(StorageError, match=r"run\.json: not a summary of a run; it has no seed, data, chip_id"):
            load_summary(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"phase": "digital", "step": 1}\n[1]\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2: is no step of a training"):
        load_metrics(tmp_path)


def test_files_that_are_not_there_are_told_beside_the_other_faults(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    text = f'[run]\nfolder = "run"\n[data]\nname = "digits"\n[chip]\nrig = "{"n" * 999}.toml"\nreplay = "passes.h5"\n'
    file.write_text(text + '[training]\nmethod = "surrogate"\nbatch = -1\n')
    for given, told in ((None, ("chip.rig", "chip.replay")), (tmp_path / "run.h5", ("chip.replay",))):
        with pytest.raises(ConfigError) as caught:
            load_training(file, recording=given)
        assert f"{file}:10: training.batch" in str(caught.value)
        missing = [line for line in str(caught.value).splitlines() if "there is no file" in line]
        assert [line.split(": ")[1] for line in missing] == list(told)


def test_a_chip_given_on_the_command_line_need_not_be_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('[run]\nfolder = "run"\n\n[data]\nname = "digits"\n\n[training]\nmethod = "surrogate"\n')
    with pytest.raises(ConfigError, match="names neither rig nor recording nor calibration"):
        load_training(file)
    config = load_training(file, recording=tmp_path / "run.h5")
    assert (config.recording, config.rig, config.calibration) == (tmp_path / "run.h5", None, None)
    # It can be gone on with as well.
    create_folder(config)
    assert load_origin(config.folder).recording == tmp_path / "run.h5"
