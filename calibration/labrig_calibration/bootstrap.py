"""Block bootstrap: standard errors without a likelihood, as a check of those that the Hessian gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labrig_calibration.dataset import MvmDataset
from labrig_calibration.fit import fit
from labrig_calibration.ladder import Ladder, RungName
from labrig_calibration.result import CalibrationResult

FloatArray = NDArray[np.float64]

CHECKED = ("offset", "compression", "drift", "amplifier_noise", "shot_noise", "conductance_noise", "skew")
"""What a bootstrap over MVMs can check: a programming error is drawn once for a write, not for an MVM."""


def block_bootstrap(
    result: CalibrationResult,
    *,
    rng: np.random.Generator,
    draws: int = 30,
    blocks: int = 40,
    progress: Callable[[float], None] | None = None,
) -> dict[str, FloatArray]:
    """Refits data sets that are drawn from blocks of neighbouring MVMs, so that slow noise stays together.

    It takes `draws` fits, and is for whoever doubts the standard errors of a recording: noise that is correlated over
    MVMs makes these larger than the ones of the likelihood, which believes in independent noise.

    Args:
        result: The fit to check; its rungs are fitted again, without asking anew whether to keep them.
        rng: Draws the blocks.
        draws: Data sets.
        blocks: Pieces that each write is cut into.
        progress: Called with the part that is done.

    Returns:
        Standard deviations over the draws of each estimate named in `CHECKED`, in the unit of the estimate.

    Raises:
        ValueError: Fewer than two draws or blocks.
    """
    if min(draws, blocks) < 2:
        raise ValueError(f"a bootstrap needs two draws and two blocks at least, not {draws} and {blocks}")
    rungs: tuple[RungName, ...] = tuple(
        verdict.rung for verdict in result.ladder if verdict.kept and verdict.rung != "residual"
    )
    ladder = Ladder(rungs, select=False, drift_reference_s=result.array_parameters.drift_reference_s)
    found: dict[str, list[FloatArray]] = {}
    for draw in range(draws):
        again = fit(_resampled(result, blocks, rng), ladder=ladder, rng=rng)
        for name in CHECKED:
            if name in again.parameters:
                found.setdefault(name, []).append(again.parameters[name].value)
        if progress is not None:
            progress((draw + 1) / draws)
    return {name: np.std(np.stack(values), axis=0, ddof=1) for name, values in found.items() if len(values) == draws}


def _resampled(result: CalibrationResult, blocks: int, rng: np.random.Generator) -> MvmDataset:
    dataset = result.dataset
    chosen = []
    for write in range(dataset.writes):
        members = np.flatnonzero((dataset.pattern == write) & ~result.flagged)
        pieces = np.array_split(members[np.argsort(dataset.time_s[members], kind="stable")], blocks)
        drawn = np.concatenate([pieces[index] for index in rng.integers(0, blocks, blocks)])
        chosen.append(np.sort(drawn))
    rows = np.concatenate(chosen)
    return replace(
        dataset,
        voltage_v=dataset.voltage_v[rows],
        current_a=dataset.current_a[rows],
        pattern=dataset.pattern[rows],
        time_s=dataset.time_s[rows],
        saturated=dataset.saturated[rows],
        temperature_k=None if dataset.temperature_k is None else dataset.temperature_k[rows],
    )
