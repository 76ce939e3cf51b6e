"""Maps of numbers in a terminal: half a character for a cell in colour, shades where there is none."""

from __future__ import annotations

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

from labrig_drivers.crossbar import FloatArray

# Anchors of viridis (matplotlib, CC0) and of a diverging blue to red, as RGB.
SEQUENTIAL = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
DIVERGING = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))
_SHADES = " ░▒▓█"
_BAR = 24

Palette = tuple[tuple[int, int, int], ...]


def heatmap(
    values: FloatArray, ends: tuple[float, float], palette: Palette, *, width: int, height: int, colour: bool
) -> list[Text]:
    """Draws a matrix, its first row on top.

    Args:
        values: `[rows, columns]`; NaN is left blank.
        ends: The numbers that the first and the last colour stand for.
        palette: Colours, evenly spaced.
        width: Most characters in a line.
        height: Most lines.
        colour: Whether the terminal has colours.
    """
    cells = _fitted(values, 2 * height, width)
    if len(cells) % 2:
        cells = np.concatenate([cells, np.full((1, cells.shape[1]), np.nan)])
    lines = []
    for upper, lower in zip(cells[::2], cells[1::2], strict=True):
        line = Text(no_wrap=True)
        for top, bottom in zip(upper.tolist(), lower.tolist(), strict=True):
            if colour:
                line.append(*_half(top, bottom, ends, palette))
            else:
                line.append(_shade(top if np.isnan(bottom) else 0.5 * (top + bottom), ends))
        lines.append(line)
    return lines


def colour_bar(ends: tuple[float, float], unit: str, palette: Palette, *, colour: bool) -> Text:
    """What the colours of a map stand for."""
    bar = Text(f"{ends[0]:.3g} ", no_wrap=True)
    for value in np.linspace(*ends, _BAR).tolist():
        if colour:
            bar.append("█", style=Style(color=_colour(value, ends, palette)))
        else:
            bar.append(_shade(value, ends))
    return bar.append(f" {ends[1]:.3g} {unit}")


def _fitted(values: FloatArray, most_rows: int, most_columns: int) -> FloatArray:
    """As many cells as there is room for: neighbours are averaged, or each is drawn several times."""
    for axis, most in ((0, most_rows), (1, most_columns)):
        length = values.shape[axis]
        if length > most:
            edges = np.unique(np.linspace(0, length, most + 1).astype(np.int64))[:-1]
            known = np.add.reduceat(np.isfinite(values).astype(np.float64), edges, axis=axis)
            total = np.add.reduceat(np.nan_to_num(values), edges, axis=axis)
            values = np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0)
    rows, columns = values.shape
    larger = max(1, min(most_columns // columns, 48 // columns))
    return np.repeat(np.repeat(values, max(1, min(larger, most_rows // rows)), axis=0), larger, axis=1)


def _half(top: float, bottom: float, ends: tuple[float, float], palette: Palette) -> tuple[str, Style]:
    if np.isnan(top) and np.isnan(bottom):
        return " ", Style()
    if np.isnan(bottom):
        return "▀", Style(color=_colour(top, ends, palette))
    if np.isnan(top):
        return "▄", Style(color=_colour(bottom, ends, palette))
    return "▀", Style(color=_colour(top, ends, palette), bgcolor=_colour(bottom, ends, palette))


def _colour(value: float, ends: tuple[float, float], palette: Palette) -> Color:
    place = _share(value, ends) * (len(palette) - 1)
    low = min(int(place), len(palette) - 2)
    mixed = [
        round(first + (place - low) * (second - first))
        for first, second in zip(palette[low], palette[low + 1], strict=True)
    ]
    return Color.from_rgb(*mixed)


def _shade(value: float, ends: tuple[float, float]) -> str:
    return " " if np.isnan(value) else _SHADES[round(_share(value, ends) * (len(_SHADES) - 1))]


def _share(value: float, ends: tuple[float, float]) -> float:
    return min(max((value - ends[0]) / ((ends[1] - ends[0]) or 1.0), 0.0), 1.0)
