"""What is not in a file is told as that, whatever the garbage collector does meanwhile."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from labrig.recording import placed
from labrig.recording.nodes import dataset_at, group_at, in_words, text_attribute
from labrig.recording.placed import NotPlacedError, PlacedRows


class Knot:
    """Garbage that only the collector finds, with an object of HDF5 in it."""

    def __init__(self) -> None:
        self.itself = self
        self.properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)


@contextmanager
def collected_after(allocations: int) -> Iterator[None]:
    """Lets the collector run when so many more containers were made, with objects of HDF5 to let go of."""
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    for _ in range(20):
        Knot()
    gc.set_threshold(gc.get_count()[0] + allocations)
    gc.enable()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def errors(ask: Callable[[], object]) -> set[type[Exception]]:
    """What asking ends with, when the collector runs at each moment of it in turn."""
    found = set[type[Exception]]()
    gc.collect()
    # What is there now is put aside for good: each of the collections to come would look through it.
    gc.freeze()
    for allocations in range(60):
        with collected_after(allocations):
            try:
                ask()
            except Exception as error:
                found.add(type(error))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "any.h5"
    with h5py.File(path, "w") as file:
        file["entry/rows"] = np.arange(3)
    return path


def test_what_is_not_there_is_a_key_error_whenever_garbage_is_collected(path: Path) -> None:
    with h5py.File(path) as file:
        # With h5py 3.16: a KeyError or, where the text of the error is gone before it is read, a UnicodeDecodeError.
        print("h5py itself:", errors(lambda: file["entry/settings"]))
        assert errors(lambda: group_at(file, "entry/settings")) == {KeyError}
        assert errors(lambda: group_at(file, "nothing/settings")) == {KeyError}
        assert errors(lambda: dataset_at(file, "entry/rows/below")) == {KeyError}
        assert errors(lambda: text_attribute(file, "plan")) == {KeyError}


def test_what_is_there_is_what_it_should_be_or_a_key_error(path: Path) -> None:
    with h5py.File(path) as file:
        assert group_at(file, "/").name == "/"
        assert group_at(file, "entry").name == "/entry"
        assert dataset_at(file, "entry/rows").shape == (3,)
        with pytest.raises(KeyError, match="not a dataset"):
            dataset_at(file, "entry")
        with pytest.raises(KeyError, match="not a group"):
            group_at(file, "entry/rows")


def test_a_file_whose_rows_have_no_places_leaves_nothing_of_hdf5_to_the_collector(path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(NotPlacedError) as caught:
            PlacedRows(path)
        del caught
        left = [one for one in gc.get_objects() if isinstance(one, (placed._Bytes, h5py.HLObject))]
        assert left == []
    finally:
        gc.enable()


def test_reasons_are_those_of_the_system_without_the_names_of_its_parts() -> None:
    long = "Unable to open file (unable to open file: name = 'run.h5', errno = 28, error message = 'No space ...')"
    for error, said in (
        (OSError(errno.ENOSPC, long), "No space left on device"),
        (
            OSError(errno.ENOENT, "the file was removed while it was written"),
            "the file was removed while it was written",
        ),
        (OSError("unable to lock"), "unable to lock"),
        (KeyError("there is no attribute axes"), "there is no attribute axes"),
        (RuntimeError("can't decode"), "can't decode"),
    ):
        assert in_words(error) == said
