"""Time spans as people read them."""

from __future__ import annotations

import pytest

from labrig.durations import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.00123456, "1.23 ms"),
        (1.0, "1 s"),
        (119.94, "120 s"),
        (120.0, "2 min"),
        (7190.0, "120 min"),
        (7200.0, "2 h"),
        (1e6, "278 h"),
    ],
)
def test_three_digits_in_the_unit_that_reads_best(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
