"""What damaged inputs found once, each as the smallest input that shows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from fuzz_readers import COUNTS, TINY_RIG
from safetensors.numpy import save_file

from labrig.acquisition import run_sweep
from labrig.config import load_rig, parse_rig
from labrig.events import EventBus
from labrig.plans import plan_by_name
from labrig.recording import Recording
from labrig.recording.compaction import compact
from labrig.recording.verification import verify_recording
from labrig.training.checkpoint import FORMAT, load_checkpoint
from labrig_drivers.errors import ConfigError, StorageError
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.io import SCHEMA, load_chip


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = parse_rig(TINY_RIG, folder / "rig.toml")
    asyncio.run(run_sweep(config, plan_by_name("mvm", writes=2, counts=COUNTS), folder / "run.h5", EventBus()))
    return folder / "run.h5"


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "{a=" * 5000, "x = " + "[" * 5000 + "]" * 5000])
def test_a_toml_file_that_is_too_deep_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rig.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="too deep"):
        load_rig(path)


@pytest.mark.parametrize(
    "header",
    [
        {"schema": SCHEMA, "schema_version": "one", "arrays": "{}"},
        {"schema": SCHEMA, "schema_version": "1", "arrays": "[]", "chip_id": "a", "provenance": "{}"},
        {"schema": SCHEMA, "schema_version": "1", "arrays": '{"zero": {}}', "chip_id": "a", "provenance": "{}"},
        {"schema": SCHEMA, "schema_version": "1", "arrays": "[" * 100_000, "chip_id": "a", "provenance": "{}"},
    ],
    ids=["version", "list", "number", "deep"],
)
def test_a_chip_file_with_a_wrong_header_is_refused(header: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    save_file({"x": np.ones(2)}, path, header)
    with pytest.raises(SurrogateError, match="damaged or incomplete"):
        load_chip(path)


@pytest.mark.parametrize("numbers", ["[]", "3", "[" * 100_000], ids=["list", "number", "deep"])
def test_a_checkpoint_without_a_table_is_refused(numbers: str, tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.safetensors"
    save_file({"x": np.ones(2)}, path, {"labrig": numbers})
    with pytest.raises(StorageError, match="no checkpoint"):
        load_checkpoint(path)
    save_file({"x": np.ones(2)}, path, {"labrig": json.dumps({"format": FORMAT})})
    assert load_checkpoint(path)[1] == {"format": FORMAT}


def test_a_recording_without_a_column_of_the_supply_is_refused(run_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(run_file.read_bytes())
    with Recording.open(path) as recording:
        assert len(recording.supply().time_s) == 0
    with h5py.File(path, "r+") as file:
        del file["entry/supply/voltage_v"]
    with Recording.open(path) as recording, pytest.raises(StorageError, match="is damaged"):
        recording.summary()


def test_a_recording_that_leads_behind_the_end_of_every_file_is_refused(run_file: Path, tmp_path: Path) -> None:
    with h5py.File(run_file, "r") as file:
        place = file["entry/array_0/committed"].id.get_offset()
    content = run_file.read_bytes()
    old = place.to_bytes(8, "little")
    assert old in content
    path = tmp_path / "run.h5"
    path.write_bytes(content.replace(old, (2**64 - 2).to_bytes(8, "little")))
    with pytest.raises(StorageError):
        Recording.open(path)


def test_rows_that_nobody_wrote_are_not_made_up(run_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "compact.h5"
    compact(run_file, path)
    with h5py.File(path, "r+") as file:
        for name, dataset in file["entry/array_0/writes"].items():
            if dataset.chunks:
                dataset.resize(2**40, axis=0)
            elif name == "committed":
                dataset[()] = 2**40
    with Recording.open(path) as recording, pytest.raises(StorageError, match="too few bytes"):
        recording.write_columns()


def link_elsewhere(file: h5py.File, other: Path) -> None:
    del file["entry/end_time"]
    file["entry/end_time"] = h5py.ExternalLink(str(other), "/entry/end_time")


def values_elsewhere(file: h5py.File, other: Path) -> None:
    del file["entry/supply/voltage_v"]
    file.create_dataset("entry/supply/voltage_v", (10,), "f8", external=[(str(other), 0, 80)])


def link_to_values_elsewhere(file: h5py.File, other: Path) -> None:
    del file["entry/array_0/time_s"]
    file["entry/array_0/time_s"] = h5py.ExternalLink(str(other), "/entry/array_0/time_s")


def values_elsewhere_in_a_group_of_ones_own(file: h5py.File, other: Path) -> None:
    file.create_dataset("entry/sample/secret", (10,), "f8", external=[(str(other), 0, 80)])


@pytest.mark.parametrize(
    "spoil",
    [link_elsewhere, link_to_values_elsewhere, values_elsewhere, values_elsewhere_in_a_group_of_ones_own],
)
def test_a_recording_that_would_read_other_files_is_refused(
    spoil: Callable[[h5py.File, Path], None], run_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(run_file.read_bytes())
    with h5py.File(path, "r+") as file:
        spoil(file, run_file)
    with pytest.raises(StorageError, match="from other files"):
        Recording.open(path)
    # `verify` reads beside HDF5, and of labrig's own groups only.
    own = spoil is not values_elsewhere_in_a_group_of_ones_own
    assert bool(verify_recording(path, refusal=lambda _: "").faults) is own
