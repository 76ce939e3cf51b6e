"""How a batch of input vectors travels over the board protocol: into how many requests, and back into one result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from labrig_drivers.board_messages import MvmAnswer, MvmPart, Welcome
from labrig_drivers.board_payloads import (
    MVM_ANSWER_HEAD_BYTES,
    MVM_HEAD_BYTES,
    MVM_PART_HEAD_BYTES,
    PROGRAM_HEAD_BYTES,
    STREAM_MVM_HEAD_BYTES,
)
from labrig_drivers.crossbar import BoardInfo, FloatArray, MvmResult
from labrig_drivers.errors import ProtocolError

# A request of this size is long on the wire compared with what it costs to handle, and short enough that the next one
# travels while the board works on it.
_PIECE_BYTES: Final = 1 << 15
# Longer, because its answers come in parts; short enough that a stream which is left early ends soon.
_STREAM_REQUEST_BYTES: Final = 1 << 18


def check_frames_hold_a_vector(info: BoardInfo, max_payload_bytes: int) -> None:
    """Refuses a board whose frames are too short for its own arrays.

    Raises:
        ProtocolError: One array, or one input vector and its answer, does not fit into a frame.
    """
    array_bytes = PROGRAM_HEAD_BYTES + 4 * info.rows * info.columns
    if array_bytes > max_payload_bytes or min(_asked(info, max_payload_bytes), _answered(info, max_payload_bytes)) < 1:
        raise ProtocolError(
            f"it takes payloads of {max_payload_bytes} bytes, "
            "too short for one of its own arrays or for one input vector and its answer"
        )


def vectors_per_request(info: BoardInfo, welcome: Welcome, batch: int) -> int:
    """How many of `batch` vectors one `Mvm` request carries, so that requests overlap where the board queues them."""
    most = min(_asked(info, welcome.max_payload_bytes), _answered(info, welcome.max_payload_bytes))
    if welcome.max_requests > 1:
        most = min(most, max(1, _PIECE_BYTES // (4 * info.rows)))
    return _even(batch, most)


def vectors_per_stream(info: BoardInfo, welcome: Welcome, batch: int) -> int:
    """How many of `batch` vectors one `StreamMvm` request carries."""
    payload_bytes = min(welcome.max_payload_bytes, _STREAM_REQUEST_BYTES + 4 * info.rows)
    return _even(batch, (payload_bytes - STREAM_MVM_HEAD_BYTES) // (4 * info.rows))


def vectors_per_part(info: BoardInfo, max_payload_bytes: int) -> int:
    """How many answers fit into one `MvmPart`."""
    return _answered(info, max_payload_bytes - (MVM_PART_HEAD_BYTES - MVM_ANSWER_HEAD_BYTES))


def pieces(voltage_v: FloatArray, step: int) -> Iterator[FloatArray]:
    """Cuts a batch into pieces of `step` vectors, the last one shorter."""
    return (voltage_v[start : start + step] for start in range(0, len(voltage_v), step))


class Collected:
    """The answers to the requests of one batch, put together as they come.

    Args:
        info: The board.
        batch: How many vectors were asked for.
        step: How many of them each request holds.
    """

    def __init__(self, info: BoardInfo, batch: int, step: int) -> None:
        self._lsb_a = info.adc_lsb_a
        self._step = step
        self._done = 0
        self._write_index: int | None = None
        self._code = np.empty((batch, info.columns), np.int16)
        self._current_a = np.empty((batch, info.columns))
        self._saturated = np.empty((batch, info.columns), np.bool_)
        self._time_s = np.empty(batch)

    def add(self, answer: MvmAnswer) -> None:
        """Takes the next answer.

        Raises:
            ProtocolError: It has the wrong shape, or the array was programmed meanwhile.
        """
        start, stop = self._done, min(self._done + self._step, len(self._code))
        check_answer(answer, (stop - start, self._code.shape[1]), self._write_index)
        self._write_index = answer.write_index
        self._code[start:stop] = answer.code
        np.multiply(answer.code, self._lsb_a, out=self._current_a[start:stop])
        self._saturated[start:stop] = answer.saturated
        self._time_s[start:stop] = answer.time_s
        self._done = stop

    def result(self) -> MvmResult:
        """All of it.

        Raises:
            ProtocolError: Answers are missing.
        """
        if self._write_index is None or self._done != len(self._code):
            raise ProtocolError(f"answers to {len(self._code) - self._done} vectors are missing")
        return MvmResult(self._code, self._current_a, self._saturated, self._time_s, self._write_index)


class StreamOrder:
    """Watches that the parts of a streamed batch come in order, without gaps, each once.

    Args:
        info: The board.
        batch: How many vectors were asked for.
        step: How many of them each request holds.
    """

    def __init__(self, info: BoardInfo, batch: int, step: int) -> None:
        self._info = info
        self._batch = batch
        self._step = step
        self._done = 0
        self._write_index: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every vector was answered."""
        return self._done == self._batch

    def take(self, part: MvmPart) -> MvmResult:
        """Checks the next part and makes a result of it.

        Raises:
            ProtocolError: It does not follow on the part before, has the wrong shape, is marked wrongly as the last of
                its request or as one before it, or the array was programmed meanwhile.
        """
        start = self._done - self._done % self._step
        size = min(self._step, self._batch - start)
        vectors = len(part.answer.code)
        end = part.first + vectors
        if part.first != self._done - start or not 1 <= vectors <= size - part.first or part.last != (end == size):
            mark = "the last" if part.last else "not the last"
            raise ProtocolError(
                f"it sent vectors {part.first} to {end - 1}, marked {mark}, "
                f"of a request for {size} of which {self._done - start} were answered"
            )
        result = result_of(self._info, vectors, part.answer, self._write_index)
        self._write_index = result.write_index
        self._done = start + end
        return result


def result_of(info: BoardInfo, vectors: int, answer: MvmAnswer, write_index: int | None = None) -> MvmResult:
    """Makes a result of one answer.

    Args:
        info: The board.
        vectors: How many vectors were asked for.
        answer: What came; it is copied, so that the frame that it lies in can go.
        write_index: Programming that earlier answers of the same batch read; None for the first.

    Raises:
        ProtocolError: It does not fit.
    """
    check_answer(answer, (vectors, info.columns), write_index)
    return MvmResult(
        code=answer.code.copy(),
        current_a=answer.code * info.adc_lsb_a,
        saturated=answer.saturated.copy(),
        time_s=answer.time_s.copy(),
        write_index=answer.write_index,
    )


def check_answer(answer: MvmAnswer, shape: tuple[int, int], write_index: int | None) -> None:
    """Refuses an answer that cannot belong to its request.

    Args:
        answer: What came.
        shape: Vectors and columns that were asked for.
        write_index: Programming that earlier answers of the same batch read; None for the first.

    Raises:
        ProtocolError: It does not fit.
    """
    if answer.code.shape != shape:
        raise ProtocolError(f"it answered codes of shape {list(answer.code.shape)} where {list(shape)} were asked for")
    if write_index is not None and write_index != answer.write_index:
        raise ProtocolError("it was programmed by somebody else during a batch")


def _even(batch: int, most: int) -> int:
    """Size of each of the fewest pieces of at most `most`, so that no short piece is left for the end."""
    return math.ceil(batch / math.ceil(batch / most))


def _asked(info: BoardInfo, max_payload_bytes: int) -> int:
    return (max_payload_bytes - MVM_HEAD_BYTES) // (4 * info.rows)


def _answered(info: BoardInfo, max_payload_bytes: int) -> int:
    # 8 bytes of time, 2 bytes and 1 bit for each column; the flags are padded to a byte once.
    return 8 * (max_payload_bytes - MVM_ANSWER_HEAD_BYTES - 1) // (64 + 17 * info.columns)
