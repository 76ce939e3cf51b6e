"""Event files for TensorBoard: read back by the rules of the format, and by TensorBoard where it is installed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from labrig.training.run_folder import MetricsFile, keep_metrics_until
from labrig.training.tensorboard_file import EventFile, crc32c, scalars_of


def records(path: Path) -> list[bytes]:
    """The contents of a file of TFRecords, its checksums checked."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        for content, stored in ((data[:8], data[8:12]), (data[12 : 12 + length], data[12 + length : 16 + length])):
            rotated = (struct.unpack("<I", stored)[0] - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc32c(content)
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def fields(message: bytes) -> dict[int, list[bytes | int]]:
    """The fields of a message of protocol buffers, by number."""
    found: dict[int, list[bytes | int]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            found.setdefault(key >> 3, []).append(varint())
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        found.setdefault(key >> 3, []).append(message[at : at + size])
        at += size
    return found


def scalars(path: Path) -> list[tuple[int, str, float]]:
    """Step, tag and value of everything in an event file."""
    version, *events = records(path)
    assert fields(version)[3] == [b"brain.Event:2"]
    found = []
    for event in events:
        parts = fields(event)
        (step,), (summary,) = parts[2], parts[5]
        assert isinstance(step, int)
        assert isinstance(summary, bytes)
        for value in fields(summary)[1]:
            assert isinstance(value, bytes)
            (tag,), (number,) = fields(value)[1], fields(value)[2]
            assert isinstance(tag, bytes)
            assert isinstance(number, bytes)
            found.append((step, tag.decode(), struct.unpack("<f", number)[0]))
    return found


def test_the_checksum_is_that_of_the_standard() -> None:
    # RFC 3720, B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([0xFF] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_a_run_shows_the_numbers_of_its_log_also_after_steps_were_dropped(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    for step in range(1, 301):
        ledger = {"passes": step, "joules": None}
        metrics.write({"phase": "in-loop", "step": step, "steps": 300, "loss": 0.5 / step, "ledger": ledger})
    metrics.flush()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    expected = [
        one
        for step in range(1, 301)
        for one in (
            (step, "in-loop/loss", pytest.approx(0.5 / step, rel=1e-6)),
            (step, "in-loop/ledger/passes", float(step)),
        )
    ]
    assert scalars(file) == expected
    metrics.close()
    keep_metrics_until(tmp_path, "in-loop", 2)
    again = MetricsFile(tmp_path)
    again.write({"phase": "in-loop", "step": 3, "steps": 300, "loss": 9.0})
    again.close()
    assert scalars(file) == [*expected[:4], (3, "in-loop/loss", 9.0)]


def test_only_numbers_are_shown() -> None:
    line = {"phase": "dat", "step": 1, "steps": 9, "kind": "physical", "gaps": {"hidden": 0.1}, "kept": True, "a": None}
    assert scalars_of(line) == {"dat/gaps/hidden": 0.1}


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    file = EventFile(tmp_path, "metrics")
    for step in range(200):
        file.scalars(step, {"loss": 1.0 / (1 + step), "accuracy": 0.5})
    file.close()
    read = loading.EventAccumulator(str(tmp_path)).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "accuracy"}
    assert [one.step for one in read.Scalars("loss")] == list(range(200))
    assert read.Scalars("loss")[3].value == pytest.approx(0.25)
