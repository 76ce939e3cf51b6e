"""The page about diagnostics: its examples print what it shows, and its table has every check."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from labrig_calibration.battery import MEANING

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "diagnostics.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\nprints\n\n((?: {4}[^\n]*\n)+)", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", [0, 1])
def test_examples_print_what_the_page_shows(number: int) -> None:
    block, shown = EXAMPLES[number]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {"__name__": "example"})
    assert printed.getvalue().splitlines() == [line.removeprefix("    ") for line in shown.splitlines()]


def test_every_check_is_in_the_table_in_the_order_of_causes() -> None:
    table = PAGE[PAGE.index("| check |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table] == list(MEANING)
