"""What the noise of states on cells of several radii amounts to; see `state_noise` for where the laws come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from labrig.studies.cache import Numbers
from labrig.studies.intervals import exactly, half_width, mean
from labrig.studies.result import Control, Curve, Finding, Plot, Table, at_most
from labrig.studies.running import Found
from labrig_surrogates.models.recurrent import noise_growth

_COLUMNS = {
    "measured": "measured",
    "solved": "Lyapunov equation of the measured cells",
    "gain": "1 / (1 - gain^2) of the measured cells",
    "radius": "1 / (1 - radius^2) of the measured cells",
}
_CORRECTED = "measured, cells corrected"
_ASKED = "1 / (1 - radius^2) as asked for"


def growth_found(grown: Mapping[float, Sequence[Numbers]]) -> Found:
    """Claims, controls and tables about how noise of one step adds up in a state.

    Args:
        grown: By the spectral radius that was asked for, of each chip: `measured` variance of a state over that of
            one step, and what foretells it: `solved`, `gain`, `radius`, and `wrong` of another chip's cells; and
            `corrected`, measured on corrected cells. What is not there did not contract.
    """
    settled = {radius: [one for one in found if "measured" in one] for radius, found in grown.items()}
    corrected = {radius: [one["corrected"] for one in found if "corrected" in one] for radius, found in grown.items()}
    settled = {radius: found for radius, found in settled.items() if found}
    corrected = {radius: found for radius, found in corrected.items() if found}
    judged = [
        _within(
            "A state is as noisy as the Lyapunov equation of the measured cells says", _off(settled, "solved"), 10.0
        ),
        _within(
            "It grows as 1 / (1 - gain^2), the root mean square gain of the measured cells", _off(settled, "gain"), 25.0
        ),
        _within(
            "It grows as 1 / (1 - radius^2), the largest eigenvalue of the measured cells",
            _off(settled, "radius"),
            25.0,
        ),
        _within(
            "Cells that were corrected: it grows as 1 / (1 - radius^2) of the radius that was asked for",
            [abs(one / noise_growth(radius) - 1.0) for radius, found in corrected.items() for one in found],
            25.0,
        ),
    ]
    controls = [
        _beyond("wrong chip: the measured cells of another one", _off(settled, "wrong"), 10.0),
    ]
    radii = sorted(settled)
    if len(radii) > 1:
        first, last = settled[radii[0]], settled[radii[-1]]
        quieter = exactly(
            mean([one["measured"] for one in last]) / mean([one["measured"] for one in first]), "", "means of chips"
        )
        controls.append(
            Control("a recurrence that forgets sooner", "is at least twice as quiet", quieter, quieter.value > 2.0)
        )
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (
            f"{radius:g}",
            *(mean([one[key] for one in settled[radius]]) if radius in settled else math.nan for key in _COLUMNS),
            mean(corrected[radius]) if radius in corrected else math.nan,
            noise_growth(radius),
        )
        for radius in grown
    )
    chips = sum(len(found) for found in grown.values())
    count = sum(len(found) for found in settled.values())
    return Found(
        findings=tuple(judged),
        controls=tuple(controls),
        tables=(
            Table(
                "Variance of a state over that of one step's noise, mean of chips",
                ("radius asked for", *_COLUMNS.values(), _CORRECTED, _ASKED),
                rows,
            ),
        ),
        plots=(
            Plot(
                "How noise grows",
                "spectral radius that was asked for",
                "variance of a state over that of one step's noise",
                (
                    *(
                        _curve(name, {r: [one[key] for one in found] for r, found in settled.items()})
                        for key, name in _COLUMNS.items()
                    ),
                    _curve(_CORRECTED, corrected),
                    _curve(_ASKED, {radius: [noise_growth(radius)] for radius in grown}),
                ),
                log_y=True,
            ),
        ),
        conditions={"chips whose cells contract as they were written": f"{count} of {chips}, the others are left out"},
    )


def _off(settled: Mapping[float, Sequence[Numbers]], key: str) -> list[float]:
    """How far each chip's noise is from what foretells it, as a part of that."""
    return [abs(one["measured"] / one[key] - 1.0) for found in settled.values() for one in found]


def _within(claim: str, off: Sequence[float], bound: float) -> Finding:
    worst = exactly(100.0 * max(off, default=math.nan), "%", f"largest of {len(off)} chips and radii")
    return at_most(f"{claim}, within {bound:g} %", worst, bound)


def _beyond(name: str, off: Sequence[float], bound: float) -> Control:
    worst = exactly(100.0 * max(off, default=math.nan), "%", f"largest of {len(off)} chips and radii")
    return Control(name, f"is off by more than {bound:g} %", worst, worst.value > bound)


def _curve(name: str, values: Mapping[float, Sequence[float]]) -> Curve:
    radii = sorted(values)
    return Curve(
        name,
        tuple(radii),
        tuple(mean(values[radius]) for radius in radii),
        tuple(half_width(values[radius]) for radius in radii),
    )
