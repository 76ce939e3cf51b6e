"""Time spans as people read them."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """A time span in the unit that reads best, three digits of it.

    Args:
        seconds: In s, not negative.
    """
    if 0.0 < seconds < 1.0:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    return f"{seconds / 60.0:.3g} min" if seconds < 7200.0 else f"{seconds / 3600.0:.3g} h"
