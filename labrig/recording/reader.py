"""`Recording`: a finished, aborted or killed recording, read without trusting more than it proves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from labrig.plans.base import StreamCapacity
from labrig.plans.mvm import board_converters
from labrig.recording import layout
from labrig.recording.header import RecordingHeader, board_info_from_json
from labrig.recording.journal import counted_entries, journal_path
from labrig.recording.nodes import dataset_at, fixed_text, group_at, text_attribute, values_of
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import BoardInfo, FloatArray
from labrig_drivers.errors import StorageError
from labrig_drivers.instrument import Identity

T = TypeVar("T")

# The layout's columns are the same whatever the room: only names and order matter to a reader.
_ANY_CAPACITY = StreamCapacity(rows=0, writes=0, blocks=0)


@dataclass(frozen=True)
class SupplyTrace:
    """Readings of the array supply, all `[N]`.

    Attributes:
        time_s: UTC in s.
        voltage_v: Voltage in V.
        current_a: Current in A.
        in_compliance: True where the limit determined the output.
    """

    time_s: FloatArray
    voltage_v: FloatArray
    current_a: FloatArray
    in_compliance: NDArray[np.bool_]

    @property
    def energy_j(self) -> float:
        """Energy in J: voltage times current, integrated over time by trapezoids."""
        power_w = self.voltage_v * self.current_a
        return float(np.sum(0.5 * (power_w[1:] + power_w[:-1]) * np.diff(self.time_s)))


@dataclass(frozen=True)
class RecordingSummary:
    """What a recording holds, in a few numbers.

    Attributes:
        path: The file.
        status: `finished`, `aborted`, or `interrupted` where the writer died.
        chip_id: Which chip.
        rig_name: Which rig.
        plan: Name of the plan.
        started_utc: Start, ISO 8601.
        ended_utc: End, ISO 8601; empty where the writer died.
        mvms: Committed MVMs by array.
        writes: Committed programmings by array.
        supply_readings: Committed readings of the supply.
        energy_j: Energy in J from the supply.
    """

    path: Path
    status: str
    chip_id: str
    rig_name: str
    plan: str
    started_utc: str
    ended_utc: str
    mvms: dict[int, int]
    writes: dict[int, int]
    supply_readings: int
    energy_j: float


class Recording:
    """A recording, open for reading. Use as `with Recording.open(path) as recording:`.

    Attributes:
        path: The file.
        header: What was known before the run.
        info: The board that was measured.
        status: `finished`, `aborted`, or `interrupted` where the writer died; what is committed counts anyway.
        ended_utc: End of the run, ISO 8601; empty where the writer died.
        arrays: The arrays that it was made for.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.info: BoardInfo = board_info_from_json(text_attribute(file, "board_info"))
        self.header = RecordingHeader(
            rig_name=text_attribute(file, "rig_name"),
            rig_toml=text_attribute(file, "rig_toml"),
            plan=json.loads(text_attribute(file, "plan")),
            identities={name: Identity(**one) for name, one in json.loads(text_attribute(file, "identities")).items()},
            settings=json.loads(text_attribute(file, "settings")),
            started_utc=text_attribute(file, "started_utc"),
            versions=json.loads(text_attribute(file, "versions")),
            git_commit=text_attribute(file, "git_commit"),
        )
        status = fixed_text(dataset_at(file, "entry/status"))
        # Nobody writes into a file that opens for reading: its writer died.
        self.status: str = "interrupted" if status == "running" else status
        self.ended_utc: str = fixed_text(dataset_at(file, "entry/end_time"))
        names = [str(name) for name in group_at(file, "entry")]
        self.arrays: tuple[int, ...] = tuple(
            sorted(int(name.removeprefix("array_")) for name in names if name.startswith("array_"))
        )

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Opens a recording.

        Raises:
            StorageError: There is no such file, it is no labrig recording, it was cut short, it comes from a
                newer labrig, or it is being written.
        """
        path = Path(path)
        if not path.is_file():
            raise StorageError(f"{path}: there is no such file")
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise StorageError(f"{path}: {_reason(error)}") from error
        try:
            _believed(path, lambda: _demand_format(path, file))
            return _believed(path, lambda: cls(path, file))
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        self._file.close()

    def committed(self, array: int) -> int:
        """How many MVMs of an array count."""
        self._demand_array(array)
        return _believed(self.path, lambda: self._committed(f"entry/array_{array}"))

    def writes(self, array: int) -> int:
        """How many programmings of an array count."""
        self._demand_array(array)
        return _believed(self.path, lambda: self._committed(f"entry/array_{array}/writes"))

    def has_stream(self, path: str) -> bool:
        """Whether there is a stream at this path, such as `entry/curves`."""
        return f"{path}/{layout.COMMITTED}" in self._file

    def column(self, stream: str, name: str) -> NDArray[np.generic]:
        """The committed rows of one column of a stream; empty where the file has no such column."""
        if f"{stream}/{name}" not in self._file:
            return np.empty(0)
        return _believed(
            self.path, lambda: values_of(dataset_at(self._file, f"{stream}/{name}"), self._committed(stream))
        )

    def journal(self, stream: str) -> NDArray[np.void]:
        """The entries of a stream's journal that count, in order."""
        table: NDArray[np.void] = _believed(self.path, lambda: np.asarray(dataset_at(self._file, journal_path(stream))))
        return counted_entries(table, self._committed(stream))

    def point_hashes(self, array: int) -> list[str]:
        """The points of an array's committed blocks, in the order of measurement, 32 hex digits each."""
        self._demand_array(array)
        return _believed(self.path, lambda: [bytes(one["point"]).hex() for one in self._journal(array)])

    def dataset(self, array: int = 0) -> MvmDataset:
        """The committed measurements of one array, every block checked against its checksum.

        Raises:
            StorageError: There is no such array, nothing of it is committed, or committed rows are not those
                that were written.
        """
        self._demand_array(array)
        return _believed(self.path, lambda: self._dataset(array))

    def supply(self) -> SupplyTrace:
        """The committed readings of the array supply."""

        def read() -> SupplyTrace:
            columns = self._with_checksums(layout.supply_stream(0), "reading {} of the supply")
            return SupplyTrace(
                columns["time_s"].astype(np.float64),
                columns["voltage_v"].astype(np.float64),
                columns["current_a"].astype(np.float64),
                columns["in_compliance"].astype(np.bool_),
            )

        return _believed(self.path, read)

    def supply_energy_j(self) -> float:
        """Energy in J that the array supply gave between its first and its last reading."""
        return self.supply().energy_j

    def verify(self) -> None:
        """Checks every committed row of every array against its checksum.

        Raises:
            StorageError: Committed rows are not those that were written.
        """
        for array in self.arrays:
            _believed(self.path, lambda number=array: self._checked(number))  # type: ignore[misc]

    def summary(self) -> RecordingSummary:
        """What the recording holds."""
        supply = self.supply()
        return RecordingSummary(
            path=self.path,
            status=self.status,
            chip_id=self.info.chip_id,
            rig_name=self.header.rig_name,
            plan=str(self.header.plan.get("name", "")),
            started_utc=self.header.started_utc,
            ended_utc=self.ended_utc,
            mvms={array: self.committed(array) for array in self.arrays},
            writes={array: self.writes(array) for array in self.arrays},
            supply_readings=len(supply.time_s),
            energy_j=supply.energy_j,
        )

    def _dataset(self, array: int) -> MvmDataset:
        mvms, writes = self._checked(array)
        if not len(mvms["time_s"]):
            raise StorageError(f"{self.path}: no MVM of array {array} was committed before the run ended")
        current_a = mvms["current_code"].astype(np.float64) * self.info.adc_lsb_a
        return MvmDataset(
            voltage_v=mvms["voltage_v"].astype(np.float64),
            current_a=current_a,
            pattern=mvms["write"].astype(np.int64),
            target_conductance_s=writes["target_conductance_s"].astype(np.float64),
            time_s=mvms["time_s"].astype(np.float64),
            programmed_at_s=writes["programmed_at_s"].astype(np.float64),
            saturated=mvms["saturated"].astype(np.bool_),
            converters=board_converters(self.info),
            chip_id=self.info.chip_id,
            array=array,
        )

    def _checked(self, array: int) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]]]:
        """The columns of an array's MVMs and writes, after their checksums agreed."""
        mvms = self._columns(layout.mvm_stream(array, self.info, _ANY_CAPACITY))
        expected_start = 0
        for block in self._journal(array):
            start, rows = int(block["start"]), int(block["rows"])
            crc = layout.crc32_of(column[start : start + rows] for column in mvms.values())
            if start != expected_start or crc != int(block["crc32"]):
                raise _damaged(self.path, f"MVMs {start} to {start + rows - 1} of array {array}")
            expected_start += rows
        if expected_start != len(mvms["time_s"]):
            raise _damaged(self.path, f"the journal of array {array}")
        stream = layout.write_stream(array, self.info, _ANY_CAPACITY)
        return mvms, self._with_checksums(stream, f"write {{}} of array {array}")

    def _with_checksums(self, stream: layout.Stream, what: str) -> dict[str, NDArray[np.generic]]:
        """The columns of a stream whose rows each carry a checksum, where the file has them; that one is left out."""
        columns = self._columns(stream)
        for row, crc_read in enumerate(columns.pop("crc32", ())):
            if layout.crc32_of(column[row : row + 1] for column in columns.values()) != int(crc_read):
                raise _damaged(self.path, what.format(row))
        return columns

    def _journal(self, array: int) -> NDArray[np.void]:
        """The journal's rows for committed MVMs, in order; one more may be about rows that do not count."""
        committed = self._committed(f"entry/array_{array}")
        table: NDArray[np.void] = np.asarray(dataset_at(self._file, journal_path(f"entry/array_{array}")))
        return counted_entries(table, committed)

    def _columns(self, stream: layout.Stream) -> dict[str, NDArray[np.generic]]:
        committed = self._committed(stream.path)
        group = group_at(self._file, stream.path)
        present = [column.name for column in stream.columns if column.name in group]
        return {name: values_of(dataset_at(group, name), committed) for name in present}

    def _committed(self, path: str) -> int:
        return int(values_of(dataset_at(self._file, f"{path}/{layout.COMMITTED}")))

    def _demand_array(self, array: int) -> None:
        if array not in self.arrays:
            arrays = ", ".join(str(one) for one in self.arrays) or "none"
            raise StorageError(f"{self.path}: has no array {array}; it has: {arrays}")


def read_mvms(path: Path | str, array: int = 0) -> MvmDataset:
    """The committed measurements of one array of a recording, every block checked against its checksum.

    Raises:
        StorageError: See `Recording.open` and `Recording.dataset`.
    """
    with Recording.open(path) as recording:
        return recording.dataset(array)


def _demand_format(path: Path, file: h5py.File) -> None:
    file_format = text_attribute(file, "file_format") if "file_format" in file.attrs else None
    if file_format != layout.FILE_FORMAT:
        raise StorageError(f"{path}: is an HDF5 file, but no labrig recording (file_format is {file_format!r})")
    version = text_attribute(file, "format_version")
    if version.partition(".")[0] != str(layout.FORMAT_MAJOR):
        raise StorageError(
            f"{path}: has format version {version!r}, this labrig reads {layout.FORMAT_MAJOR}.x; "
            "read it with the labrig that wrote it, or update"
        )


def _believed(path: Path, read: Callable[[], T]) -> T:
    """Runs `read`; whatever HDF5 or the contents object to becomes one kind of error."""
    try:
        return read()
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise StorageError(f"{path}: is damaged, or was not finished when it was created: {error}") from error


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(f"{path}: {what}: committed, but not what was written (checksum); the file is damaged")


def _reason(error: OSError) -> str:
    text = str(error)
    if "truncated" in text:
        return "was cut short, its end is missing; if a copy was interrupted, copy it again"
    if "signature not found" in text or "superblock" in text:
        return "is not an HDF5 file"
    if "unable to lock file" in text:
        return "is open in another program, probably it is still being written; read it when that has ended"
    return f"cannot be read: {text}"
