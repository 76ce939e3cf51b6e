"""Several recordings of one chip are one data set; recordings that do not belong together are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import labrig
from labrig.calibrating import datasets_of
from labrig.plans import StreamCapacity
from labrig.recording import RecordingHeader
from labrig.recording.file import BlockLabel, RecordingFile
from labrig.recording.joining import read_arrays
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import StorageError

ROWS, COLUMNS = 6, 4
INFO = BoardInfo("SIM-1", 2, ROWS, COLUMNS, 4e-6, 5e-5, -0.3, 0.3, 8, 10, (1e-4,) * COLUMNS, 1e-5, 5e-3)
HEADER = RecordingHeader("bench", "[rig]\n", {"name": "mvm"}, {}, {}, "", {})

Record = Callable[..., Path]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Makes a finished recording; `seed` tells its numbers apart."""

    def make(
        name: str,
        seed: int,
        started_utc: str,
        info: BoardInfo = INFO,
        mvms: tuple[int, ...] = (20, 0),
        arrays: int = 2,
        run_id: str = "",
    ) -> Path:
        rng = np.random.default_rng(seed)
        header = replace(HEADER, started_utc=started_utc, run_id=run_id)
        capacity = {array: StreamCapacity(30, 2, 3) for array in range(arrays)}
        file = RecordingFile(tmp_path / name, header, info, capacity, 5, "process")
        for array in range(arrays):
            for write in range(2):
                columns = {
                    "target_conductance_s": rng.uniform(4e-6, 5e-5, (1, info.rows, info.columns)),
                    "programmed_at_s": np.array([float(write)]),
                    "rms_error_s": np.array([1e-7]),
                    "pulses": np.array([1]),
                    "board_write": np.array([write]),
                }
                file.append_write(array, columns)
                count = mvms[array]
                if count:
                    measured: dict[str, NDArray[np.generic]] = {
                        "voltage_v": rng.uniform(-0.3, 0.3, (count, info.rows)).astype(np.float32),
                        "current_code": rng.integers(-512, 512, (count, info.columns)).astype(np.int16),
                        "saturated": np.zeros((count, info.columns), np.uint8),
                        "time_s": 10.0 * write + np.arange(count, dtype=np.float64),
                    }
                    file.append_mvms(array, measured, BlockLabel(rng.bytes(16), 3))
        file.close("finished")
        return tmp_path / name

    return make


def follows(whole: MvmDataset, parts: list[MvmDataset]) -> bool:
    """True where the parts lie behind one another in the whole."""
    writes = np.concatenate([part.target_conductance_s for part in parts])
    return (
        np.array_equal(whole.voltage_v, np.concatenate([part.voltage_v for part in parts]))
        and np.array_equal(whole.target_conductance_s, writes)
        and np.array_equal(whole.age_s, np.concatenate([part.age_s for part in parts]))
        and np.array_equal(
            whole.target_conductance_s[whole.pattern],
            np.concatenate([part.target_conductance_s[part.pattern] for part in parts]),
        )
    )


def test_recordings_of_one_chip_join_in_the_order_of_their_starts(record: Record) -> None:
    # In other time zones, and one without: ISO 8601 says which is which.
    late = record("a.h5", 1, "2026-03-01T12:00:00.000000+00:00")
    early = record("b.h5", 2, "2026-03-01T12:30:00.000000+02:00")
    middle = record("c.h5", 3, "2026-03-01T11:00:00.000000")
    parts = [labrig.read_mvms(path) for path in (early, middle, late)]
    whole = labrig.read_mvms([late, str(early), middle])
    assert (len(whole), whole.writes) == (120, 6)
    assert follows(whole, parts)
    assert labrig.read_mvms([middle, early, late]).sha256() == whole.sha256()
    assert labrig.read_mvms([early]).sha256() == labrig.read_mvms(str(early)).sha256()


def test_where_a_start_is_not_known_the_given_order_stays(record: Record) -> None:
    paths = [record("a.h5", 1, ""), record("b.h5", 2, "2026-03-01T12:00:00+00:00"), record("c.h5", 3, "")]
    for order in (paths, paths[::-1]):
        assert follows(labrig.read_mvms(order), [labrig.read_mvms(path) for path in order])


def test_every_difference_is_named(record: Record) -> None:
    scales = (1e-4, 2e-4, 1e-4, 3e-4)
    other = replace(INFO, chip_id="SIM-2", adc_bits=12, voltage_max_v=0.5, adc_full_scale_a=scales)
    a = record("a.h5", 1, "2026-03-01T12:00:00+00:00")
    b = record("b.h5", 2, "2026-03-02T12:00:00+00:00", other)
    c = record("c.h5", 3, "2026-03-03T12:00:00+00:00", replace(INFO, rows=8), arrays=1)
    with pytest.raises(StorageError) as caught:
        labrig.read_mvms([a, b, c], array=1)
    message = str(caught.value)
    assert message.startswith("these recordings cannot be joined: ")
    for part in (
        f"{c} has no array 1",
        f"{b} and {a} are of different chips (SIM-2 and SIM-1)",
        f"{b} has other highest voltage in V than {a}: 0.5 and 0.3",
        f"{b} has other ADC bits than {a}: 12 and 10",
        f"{b} has other ADC full scale in A than {a}: 0.0002 and 0.0001 at 1, 2 of 4 differ",
        f"{c} has other word lines than {a}: 8 and 6",
    ):
        assert part in message
    assert message.count(";") == 5


def test_what_does_not_change_the_numbers_may_differ(record: Record) -> None:
    a = record("a.h5", 1, "2026-03-01T12:00:00+00:00")
    b = record("b.h5", 2, "2026-03-02T12:00:00+00:00", replace(INFO, mvm_latency_s=1.0, capabilities=frozenset("x")))
    assert len(labrig.read_mvms([a, b])) == 80


def test_one_run_counts_once(record: Record, tmp_path: Path) -> None:
    path = record("a.h5", 1, "2026-03-01T12:00:00+00:00")
    shutil.copy(path, tmp_path / "copy.h5")
    for twice in ([path, path], [path, tmp_path / "copy.h5"]):
        with pytest.raises(StorageError, match="hold the same run, started 2026-03-01"):
            labrig.read_mvms(twice)
        with pytest.raises(StorageError, match="hold the same run"):
            datasets_of(twice)
    # A clock that was set in between does not make two runs of one.
    one = record("b.h5", 1, "2026-03-02T12:00:00+00:00", run_id="one")
    same, other = (record(name, 1, "2026-03-03T12:00:00+00:00", run_id=name[:3]) for name in ("one.h5", "two.h5"))
    with pytest.raises(StorageError, match=r"b\.h5 and .*one\.h5 hold the same run"):
        labrig.read_mvms([one, same])
    assert len(labrig.read_mvms([one, other])) == 80


def test_nothing_to_join_is_told(record: Record) -> None:
    with pytest.raises(StorageError, match="no recording was named"):
        labrig.read_mvms([])
    empty = record("a.h5", 1, "2026-03-01T12:00:00+00:00", mvms=(0, 0))
    with pytest.raises(StorageError, match="no MVM was committed"):
        read_arrays([empty])
    with pytest.raises(StorageError, match="no MVM of array 0 was committed"):
        labrig.read_mvms([empty, record("b.h5", 2, "2026-03-02T12:00:00+00:00")])


def test_arrays_are_joined_one_by_one_for_a_calibration(record: Record) -> None:
    a = record("a.h5", 1, "2026-03-02T12:00:00+00:00", mvms=(20, 10))
    b = record("b.h5", 2, "2026-03-01T12:00:00+00:00", mvms=(0, 7))
    c = record("c.h5", 3, "2026-03-03T12:00:00+00:00", mvms=(5, 0), arrays=1)
    found = read_arrays([a, b, c])
    assert {array: len(data) for array, data in found.items()} == {0: 50, 1: 34}
    assert follows(found[0], [labrig.read_mvms(a, 0), labrig.read_mvms(c, 0)])
    assert follows(found[1], [labrig.read_mvms(b, 1), labrig.read_mvms(a, 1)])
    # Writes of fewer than 18 MVMs carry no fit here; array 1 has no others, so there they stay.
    assert [len(data) for data in datasets_of([a, b, c])] == [40, 34]


def test_what_is_larger_than_memory_is_mapped_and_the_same(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    a = record("a.h5", 1, "2026-03-01T12:00:00+00:00", mvms=(20, 5))
    b = record("b.h5", 2, "2026-03-02T12:00:00+00:00")
    whole, mapped = read_arrays([a, b]), read_arrays([b, a], memory_bytes=1000)
    assert list(whole) == list(mapped) == [0, 1]
    for array, dataset in whole.items():
        other = mapped[array]
        assert isinstance(other.voltage_v, np.memmap)
        assert isinstance(other.current_a, np.memmap)
        assert not isinstance(dataset.voltage_v, np.memmap)
        assert other.sha256() == dataset.sha256()
        assert follows(other, [dataset])
        for name in ("saturated", "programmed_at_s", "pattern"):
            assert np.array_equal(getattr(other, name), getattr(dataset, name))
        assert (other.converters.dac_bits, other.chip_id, other.array) == (8, "SIM-1", array)
        keep = dataset.pattern == 1
        part = other.select(keep)
        assert isinstance(part.voltage_v, np.memmap)
        assert part.sha256() == dataset.select(keep).sha256()

    def full(*_: object) -> np.memmap:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labrig.recording.spooling.mapped", full)
    with pytest.raises(StorageError, match=r"no room for 0\.0 GB of array 0 .*No space left.*TMPDIR"):
        read_arrays([a], memory_bytes=1000)
