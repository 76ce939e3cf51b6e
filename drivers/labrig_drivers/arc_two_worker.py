"""The process that owns an ArC TWO: `python -m labrig_drivers.arc_two_worker`, spoken to over its pipes.

Why a process and not a thread: `pyarc2` methods block without a timeout, and pyarc2 0.6.0 holds Python's global lock
meanwhile. One call that never returns would stop every thread of its process, deadlines included. This process can be
given up; and when its parent dies, however it dies, the end of its input has it ground all lines.

One request a line, one answer a line, both JSON: `{"verb": ..., ...}` and `{"ok": ...}` or `{"error": ...}`. An answer
with `error` is the last one, for the library's queue of instructions is in an unknown state then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

ALL_CHANNELS = tuple(range(64))
_NANOSECONDS = 1e9


class NoReadingError(Exception):
    """What the library returned is no reading; the message is for the person at the bench."""


class ArcTwoInstrument(Protocol):
    """The calls of `pyarc2.Instrument` (0.6.0) that this driver uses, and no others.

    Those that return the instrument only queue instructions; `execute` sends them. The reads send what is queued.
    A *low* channel is biased with minus the given voltage, and currents are those of the *high* channels.
    """

    def config_channels(self, input: Iterable[tuple[int, float]], base: float | None = None) -> Self:
        """Drives channels to voltages in V, and all others to `base` where it is given."""
        ...

    def connect_to_gnd(self, chans: Iterable[int]) -> Self:
        """Connects exactly these channels to hard ground; none when empty."""
        ...

    def delay(self, nanos: int) -> Self:
        """Waits between instructions."""
        ...

    def execute(self) -> Self:
        """Sends the queue."""
        ...

    def ground_all_fast(self) -> Self:
        """Takes all channels to 0 V."""
        ...

    def pulseread_one(self, low: int, high: int, vpulse: float, nanos: int, vread: float) -> float:
        """Pulses one cell and reads its current."""
        ...

    def read_one(self, low: int, high: int, vread: float) -> float:
        """Reads the current of one cell."""
        ...

    def read_slice(self, chan: int, vread: float) -> NDArray[np.float32]:
        """Reads all cells of one low channel: 32 currents, the channels of the other side in ascending order."""
        ...

    def read_slice_open(self, highs: Iterable[int], ground_after: bool) -> NDArray[np.float32]:
        """Reads the currents of channels as they are driven now: 64 values, one for each channel."""
        ...

    def wait(self) -> None:
        """Blocks until everything that was sent is done."""
        ...


def measure_mvm(
    instrument: ArcTwoInstrument,
    driven: Sequence[int],
    sensed: Sequence[int],
    voltage_v: Sequence[Sequence[float]],
    settle_s: float,
) -> tuple[list[list[float]], list[float]]:
    """Drives one side of the array with one vector after another and reads the other side, which is held at 0 V.

    The driven lines get *minus* their voltage, as the library's own reads bias their low channel, so that one driven
    line gives the currents of `read_slice`, sign included. Afterwards all lines are at 0 V.

    Args:
        instrument: The instrument.
        driven: Channels that are driven.
        sensed: Channels whose current is read.
        voltage_v: Voltages in V, `[batch, driven]`.
        settle_s: Wait in s between driving and reading.

    Returns:
        Currents in A `[batch, sensed]`, and the monotonic time in s of each read.
    """
    currents_a: list[list[float]] = []
    times_s: list[float] = []
    instrument.connect_to_gnd([])
    for vector in voltage_v:
        biases = [(channel, -float(voltage)) for channel, voltage in zip(driven, vector, strict=True)]
        instrument.config_channels(biases, 0.0)
        if settle_s > 0.0:
            instrument.delay(round(settle_s * _NANOSECONDS))
        instrument.execute()
        measured = instrument.read_slice_open(list(sensed), False)
        currents_a.append([float(measured[channel]) for channel in sensed])
        times_s.append(time.monotonic())
    _ground(instrument)
    return currents_a, times_s


def read_cells(
    instrument: ArcTwoInstrument, rows: Sequence[int], columns: Sequence[int], read_v: float
) -> list[list[float]]:
    """Reads the current of every cell in A, `[rows, columns]`, one word line after another at `read_v`."""
    instrument.connect_to_gnd([])
    # `read_slice` answers for the other side in ascending order of the channels. `read_all` is the same 32 slices in
    # one call of a tenth of a second and more, whose two orders its documents describe both ways.
    other_side = _side_of(columns[0])
    places = [other_side.index(channel) for channel in columns]
    currents_a = []
    for row in rows:
        measured = instrument.read_slice(row, read_v)
        currents_a.append([float(measured[place]) for place in places])
    _ground(instrument)
    return currents_a


def program_row(
    instrument: ArcTwoInstrument,
    row: int,
    columns: Sequence[int],
    target_s: Sequence[float],
    recipe: Mapping[str, float],
    current_sign: int,
) -> int:
    """Programs the cells of one word line, one after another: read, pulse, read, until close enough.

    Args:
        instrument: The instrument.
        row: Channel of the word line.
        columns: Channels of the bit lines.
        target_s: Targets in S, one for each column.
        recipe: The fields of `PulseRecipe`.
        current_sign: Sign of the library's currents.

    Returns:
        How many pulses it took; cells that did not come close within `max_pulses` are left as they are.
    """
    nanos = round(recipe["pulse_s"] * _NANOSECONDS)
    per_volt = current_sign / recipe["verify_v"]
    pulses = 0
    instrument.connect_to_gnd([])
    for column, target in zip(columns, target_s, strict=True):
        reached_s = per_volt * _finite(instrument.read_one(row, column, recipe["verify_v"]), row, column)
        sizes_v = {True: abs(recipe["set_v"]), False: abs(recipe["reset_v"])}
        for _ in range(int(recipe["max_pulses"])):
            if abs(reached_s - target) <= recipe["tolerance_s"]:
                break
            raise_it = reached_s < target
            first_v = recipe["set_v"] if raise_it else recipe["reset_v"]
            pulse_v = math.copysign(sizes_v[raise_it], first_v)
            sizes_v[raise_it] = min(sizes_v[raise_it] + recipe["step_v"], recipe["max_v"])
            # Whoever overshot comes back in the smallest steps.
            sizes_v[not raise_it] = abs(recipe["reset_v"] if raise_it else recipe["set_v"])
            current_a = instrument.pulseread_one(row, column, pulse_v, nanos, recipe["verify_v"])
            pulses += 1
            reached_s = per_volt * _finite(current_a, row, column)
    _ground(instrument)
    return pulses


def make_safe(instrument: ArcTwoInstrument) -> None:
    """Takes all lines to 0 V, and then to hard ground."""
    instrument.ground_all_fast().connect_to_gnd(list(ALL_CHANNELS)).execute()
    instrument.wait()


def serve(requests: IO[bytes], answers: IO[bytes]) -> int:
    """Answers requests until their end, and leaves the lines grounded.

    Returns:
        Exit code: 0, or 1 when the instrument failed.
    """
    instrument: ArcTwoInstrument | None = None
    failed = False
    for line in requests:
        request = json.loads(line)
        try:
            if request["verb"] == "open":
                instrument = _open(request)
                answer: object = {}
            else:
                answer = _VERBS[request["verb"]](instrument, request)
            reply: dict[str, object] = {"ok": answer}
        except BaseException as error:  # the library panics with errors that are no `Exception`
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            failed = True
            reply = {"error": str(error) if isinstance(error, NoReadingError) else f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply).encode() + b"\n")
        answers.flush()
        if failed:
            break
    if instrument is not None:
        # Also when the parent was killed: this is all that is left to make the chip safe.
        with contextlib.suppress(BaseException):
            make_safe(instrument)
    return int(failed)


def main() -> int:
    """Serves the parent over standard input and output; returns the exit code."""
    # Libraries may print; what they print must not look like an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return serve(sys.stdin.buffer, answers)


def _open(request: Mapping[str, Any]) -> ArcTwoInstrument:
    module, _, attribute = request["factory"].partition(":")
    make: Callable[[int, str], ArcTwoInstrument] = getattr(importlib.import_module(module), attribute)
    return make(int(request["port"]), str(request["firmware"]))


def _mvm(instrument: ArcTwoInstrument, request: Mapping[str, Any]) -> dict[str, object]:
    currents_a, times_s = measure_mvm(
        instrument, request["driven"], request["sensed"], request["voltage_v"], request["settle_s"]
    )
    return {"current_a": currents_a, "time_s": times_s}


def _read(instrument: ArcTwoInstrument, request: Mapping[str, Any]) -> dict[str, object]:
    return {"current_a": read_cells(instrument, request["rows"], request["columns"], request["read_v"])}


def _program(instrument: ArcTwoInstrument, request: Mapping[str, Any]) -> dict[str, object]:
    pulses = program_row(
        instrument,
        request["row"],
        request["columns"],
        request["target_s"],
        request["recipe"],
        request["current_sign"],
    )
    return {"pulses": pulses}


def _safe(instrument: ArcTwoInstrument, request: Mapping[str, Any]) -> dict[str, object]:
    del request
    make_safe(instrument)
    return {}


_VERBS: Mapping[str, Callable[[Any, Mapping[str, Any]], dict[str, object]]] = {
    "mvm": _mvm,
    "read": _read,
    "program": _program,
    "safe": _safe,
}


def _ground(instrument: ArcTwoInstrument) -> None:
    instrument.ground_all_fast().execute()
    instrument.wait()


def _side_of(channel: int) -> tuple[int, ...]:
    """The 32 channels of the side that a channel belongs to, ascending."""
    low_half = channel % 32 < 16
    return tuple(one for one in ALL_CHANNELS if (one % 32 < 16) == low_half)


def _finite(current_a: float, low: int, high: int) -> float:
    if not math.isfinite(current_a):
        raise NoReadingError(
            f"the current between channels {low} and {high} was read as {current_a} A; the library gives such for a "
            "range that it does not know. Measure this cell with the maker's software"
        )
    return float(current_a)


if __name__ == "__main__":
    sys.exit(main())
