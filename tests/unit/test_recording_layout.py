"""The layout of a recording: sizes, where the metadata lies, checksums."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from labrig.plans import StreamCapacity
from labrig.plans.base import BesideCapacity
from labrig.recording import RecordingHeader
from labrig.recording.header import board_info_from_json, versions_now
from labrig.recording.layout import (
    as_stored,
    chunk_rows,
    crc32_of,
    file_size,
    mvm_stream,
)
from labrig.recording.nodes import text_attribute
from labrig.recording.run_streams import run_streams
from labrig.recording.structure import create_file
from labrig_drivers.board_messages import info_to_json
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity

INFO = BoardInfo(
    chip_id="SIM-1",
    arrays=2,
    rows=64,
    columns=48,
    conductance_min_s=4e-6,
    conductance_max_s=5e-5,
    voltage_min_v=-0.3,
    voltage_max_v=0.3,
    dac_bits=8,
    adc_bits=10,
    adc_full_scale_a=(1e-4,) * 48,
    mvm_latency_s=1e-5,
    program_latency_s=5e-3,
    capabilities=frozenset({"transposed-mvm", "temperature"}),
)

HEADER = RecordingHeader(
    rig_name="bench",
    rig_toml="# a rig\n" * 5_000,
    plan={"name": "mvm", "seed": 1},
    identities={"board": Identity("labrig", "LR-SIM1", "SIM-1", "1.0")},
    settings={"board": {"driver": "mock-board"}},
    started_utc="2026-01-01T00:00:00.000000+00:00",
    versions=versions_now(),
)


@pytest.mark.parametrize("rows", [1, 1000, 100_000])
def test_metadata_lies_in_front_of_every_row(tmp_path: Path, rows: int) -> None:
    capacity = {array: StreamCapacity(rows=rows, writes=2, blocks=max(1, rows // 100)) for array in (0, 1)}
    beside = BesideCapacity(axes={"temperature": (290.0, 300.0)}, settings=rows, curves=rows, readings=10 * rows)
    streams = run_streams(INFO, capacity, 500, beside, {"temperature": "K"})
    path = tmp_path / "run.h5"
    create_file(path, HEADER, INFO, streams).close()

    size = file_size(streams, streams.journals.values(), len(HEADER.rig_toml))
    assert path.stat().st_size <= size.metadata_bytes + size.data_bytes
    # Everything behind the metadata is lost, and only its length is restored, as on a disk that lost its last writes.
    whole = path.read_bytes()
    path.write_bytes(whole[: size.metadata_bytes] + bytes(len(whole) - size.metadata_bytes))
    with h5py.File(path, "r") as file:
        assert text_attribute(file, "rig_toml") == HEADER.rig_toml
        assert json.loads(text_attribute(file, "plan")) == HEADER.plan
        for stream in streams:
            for column in stream.columns:
                dataset = file[stream.path][column.name]
                assert dataset.shape == (stream.reserved, *column.shape)
                assert not np.any(dataset[...])


def test_board_description_survives_json() -> None:
    assert board_info_from_json(info_to_json(INFO)) == INFO


def test_chunks_hold_at_least_one_row_and_at_most_all() -> None:
    assert chunk_rows(10_000_000, 100) == 1
    assert chunk_rows(4, 3) == 3
    assert chunk_rows(256, 1_000_000) * 256 == 64 * 1024


def test_checksum_depends_on_every_column_and_on_their_order() -> None:
    a, b = np.arange(4, dtype=np.float32), np.arange(4, dtype=np.int16)
    reference = crc32_of([a, b])
    assert reference == crc32_of([a.copy(), b.copy()])
    assert reference != crc32_of([b, a])
    b[2] += 1
    assert reference != crc32_of([a, b])


def test_rows_that_do_not_fit_are_refused_and_every_one_is_named() -> None:
    columns = mvm_stream(0, INFO, StreamCapacity(rows=10, writes=1, blocks=1)).columns
    rows = {one.name: np.zeros((3, *one.shape), one.dtype) for one in columns}
    stored = as_stored(columns, rows)
    assert list(stored) == [one.name for one in columns]
    assert all(stored[name] is rows[name] for name in rows)
    wrong = {**rows, "voltage_v": rows["voltage_v"][:, :-1], "time_s": rows["time_s"][:2]}
    with pytest.raises(ValueError, match=r"time_s is \[2\], expected \[3\]"):
        as_stored(columns, {**rows, "time_s": rows["time_s"][:2]})
    with pytest.raises(ValueError, match=r"nothing was written: voltage_v is \[3, 63\].*; time_s is"):
        as_stored(columns, wrong)
