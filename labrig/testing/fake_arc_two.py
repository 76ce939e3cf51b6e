"""A fake of `pyarc2.Instrument` (0.6.0): the calls that labrig's driver uses, with a small crossbar behind them.

It stands in for hardware in tests of `labrig_drivers.arc_two`; nothing else should use it. Like the real one it only
queues instructions until `execute()` or a read sends them. Its *firmware* is a JSON file: `FakeArcTwoFile` makes one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

_CHANNELS = 64
_WORDS = (*range(16, 32), *range(48, 64))
_BITS = (*range(16), *range(32, 48))
# As long as a test may wait for a call that never returns.
_NEVER_S = 600.0


@dataclass(frozen=True)
class FakeArcTwoFile:
    """What the fake's firmware file says.

    Attributes:
        seed: Decides the cells and their noise.
        conductance_min_s: Lowest conductance in S of a cell.
        conductance_max_s: Highest conductance in S of a cell.
        threshold_v: Pulses up to this magnitude in V change nothing.
        rate_per_v: Part of the way to the end that a pulse goes per volt above the threshold.
        noise: Relative noise of a current.
        sign: Sign of every current.
        stuck_call: Name of a call that never returns; empty for none.
        broken_call: Name of a call that raises; empty for none.
        calls_before: How many of those calls work first.
        once: File that is made when a call gets stuck; a later one that finds it works. Empty for none.
        log: File that gets every call, a line of JSON each, and the voltages at the end; empty for none.
    """

    seed: int = 1
    conductance_min_s: float = 2e-6
    conductance_max_s: float = 100e-6
    threshold_v: float = 0.6
    rate_per_v: float = 0.3
    noise: float = 1e-3
    sign: int = 1
    stuck_call: str = ""
    broken_call: str = ""
    calls_before: int = 0
    once: str = ""
    log: str = ""

    def write(self, path: Path) -> Path:
        """Writes the file; returns its path."""
        path.write_text(json.dumps(asdict(self)))
        return path


class FakeArcTwoError(Exception):
    """What the fake raises where the real one raises `ArC2Error`."""


class Instrument:
    """The fake; signatures are those of `pyarc2.Instrument`.

    Args:
        port: Not used.
        firmware: Path of a file made by `FakeArcTwoFile`.
        init: Not used: all channels start at 0 V.
    """

    def __init__(self, port: int, firmware: str, init: bool = True) -> None:
        del port, init
        self.file = FakeArcTwoFile(**json.loads(Path(firmware).read_text()))
        self._rng = np.random.default_rng(self.file.seed)
        low, high = self.file.conductance_min_s, self.file.conductance_max_s
        cells = self._rng.uniform(low, high, (len(_WORDS), len(_BITS)))
        self.conductance_s: NDArray[np.float64] = np.zeros((_CHANNELS, _CHANNELS))
        self.conductance_s[np.ix_(_WORDS, _BITS)] = cells
        self.conductance_s[np.ix_(_BITS, _WORDS)] = cells.T
        self.voltage_v: NDArray[np.float64] = np.zeros(_CHANNELS)
        self.grounded: frozenset[int] = frozenset(range(_CHANNELS))
        self.calls: list[str] = []
        self._queue: list[Callable[[], None]] = []

    def config_channels(self, input: Iterable[tuple[int, float]], base: float | None = None) -> Self:
        """Drives channels, the others to `base`."""
        self._called("config_channels")
        voltages = dict(input)

        def drive() -> None:
            if base is not None:
                self.voltage_v[:] = base
            for channel, voltage in voltages.items():
                self.voltage_v[channel] = voltage

        self._queue.append(drive)
        return self

    def connect_to_gnd(self, chans: Iterable[int]) -> Self:
        """Connects exactly these channels to ground."""
        self._called("connect_to_gnd")
        channels = frozenset(int(channel) for channel in chans)

        def ground() -> None:
            self.grounded = channels

        self._queue.append(ground)
        return self

    def delay(self, nanos: int) -> Self:
        """Waits."""
        self._called("delay")
        if nanos < 0:
            raise FakeArcTwoError("a delay cannot be negative")
        return self

    def execute(self) -> Self:
        """Sends the queue."""
        self._called("execute")
        self._send()
        return self

    def ground_all_fast(self) -> Self:
        """Takes all channels to 0 V."""
        self._called("ground_all_fast")

        def ground() -> None:
            self.voltage_v[:] = 0.0

        self._queue.append(ground)
        return self

    def pulseread_one(self, low: int, high: int, vpulse: float, nanos: int, vread: float) -> float:
        """Pulses one cell and reads it."""
        self._called("pulseread_one")
        self._send()
        self._demand_free(low, high)
        file, reached_s = self.file, float(self.conductance_s[low, high])
        part = min(1.0, max(0.0, file.rate_per_v * (abs(vpulse) - file.threshold_v)))
        if nanos > 0 and part > 0.0:
            end_s = file.conductance_max_s if vpulse > 0 else file.conductance_min_s
            # Cycle-to-cycle variation: no two pulses do the same.
            reached_s += (end_s - reached_s) * part * float(self._rng.uniform(0.6, 1.4))
            reached_s = min(max(reached_s, file.conductance_min_s), file.conductance_max_s)
            self.conductance_s[low, high] = self.conductance_s[high, low] = reached_s
        return self._one(low, high, vread)

    def read_one(self, low: int, high: int, vread: float) -> float:
        """Reads one cell."""
        self._called("read_one")
        self._send()
        return self._one(low, high, vread)

    def read_slice(self, chan: int, vread: float) -> NDArray[np.float32]:
        """Reads all cells of one channel."""
        self._called("read_slice")
        self._send()
        others = _BITS if chan in _WORDS else _WORDS
        self._demand_free(chan, *others)
        biased_v = np.zeros(_CHANNELS)
        biased_v[chan] = -vread
        currents = self._currents(biased_v)[list(others)]
        self.voltage_v[:] = 0.0
        return currents

    def read_slice_open(self, highs: Iterable[int], ground_after: bool) -> NDArray[np.float32]:
        """Reads channels as they are driven."""
        self._called("read_slice_open")
        self._send()
        channels = [int(channel) for channel in highs]
        self._demand_free(*channels)
        answer = np.full(_CHANNELS, np.nan, dtype=np.float32)
        answer[channels] = self._currents(self.voltage_v)[channels]
        if ground_after:
            self.voltage_v[:] = 0.0
        return answer

    def wait(self) -> None:
        """Returns when everything is done, which is at once."""
        self._called("wait")

    def _one(self, low: int, high: int, vread: float) -> float:
        self._demand_free(low, high)
        biased_v = np.zeros(_CHANNELS)
        biased_v[low] = -vread
        current_a = self.conductance_s[low, high] * (biased_v[high] - biased_v[low])
        self.voltage_v[:] = 0.0
        return float(self.file.sign * current_a * (1.0 + self.file.noise * self._rng.standard_normal()))

    def _currents(self, voltage_v: NDArray[np.float64]) -> NDArray[np.float32]:
        """Currents of every channel towards all others; grounded channels are held at 0 V."""
        held_v = np.array([0.0 if channel in self.grounded else voltage_v[channel] for channel in range(_CHANNELS)])
        current_a = (self.conductance_s * (held_v[:, None] - held_v[None, :])).sum(axis=1)
        noise = 1.0 + self.file.noise * self._rng.standard_normal(_CHANNELS)
        currents: NDArray[np.float32] = (self.file.sign * current_a * noise).astype(np.float32)
        return currents

    def _demand_free(self, *channels: int) -> None:
        if tied := [channel for channel in channels if channel in self.grounded]:
            raise FakeArcTwoError(f"channels {tied} are connected to hard ground")

    def _send(self) -> None:
        for instruction in self._queue:
            instruction()
        self._queue.clear()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.file.log:
            state = {"call": name, "live_v": float(np.abs(self.voltage_v).max()), "grounded": len(self.grounded)}
            with Path(self.file.log).open("a", encoding="utf-8") as log:
                log.write(json.dumps(state) + "\n")
        if self.calls.count(name) <= self.file.calls_before:
            return
        if name == self.file.stuck_call:
            once = Path(self.file.once) if self.file.once else None
            if once is None or not once.exists():
                if once is not None:
                    once.touch()
                time.sleep(_NEVER_S)
        if name == self.file.broken_call:
            raise FakeArcTwoError(f"{name} failed")
