"""Points and lines in a terminal: eight dots in a character, axes with round numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from labrig_drivers.crossbar import FloatArray

_BLANK = 0x2800
# The bits of the dots of a Braille character (Unicode 15, block 2800), by row and column.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_AXIS = "bright_black"


class Canvas:
    """A rectangle of characters with axes; what is drawn later lies on top.

    Args:
        width: Characters between the axis and the right end.
        height: Lines above the axis.
        x: Least and largest number on the horizontal axis.
        y: On the vertical axis.
    """

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._width, self._height = width, height
        self._x, self._y = _opened(*x), _opened(*y)
        self._bits = np.zeros((height, width), dtype=np.int64)
        self._styles: list[list[str]] = [[""] * width for _ in range(height)]

    def points(self, x: FloatArray, y: FloatArray, style: str) -> None:
        """Draws points; those outside the axes are left out."""
        column = self._place(x, self._x, 2 * self._width)
        row = self._place(-y, (-self._y[1], -self._y[0]), 4 * self._height)
        inside = (column >= 0) & (column < 2 * self._width) & (row >= 0) & (row < 4 * self._height)
        for at_row, at_column in np.unique(np.stack([row[inside], column[inside]], axis=1), axis=0).tolist():
            self._bits[at_row // 4, at_column // 2] |= int(_BITS[at_row % 4, at_column % 2])
            self._styles[at_row // 4][at_column // 2] = style

    def line(self, x: FloatArray, y: FloatArray, style: str) -> None:
        """Joins points by straight lines; a point that is NaN is a gap."""
        self.points(x, y, style)
        steps = 4 * max(self._width, self._height)
        for start in range(len(x) - 1):
            share = np.linspace(0.0, 1.0, steps if len(x) < 8 else 16)
            self.points(
                x[start] + share * (x[start + 1] - x[start]), y[start] + share * (y[start + 1] - y[start]), style
            )

    def lines(self) -> list[Text]:
        """The drawing with its axes, line by line."""
        ticks = {
            int(self._place(np.array([-tick]), (-self._y[1], -self._y[0]), self._height)[0]): tick
            for tick in _round_numbers(*self._y, max(2, self._height // 4))
        }
        margin = max((len(_number(tick)) for tick in ticks.values()), default=0)
        drawn = []
        for row in range(self._height):
            label = _number(ticks[row]) if row in ticks else ""
            line = Text(f"{label:>{margin}} ", no_wrap=True)
            line.append("┤" if row in ticks else "│", style=_AXIS)
            for bits, style in zip(self._bits[row].tolist(), self._styles[row], strict=True):
                line.append(chr(_BLANK + bits) if bits else " ", style=style or None)
            drawn.append(line)
        return [*drawn, *self._below(margin)]

    def _below(self, margin: int) -> list[Text]:
        axis, labels = ["─"] * self._width, [" "] * (self._width + 8)
        for tick in _round_numbers(*self._x, max(2, self._width // 10)):
            column = min(int(self._place(np.array([tick]), self._x, self._width)[0]), self._width - 1)
            text = _number(tick)
            start = max(0, column - len(text) // 2)
            if all(one == " " for one in labels[max(0, start - 1) : start + len(text) + 1]):
                axis[column] = "┴"
                labels[start : start + len(text)] = text
        line = Text(" " * (margin + 1), no_wrap=True)
        line.append("└" + "".join(axis), style=_AXIS)
        return [line, Text(" " * (margin + 2) + "".join(labels).rstrip(), no_wrap=True)]

    @staticmethod
    def _place(values: FloatArray, ends: tuple[float, float], count: int) -> NDArray[np.int64]:
        scaled = (values - ends[0]) / (ends[1] - ends[0]) * count
        # The upper end belongs to the last place.
        scaled = np.where(values == ends[1], count - 0.5, scaled)
        return np.floor(np.nan_to_num(scaled, nan=-1.0, posinf=-1.0, neginf=-1.0)).astype(np.int64)


def _opened(low: float, high: float) -> tuple[float, float]:
    """Two ends with room between them, whatever was measured."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, 1.0
    least = 1e-6 * max(abs(low), abs(high), 1e-290)
    room = least if high - low < least else 0.0
    return low - room, high + room


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    """About `count` numbers of one, two or five times a power of ten that lie between two ends."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [number * step for number in range(first, last + 1)]
    return found if len(found) > 1 or count > 64 else _round_numbers(low, high, 2 * count)


def _number(value: float) -> str:
    return f"{value:.6g}"
