"""One recorded array as something that answers: which rows of the recording belong to a request."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from labrig.recording.rows import RecordedArray
from labrig_drivers.crossbar import BoardInfo, FloatArray
from labrig_drivers.errors import CapabilityError, StateError
from labrig_drivers.wording import counted

_NEVER = -1


class ArrayTape:
    """Finds recorded writes and MVMs of one array, each recording of the same thing once, in order.

    Vectors are told apart by the levels that the board's DAC makes of them, targets by their stored float32 bytes.

    Args:
        array: Number of the array, for messages.
        recorded: What was recorded.
        info: The board that it was recorded on.
        repeat: Start over with the first recording of a vector when all of them were given out.
    """

    def __init__(self, array: int, recorded: RecordedArray, info: BoardInfo, *, repeat: bool) -> None:
        self.recorded = recorded
        self._array = array
        self._info = info
        self._repeat = repeat
        self._levels = _levels(recorded.voltage_v, info)
        self._writes: dict[bytes, list[int]] = defaultdict(list)
        for write, target_s in enumerate(recorded.target_conductance_s):
            self._writes[target_s.tobytes()].append(write)
        self._rows: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for row, (write, levels) in enumerate(zip(recorded.write.tolist(), self._levels, strict=True)):
            self._rows[write, levels.tobytes()].append(row)
        self._given_writes: dict[bytes, int] = {}
        self._given_rows: dict[tuple[int, bytes], int] = {}
        self._write = _NEVER
        self.programmings = 0

    def program(self, conductance_s: FloatArray) -> int:
        """Selects the next recorded write of this target, and returns its number in the recording.

        Raises:
            CapabilityError: This target was not recorded, or not that often; the selected write stays.
        """
        target_s = np.ascontiguousarray(conductance_s, dtype=np.float32)
        key = target_s.tobytes()
        given, writes = self._given_writes.get(key, 0), self._writes.get(key, [])
        if given >= len(writes):
            raise CapabilityError(self._no_write(target_s, writes))
        self._given_writes[key] = given + 1
        self._write = writes[given]
        self.programmings += 1
        return self._write

    def mvm(self, voltage_v: FloatArray) -> NDArray[np.int64]:
        """The recorded rows that answer a batch; nothing is given out when one vector has no answer.

        Raises:
            StateError: No write was selected yet.
            CapabilityError: A vector was not recorded on this write, or not that often.
        """
        if self._write == _NEVER:
            raise StateError(f"array {self._array} was never programmed; program it first")
        given = dict[tuple[int, bytes], int]()
        rows = np.empty(len(voltage_v), dtype=np.int64)
        for index, levels in enumerate(_levels(np.asarray(voltage_v, dtype=np.float32), self._info)):
            key = (self._write, levels.tobytes())
            count, recorded = given.get(key, self._given_rows.get(key, 0)), self._rows.get(key, [])
            if not recorded or (count >= len(recorded) and not self._repeat):
                raise CapabilityError(self._no_row(index, levels, recorded))
            rows[index] = recorded[count % len(recorded)]
            given[key] = count + 1
        self._given_rows |= given
        return rows

    def _no_write(self, target_s: NDArray[np.float32], writes: list[int]) -> str:
        if writes:
            times = f"recorded {counted(len(writes), 'time')} on array {self._array}"
            which = f"{'write' if len(writes) == 1 else 'writes'} {', '.join(map(str, writes))}"
            return f"program refused: this target was {times} ({which}), and no more are left; open the board anew"
        recorded_s = self.recorded.target_conductance_s.astype(np.float64)
        if not len(recorded_s):
            return f"program refused: no write of array {self._array} was recorded"
        rms_s = np.sqrt(np.mean((recorded_s - target_s) ** 2, axis=(1, 2)))
        nearest = int(rms_s.argmin())
        return (
            f"program refused: this target was not recorded on array {self._array}; the nearest of "
            f"{len(recorded_s)} recorded writes is {nearest}, rms difference {rms_s[nearest]:g} S"
        )

    def _no_row(self, index: int, levels: NDArray[np.int32], recorded: list[int]) -> str:
        place = f"array {self._array}, write {self._write}"
        if recorded:
            return (
                f"mvm refused: vector {index} of the batch was recorded {len(recorded)} times on {place}, and all of "
                "them were given out; program anew, or set repeat = true in the board's settings"
            )
        here = np.flatnonzero(self.recorded.write == self._write)
        if not len(here):
            return f"mvm refused: no MVM was recorded on {place}"
        elsewhere = sorted({write for write, key in self._rows if key == levels.tobytes()})
        also = f"; it was recorded on write {', '.join(map(str, elsewhere))}" if elsewhere else ""
        apart = np.abs(self._levels[here] - levels)
        nearest = int(apart.max(axis=1).argmin())
        return (
            f"mvm refused: vector {index} of the batch was not recorded on {place}{also}; the nearest of {len(here)} "
            f"MVMs there is row {here[nearest]}, which differs on {int((apart[nearest] > 0).sum())} of "
            f"{self._info.rows} lines by up to {int(apart[nearest].max())} DAC steps"
        )


def _levels(voltage_v: NDArray[np.float32], info: BoardInfo) -> NDArray[np.int32]:
    """DAC levels of voltages; from float32 for both sides, so that no rounding tells request and recording apart."""
    levels: NDArray[np.int32] = np.rint(voltage_v.astype(np.float64) / info.dac_step_v).astype(np.int32)
    return levels
