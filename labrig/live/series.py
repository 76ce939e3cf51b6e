"""A curve that grows for ever in bounded memory."""

from __future__ import annotations

import numpy as np

from labrig.live.packing import Packed, packed


class Series:
    """Points of a curve; when there are too many, every second one goes, and from then on half as many are kept.

    So the whole run stays visible, evenly thinned, and the latest point is always there.

    Args:
        names: What each point has, the abscissa first.
        most: Points that are kept at most.
    """

    def __init__(self, names: tuple[str, ...], most: int = 400) -> None:
        self._names = names
        self._most = most
        self._points: list[tuple[float, ...]] = []
        self._every = 1
        self._seen = 0
        self._last: tuple[float, ...] | None = None

    def add(self, *point: float) -> None:
        """Adds a point."""
        if self._seen % self._every == 0:
            self._points.append(point)
            if len(self._points) > self._most:
                self._points = self._points[::2]
                self._every *= 2
        self._last = point
        self._seen += 1

    def __len__(self) -> int:
        return len(self._points)

    def as_columns(self) -> dict[str, Packed]:
        """One packed array for each name, the latest point included."""
        points = self._points
        if self._last is not None and (not points or points[-1] != self._last):
            points = [*points, self._last]
        table = np.array(points, dtype=np.float64).reshape(len(points), len(self._names))
        return {name: packed(table[:, index]) for index, name in enumerate(self._names)}
