"""The page about the recording format says what a recording has: its tables are compared with one made now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.plans import BesideCapacity, StreamCapacity
from labrig.recording import Recording, RecordingHeader
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.layout import FORMAT_VERSION
from labrig_calibration.stimulus import StimulusKind
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.instrument import Identity

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "recording-format.md").read_text()
ROWS, COLUMNS = 6, 4
INFO = BoardInfo("SIM-1", 1, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader(
    rig_name="bench",
    rig_toml="[rig]\n",
    plan={"name": "mvm"},
    identities={"board": Identity("labrig", "LR-SIM1", "SIM-1", "1.0")},
    settings={"board": {"driver": "mock-board"}},
    started_utc="2026-01-01T00:00:00.000000+00:00",
    versions={"labrig": "0.1.0"},
    run_id="2f1d5c3e-8a94-4b60-9d27-6c0b7e5a1f48",
)

Reader = Callable[..., dict[str, NDArray[np.generic]]]


def record(path: Path, *, finish: bool) -> None:
    """Two writes with three blocks each."""
    beside = BesideCapacity(axes={"temperature": (290.0, 300.0)}, settings=2, curves=2, readings=6)
    file = RecordingFile(
        path,
        HEADER,
        INFO,
        {0: StreamCapacity(100, 4, 20)},
        5,
        "process",
        beside=beside,
        axis_units={"temperature": "K"},
    )
    rng = np.random.default_rng(0)
    file.stage_setting({name: np.array([1.0]) for name in ("time_s", "temperature_set", "temperature_read")})
    file.commit()
    for write in range(2):
        columns: dict[str, NDArray[np.generic]] = {
            "target_conductance_s": rng.uniform(4e-6, 5e-5, (1, ROWS, COLUMNS)),
            "programmed_at_s": np.array([float(write)]),
            "rms_error_s": np.array([1e-7]),
            "pulses": np.array([1]),
            "board_write": np.array([write]),
        }
        file.append_write(0, columns)
        for rows in (3, 8, 1):
            mvms: dict[str, NDArray[np.generic]] = {
                "voltage_v": rng.uniform(-0.3, 0.3, (rows, ROWS)).astype(np.float32),
                "current_code": rng.integers(-512, 512, (rows, COLUMNS)).astype(np.int16),
                "saturated": rng.integers(0, 2, (rows, COLUMNS)).astype(np.uint8),
                "time_s": rng.uniform(0.0, 1.0, rows),
            }
            file.append_mvms(0, mvms, BlockLabel(rng.bytes(16), 3))
    if finish:
        file.close("finished")
    else:
        file.abandon()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("format") / "run.h5"
    record(path, finish=False)
    return path


def on_page(heading: str) -> list[list[str]]:
    """Rows of the first table under a heading, without its head."""
    section = PAGE.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()[2:]]


def generic(path: str) -> str:
    """The path with `N`, `NAME` and `AXIS` for what differs from recording to recording."""
    path = path.replace("temperature", "AXIS")
    return re.sub(r"instruments/\w+", "instruments/NAME", re.sub(r"array_\d+", "array_N", path))


def type_name(dtype: np.dtype[np.generic]) -> str:
    if dtype.hasobject:
        return "text"
    if dtype.kind == "S":
        return f"{dtype.itemsize} bytes"
    base, shape = dtype.base, dtype.shape
    assert base.byteorder in "<|="
    return " ".join([*map(str, shape), f"{base.kind}{base.itemsize}"])


def number(value: object) -> str:
    first = np.asarray(value).reshape(-1)[0].item()
    return "NaN" if first != first else str(first)


def scales(dataset: h5py.Dataset) -> str:
    name = dataset.name.rpartition("/")[2]
    if dataset.attrs.get("CLASS") == b"DIMENSION_SCALE":
        return str(name)
    return ", ".join(one[0].name.rpartition("/")[2] for one in dataset.dims)


def row_of(dataset: h5py.Dataset, meaning: str) -> list[str]:
    """A dataset as the page shows it; the page may say more than `long_name`, after it."""
    name, kind = generic(dataset.name.rpartition("/")[2]), type_name(dataset.dtype)
    long_name = generic(str(dataset.attrs.get("long_name", meaning)))
    units = "of the axis" if name.startswith("AXIS") else str(dataset.attrs.get("units", ""))
    return [
        f"`{name}`",
        kind,
        scales(dataset) if dataset.shape else "",
        units,
        number(dataset.fillvalue) if dataset.chunks else "",
        meaning if meaning.startswith(long_name) else long_name,
    ]


def groups_in(file: h5py.File) -> Iterator[h5py.Group]:
    found: list[h5py.Group] = [file]
    file.visititems(lambda _, node: found.append(node) if isinstance(node, h5py.Group) else None)
    yield from found


def markdown(rows: list[list[str]]) -> str:
    return "\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_page_is_about_the_version_that_is_written() -> None:
    assert f"This page describes version {FORMAT_VERSION}." in PAGE
    assert on_page("## Versions")[-1][0] == FORMAT_VERSION


def test_every_group_is_on_the_page_and_is_plotted_as_it_says(interrupted: Path) -> None:
    described = {row[0]: row for row in on_page("## Groups")}
    with h5py.File(interrupted) as file:
        found = {}
        for group in groups_in(file):
            path = f"`{generic(group.name)}`"
            plotted = f"`{generic(group.attrs['default'])}`" if "default" in group.attrs else ""
            if "signal" in group.attrs:
                axes = ", ".join(f"`{axis}`" for axis in group.attrs["axes"])
                plotted = f"`{group.attrs['signal']}` over {axes}"
            meaning = described.get(path, ["", "", "", "what is it?"])[3]
            found[path] = [path, group.attrs["NX_class"], plotted, meaning]
    assert markdown([*described.values()]) == markdown([found[path] for path in described if path in found])
    assert set(found) == set(described)


def test_every_attribute_of_the_root_is_on_the_page(interrupted: Path) -> None:
    with h5py.File(interrupted) as file:
        assert sorted(row[0] for row in on_page("## Attributes of the root")) == sorted(
            f"`{one}`" for one in file.attrs
        )


def test_every_dataset_is_on_the_page_as_it_is(interrupted: Path) -> None:
    with h5py.File(interrupted) as file:
        compared = 0
        for group in groups_in(file):
            datasets = {f"`{generic(name)}`": one for name, one in group.items() if isinstance(one, h5py.Dataset)}
            if not datasets or group.name == "/entry/journal":
                continue
            described = on_page(f"### `{generic(group.name)}`")
            known = [row[0] for row in described]
            meanings = {row[0]: row[5] for row in described}
            order = sorted(datasets, key=lambda name: known.index(name) if name in known else len(known))
            actual = [row_of(datasets[name], meanings.get(name, "what is it?")) for name in order]
            # Where this fails, the right table is the second one.
            assert markdown(described) == markdown(actual)
            compared += 1
        assert compared == 7


def test_fields_of_the_journal_are_on_the_page(interrupted: Path) -> None:
    with h5py.File(interrupted) as file:
        table = file["entry/journal/array_0"]
        described = on_page("### `/entry/journal`")
        meanings = {row[0]: row[3] for row in described}
        assert table.dtype.names is not None
        fields = [
            [f"`{name}`", type_name(table.dtype[name]), number(table.fillvalue[name]), meanings.get(f"`{name}`", "?")]
            for name in table.dtype.names
        ]
        assert markdown(described) == markdown(fields)


def test_numbers_of_kinds_are_on_the_page() -> None:
    (sentence,) = re.findall(r"`kind` is .*?;", PAGE, re.DOTALL)
    assert [int(one) for one in re.findall(r"\b\d\b(?! V)", sentence)] == [int(kind) for kind in StimulusKind]


@pytest.fixture(scope="module")
def recipe() -> Reader:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    body = text.split("def read_array", 1)[1]
    assert len(body.splitlines()) <= 22
    names: dict[str, Reader] = {}
    exec(text, names)
    return names["read_array"]


@pytest.mark.parametrize("finish", [True, False])
def test_recipe_reads_what_labrig_reads(tmp_path: Path, recipe: Reader, *, finish: bool) -> None:
    path = tmp_path / "run.h5"
    record(path, finish=finish)
    found = recipe(path)
    with Recording.open(path) as recording:
        expected = recording.mvm_columns(0)
        assert len(expected["time_s"]) == 24
        assert all(np.array_equal(found[name], column) for name, column in expected.items())
        assert set(found) == {*expected, "current_a"}
        assert np.array_equal(found["current_a"], recording.dataset().current_a)


def test_recipe_believes_no_more_than_labrig(tmp_path: Path, recipe: Reader) -> None:
    path = tmp_path / "run.h5"

    def refused(place: str, row: int, change: int) -> str:
        record(path, finish=True)
        with h5py.File(path, "r+") as file:
            group, _, field = place.partition(":")
            table = file[group][...]
            (table[field] if field else table)[row] += change
            file[group][...] = table
        with pytest.raises(ValueError, match="row") as caught:
            recipe(path)
        path.unlink()
        return str(caught.value)

    assert refused("entry/array_0/current_code", 5, 1) == "rows 3 to 11 are not what was written"
    assert refused("entry/journal/array_0:crc32", 1, 1) == "rows 3 to 11 are not what was written"
    assert refused("entry/journal/array_0:start", 3, 1) == "the journal ends at row 12 of 24"
    assert refused("entry/journal/array_0:rows", 5, -1) == "the journal ends at row 23 of 24"
    record(path, finish=True)
    with h5py.File(path, "r+") as file:
        # Uncommitted again: the last block does not count, whatever the journal says.
        file["entry/array_0/committed"][()] = 23
    assert len(recipe(path)["time_s"]) == 23
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.bytes_("2.0")
    with pytest.raises(ValueError, match="no recording of version 1"):
        recipe(path)
