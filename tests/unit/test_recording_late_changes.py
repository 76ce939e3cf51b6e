"""What is kept back and in which order it is written, against a plain file in memory."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.recording.late_changes import LateChanges, changing
from labrig.recording.medium import FileSystem
from labrig.recording.write_trace import Sync, Truncate, Write, WriteTrace, torn_images

STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3000), st.binary(min_size=1, max_size=1500)),
    st.tuples(st.just("truncate"), st.integers(0, 4000), st.just(b"")),
    st.tuples(st.just("read"), st.integers(0, 4000), st.binary(min_size=1, max_size=1500)),
)


def superblock(end: int) -> bytes:
    """The beginning of a file that HDF5 takes to be so long."""
    return bytes(40) + end.to_bytes(8, "little") + bytes(48)


def traced(content: bytes) -> WriteTrace:
    trace = WriteTrace()
    trace.write(memoryview(content))
    return trace


@given(rest=st.binary(max_size=3000), reserved=st.integers(0, 1000), steps=st.lists(STEPS, max_size=8))
def test_it_reads_and_ends_as_a_plain_file(rest: bytes, reserved: int, steps: Sequence[tuple[str, int, bytes]]) -> None:
    end = max(96, 96 + len(rest) - reserved)
    content = superblock(end) + rest
    trace = traced(content)
    # Never behind the end: HDF5 lengthens a file with what it then writes.
    plain, late = io.BytesIO(content), LateChanges(trace, trace.sync)
    for step, anywhere, data in steps:
        place = min(anywhere, plain.seek(0, io.SEEK_END))
        if step == "truncate":
            late.truncate(place)
            plain.truncate(place)
        elif step == "write":
            assert plain.seek(place) == late.seek(place)
            assert late.write(data) == plain.write(data)
        else:
            plain.seek(place)
            late.seek(place)
            assert late.read(len(data)) == plain.read(len(data))
        assert trace.content()[:end] == content[:end]
    late.finish()
    assert trace.content() == plain.getvalue()


def node(entries: int, size: int, filling: bytes = b"n") -> bytes:
    """A node of an index of chunks."""
    return b"TREE\1\0" + entries.to_bytes(2, "little") + filling * (size - 8)


def steps_of(trace: WriteTrace, begun: int) -> list[list[Write | Truncate]]:
    """What was done, split at each sync."""
    steps: list[list[Write | Truncate]] = [[]]
    for one in trace.operations[begun:]:
        if isinstance(one, Sync):
            steps.append([])
        else:
            steps[-1].append(one)
    assert steps.pop() == []
    return steps


def test_what_shrinks_is_written_from_the_dataset_to_the_end_of_the_file() -> None:
    trace = traced(superblock(8192) + bytes(904) + node(5, 600) + bytes(6592))
    late = LateChanges(trace, trace.sync)
    for place, data in ((0, superblock(4096)), (1000, node(3, 600)), (3000, b"header")):
        late.seek(place)
        late.write(data)
    late.truncate(4096)
    begun = len(trace.operations)
    late.finish()
    assert steps_of(trace, begun) == [
        [Write(3000, b"header")],
        [Write(1000, node(3, 24))],
        [Write(1024, b"n" * 576)],
        [Write(0, superblock(4096))],
        [Truncate(4096)],
    ]


def test_what_grows_is_written_from_the_end_of_the_file_to_the_dataset() -> None:
    trace = traced(superblock(4096) + bytes(904) + node(5, 600) + node(9, 600) + bytes(1896) + b"reserved")
    late = LateChanges(trace, trace.sync)
    begun = len(trace.operations)
    late.seek(4096)
    late.write(b"new chunk")
    assert trace.operations[begun:] == [Write(4096, b"new chunk")]
    for place, data in ((0, superblock(8192)), (1600, node(4, 600)), (1000, node(7, 600)), (3000, b"header")):
        late.seek(place)
        late.write(data)
    late.truncate(8192)
    begun = len(trace.operations)
    late.finish()
    assert steps_of(trace, begun) == [
        [Truncate(8192)],
        [Write(0, superblock(8192))],
        # A node that has more entries now counts them when they are there ...
        [Write(1024, b"n" * 576)],
        [Write(1000, node(7, 24))],
        # ... and one that has fewer counts no more of them before they are gone.
        [Write(1600, node(4, 448))],
        [Write(2048, b"n" * 152)],
        [Write(3000, b"header")],
        [Truncate(8192)],
    ]


def header(tree: int, place: int = 3000) -> tuple[int, bytes]:
    """Where the header of a dataset lies, and what it is: its one message says where the index of its chunks is."""
    layout = struct.pack("<BBBQII", 3, 2, 2, tree, 1, 4).ljust(24, b"\0")
    return place, struct.pack("<BBHII4xHH4x", 1, 0, 1, 1, 8 + len(layout), 8, len(layout)) + layout


def test_a_root_that_got_a_level_goes_behind_the_end_before_its_dataset_is_told() -> None:
    trace = traced(superblock(4096) + bytes(904) + node(64, 600) + bytes(2496))
    late = LateChanges(trace, trace.sync)
    root = b"TREE\1\1\2\0" + b"r" * 592
    for place, data in ((4096, b"new chunk"), (1000, root), header(1000), (0, superblock(4106))):
        late.seek(place)
        late.write(data)
    late.truncate(4106)
    begun = len(trace.operations)
    late.finish()
    assert steps_of(trace, begun) == [
        # The length of the file is a multiple of eight there, as everything in it.
        [Write(4112, root), Truncate(4712)],
        [Write(0, superblock(4712))],
        [Write(3027, (4112).to_bytes(8, "little"))],
        [Write(*header(4112))],
        [Truncate(4712)],
    ]
    assert trace.content()[1000:1600] == node(64, 600)


@pytest.mark.parametrize("shift", range(0, 64, 5))
def test_while_an_index_gets_another_level_every_row_is_found_whatever_the_power_cut_leaves(shift: int) -> None:
    trace = WriteTrace()
    with h5py.File(trace, "w", alignment_threshold=8, alignment_interval=8) as file:
        file.attrs["place"] = np.zeros(8 * shift + 8, np.uint8)
        file.create_dataset("rows", data=np.arange(64), chunks=(1,), maxshape=(None,))
    trace.sync()
    begun = len(trace.operations)
    with changing(trace, trace.sync) as file:
        file["rows"].resize(70, axis=0)
        file["rows"][64:] = -1
    images = {one.data for one in torn_images(trace.operations, first=begun + 1)}
    for content in [*images, trace.content()]:
        with h5py.File(io.BytesIO(content)) as file:
            assert file["rows"][:64].tolist() == list(range(64))
    assert len(images) > 20


def test_killed_before_its_end_is_cut_off_a_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", data=np.arange(100_000), chunks=(1000,), maxshape=(None,))
    before = path.read_bytes()

    def killed(late: LateChanges) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LateChanges, "finish", killed)
        medium = FileSystem()
        with closing(medium.reopen(path)) as held, pytest.raises(KeyboardInterrupt), held.changing() as file:
            file["rows"].resize(10, axis=0)
    assert path.read_bytes() == before
    with closing(medium.reopen(path)) as held, held.changing() as file:
        file["rows"].resize(10, axis=0)
    assert path.stat().st_size < len(before)
    with h5py.File(path) as file:
        assert file["rows"][()].tolist() == list(range(10))


def test_while_a_file_is_held_no_other_program_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file["rows"] = np.arange(10)
    medium = FileSystem()
    with closing(medium.reopen(path)):
        with pytest.raises(BlockingIOError):
            h5py.File(path, "r")
        with pytest.raises(BlockingIOError):
            medium.reopen(path)
    with h5py.File(path, "r") as file:
        assert len(file["rows"]) == 10
