"""The page about a recording: what, when, how many, and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labrig.reports import recording_figures as figures
from labrig.reports.overview import Overview, size
from labrig.reports.page import embedded, write_page
from labrig.reports.pictures import ArrayPicture, Pictures
from labrig_drivers.wording import counted

_TEMPLATE = Path(__file__).with_name("recording.html.jinja")


def write_recording_page(path: Path, facts: Overview, shown: Pictures) -> None:
    """Writes the page, with the plotting script once beside it (`plotly.min.js`).

    Args:
        path: Where the page goes.
        facts: What the tables say.
        shown: What there is to see.

    Raises:
        StorageError: The folder cannot be written.
    """
    by_array = {one.array: one for one in shown.arrays}
    write_page(
        path,
        _TEMPLATE,
        name=facts.summary.path.name,
        status=facts.summary.status,
        sentence=_sentence(facts),
        rows=facts.rows(),
        streams=[(one.name, one.rows, size(one.stored_bytes), ", ".join(one.columns)) for one in facts.streams],
        arrays=[
            {
                "index": one.array,
                "mvms": one.mvms,
                "writes": one.writes,
                "saturated": one.saturated_text,
                "clock": one.clock_text,
                "kinds": sorted(one.kinds.items(), key=lambda pair: -pair[1]),
                "plots": _plots(by_array[one.array]) if one.array in by_array else [],
            }
            for one in facts.arrays
        ],
        curves=embedded(figures.curves_figure(shown.curves)) if shown.curves else None,
        supply=None if shown.supply is None else embedded(figures.supply_figure(shown.supply)),
    )


def _sentence(facts: Overview) -> str:
    mvms, writes = sum(one.mvms for one in facts.arrays), sum(one.writes for one in facts.arrays)
    readings = sum(one.rows for one in facts.streams if one.name == "curves")
    curves = f" and {counted(readings, 'reading')} of I-V curves" if readings else ""
    return (
        f"{counted(mvms, 'MVM')} of {counted(writes, 'write')}{curves} on chip {facts.summary.chip_id}, "
        f"{facts.summary.status}. "
        "All committed rows agree with their checksums."
    )


def _plots(one: ArrayPicture) -> list[str]:
    drawn = [
        figures.transfer_figure(one),
        figures.target_figure(one),
        figures.error_figure(one),
        figures.pace_figure(one),
    ]
    if np.isfinite(one.repeated).any():
        drawn.append(figures.drift_figure(one))
    return [embedded(figure) for figure in drawn]
