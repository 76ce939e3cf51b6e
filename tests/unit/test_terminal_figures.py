"""Figures in a terminal: dots and colours lie where the numbers say, and axes have round numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from labrig.reports.blocks import DIVERGING, SEQUENTIAL, colour_bar, heatmap
from labrig.reports.braille import Canvas
from labrig.reports.pictures import units_of


def dots(lines: list[Text], height: int) -> set[tuple[int, int]]:
    """Row and column of every dot, counted from the upper left, by the numbering that Unicode gives Braille dots."""
    place = {0: (0, 0), 1: (1, 0), 2: (2, 0), 3: (0, 1), 4: (1, 1), 5: (2, 1), 6: (3, 0), 7: (3, 1)}
    found = set()
    for row, line in enumerate(lines[:height]):
        text = line.plain
        left = min(text.index(mark) for mark in "│┤" if mark in text) + 1
        for column, character in enumerate(text[left:]):
            if character == " ":
                continue
            bits = ord(character) - 0x2800
            assert 0 < bits < 256
            found |= {(4 * row + place[bit][0], 2 * column + place[bit][1]) for bit in range(8) if bits & (1 << bit)}
    return found


@given(points=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=20, unique=True))
def test_every_point_is_one_dot_at_its_place(points: list[tuple[int, int]]) -> None:
    canvas = Canvas(10, 5, (0.0, 20.0), (0.0, 20.0))
    x, y = np.array([[column + 0.5, row + 0.5] for row, column in points]).reshape(-1, 2).T
    canvas.points(x, y, "red")
    assert dots(canvas.lines(), 5) == {(19 - row, column) for row, column in points}


def test_ends_belong_to_the_figure_and_nothing_else_does() -> None:
    canvas = Canvas(10, 5, (-1.0, 1.0), (-2.0, 2.0))
    canvas.points(np.array([-1.0, 1.0, 1.1, np.nan, np.inf]), np.array([-2.0, 2.0, 0.0, 0.0, 0.0]), "red")
    assert dots(canvas.lines(), 5) == {(19, 0), (0, 19)}


def test_lines_have_gaps_where_numbers_are_missing() -> None:
    canvas = Canvas(20, 5, (0.0, 3.0), (0.0, 1.0))
    canvas.line(np.arange(4.0), np.array([0.5, np.nan, 0.5, 0.5]), "red")
    columns = {column for _, column in dots(canvas.lines(), 5)}
    assert 0 in columns
    assert set(range(27, 39)) <= columns
    assert not columns & set(range(1, 26))


def test_axes_have_round_numbers_at_their_places() -> None:
    drawn = [line.plain for line in Canvas(40, 8, (-1.0, 1.0), (0.0, 1e4)).lines()]
    assert drawn[0].startswith("10000 ┤")
    assert drawn[7].startswith("    0 ┤")
    labels = drawn[-1].split()
    assert labels == ["-1", "-0.5", "0", "0.5", "1"]
    for label in labels:
        where = drawn[-1].index(label) + len(label) // 2
        assert drawn[-2][where - 1 : where + 2].count("┴") == 1


@given(low=st.floats(-1e6, 1e6), span=st.floats(0.0, 1e6), height=st.integers(2, 30), width=st.integers(4, 80))
def test_any_axes_can_be_drawn(low: float, span: float, height: int, width: int) -> None:
    lines = Canvas(width, height, (low, low + span), (low, low + span)).lines()
    assert len(lines) == height + 2


def colours(lines: list[Text]) -> list[list[tuple[int, ...] | None]]:
    """The colour of every half character, two lines for each line of text."""
    console = Console(color_system="truecolor", force_terminal=True)
    drawn: list[list[tuple[int, ...] | None]] = []
    for line in lines:
        upper, lower = [], []
        for segment in line.render(console):
            for character in segment.text.rstrip("\n"):
                style = segment.style
                front = style.color.triplet if style is not None and style.color is not None else None
                back = style.bgcolor.triplet if style is not None and style.bgcolor is not None else None
                upper.append(None if front is None or character == "▄" else tuple(front))
                lower.append(tuple(front) if character == "▄" and front else None if back is None else tuple(back))
        drawn += [upper, lower]
    return drawn


def test_every_cell_of_a_map_has_its_colour() -> None:
    values = np.linspace(0.0, 1.0, 15).reshape(3, 5)
    values[1, 2] = np.nan
    drawn = colours(heatmap(values, (0.0, 1.0), SEQUENTIAL, width=5, height=4, colour=True))
    assert drawn[0][0] == SEQUENTIAL[0]
    assert drawn[2][4] == SEQUENTIAL[-1]
    assert drawn[1][2] is None
    assert drawn[3] == [None] * 5
    # Viridis grows lighter with the number.
    bright = [sum(colour) for row in drawn[:3] for colour in row if colour is not None]
    assert bright == sorted(bright)


@pytest.mark.parametrize(("shape", "lines", "characters"), [((200, 300), 32, 60), ((4, 3), 32, 48), ((1, 64), 1, 64)])
def test_maps_fit_into_their_room(shape: tuple[int, int], lines: int, characters: int) -> None:
    drawn = heatmap(np.zeros(shape), (0.0, 1.0), DIVERGING, width=min(characters, 64), height=32, colour=True)
    assert len(drawn) <= lines
    assert {len(line.plain) for line in drawn} == {characters}


def test_without_colours_there_are_shades() -> None:
    values = np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]])
    (line,) = heatmap(values, (0.0, 1.0), SEQUENTIAL, width=3, height=8, colour=False)
    assert line.plain == " ▒█"
    bar = colour_bar((0.0, 1.0), "µS", SEQUENTIAL, colour=False).plain
    assert bar.startswith("0 ")
    assert bar.endswith("█ 1 µS")


@pytest.mark.parametrize(
    ("value", "factor", "unit"),
    [(2e-5, 1e6, "µA"), (0.0, 1.0, "A"), (999.0, 1.0, "A"), (1e-3, 1e3, "mA"), (2e5, 1e-3, "kA")],
)
def test_units_are_readable(value: float, factor: float, unit: str) -> None:
    found, prefixed = units_of(np.array([value, np.nan]), "A")
    assert found == pytest.approx(factor)
    assert prefixed == unit
    assert units_of(np.array([5000.0]), "s") == (1.0, "s")
