"""A recording is read while another process writes it: every row seen is right, and the writer is not disturbed."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

import h5py
import numpy as np
import pytest

from labrig.plans import StreamCapacity
from labrig.recording import MvmBlock, Recording, RecordingWriter, placed
from labrig.recording.placed import Place, PlacedRows
from labrig_drivers.errors import StorageError

WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from labrig.plans import StreamCapacity
from labrig.recording import RecordingHeader, RecordingWriter
from labrig.recording.file import RecordingFile
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.source_meter import Reading

ROWS, COLUMNS, BLOCKS_PER_WRITE = 16, 8, 5
info = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
header = RecordingHeader("bench", "", {"name": "live"}, {}, {}, "2026-01-01T00:00:00+00:00", {})


def block(index):
    batch = 1 + index * 7 % 13
    number = np.arange(batch)
    voltage_v = index / 64 + number[:, None] / 1024 + np.arange(ROWS) / 65536
    code = ((index * 31 + number[:, None] * 7 + np.arange(COLUMNS)) % 1000 - 500).astype(np.int16)
    return voltage_v, MvmResult(code, code * info.adc_lsb_a, code == 499, index + number / 100, 0)


def target(write):
    return np.full((ROWS, COLUMNS), 4e-6 + 2.0**-30 * write)


async def append(writer, index):
    if index % BLOCKS_PER_WRITE == 0:
        write = index // BLOCKS_PER_WRITE
        await writer.append_write(0, target(write), ProgramReport(write, float(index), 1, 1e-7))
        await writer.append_supply(Reading(1.0, 0.5, False, float(write)))
    return await writer.append_mvms(0, 5, *block(index), f"{index:032x}")


async def main(path, durability, rows, step, index):
    if step:
        # Every extension makes room for a few rows, so that there are hundreds.
        extend = RecordingFile._extend
        RecordingFile._extend = lambda self, stream, rows: extend(self, stream, stream.written + 300)
    capacity = {0: StreamCapacity(rows=rows, writes=1, blocks=64)}
    writer = await RecordingWriter.create(
        path, header, info, capacity, durability=durability, supply_capacity=1, resume=index > 0
    )
    print("ready", flush=True)
    for command in iter(sys.stdin.readline, ""):
        if command == "run\\n":
            stop = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            while not stop.done():
                total = await append(writer, index)
                index += 1
                await asyncio.sleep(0.0002)
        else:
            for _ in range(int(command)):
                total = await append(writer, index)
                index += 1
        print(index, total, flush=True)
    await writer.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "step", int(sys.argv[5])))
"""


@dataclass
class Writer:
    """A process that records, and does so on command."""

    path: Path
    process: subprocess.Popen[str]
    commands: IO[str]
    answers: IO[str]
    script: ModuleType

    def append(self, blocks: int) -> tuple[int, int]:
        """Lets it write so many blocks; returns how many blocks and MVMs there are then."""
        print(blocks, file=self.commands, flush=True)
        return self.answer()

    def run(self) -> None:
        """Lets it write until it is asked for an answer."""
        print("run", file=self.commands, flush=True)

    def stop(self) -> tuple[int, int]:
        """Ends `run`; returns how many blocks and MVMs there are."""
        print("stop", file=self.commands, flush=True)
        return self.answer()

    def answer(self) -> tuple[int, int]:
        blocks, mvms = map(int, self.answers.readline().split())
        return blocks, mvms

    def end(self) -> None:
        """Lets it close the recording."""
        self.commands.close()
        assert self.process.wait() == 0

    def expected(self, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voltages, currents and writes of the first blocks."""
        made = [self.script.block(index) for index in range(blocks)]
        writes = [
            np.full(len(voltage_v), index // self.script.BLOCKS_PER_WRITE) for index, (voltage_v, _) in enumerate(made)
        ]
        return (
            np.concatenate([voltage_v.astype(np.float32).astype(np.float64) for voltage_v, _ in made]),
            np.concatenate([result.current_a for _, result in made]),
            np.concatenate(writes),
        )


def script_in(folder: Path) -> ModuleType:
    """The writer's script, as a file and as a module."""
    script = folder / "live_writer.py"
    script.write_text(WRITER)
    spec = importlib.util.spec_from_file_location("live_writer", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def writing(
    folder: Path, durability: str = "process", rows: int = 64, extension: str = "double", first: int = 0
) -> Iterator[Writer]:
    """A process that has created a recording, or opened one to go on with block `first`, and waits for commands.

    It is killed at the end if it still lives.
    """
    module, path = script_in(folder), folder / "run.h5"
    assert module.__file__ is not None
    command = [sys.executable, module.__file__, str(path), durability, str(rows), extension, str(first)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield Writer(path, process, process.stdin, process.stdout, module)
        finally:
            process.kill()


@dataclass
class Looks:
    """How often the structure of the file was read, and how often it was only half written then."""

    made: int = 0
    torn: int = 0


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    counts, find = Looks(), placed._places

    def counted(file: h5py.File) -> dict[str, Place]:
        counts.made += 1
        try:
            return find(file)
        except Exception:
            counts.torn += 1
            raise

    monkeypatch.setattr(placed, "_places", counted)
    return counts


def watch(writer: Writer, refreshes: int, looks: Looks) -> None:
    """Refreshes again and again while rows arrive, and compares every row with what was written."""
    pieces: list[MvmBlock] = []
    number = seen = changes = 0
    with Recording.open(writer.path) as recording:
        writer.run()
        before = looks.made
        # Otherwise nothing would have been put to the test.
        while number < refreshes or changes < 20 or looks.made < before + 8:
            number += 1
            changes += recording.refresh()
            assert recording.status == "running"
            new = list(recording.iter_mvms(0, seen))
            pieces += new
            assert recording.committed(0) == seen + sum(len(one.mvms) for one in new)
            seen = recording.committed(0)
            supply = recording.supply()
            assert np.array_equal(supply.time_s, np.arange(len(supply.time_s)))
            assert recording.writes(0) <= len(supply.time_s) + 1
            if number % 200 == 100:
                with Recording.open(writer.path) as other:
                    other.verify()
                    assert other.committed(0) >= seen
        blocks, mvms = writer.stop()
        recording.refresh()
        pieces += recording.iter_mvms(0, seen)
        assert recording.committed(0) == mvms
        writer.end()
        assert recording.refresh()
        assert recording.status == "finished"
        assert recording.ended_utc > recording.header.started_utc
        recording.verify()
        assert recording.point_hashes(0) == [f"{index:032x}" for index in range(blocks)]
    voltage_v, current_a, writes = writer.expected(blocks)
    assert np.array_equal(np.concatenate([one.mvms.voltage_v for one in pieces]), voltage_v)
    assert np.array_equal(np.concatenate([one.mvms.current_a for one in pieces]), current_a)
    assert np.array_equal(np.concatenate([one.first_write + one.mvms.pattern for one in pieces]), writes)
    for one in pieces:
        target = [writer.script.target(one.first_write + number) for number in range(one.mvms.writes)]
        assert np.array_equal(one.mvms.target_conductance_s, np.array(target).astype(np.float32))
    print(f"{number} refreshes, {changes} with news, {blocks} blocks, {looks.made} looks, {looks.torn} torn")


# With "step" the structure changes every 300 rows; with "double" it changes more and more seldom.
ROOM = {"double": 64, "step": 300}


@pytest.mark.parametrize(
    ("durability", "extension", "refreshes"),
    [("process", "double", 800), ("power", "double", 400), ("power", "step", 100)],
)
def test_every_row_that_is_seen_is_right(
    tmp_path: Path, looks: Looks, durability: str, extension: str, refreshes: int
) -> None:
    with writing(tmp_path, durability, ROOM[extension], extension) as writer:
        watch(writer, refreshes, looks)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("extension", "refreshes"), [("double", 10_000), ("step", 1000)])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_every_row_that_is_seen_is_right_for_long(
    tmp_path: Path, looks: Looks, durability: str, extension: str, refreshes: int
) -> None:
    with writing(tmp_path, durability, ROOM[extension], extension) as writer:
        watch(writer, refreshes, looks)


def test_hdf5_in_the_reader_would_serve_what_was_there_before(tmp_path: Path) -> None:
    # Why `PlacedRows` reads beside HDF5: the usual way, with file and dataset open, does not see new rows.
    with writing(tmp_path, rows=1000) as writer:
        writer.append(1)
        with (
            h5py.File(writer.path, "r", locking=False) as file,
            Recording.open(writer.path) as recording,
        ):
            dataset, counter = file["entry/array_0/voltage_v"], file["entry/array_0/committed"]
            assert np.array_equal(dataset[: counter[()]], recording.dataset().voltage_v)
            _, mvms = writer.append(20)
            assert recording.refresh()
            expected = writer.expected(21)[0]
            assert np.array_equal(recording.dataset().voltage_v, expected)
            assert np.isnan(dataset[:mvms]).any()
            _, mvms = writer.append(300)
            assert mvms > 1000
            assert recording.refresh()
            assert recording.committed(0) == mvms
            # The extension is not seen either, even with the dataset opened anew.
            assert len(file["entry/array_0/voltage_v"]) == 1000


@pytest.mark.parametrize(("rows", "blocks"), [(5000, 40), (64, 40), (64, 400)])
def test_writer_that_is_killed_leaves_what_it_acknowledged(tmp_path: Path, rows: int, blocks: int) -> None:
    with writing(tmp_path, rows=rows) as writer:
        writer.append(blocks // 2)
        with Recording.open(writer.path) as recording:
            assert recording.status == "running"
            first = recording.committed(0)
            _, mvms = writer.append(blocks - blocks // 2)
            # Killed in the middle of more.
            writer.run()
            writer.process.kill()
            writer.process.wait()
            assert recording.committed(0) == first
            assert recording.refresh()
            assert recording.status == "interrupted"
            assert recording.ended_utc == ""
            committed, data = recording.committed(0), recording.dataset()
            assert committed >= mvms
            recording.verify()
            # A reader that was there before is not in the way of whoever goes on.
            with h5py.File(writer.path, "r+") as file:
                assert file["entry/array_0/committed"][()] == committed
        voltage_v, current_a, writes = (one[:committed] for one in writer.expected(2000))
        assert np.array_equal(data.voltage_v, voltage_v)
        assert np.array_equal(data.current_a, current_a)
        assert np.array_equal(data.pattern, writes)
        with Recording.open(writer.path) as recording:
            assert recording.status == "interrupted"
            assert recording.committed(0) == committed


async def test_follow_gives_every_row_once_until_the_run_ends(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        with Recording.open(writer.path) as recording:

            async def followed(array: int, start: int) -> list[MvmBlock]:
                return [one async for one in recording.follow(array, start, poll_s=0.01, rows=50)]

            writer.append(3)
            writer.run()
            following = asyncio.create_task(followed(0, 5))
            await asyncio.sleep(0.5)
            assert not following.done()
            blocks, _ = await asyncio.to_thread(writer.stop)
            await asyncio.to_thread(writer.end)
            pieces = await following
            assert recording.status == "finished"
            with pytest.raises(StorageError, match="has no array 3"):
                await followed(3, 0)
        assert len(pieces) > 3
        assert max(len(one.mvms) for one in pieces) <= 50
        ends = [one.start + len(one.mvms) for one in pieces]
        assert [one.start for one in pieces] == [5, *ends[:-1]]
        assert np.array_equal(np.concatenate([one.mvms.voltage_v for one in pieces]), writer.expected(blocks)[0][5:])


async def test_follow_can_be_cancelled_and_taken_up_again(tmp_path: Path) -> None:
    with writing(tmp_path) as writer, Recording.open(writer.path) as recording:
        seen: list[MvmBlock] = []
        arrived = asyncio.Event()

        async def follow() -> None:
            async for one in recording.follow(poll_s=0.01):
                seen.append(one)
                arrived.set()

        writer.append(4)
        task = asyncio.create_task(follow())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        _, mvms = writer.append(4)
        writer.end()
        start = seen[-1].start + len(seen[-1].mvms)
        rest = [one async for one in recording.follow(start=start)]
        assert sum(len(one.mvms) for one in [*seen, *rest]) == mvms


def test_run_that_ends_and_goes_on_elsewhere_in_the_file_is_followed(tmp_path: Path) -> None:
    # At a clean end unused rows are cut off; whoever resumes takes new places for the rows that follow.
    with writing(tmp_path, rows=3000) as writer:
        _, before = writer.append(100)
        with Recording.open(writer.path) as recording:
            writer.end()
            source = recording._source
            assert isinstance(source, PlacedRows)
            place = source._places["entry/array_0/voltage_v"]
            assert recording.refresh()
            assert (recording.status, recording.committed(0)) == ("finished", before)
            with writing(tmp_path, first=100) as again:
                _, after = again.append(100)
                assert recording.refresh()
                assert (recording.status, recording.committed(0)) == ("running", after)
                assert source._places["entry/array_0/voltage_v"] != place
                recording.verify()
                assert np.array_equal(recording.supply().time_s[:20], np.arange(20.0))
                assert len(recording.dataset()) == after
                again.end()
            assert recording.refresh()
            assert recording.status == "finished"


def test_a_file_that_is_only_just_being_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "_PATIENCE_S", 0.05)
    with writing(tmp_path) as writer:
        writer.append(5)
        content = writer.path.read_bytes()
    path = tmp_path / "made.h5"
    for written in (0, 4096, len(content) // 2):
        path.write_bytes(content[:written] + bytes(len(content) - written))
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(StorageError, match="only just being made"):
                Recording.open(path)
    path.write_bytes(content)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with Recording.open(path) as recording:
            assert recording.status == "running"
            recording.verify()


def test_no_reader_keeps_a_run_from_going_on(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.append(50)
    with Recording.open(writer.path) as recording, writing(tmp_path, first=50) as again:
        assert recording.status == "interrupted"
        again.append(50)
        assert recording.refresh()
        assert recording.status == "running"
        again.end()
        assert recording.refresh()
        assert recording.status == "finished"
        with writing(tmp_path, first=100) as last:
            _, mvms = last.append(100)
            assert recording.refresh()
            assert recording.committed(0) == mvms
            recording.verify()
            assert np.array_equal(recording.dataset().voltage_v, writer.expected(200)[0])


def test_recording_that_is_renamed_while_it_is_read_is_still_the_same(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with writing(tmp_path) as writer, writing(tmp_path / "other") as other:
        writer.append(5)
        other.append(50)
        with Recording.open(writer.path) as recording:
            writer.path.rename(tmp_path / "moved.h5")
            other.path.rename(writer.path)
            blocks, mvms = writer.append(400)
            assert recording.refresh()
            assert recording.committed(0) == mvms
            assert np.array_equal(recording.dataset().voltage_v, writer.expected(blocks)[0])


async def test_writer_in_the_same_process_is_read_as_well(tmp_path: Path) -> None:
    script = script_in(tmp_path)
    path = tmp_path / "run.h5"
    capacity = {0: StreamCapacity(rows=64, writes=1, blocks=8)}
    async with await RecordingWriter.create(path, script.header, script.info, capacity, supply_capacity=1) as writer:
        with Recording.open(path) as recording:
            for index in range(100):
                total = await script.append(writer, index)
                assert recording.refresh()
                assert recording.committed(0) == total
                recording.verify()
            assert recording.status == "running"
            await writer.close()
            assert recording.refresh()
            assert recording.status == "finished"
            recording.verify()
    with Recording.open(path) as recording:
        recording.verify()
        assert recording.committed(0) == total
