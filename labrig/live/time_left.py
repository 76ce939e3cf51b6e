"""How long it will still take, from how fast it went lately."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 60.0
_LEAST_S = 1.0
_MOST = 128


class TimeLeft:
    """Estimates from the progress of the last minute, pauses left out."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def note(self, now_s: float, done: float) -> None:
        """Takes in what is done now; progress that went back begins anew."""
        if self._marks and done < self._marks[-1][1]:
            self._marks.clear()
        # So that few marks span the window, however often this is called.
        if len(self._marks) >= 2 and now_s - self._marks[-2][0] < _WINDOW_S / _MOST:
            self._marks.pop()
        self._marks.append((now_s, done))
        while len(self._marks) > 2 and now_s - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()

    def forget(self) -> None:
        """Begins anew, as after a pause."""
        self._marks.clear()

    def rate_hz(self) -> float | None:
        """Progress per second; None while it is not known."""
        if len(self._marks) < 2:
            return None
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= _LEAST_S else None

    def left_s(self, total: float) -> float | None:
        """Time in s until `total` is reached; None while it is not known."""
        rate_hz = self.rate_hz()
        if not rate_hz or not self._marks:
            return None
        return max(0.0, total - self._marks[-1][1]) / rate_hz
