"""The figures of a recording, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from labrig.reports.blocks import DIVERGING, SEQUENTIAL, colour_bar, heatmap
from labrig.reports.braille import Canvas
from labrig.reports.pictures import ArrayPicture, CurvePicture, Pictures, SupplyPicture, units_of
from labrig_drivers.crossbar import FloatArray

_WIDEST = 64
_MARGIN = 12
_GAP = 3
_COLOURS = ("cyan", "yellow", "green", "magenta", "bright_blue", "bright_red")
_CLOUD_LINES, _CURVE_LINES, _MAP_LINES = 18, 10, 32


def draw(console: Console, shown: Pictures) -> None:
    """Prints the figures, two side by side where there is room."""
    beside = console.width >= 2 * (48 + _MARGIN)
    width = min(_WIDEST, (console.width // 2 if beside else console.width) - _MARGIN)
    colour = console.color_system is not None
    for one in shown.arrays:
        console.print(Rule(f"array {one.array}", style="bright_black"))
        left = [_transfer(one, width), _target(one, width + _MARGIN - _GAP, colour=colour)]
        right = [_pace(one, width), _error(one, width + _MARGIN - _GAP, colour=colour)]
        if np.isfinite(one.repeated).any():
            right.append(_drift(one, width))
        _print(console, left, right, beside=beside)
    for title, figures in (
        ("I-V curves", [_curves(shown.curves, width)] if shown.curves else []),
        ("array supply", [_power(shown.supply, width)] if shown.supply is not None else []),
    ):
        if figures:
            console.print(Rule(title, style="bright_black"))
            _print(console, figures, [], beside=False)
    if not (shown.arrays or shown.curves or shown.supply):
        console.print("nothing was measured, so there is nothing to draw")


def _print(console: Console, left: Sequence[Group], right: Sequence[Group], *, beside: bool) -> None:
    grid = Table.grid(padding=(0, _GAP))
    if beside:
        grid.add_row(*(Group(*(Padding(one, (0, 0, 1, 0)) for one in side)) for side in (left, right)))
    else:
        for one in (*left, *right):
            grid.add_row(Padding(one, (0, 0, 1, 0)))
    console.print(grid)


def _transfer(one: ArrayPicture, width: int) -> Group:
    factor, unit = units_of(one.measured_a, "A")
    ideal, measured = factor * one.ideal_a, factor * one.measured_a
    canvas = Canvas(width, _CLOUD_LINES, _ends(ideal), _ends(measured))
    both = np.array([min(ideal.min(), measured.min()), max(ideal.max(), measured.max())])
    canvas.line(both, both, "bright_black")
    canvas.points(ideal[~one.saturated], measured[~one.saturated], "cyan")
    canvas.points(ideal[one.saturated], measured[one.saturated], "bright_red")
    title = Text.assemble(
        ("transfer", "bold"), f": measured over ideal current, {unit}; ", ("saturated ones red", "bright_red")
    )
    return Group(title, *canvas.lines())


def _pace(one: ArrayPicture, width: int) -> Group:
    factor, unit = units_of(one.clock_s, "s")
    canvas = Canvas(width, _CLOUD_LINES, _ends(factor * one.clock_s), (0.0, float(one.done.max())))
    canvas.points(factor * one.clock_s, one.done.astype(np.float64), "green")
    return Group(Text.assemble(("pace", "bold"), f": MVMs over board clock, {unit}"), *canvas.lines())


def _drift(one: ArrayPicture, width: int) -> Group:
    factor, unit = units_of(one.age_s, "s")
    age, axis = (
        (np.log10(one.age_s), "log10 of age in s") if one.age_by_factors else (factor * one.age_s, f"age, {unit}")
    )
    low, high = _ends(one.repeated)
    canvas = Canvas(width, _CURVE_LINES, _ends(age[np.isfinite(one.repeated)]), (min(low, 1.0), max(high, 1.0)))
    known = np.isfinite(one.repeated)
    canvas.line(age[known], one.repeated[known], "cyan")
    title = Text.assemble(("drift", "bold"), f": repeated outputs over first ones, by {axis}")
    return Group(title, *canvas.lines())


def _target(one: ArrayPicture, width: int, *, colour: bool) -> Group:
    factor, unit = units_of(one.target_s, "S")
    values = factor * one.target_s
    ends = (float(values.min()), float(values.max()))
    title = Text.assemble(("target", "bold"), " of the latest write, rows down, columns across")
    drawn = heatmap(values, ends, SEQUENTIAL, width=width, height=_MAP_LINES, colour=colour)
    return Group(title, *drawn, colour_bar(ends, unit, SEQUENTIAL, colour=colour))


def _error(one: ArrayPicture, width: int, *, colour: bool) -> Group:
    factor, unit = units_of(one.error_a, "A")
    values = factor * one.error_a
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    ends = (-largest, largest)
    lines = "each write" if one.writes_per_line == 1 else f"{one.writes_per_line} writes"
    title = Text.assemble(("mean error", "bold"), f" of each column: a line for {lines}, columns across")
    drawn = heatmap(values, ends, DIVERGING, width=width, height=_MAP_LINES, colour=colour)
    return Group(title, *drawn, colour_bar(ends, unit, DIVERGING, colour=colour))


def _curves(curves: Sequence[CurvePicture], width: int) -> Group:
    voltage_v, current_a = (
        np.concatenate([getattr(one, name) for one in curves]) for name in ("voltage_v", "current_a")
    )
    (x_factor, x_unit), (y_factor, y_unit) = units_of(voltage_v, "V"), units_of(current_a, "A")
    canvas = Canvas(width, _CLOUD_LINES, _ends(x_factor * voltage_v), _ends(y_factor * current_a))
    for number, one in enumerate(curves):
        canvas.line(x_factor * one.voltage_v, y_factor * one.current_a, _COLOURS[number % len(_COLOURS)])
    title = Text.assemble(("curves", "bold"), f": current in {y_unit} over voltage in {x_unit}; {len(curves)} of them")
    return Group(title, *canvas.lines())


def _power(supply: SupplyPicture, width: int) -> Group:
    (x_factor, x_unit), (y_factor, y_unit) = units_of(supply.time_s, "s"), units_of(supply.power_w, "W")
    x, y = x_factor * supply.time_s, y_factor * supply.power_w
    canvas = Canvas(width, _CURVE_LINES, _ends(x), _ends(y))
    canvas.line(x, y, "yellow")
    title = Text.assemble(("supply", "bold"), f": power in {y_unit} over time in {x_unit}")
    return Group(title, *canvas.lines())


def _ends(values: FloatArray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
