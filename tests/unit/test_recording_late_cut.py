"""The order in which a shortened file is written, against a plain file in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.recording.late_cut import LateCut
from labrig.recording.medium import FileSystem
from labrig.recording.write_trace import Sync, Truncate, Write, WriteTrace

STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 3000), st.binary(min_size=1, max_size=1500)),
    st.tuples(st.just("truncate"), st.integers(0, 4000), st.just(b"")),
    st.tuples(st.just("read"), st.integers(0, 4000), st.binary(min_size=1, max_size=1500)),
)


@given(content=st.binary(max_size=3000), steps=st.lists(STEPS, max_size=8))
def test_it_reads_and_ends_as_a_plain_file(content: bytes, steps: Sequence[tuple[str, int, bytes]]) -> None:
    trace = WriteTrace()
    trace.write(memoryview(content))
    # Never behind the end: HDF5 lengthens a file with what it then writes.
    plain, late = io.BytesIO(content), LateCut(trace, trace.sync)
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
        assert trace.content() == content
    late.finish()
    assert trace.content() == plain.getvalue()


def test_beginnings_rest_superblock_and_end_each_wait_for_the_one_before() -> None:
    trace = WriteTrace()
    trace.write(memoryview(bytes(8192)))
    late = LateCut(trace, trace.sync)
    late.write(b"h" * 96)
    late.seek(1000)
    late.write(b"n" * 600)
    late.truncate(4096)
    begun = len(trace.operations)
    late.finish()
    first, _, rest, _, head, _, cut, _ = done = trace.operations[begun:]
    assert [isinstance(one, Sync) for one in done] == 4 * [False, True]
    assert first == Write(1000, b"n" * 24)
    assert isinstance(rest, Write)
    assert rest.offset == 512
    assert rest.data == bytes(488) + b"n" * 600 + bytes(448)
    assert isinstance(head, Write)
    assert head.offset == 0
    assert head.data == b"h" * 96 + bytes(416)
    assert cut == Truncate(4096)


def test_killed_before_its_end_is_cut_off_a_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", data=np.arange(100_000), chunks=(1000,), maxshape=(None,))
    before = path.read_bytes()

    def killed(late: LateCut) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LateCut, "finish", killed)
        medium = FileSystem()
        with pytest.raises(KeyboardInterrupt), medium.trimming(medium.reopen(path)) as file:
            file["rows"].resize(10, axis=0)
    assert path.read_bytes() == before
    with medium.trimming(medium.reopen(path)) as file:
        file["rows"].resize(10, axis=0)
    assert path.stat().st_size < len(before)
    with h5py.File(path) as file:
        assert file["rows"][()].tolist() == list(range(10))


def test_while_a_file_is_shortened_no_other_program_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file["rows"] = np.arange(10)
    medium = FileSystem()
    with medium.trimming(medium.reopen(path)), pytest.raises(BlockingIOError):
        h5py.File(path, "r")
    with h5py.File(path, "r") as file:
        assert len(file["rows"]) == 10
