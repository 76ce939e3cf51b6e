"""Exports, read back by programs that know nothing of labrig: every number is the recorded one."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import command_line
import h5py
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig.export import export_recording
from labrig.export import run as export_run
from labrig.extras import MissingExtraError
from labrig.recording import Recording, read_mvms
from labrig_calibration.dataset import Converters, MvmDataset
from labrig_drivers.errors import StorageError

Record = Callable[..., Path]
Truth = dict[str, dict[str, np.ndarray]]

TWO_ARRAYS = {0: [[8, 3], [5]], 1: [[4]]}
LAYOUTS = st.dictionaries(
    st.integers(0, 1), st.lists(st.lists(st.integers(1, 9), max_size=2), max_size=3), min_size=1, max_size=2
)
STREAMS = {
    "array_0": "mvm",
    "array_0/writes": "write",
    "array_1": "mvm",
    "array_1/writes": "write",
    "supply": "reading",
}


def truth(run: Path) -> Truth:
    """The committed rows of every stream, straight from HDF5."""
    found: Truth = {}
    with h5py.File(run) as file:
        for stream, axis in STREAMS.items():
            group = file.get(f"entry/{stream}")
            if group is None:
                continue
            names = [name for name in group if isinstance(group[name], h5py.Dataset) and not group[name].is_scale]
            apart = {"committed", "adc_lsb_a", "crc32"}
            found[stream] = {name: group[name][: group["committed"][()]] for name in {axis, *names} - apart}
            if "current_code" in group:
                found[stream]["current_a"] = found[stream]["current_code"] * group["adc_lsb_a"][:]
    return found


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.astype(found.dtype).tobytes()
    assert np.array_equal(found.astype(wanted.dtype), wanted)


def check_netcdf(path: Path, wanted: Truth) -> None:
    for stream, columns in wanted.items():
        with xarray.open_dataset(path, engine="h5netcdf", group=stream) as data:
            for name, values in columns.items():
                assert data[name].dtype == values.dtype
                assert_same(data[name].values, values)
            if "current_a" in columns and stream.startswith("array"):
                assert data["current_a"].attrs["units"] == "A"
                assert data["current_a"].dims == ("mvm", "column")
                assert set(data.coords) == {"mvm", "row", "column"}
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert {str(group).strip("/") for group in tree.groups} == {"", *wanted}
        assert tree.attrs["Conventions"].startswith("CF-")


def check_csv(folder: Path, stem: str, wanted: Truth) -> None:
    for stream, columns in wanted.items():
        with (folder / f"{stem}.{stream.replace('/', '.')}.csv").open(newline="") as file:
            head, *lines = list(csv.reader(file))
        found = {name: [line[place] for line in lines] for place, name in enumerate(head)}
        for name, values in columns.items():
            unit = {"v": " [V]", "a": " [A]", "s": " [s]"}.get(name.rpartition("_")[2], "")
            unit = " [S]" if name in {"target_conductance_s", "rms_error_s"} else unit
            if stream.endswith("/writes"):
                each = values if values.ndim == 3 else np.repeat(values, 15)
                assert_same(np.array(found[name + unit], np.float64), each.reshape(-1).astype(np.float64))
            elif values.ndim == 1:
                assert_same(np.array(found[name + unit], np.float64), values.astype(np.float64))
            else:
                for place in range(values.shape[1]):
                    text = found[f"{name}_{place}{unit}"]
                    assert_same(np.array(text, np.float64), values[:, place].astype(np.float64))


def check_parquet(folder: Path, stem: str, wanted: Truth) -> None:
    for stream, columns in wanted.items():
        path = folder / f"{stem}.{stream.replace('/', '.')}.parquet"
        table, frame = pq.read_table(path), pandas.read_parquet(path)
        for name, values in columns.items():
            flat = table[name].combine_chunks()
            while hasattr(flat, "flatten") and flat.type != flat.flatten().type:
                flat = flat.flatten()
            assert_same(np.asarray(flat).reshape(values.shape), values)
            if values.ndim == 2 and len(values):
                assert_same(np.stack(frame[name].to_numpy()), values)
            elif values.ndim == 1:
                assert_same(frame[name].to_numpy(), values)
        if stream == "supply":
            assert table.schema.field("current_a").metadata[b"units"] == b"A"
        about = json.loads(table.schema.metadata[b"labrig"])
        assert about["chip_id"] == "SIM-7"


def check_npz(path: Path, wanted: Truth) -> None:
    with np.load(path, allow_pickle=False) as found:
        for stream, columns in wanted.items():
            for name, values in columns.items():
                if name == STREAMS[stream]:
                    continue
                known = {"write": "pattern"}.get(name, name) if STREAMS[stream] == "mvm" else name
                assert_same(found[f"{stream}/{known}"], values)
        assert json.loads(str(found["about"]))["plan"]["name"] == "mvm"


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=LAYOUTS, supply=st.integers(0, 4), finish=st.booleans())
def test_every_format_gives_back_what_was_recorded(
    tmp_path_factory: pytest.TempPathFactory,
    record: Record,
    seed: int,
    blocks: dict[int, list[list[int]]],
    supply: int,
    finish: bool,
) -> None:
    folder = tmp_path_factory.mktemp("export")
    run = record(folder / "run.h5", seed, blocks=blocks, supply=supply, finish=finish)
    before, wanted = run.read_bytes(), truth(run)
    written = [*export_recording(run, folder / "out.nc"), *export_recording(run, folder / "out.npz")]
    check_netcdf(folder / "out.nc", wanted)
    check_npz(folder / "out.npz", wanted)
    written += [*export_recording(run, folder / "out.csv"), *export_recording(run, folder / "out.parquet")]
    check_csv(folder, "out", wanted)
    check_parquet(folder, "out", wanted)
    assert {path.name for path in folder.iterdir()} == {"run.h5", *(path.name for path in written)}
    assert run.read_bytes() == before


def test_one_array_as_npz_is_its_data_set(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", blocks=TWO_ARRAYS)
    assert export_recording(run, tmp_path / "one.npz", array=1) == [tmp_path / "one.npz"]
    with np.load(tmp_path / "one.npz", allow_pickle=False) as found:
        board = json.loads(str(found["about"]))["board_info"]
        converters = Converters(
            board["voltage_min_v"],
            board["voltage_max_v"],
            board["dac_bits"],
            board["adc_bits"],
            np.array(board["adc_full_scale_a"]),
            board["conductance_min_s"],
            board["conductance_max_s"],
        )
        names = ("voltage_v", "current_a", "pattern", "target_conductance_s", "time_s", "programmed_at_s", "saturated")
        data = MvmDataset(**{name: found[name] for name in names}, converters=converters, chip_id="SIM-7", array=1)
        known = read_mvms(run, 1)
        assert [found[name].dtype for name in names] == [getattr(known, name).dtype for name in names]
    assert data.sha256() == known.sha256()
    assert np.array_equal(data.converters.adc_lsb_a, known.converters.adc_lsb_a)


def test_one_stream_is_one_file(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", supply=3)
    (path,) = export_recording(run, tmp_path / "power.csv", names=["supply"])
    assert path == tmp_path / "power.csv"
    assert path.read_text().splitlines()[0] == "reading,current_a [A],in_compliance,time_s [s],voltage_v [V]"
    with Recording.open(run) as recording:
        power_w = recording.supply().current_a * recording.supply().voltage_v
    frame = pandas.read_csv(path, dtype=str).astype(float)
    assert (frame["current_a [A]"] * frame["voltage_v [V]"]).tolist() == power_w.tolist()
    several = export_recording(run, tmp_path / "two", kind="csv", names=["supply", "array_0/writes"])
    assert [one.name for one in several] == ["two.array_0.writes.csv", "two.supply.csv", "two.about.json"]
    about = json.loads(several[-1].read_text())
    assert about["streams"]["array_0/writes"]["columns"]["rms_error_s"]["units"] == "S"
    assert about["stimulus_kinds"]["5"] == "random"
    array = export_recording(run, tmp_path / "a.parquet", array=0)
    assert [one.name for one in array] == ["a.array_0.parquet", "a.array_0.writes.parquet"]


def test_netcdf_c_library_reads_it(tmp_path: Path, record: Record) -> None:
    pytest.importorskip("netCDF4")
    run = record(tmp_path / "run.h5", blocks=TWO_ARRAYS)
    export_recording(run, tmp_path / "run.nc")
    # In a process of its own: the library brings an HDF5 of its own.
    program = (
        "import netCDF4, sys; file = netCDF4.Dataset(sys.argv[1]); group = file['array_0'];"
        "print(group['current_a'].units, group['current_a'].dimensions, float(group['current_a'][:].sum()));"
        "print(file['array_0/writes/target_conductance_s'].shape, group['kind'].flag_meanings)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "run.nc")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    current_a = float(read_mvms(run).current_a.sum())
    assert done.stdout.splitlines() == [
        f"A ('mvm', 'column') {current_a}",
        "(2, 5, 3) zero one_hot hadamard sparse ladder random repeat activation",
    ]


def test_columns_and_texts_that_labrig_does_not_know_are_exported(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    temperature_k = np.linspace(300.0, 301.0, 16)
    notes = [f"µ {number}" for number in range(16)]
    with h5py.File(run, "r+") as file:
        group = file["entry/array_0"]
        group["temperature_k"] = temperature_k
        group["temperature_k"].attrs["units"] = "K"
        group["note"] = notes
        group["mark"] = np.array([b"a", b"bc"] * 8)
        group["map"] = np.arange(16 * 4, dtype=np.uint16).reshape(16, 2, 2)
        for name in ("temperature_k", "note", "mark", "map"):
            group[name].dims[0].attach_scale(group["mvm"])
    for suffix in ("nc", "csv", "parquet", "npz"):
        export_recording(run, tmp_path / f"x.{suffix}", names=["array_0"])
    with xarray.open_dataset(tmp_path / "x.nc", engine="h5netcdf", group="array_0") as data:
        assert data["temperature_k"].values.tolist() == temperature_k.tolist()
        assert data["temperature_k"].attrs["units"] == "K"
        assert data["note"].values.tolist() == notes
        assert data["mark"].values.tolist() == ["a", "bc"] * 8
        assert data["map"].shape == (16, 2, 2)
    frame = pandas.read_csv(tmp_path / "x.csv", dtype=str)
    assert len(frame) == 16 * 4
    assert frame["temperature_k [K]"].astype(float).tolist() == np.repeat(temperature_k, 4).tolist()
    assert frame["note"].tolist() == [note for note in notes for _ in range(4)]
    assert frame["map"].astype(int).tolist() == list(range(64))
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["note"].to_pylist() == notes
    assert table["map"].to_pylist()[1] == [[4, 5], [6, 7]]
    with np.load(tmp_path / "x.npz") as found:
        assert found["array_0/note"].tolist() == notes
        assert found["array_0/temperature_k"].tolist() == temperature_k.tolist()


def test_every_fault_is_told_at_once_and_nothing_is_written(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    (tmp_path / "there.nc").write_text("mine")
    with pytest.raises(StorageError) as caught:
        export_recording(run, tmp_path / "there.nc", array=7, names=["moon"])
    message = str(caught.value)
    assert "has no array 7; it has: 0" in message
    assert "has no stream moon; it has: array_0, array_0/writes, supply" in message
    assert "there.nc: exists already and is not overwritten" in message
    with pytest.raises(StorageError, match=r"absent\.h5: there is no such file; .*x\.xyz: its suffix says no format"):
        export_recording(tmp_path / "absent.h5", tmp_path / "x.xyz")
    with pytest.raises(StorageError, match="there is no format 'excel'; there are: netcdf"):
        export_recording(run, tmp_path / "x.csv", kind="excel")
    with pytest.raises(StorageError, match=r"array 0 has none of these streams: supply"):
        export_recording(run, tmp_path / "x.csv", array=0, names=["supply"])
    (tmp_path / "x.supply.csv").write_text("mine")
    with pytest.raises(StorageError, match=r"x\.supply\.csv: exists already"):
        export_recording(run, tmp_path / "x.csv")
    with h5py.File(run, "r+") as file:
        file["entry/supply"]["pair"] = np.zeros(0, [("a", "f8"), ("b", "i4")])
        file["entry/supply/pair"].dims[0].attach_scale(file["entry/supply/reading"])
    with pytest.raises(StorageError, match="supply/pair is a table by itself"):
        export_recording(run, tmp_path / "y.nc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5", "there.nc", "x.supply.csv"]


def test_damaged_recordings_are_refused_with_what_to_do(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    with h5py.File(run, "r+") as file:
        file["entry/array_0/current_code"][3, 1] ^= 4
    for suffix in ("nc", "csv", "parquet", "npz"):
        with pytest.raises(StorageError, match=r"MVMs 0 to 7 of array 0.*labrig recover .*run\.h5"):
            export_recording(run, tmp_path / f"x.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_missing_extra_is_told(tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(tmp_path / "run.h5")

    def demand(verb: str, *extras: str) -> None:
        raise MissingExtraError(f"`labrig {verb}` needs more; run: pip install 'labrig[{extras[0]}]'")

    monkeypatch.setattr(export_run, "demand_extra", demand)
    with pytest.raises(MissingExtraError, match=r"`labrig export` .* 'labrig\[export\]'"):
        export_recording(run, tmp_path / "x.nc")
    with pytest.raises(StorageError, match=r"absent.*labrig\[export\]"):
        export_recording(tmp_path / "absent.h5", tmp_path / "x.parquet")
    export_recording(run, tmp_path / "x.npz")
    export_recording(run, tmp_path / "x.csv")


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_the_base_install_exports_with_numpy_alone(tmp_path: Path, record: Record, kind: str) -> None:
    run = record(tmp_path / "run.h5")
    program = (
        "import sys; from pathlib import Path; from labrig.export import export_recording;"
        f"export_recording(Path({str(run)!r}), Path({str(tmp_path / f'x.{kind}')!r}));"
        "print({'pyarrow', 'pandas', 'h5netcdf', 'torch', 'scipy', 'xarray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_examples_of_the_page_run(tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "export.md").read_text()
    run = record(tmp_path / "run.h5", supply=3)
    for suffix in ("nc", "csv", "parquet", "npz"):
        export_recording(run, tmp_path / f"run.{suffix}")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        for value in names.values():
            if isinstance(value, (xarray.Dataset, xarray.DataTree, np.lib.npyio.NpzFile)):
                value.close()


def test_command_line(tmp_path: Path, record: Record) -> None:
    record(tmp_path / "run.h5", blocks=TWO_ARRAYS)

    def labrig(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line.labrig(tmp_path, "export", *arguments)

    done = labrig("run.h5", "-o", "run.parquet", "--array", "1")
    assert (done.returncode, done.stdout) == (0, "run.array_1.parquet\nrun.array_1.writes.parquet\n"), done.stderr
    assert "labrig export run.h5 -o run.nc" in labrig("--help").stdout
    wrong = labrig("run.h5", "-o", "run.csv", "--stream", "moon", "--format", "csv")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("labrig: error: run.h5: has no stream moon; it has: array_0, ")
    nowhere = labrig("run.h5")
    assert nowhere.returncode == 2
    assert "run.h5: say where to, and thereby in which format: -o run.nc, -o run.csv," in nowhere.stderr
    beside = labrig("run.h5", "--format", "csv", "--stream", "array_0")
    assert (beside.returncode, beside.stdout) == (0, "run.csv\n"), beside.stderr
