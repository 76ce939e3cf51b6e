"""Compact copies: the same content in less room, proven before they get their name, and nothing left when they fail."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig.recording import Recording, read_mvms
from labrig.recording.compaction import compact, content_sha256
from labrig.recording.contents import Contents
from labrig.recording.walk import ContentDigest, Item
from labrig_drivers.errors import StorageError

Record = Callable[..., Path]
STREAMS = ("entry/array_0", "entry/array_0/writes", "entry/array_1", "entry/supply")
TWO_ARRAYS = {0: [[8, 3], [5]], 1: [[4]]}
LAYOUTS = st.dictionaries(
    st.integers(0, 1), st.lists(st.lists(st.integers(1, 40), max_size=3), max_size=3), min_size=1, max_size=2
)


def children(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def attributes(node: h5py.Group | h5py.Dataset) -> dict[str, tuple[str, bytes]]:
    """Every attribute with its type and bytes, but for what connects axes and what the copy adds."""
    apart = {"DIMENSION_LIST", "REFERENCE_LIST", "content_sha256", "compacted_utc", "compacted_by"}
    found = {}
    for name in set(node.attrs) - apart:
        kind = node.attrs.get_id(name).get_type()
        value = np.asarray(node.attrs[name])
        text = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
        found[name] = (f"{kind.get_class()} {kind.get_size()} {value.dtype} {value.shape}", text)
    return found


def everything(path: Path) -> dict[str, object]:
    """Type, shape, attributes, axes and values of every object of a file."""
    found: dict[str, object] = {}
    with h5py.File(path, "r") as file:

        def note(name: str, node: h5py.Group | h5py.Dataset) -> None:
            found[name] = attributes(node)
            if isinstance(node, h5py.Dataset):
                values = np.asarray(node[()])
                content = values.tolist() if values.dtype.hasobject else values.tobytes()
                axes = [[scale.name for scale in dim.values()] for dim in node.dims]
                growth, fill = node.maxshape, np.asarray(node.fillvalue).tobytes()
                found[f"{name}:"] = (str(values.dtype), node.shape, growth, fill, node.is_scale, axes, content)

        found[""] = attributes(file)
        file.visititems(note)
    return found


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=LAYOUTS, supply=st.integers(0, 4))
def test_any_recording_comes_back_whole(
    tmp_path_factory: pytest.TempPathFactory,
    record: Record,
    seed: int,
    blocks: dict[int, list[list[int]]],
    supply: int,
) -> None:
    folder = tmp_path_factory.mktemp("compact")
    run = record(folder / "run.h5", seed, blocks=blocks, supply=supply)
    before = run.read_bytes()
    done = compact(run, folder / "small.h5")
    assert run.read_bytes() == before
    assert everything(done.path) == everything(run)
    assert content_sha256(run) == content_sha256(done.path) == done.sha256
    with Recording.open(done.path) as recording:
        recording.verify()
        for array in recording.arrays:
            if recording.committed(array):
                assert recording.dataset(array).sha256() == read_mvms(run, array).sha256()
    assert children(folder) == ["run.h5", "small.h5"]


def test_xarray_opens_the_copy_as_the_recording(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", blocks=TWO_ARRAYS, supply=3)
    small = compact(run, tmp_path / "small.h5").path
    for group in STREAMS:
        with (
            xarray.open_dataset(run, engine="h5netcdf", group=group) as one,
            xarray.open_dataset(small, engine="h5netcdf", group=group) as other,
        ):
            xarray.testing.assert_identical(one, other)


def test_what_a_killed_run_left_is_trimmed(tmp_path: Path, record: Record) -> None:
    killed = record(tmp_path / "killed.h5", 3, blocks=TWO_ARRAYS, supply=3, finish=False)
    closed = record(tmp_path / "closed.h5", 3, blocks=TWO_ARRAYS, supply=3)
    small = compact(killed, tmp_path / "small.h5").path
    with h5py.File(killed) as file, h5py.File(small) as copy:
        assert file["entry/array_0/voltage_v"].shape == (500, 5)
        assert copy["entry/array_0/voltage_v"].shape == (16, 5)
        assert copy["entry/journal/array_0"].shape == (3,)
    with Recording.open(small) as recording:
        recording.verify()
        assert recording.status == "interrupted"
    # But for how they ended, the copies of both are the same.
    other, one = everything(compact(closed, tmp_path / "other.h5").path), everything(small)
    differ = {name for name in one if one[name] != other[name]}
    assert differ == {"entry/status:", "entry/end_time:"}


def test_it_is_compressed_with_what_every_hdf5_has(tmp_path: Path, record: Record) -> None:
    small = compact(record(tmp_path / "run.h5"), tmp_path / "small.h5").path
    with h5py.File(small) as file:
        for name in ("array_0/voltage_v", "array_0/time_s", "array_0/writes/target_conductance_s", "journal/array_0"):
            dataset = file[f"entry/{name}"]
            assert (dataset.compression, dataset.compression_opts, dataset.shuffle) == ("gzip", 1, True)
            assert dataset.fletcher32
        place = file["entry/array_0/current_code"].id.get_chunk_info(0).byte_offset
    content = bytearray(small.read_bytes())
    content[place + 4] ^= 1
    small.write_bytes(content)
    with h5py.File(small) as file, pytest.raises(OSError, match=r"(?i)filter|fletcher"):
        file["entry/array_0/current_code"][...]


def test_what_people_add_is_kept(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    with h5py.File(run, "r+") as file:
        sample = file.create_group("entry/sample")
        sample["name"] = "die 7, µm"
        sample["picture"] = np.arange(12).reshape(3, 4)
        sample["nothing"] = h5py.Empty("f8")
        sample.attrs["nothing"] = h5py.Empty("f8")
        sample.attrs["texts"] = ["one", "two"]
        sample["same"] = sample["picture"]
        sample["link"] = h5py.SoftLink("/entry/array_0")
        sample["elsewhere"] = h5py.ExternalLink("other.h5", "/")
        file["entry/array_0"]["temperature_k"] = np.linspace(300.0, 301.0, 16)
        file["entry/array_0/temperature_k"].dims[0].attach_scale(file["entry/array_0/mvm"])
    small = compact(run, tmp_path / "small.h5").path
    assert everything(small) == everything(run) | {
        name: value for name, value in everything(small).items() if name.startswith("entry/array_0/temperature_k")
    }
    with h5py.File(small) as file, Contents.open(small) as contents:
        assert file["entry/sample/same"] == file["entry/sample/picture"]
        assert file["entry/sample"].get("link", getlink=True).path == "/entry/array_0"
        assert file["entry/sample"].get("elsewhere", getlink=True).filename == "other.h5"
        # A column that labrig does not know grows with the others, and is compressed like them.
        assert file["entry/array_0/temperature_k"].compression == "gzip"
        assert "temperature_k" in [one.name for one in contents.streams()[0].columns]


def test_nothing_can_be_added_to_a_copy(tmp_path: Path, record: Record) -> None:
    from labrig.recording.table import locate_scalar, locate_table

    small = compact(record(tmp_path / "run.h5"), tmp_path / "small.h5").path
    with h5py.File(small, "r+") as file:
        with pytest.raises(StorageError, match="nothing can be added"):
            locate_scalar(file, "entry/array_0/committed")
        with pytest.raises(StorageError, match="go on with the recording that it was made from"):
            locate_table(file, "entry/array_0/voltage_v")
    with pytest.raises(StorageError, match="is compact already"):
        compact(small, tmp_path / "smaller.h5")
    assert children(tmp_path) == ["run.h5", "small.h5"]


def test_every_refusal_is_told_and_leaves_nothing(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    (tmp_path / "there.h5").write_text("mine")
    with pytest.raises(StorageError, match=r"absent\.h5: there is no such file; .*nowhere/x\.h5: there is no folder"):
        compact(tmp_path / "absent.h5", tmp_path / "nowhere" / "x.h5")
    with pytest.raises(StorageError, match=r"there\.h5: exists already and is not overwritten"):
        compact(run, tmp_path / "there.h5")
    with pytest.raises(StorageError, match=r"run\.h5: exists already"):
        compact(run, run)
    with pytest.raises(StorageError, match="is not an HDF5 file"):
        compact(tmp_path / "there.h5", tmp_path / "x.h5")
    assert children(tmp_path) == ["run.h5", "there.h5"]
    assert (tmp_path / "there.h5").read_text() == "mine"


def test_a_file_that_is_being_written_is_refused(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    writer = f"import h5py, sys; file = h5py.File({str(run)!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StorageError, match="is still being written; wait until that has ended"):
            compact(run, tmp_path / "small.h5")
        child.communicate()
    assert children(tmp_path) == ["run.h5"]
    compact(run, tmp_path / "small.h5")


def test_damage_is_refused_with_what_to_do(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    with h5py.File(run) as file:
        place = file["entry/array_0/voltage_v"].id.get_chunk_info(0).byte_offset
    content = bytearray(run.read_bytes())
    content[place] ^= 1
    run.write_bytes(content)
    with pytest.raises(StorageError, match=r"MVMs 0 to 7 of array 0: .*labrig recover .*run\.h5"):
        compact(run, tmp_path / "small.h5")
    run.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match=r"cut short.*labrig recover"):
        compact(run, tmp_path / "small.h5")
    assert children(tmp_path) == ["run.h5"]


def test_a_copy_that_differs_is_thrown_away(tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    from labrig.recording import compaction

    run = record(tmp_path / "run.h5")
    right = compaction._fill

    def wrong(path: Path, target: h5py.File, item: Item, digest: ContentDigest) -> Iterator[int]:
        yield from right(path, target, item, digest)
        if item.path == "entry/array_0/current_code":
            target["entry/array_0/current_code"][0, 0] ^= 1

    monkeypatch.setattr(compaction, "_fill", wrong)
    with pytest.raises(StorageError, match="the copy is not what the recording holds"):
        compact(run, tmp_path / "small.h5")
    assert children(tmp_path) == ["run.h5"]


@pytest.mark.parametrize("most_bytes", [30_000, 90_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, record: Record, most_bytes: int) -> None:
    run = record(tmp_path / "run.h5", blocks={0: [[200, 200]]}, rows=64, columns=64)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "labrig", "compact", "run.h5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files,
    )
    assert done.returncode == 2, done.stderr
    assert "run.compact.h5: cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert children(tmp_path) == ["run.h5"]
    assert run.exists()


SLOW = """
import sys, time
from labrig.recording import walk
slow = walk.Item.blocks
def blocks(self, multiple=1):
    for block in slow(self, multiple):
        print("block", file=sys.stderr, flush=True)
        time.sleep(0.05)
        yield block
walk.Item.blocks = blocks
from labrig.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(tmp_path: Path, record: Record, number: signal.Signals, code: int) -> None:
    record(tmp_path / "run.h5")
    command = [sys.executable, "-c", SLOW, "compact", "run.h5", "-o", "small.h5"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        # The first walk counts the journals; the copy has begun when a part is there.
        for _ in child.stderr:
            if any(name.endswith(".part") for name in children(tmp_path)):
                break
        child.send_signal(number)
        rest = child.stderr.read()
    assert child.returncode == code, rest
    assert "labrig: stopped; nothing of the copy is left, the recording is as it was" in rest
    assert "Traceback" not in rest
    assert children(tmp_path) == ["run.h5"]


def test_memory_does_not_grow_with_the_recording(tmp_path: Path, record: Record) -> None:
    peaks = []
    for blocks in (1, 16):
        run = record(tmp_path / f"run{blocks}.h5", blocks={0: [[2000] * blocks]}, rows=256, columns=128)
        tracemalloc.start()
        with Contents.open(run) as contents:
            sizes = sum(one.rows * sum(column.row_bytes for column in one.columns) for one in contents.streams())
            for stream in contents.streams():
                for _ in stream.blocks(block_bytes=1_000_000):
                    pass
        content_sha256(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sizes > 40e6
    assert peaks[1] < peaks[0] + 12e6


def test_command_line(tmp_path: Path, record: Record) -> None:
    record(tmp_path / "run.h5")
    command = [sys.executable, "-m", "labrig", "compact"]
    done = subprocess.run([*command, "run.h5"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    digest = content_sha256(tmp_path / "run.h5")
    assert done.stdout.startswith("run.compact.h5: ")
    assert done.stdout.endswith(f"sha256 {digest}\n")
    again = subprocess.run([*command, "run.h5"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("labrig: error: run.compact.h5: exists already")
    usage = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "labrig compact run.h5 -o run.compact.h5" in usage.stdout
    with h5py.File(tmp_path / "run.compact.h5") as file:
        assert file.attrs["content_sha256"] == digest
        assert json.loads(file.attrs["versions"]) == {"labrig": "0"}
