"""New files are there whole or not at all, never in the place of others; HDF5 never sees the disk refuse."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from labrig.recording.output_file import OutputFile, StoppedError, in_thread
from labrig.recording.whole_files import WholeFiles, write_whole
from labrig_drivers.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_appear_together_with_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with WholeFiles() as files:
        for name in ("one", "two"):
            files.part(tmp_path / name).write_text(name)
        assert [name for name in names(tmp_path) if not name.endswith(".part")] == ["plain"]
    assert names(tmp_path) == ["one", "plain", "two"]
    assert (tmp_path / "two").read_text() == "two"
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "plain").stat().st_mode


def write_two_while_somebody_writes_the_second(folder: Path) -> None:
    with WholeFiles() as files:
        files.part(folder / "one").write_text("one")
        files.part(folder / "two").write_text("two")
        (folder / "two").write_text("theirs")


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), WholeFiles() as files:  # noqa: PT012 - what fails is the block
        files.part(tmp_path / "one").write_text("one")
        raise error
    assert names(tmp_path) == []


def test_what_came_into_being_meanwhile_is_kept_and_the_others_are_taken_back(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="two: came into being meanwhile"):
        write_two_while_somebody_writes_the_second(tmp_path)
    assert names(tmp_path) == ["two"]
    assert (tmp_path / "two").read_text() == "theirs"


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with WholeFiles() as files:
        files.part(tmp_path / "one").write_text("one")
    assert names(tmp_path) == ["one"]
    (tmp_path / "one").unlink()
    with pytest.raises(StorageError, match="two: came into being meanwhile"):
        write_two_while_somebody_writes_the_second(tmp_path)
    assert names(tmp_path) == ["two"]


def test_errors_of_the_disk_say_what_could_not_be_written(tmp_path: Path) -> None:
    with (  # noqa: PT012 - what fails is the block
        pytest.raises(StorageError, match=r"one: cannot be written: No space left on device"),
        WholeFiles() as files,
    ):
        files.part(tmp_path / "one")
        raise OSError(28, "a long story")
    with pytest.raises(StorageError, match="there is no folder"), WholeFiles() as files:
        files.part(tmp_path / "nowhere" / "one")
    assert names(tmp_path) == []


def test_hdf5_reads_what_it_wrote_through_an_output_file(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.touch()
    values = np.random.default_rng(0).random((5000, 30))
    output = OutputFile(path)
    with h5py.File(output, "w") as file:
        file.create_dataset("x", data=values, chunks=(100, 30), compression="gzip")
        file["y"] = "text"
    output.check()
    output.close()
    output.close()
    with h5py.File(path) as file:
        assert np.array_equal(file["x"][...], values)
        assert file["y"][()] == b"text"


def test_a_refused_write_is_kept_for_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    path.touch()
    output = OutputFile(path)
    written = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset + len(data) > 20_000:
            raise OSError(28, "No space left on device")
        return written(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with h5py.File(output, "w") as file:
        file["x"] = np.zeros(1000)
        file.flush()
        output.check()
        file["y"] = np.random.default_rng(0).random(100_000)
        with pytest.raises(OSError, match="No space left"):
            output.check()
    output.close()


def test_an_interrupt_waits_until_the_thread_has_ended() -> None:
    ended: list[str] = []

    def work(check: Callable[[], None]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                time.sleep(0.01)
                check()
        except StoppedError:
            ended.append("stopped")
            raise

    with pytest.raises(KeyboardInterrupt):
        in_thread(work)
    assert ended == ["stopped"]


def test_what_the_thread_returns_or_raises_is_handed_on() -> None:
    assert in_thread(lambda _: 7) == 7

    def fail(check: Callable[[], None]) -> None:
        check()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        in_thread(fail)


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "numbers.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["numbers.json"]
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"numbers\.json: cannot be written \("):
        write_whole(path, b"three")
    assert names(path.parent) == ["numbers.json"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(tmp_path / "new" / "numbers.json" / "x" / ".." / ".." / ("y" * 300), b"")
