"""Programs that never heard of labrig open a recording and plot the right thing.

xarray is always there. silx and nexusformat are large; `nox -s viewers` brings them, elsewhere their tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from labrig.plans import StreamCapacity
from labrig.recording import Recording, RecordingHeader
from labrig.recording.file import BlockLabel, RecordingFile
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity

ROWS, COLUMNS = 6, 4
INFO = BoardInfo("SIM-1", 2, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4, 2e-4, 1e-4, 4e-4), 1e-5, 5e-3)
HEADER = RecordingHeader(
    rig_name="bench",
    rig_toml='[rig]\nname = "bench"\n',
    plan={"name": "mvm", "seed": 1},
    identities={"board": Identity("labrig", "LR-SIM1", "SIM-1", "1.0")},
    settings={"board": {"driver": "mock-board"}},
    started_utc="2026-01-01T00:00:00.000000+00:00",
    versions={"labrig": "0.1.0"},
)
MVMS, WRITES, READINGS = 32, 2, 3


def record(path: Path, info: BoardInfo, *, finish: bool = True) -> None:
    """Two writes with 16 MVMs each on array 0, nothing on array 1, three readings of the supply."""
    capacity = {0: StreamCapacity(100, 4, 10), 1: StreamCapacity(10, 1, 1)}
    file = RecordingFile(path, HEADER, info, capacity, 5, "process")
    rng = np.random.default_rng(0)
    for write in range(WRITES):
        columns: dict[str, NDArray[np.generic]] = {
            "target_conductance_s": rng.uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)),
            "programmed_at_s": np.array([float(write)]),
            "rms_error_s": np.array([1e-7]),
            "pulses": np.array([1]),
            "board_write": np.array([write]),
        }
        file.append_write(0, columns)
        mvms: dict[str, NDArray[np.generic]] = {
            "voltage_v": rng.uniform(-0.3, 0.3, (MVMS // 2, ROWS)).astype(np.float32),
            "current_code": rng.integers(-512, 512, (MVMS // 2, COLUMNS)).astype(np.int16),
            "saturated": np.zeros((MVMS // 2, COLUMNS), np.uint8),
            "time_s": 10.0 * write + np.arange(MVMS // 2, dtype=np.float64),
        }
        file.append_mvms(0, mvms, BlockLabel(bytes(16), 3))
    for second in range(READINGS):
        readings = {"time_s": 1e9 + second, "voltage_v": 2.0, "current_a": 0.1 * second}
        file.append_supply({name: np.array([one]) for name, one in readings.items()} | {"in_compliance": np.zeros(1)})
    if finish:
        file.close("finished")
    else:
        file.abandon()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    record(tmp_path / "finished.h5", INFO)
    return tmp_path / "finished.h5"


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """Its writer died: the rows that were never written are still there."""
    record(tmp_path / "interrupted.h5", INFO, finish=False)
    return tmp_path / "interrupted.h5"


@pytest.fixture(params=["finished", "interrupted"])
def recorded(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_xarray_has_names_units_and_coordinates(finished: Path) -> None:
    with (
        Recording.open(finished) as recording,
        xarray.open_dataset(finished, engine="h5netcdf", group="entry/array_0") as data,
        xarray.open_dataset(finished, engine="h5netcdf", group="entry/array_0/writes") as writes,
        xarray.open_dataset(finished, engine="h5netcdf", group="entry/supply") as supply,
    ):
        mvms = recording.dataset(0)
        assert data["current_code"].dims == ("mvm", "column")
        assert data["voltage_v"].dims == ("mvm", "row")
        assert {name: len(one) for name, one in data.coords.items()} == {"mvm": MVMS, "row": ROWS, "column": COLUMNS}
        for name, count in data.sizes.items():
            assert data[name].values.tolist() == list(range(count))
        assert np.array_equal(data["voltage_v"], mvms.voltage_v)
        # Codes and their scale are enough for currents.
        assert np.array_equal(data["current_code"].astype("f8") * data["adc_lsb_a"], mvms.current_a)
        units = {"voltage_v": "V", "current_code": "", "adc_lsb_a": "A", "time_s": "s", "write": "", "kind": ""}
        assert {name: data[name].attrs["units"] for name in units} == units
        assert all(data[name].attrs["long_name"] for name in units)
        # Numbers of writes are numbers: they select.
        assert data["write"].dtype == np.int32
        targets = writes["target_conductance_s"].isel(write=data["write"].values)
        assert np.array_equal(targets, mvms.target_conductance_s[mvms.pattern])
        assert writes["target_conductance_s"].dims == ("write", "row", "column")
        assert supply["current_a"].sel(reading=2) == pytest.approx(0.2)
        assert supply["time_s"].attrs["units"] == "s"


def test_xarray_takes_no_row_that_was_never_written_for_data(interrupted: Path) -> None:
    for group, committed in (("entry/array_0", MVMS), ("entry/array_0/writes", WRITES), ("entry/supply", READINGS)):
        with xarray.open_dataset(interrupted, engine="h5netcdf", group=group) as data:
            signal = data[data.attrs["signal"]]
            assert int(data["committed"]) == committed < len(signal)
            assert np.isfinite(signal[:committed]).all()
            assert np.isnan(signal[committed:]).all()
            for name in ("voltage_v", "time_s"):
                assert name not in data or np.isnan(data[name][committed:]).all()
    with xarray.open_dataset(interrupted, engine="h5netcdf", group="entry/array_0", mask_and_scale=False) as raw:
        assert raw["current_code"].dtype == np.int16
        assert (raw["current_code"][MVMS:] == -32768).all()


def test_lowest_code_of_a_converter_with_16_bits_is_data(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    record(path, replace(INFO, adc_bits=16))
    with h5py.File(path) as file:
        assert "_FillValue" not in file["entry/array_0/current_code"].attrs


def nxdata_groups(file: h5py.File) -> Iterator[h5py.Group]:
    found: list[h5py.Group] = []
    file.visititems(lambda _, node: found.append(node) if node.attrs.get("NX_class") == "NXdata" else None)
    assert len(found) == 5
    yield from found


def plotted(group: h5py.Group) -> tuple[h5py.Dataset, list[h5py.Dataset]]:
    """Signal and axes as the NeXus manual and H5Web find them; assertions are what H5Web insists on."""
    assert isinstance(group.attrs["NX_class"], str)
    assert isinstance(group.attrs["signal"], str)
    signal = group[group.attrs["signal"]]
    axes = group.attrs["axes"]
    names = [axes] if isinstance(axes, str) else list(axes)
    assert all(isinstance(name, str) for name in names)
    datasets = [group[name] for name in names]
    for dataset in (signal, *datasets):
        assert isinstance(dataset, h5py.Dataset)
        assert dataset.dtype.kind in "iuf"
        assert dataset.shape
        assert isinstance(dataset.attrs["units"], str)
        assert isinstance(dataset.attrs["long_name"], str)
    # One axis for each dimension, in its order, and of its length.
    assert [dataset.shape for dataset in datasets] == [(length,) for length in signal.shape]
    return signal, datasets


def test_the_default_plot_of_nexus_is_that_of_the_codes(recorded: Path) -> None:
    with h5py.File(recorded) as file:
        node = file
        while "default" in node.attrs:
            node = node[node.attrs["default"]]
        signal, axes = plotted(node)
        assert signal.name == "/entry/array_0/current_code"
        assert [axis.name for axis in axes] == ["/entry/array_0/mvm", "/entry/array_0/column"]
        # What H5Web leaves out of a plot is compared in the type of the data.
        assert signal.attrs["_FillValue"].dtype == signal.dtype
        assert signal.attrs["_FillValue"] == signal.fillvalue


def test_every_group_of_data_can_be_plotted(recorded: Path) -> None:
    with h5py.File(recorded) as file:
        signals = {group.name: plotted(group)[0].name for group in nxdata_groups(file)}
    assert signals == {
        "/entry/array_0": "/entry/array_0/current_code",
        "/entry/array_0/writes": "/entry/array_0/writes/target_conductance_s",
        "/entry/array_1": "/entry/array_1/current_code",
        "/entry/array_1/writes": "/entry/array_1/writes/target_conductance_s",
        "/entry/supply": "/entry/supply/current_a",
    }


def test_every_number_has_a_unit_and_every_group_a_class(recorded: Path) -> None:
    without: list[str] = []

    def look(name: str, node: object) -> None:
        if isinstance(node, h5py.Group) and "NX_class" not in node.attrs:
            without.append(name)
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf" and "units" not in node.attrs:
            without.append(name)

    with h5py.File(recorded) as file:
        file.visititems(look)
    assert without == []


def test_silx_plots_it(recorded: Path) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    silx_io = pytest.importorskip("silx.io")
    kinds = {"array_0": "is_image", "array_1": "is_image", "writes": "is_stack", "supply": "is_curve"}
    with silx_io.open(str(recorded)) as file:
        for node in (file, file["entry"], file["entry/array_0"]):
            default = nxdata.get_default(node)
            assert default.is_valid
            assert default.signal.name == "/entry/array_0/current_code"
            assert default.axes_dataset_names == ["mvm", "column"]
        with h5py.File(recorded) as plain:
            names = [group.name for group in nxdata_groups(plain)]
        for name in names:
            data = nxdata.NXdata(file[name])
            assert data.issues == []
            assert data.is_valid
            empty = name.startswith("/entry/array_1") and recorded.name == "finished.h5"
            assert empty or getattr(data, kinds[name.rpartition("/")[2]])


def test_nexusformat_finds_no_error(recorded: Path) -> None:
    pytest.importorskip("nexusformat")
    program = "import sys; from nexusformat.scripts.nxcheck import main; sys.argv[0] = 'nxcheck'; main()"
    command = [sys.executable, "-c", program, str(recorded)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert "Total number of errors: 0" in checked.stdout + checked.stderr
