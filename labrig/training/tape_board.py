"""A run's recordings as the board that a rerun asks: the same requests in the same order get the same answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labrig.recording import Recording
from labrig.recording.streams import Columns
from labrig.training.physical import FloatArray
from labrig.training.run_folder import configuration_hash
from labrig.training.segments import Segment, Segments
from labrig_drivers.crossbar import BoardInfo, MvmResult, ProgramReport
from labrig_drivers.errors import CapabilityError, StorageError


@dataclass
class _Track:
    """One array of one recording, up to what counts."""

    mvms: Columns
    writes: Columns
    row: int
    write: int

    @property
    def ended(self) -> bool:
        return self.row >= len(self.mvms["write"]) and self.write >= len(self.writes["board_write"])


class TapeBoard:
    """Answers a rerun from the recordings of the run.

    A request that is not the next recorded one is refused: then the rerun is not the run. So is a recording that was
    made with another training file or calibration than those in the folder.

    Args:
        segments: The recordings.

    Raises:
        StorageError: A recording cannot be read or believed, or is of another configuration.
    """

    def __init__(self, segments: Segments) -> None:
        if not segments.every:
            raise StorageError(f"{segments.folder}: has no recording of a training")
        self._paths = [segments.folder / one.file for one in segments.every]
        configuration = configuration_hash(segments.folder)
        found = [_load(path, one, configuration) for path, one in zip(self._paths, segments.every, strict=True)]
        self.info: BoardInfo = found[0][0]
        self._tracks = [tracks for _, tracks in found]
        self._at = 0

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        """The next recorded programming of an array.

        Raises:
            CapabilityError: It has another target, or there is none.
        """
        track = self._track(array, "a programming")
        writes, number = track.writes, track.write
        if number >= len(writes["board_write"]):
            raise self._apart(array, f"write {number} was never made")
        recorded = np.asarray(writes["target_conductance_s"][number])
        if not np.array_equal(recorded, conductance_s.astype(np.float32)):
            apart_s = float(np.abs(recorded - conductance_s).max())
            raise self._apart(array, f"write {number} had another target, by up to {apart_s:.3g} S")
        track.write += 1
        return ProgramReport(
            write_index=int(writes["board_write"][number]),
            time_s=float(writes["programmed_at_s"][number]),
            pulses=int(writes["pulses"][number]),
            rms_error_s=float(writes["rms_error_s"][number]),
        )

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        """The next recorded batch of an array.

        Raises:
            CapabilityError: It has other inputs, or there is none.
        """
        track = self._track(array, "a batch")
        start, stop = track.row, track.row + len(voltage_v)
        if stop > len(track.mvms["write"]):
            raise self._apart(array, f"rows {start} to {stop - 1} were never measured")
        if not np.array_equal(np.asarray(track.mvms["voltage_v"][start:stop]), voltage_v.astype(np.float32)):
            raise self._apart(array, f"rows {start} to {stop - 1} had other inputs")
        track.row = stop
        code = np.asarray(track.mvms["current_code"][start:stop]).astype(np.int16)
        write = int(track.mvms["write"][start])
        return MvmResult(
            code=code,
            current_a=code * self.info.adc_lsb_a,
            saturated=np.asarray(track.mvms["saturated"][start:stop]).astype(np.bool_),
            time_s=np.asarray(track.mvms["time_s"][start:stop]).astype(np.float64),
            write_index=int(track.writes["board_write"][write]),
        )

    def _track(self, array: int, what: str) -> _Track:
        while self._at < len(self._tracks):
            tracks = self._tracks[self._at]
            if array in tracks and not tracks[array].ended:
                return tracks[array]
            if not all(one.ended for one in tracks.values()):
                break
            self._at += 1
        self._at = min(self._at, len(self._tracks) - 1)
        raise self._apart(array, f"{what} more than was recorded")

    def _apart(self, array: int, what: str) -> CapabilityError:
        return CapabilityError(
            f"{self._paths[self._at]}: the rerun has left the recording at array {array}: {what}; a rerun needs the "
            "same build of labrig and torch, the same training file and the same number of threads"
        )


def _load(path: object, segment: Segment, configuration: str) -> tuple[BoardInfo, dict[int, _Track]]:
    with Recording.open(str(path)) as recording:
        # Recordings of earlier versions do not say.
        if recording.header.plan.get("configuration", configuration) != configuration:
            raise StorageError(f"{path}: was made with another training file or calibration than those in its folder")
        tracks = {}
        for array in recording.arrays:
            rows, writes = recording.committed(array), recording.writes(array)
            if segment.rows is not None:
                rows = segment.rows.get(array, 0)
            if segment.writes is not None:
                writes = segment.writes.get(array, 0)
            mvms = recording.mvm_columns(array, 0, rows)
            tracks[array] = _Track(mvms, recording.write_columns(array, 0, writes), 0, segment.restored.get(array, 0))
        return recording.info, tracks
