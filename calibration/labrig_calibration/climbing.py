"""Climbs the ladder: fits each rung, asks later data whether it earns its place, and says why it stopped.

Which rungs are kept is decided on part of a large recording and of the cells of a large array (the most that a fit of
them needs); the model that they make is then fitted to all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labrig_calibration.cell_likelihood import CellData, CellModel
from labrig_calibration.cells import CellFit, fit_cells, last_write_nll
from labrig_calibration.columns import ColumnState, Factor, accumulate, climb, factorise, in_own_units, moments, settle
from labrig_calibration.heldout import heldout_nll, improvement
from labrig_calibration.ladder import Ladder, RungName, RungVerdict
from labrig_calibration.likelihood import pull
from labrig_calibration.linear_rungs import LinearSums, robust_start
from labrig_calibration.measurements import Measurements
from labrig_calibration.noise_law import NoiseTerms
from labrig_calibration.squares import NoiseFit, choose_terms, fit_noise, wrong_rows

FloatArray = NDArray[np.float64]
Progress = Callable[[str, float], None]

# MVMs of a write, as a multiple of its rows, that are enough to decide about rungs.
_ENOUGH, _AT_LEAST = 8, 512
# So many are enough for the blocks of the final fit, which steer it and give its errors: these are then 1 % too large.
_ENOUGH_FOR_BLOCKS, _BLOCKS_AT_LEAST = 32, 4096
# Times that the blocks are summed anew where steps with kept ones do not come to rest.
_FRESH_BLOCKS = 10
_OFFSET, _COMPRESSION, _DRIFT, _SKEW = 0, 1, 2, 3


@dataclass(frozen=True)
class ColumnsClimbed:
    """What climbing found of the columns.

    Attributes:
        state: Parameters, fitted to all earlier MVMs.
        factor: Their errors.
        free: Which of the shared parameters were fitted.
        noise: The noise.
        verdicts: Of the rungs that concern columns.
        flagged: MVMs that count as wrong, bool, `[N]`.
        outliers: Single outputs that do, elsewhere.
        resting: Whether the fit came to rest.
        tried_error: Standard errors of `drift` and `compression` where they were tried and left out, by index.
    """

    state: ColumnState
    factor: Factor
    free: tuple[int, ...]
    noise: NoiseFit
    verdicts: tuple[RungVerdict, ...]
    flagged: NDArray[np.bool_]
    outliers: int
    resting: bool
    tried_error: dict[int, FloatArray]

    @property
    def parameters(self) -> int:
        """Numbers that the chosen model estimates."""
        return _kept(self.verdicts)


@dataclass(frozen=True)
class _Candidate:
    free: tuple[int, ...]
    state: ColumnState
    factor: Factor
    noise: NoiseFit
    nll: FloatArray


def climb_columns(
    train: Measurements, later: Measurements, sums: LinearSums, ladder: Ladder, progress: Progress
) -> ColumnsClimbed:
    """Climbs the rungs that concern columns: all but `wires`, `stuck` and `residual`."""
    rows, writes = train.dataset.rows, train.dataset.writes
    columns = sums.squares.shape[0]
    cells = rows * writes * columns
    verdicts = []
    best = heldout_nll(later, sums.global_rung())
    verdicts.append(RungVerdict("global", True, 2, _mean(best), 0.0, 0.0, "later MVMs", "where every fit begins"))
    nll = heldout_nll(later, sums.cells_rung())
    verdicts.append(judged("cells", best, nll, 3 + cells, ladder, always=True))
    best = nll
    progress("lower rungs", 0.1)
    some = train.thinned(max(_ENOUGH * rows, _AT_LEAST))
    start = robust_start(some)
    straight = replace(start, shared=torch.zeros_like(start.shared))
    tried: dict[int, FloatArray] = {}
    # Straight lines fitted as the curves will be, so that like is compared with like.
    chosen: _Candidate | None = None
    free: tuple[int, ...] = ()
    if "columns" in ladder.rungs:
        free = (_OFFSET,)
        chosen = _candidate(some, later, start, free, law=False)
        nll = heldout_nll(later, sums.columns_rung())
        verdicts.append(judged("columns", best, nll, 3 + cells + 3 * columns, ladder))
    below = _candidate(some, later, straight, (), law=False) if chosen is None else chosen
    if "curve" in ladder.rungs:
        curve = _candidate(some, later, _bent(below.state, later), (*free, _COMPRESSION), law=True)
        verdict = judged("curve", below.nll, curve.nll, 3 + cells + 6 * columns, ladder)
        if verdict.kept:
            if free and not verdicts[-1].kept:
                # Offsets are small beside a curve that is not fitted yet; under it they have their place.
                verdicts[-1] = replace(verdicts[-1], kept=True, reason=verdicts[-1].reason + "; kept under the curve")
            below = curve
            if ladder.select:
                skewed = _candidate(some, later, curve.state, (*curve.free, _SKEW), law=True)
                gain, error = improvement(curve.nll, skewed.nll)
                if gain > ladder.confidence * error:
                    below = skewed
                    reason = verdict.reason + "; the curve is skewed"
                    more = verdict.parameters + columns
                    verdict = replace(verdict, parameters=more, heldout_nll=_mean(skewed.nll), reason=reason)
        else:
            tried[_COMPRESSION] = _error_of(curve, _COMPRESSION)
        verdicts.append(verdict)
    if free and below is chosen and not verdicts[[one.rung for one in verdicts].index("columns")].kept:
        below = _candidate(some, later, straight, (), law=False)
    chosen = below
    progress("curve", 0.3)
    if "drift" in ladder.rungs:
        drifting = _candidate(some, later, chosen.state, (*chosen.free, _DRIFT), law=len(chosen.noise.active) > 1)
        verdict = judged("drift", chosen.nll, drifting.nll, _kept(verdicts) + columns, ladder)
        if verdict.kept:
            chosen = drifting
        else:
            tried[_DRIFT] = _error_of(drifting, _DRIFT)
        verdicts.append(verdict)
    progress("drift", 0.5)
    return _to_all(train, chosen, tuple(verdicts), tried)


def _kept(verdicts: Sequence[RungVerdict]) -> int:
    """Numbers that the model of the last kept rung estimates."""
    return next(one.parameters for one in reversed(verdicts) if one.kept)


def climb_cells(
    data: CellData, ladder: Ladder, heldout: float, parameters: int
) -> tuple[CellFit, tuple[RungVerdict, ...]]:
    """Decides about wires, crosstalk and the fixed pattern of cells.

    The pattern has to predict the last write. Wires can hardly: what they take from a cell at every write looks like
    its own slope. That all cells far from their drivers are weak, and how much that changes with what their neighbours
    hold, is seen in the likelihood of all writes, with the slopes integrated out.

    Args:
        data: Conductances of the recorded writes.
        ladder: What may be tried.
        heldout: Held-out score of the columns' fit, which none of these rungs changes.
        parameters: Numbers that it estimates.
    """
    wanted = {name for name in ("wires", "stuck") if name in ladder.rungs}
    fits = _CellFits(data, {})
    model = CellModel(pattern="stuck" in wanted, wires=False, crosstalk=False, exact=ladder.exact_wires)
    verdicts: list[RungVerdict] = []
    if "wires" in wanted:
        with_wires = replace(model, wires=True)
        verdict = _judged_cells(fits, model, with_wires, ladder, heldout, parameters + 3)
        coupled = replace(with_wires if verdict.kept else model, crosstalk=True)
        crosstalk = _judged_cells(fits, replace(coupled, crosstalk=False), coupled, ladder, heldout, parameters + 3)
        model = coupled if crosstalk.kept else replace(coupled, crosstalk=False)
        text = f"wires: {verdict.reason}; crosstalk: {crosstalk.reason}"
        verdicts.append(replace(verdict, kept=verdict.kept or crosstalk.kept, reason=text))
        parameters += 3 if verdicts[-1].kept else 0
    if "stuck" in wanted:
        parameters += data.target_s[0].numel() + 1
        verdict = _judged_write(fits, replace(model, pattern=False), model, ladder, heldout, parameters)
        verdicts.append(verdict)
        if not verdict.kept:
            model = replace(model, pattern=False)
    chosen = fits.whole(model)
    if "wires" in wanted and not (model.wires and model.crosstalk):
        chosen = replace(chosen, unseen=_unseen(chosen, fits.whole(replace(model, wires=True, crosstalk=True))))
    return chosen, tuple(verdicts)


def _unseen(chosen: CellFit, whole: CellFit) -> FloatArray:
    """What the gains may be wrong by, relatively, since a model leaves out what the data do not show, `[columns]`.

    That something is not seen does not say that it is zero. With it the gains would come out elsewhere and be known
    less well; the error about where they are holds both. Infinite where a gain is not known at all.
    """
    known = np.isfinite(whole.gain_error) & np.isfinite(chosen.gain_error)
    gain, shift = chosen.gain[known], (whole.gain - chosen.gain)[known]
    more2 = np.maximum(whole.gain_error[known] ** 2 - chosen.gain_error[known] ** 2, 0.0)
    found = np.full(known.shape, np.inf)
    found[known] = np.sqrt(shift**2 + more2) / np.abs(gain)
    return found


def judged(
    rung: RungName, before: FloatArray, after: FloatArray, parameters: int, ladder: Ladder, *, always: bool = False
) -> RungVerdict:
    """Whether a rung predicts later MVMs better."""
    gain, error = improvement(before, after)
    better = gain > ladder.confidence * error
    kept = better or always or not ladder.select
    text = f"{gain:+.3g} ± {error:.2g} nats per MVM on later data"
    if not better:
        text += ", no gain: " + ("left out" if not kept else "kept all the same")
    return RungVerdict(rung, kept, parameters, _mean(after), gain, error, "later MVMs", text)


@dataclass(frozen=True)
class _CellFits:
    """Fits of the cells; each model is fitted once to those that are enough for it, from where the one before was."""

    data: CellData
    known: dict[CellModel, CellFit]

    def of(self, model: CellModel) -> CellFit:
        if model not in self.known:
            last = next(reversed(self.known.values()), None)
            self.known[model] = fit_cells(self.data, model, last, part=True)
        return self.known[model]

    def whole(self, model: CellModel) -> CellFit:
        """Fitted to all cells."""
        found = self.of(model)
        return found if found.looked_at == self.data.target_s.numel() else fit_cells(self.data, model, found)


def _judged_write(
    fits: _CellFits, without: CellModel, with_it: CellModel, ladder: Ladder, heldout: float, parameters: int
) -> RungVerdict:
    """Whether the last write, never read, is predicted better; with two writes, whether all cells are likelier."""
    if not ladder.select:
        nan = float("nan")
        return RungVerdict("stuck", True, parameters, heldout, nan, nan, "last write", "kept unasked")
    if fits.data.target_s.shape[0] < 3:
        return replace(_judged_cells(fits, without, with_it, ladder, heldout, parameters), rung="stuck")
    # Where a fit of all writes stands would tell of the last one: no start is taken from there.
    before, of_others = last_write_nll(fits.data, without)
    after, _ = last_write_nll(fits.data, with_it, of_others)
    difference = before - after
    gain, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(max(difference.size, 2)))
    text = f"{gain:+.3g} ± {error:.2g} nats per column on the last write"
    return RungVerdict("stuck", gain > ladder.confidence * error, parameters, heldout, gain, error, "last write", text)


def _judged_cells(
    fits: _CellFits, without: CellModel, with_it: CellModel, ladder: Ladder, heldout: float, parameters: int
) -> RungVerdict:
    """Whether the conductances of all writes are so much likelier that it pays for the parameters (Schwarz)."""
    if not ladder.select:
        return RungVerdict("wires", True, parameters, heldout, np.nan, np.nan, "all writes", "kept unasked")
    before, after = fits.of(without), fits.of(with_it)
    gained = after.log_likelihood - before.log_likelihood
    price = 0.5 * (len(with_it.law) - len(without.law)) * float(np.log(after.looked_at))
    text = f"{gained:+.3g} nats over {after.looked_at:,} conductances, at a price of {price:.3g}"
    return RungVerdict("wires", gained > price, parameters, heldout, gained - price, 0.0, "all writes", text)


def _candidate(
    some: Measurements, later: Measurements, start: ColumnState, free: tuple[int, ...], *, law: bool
) -> _Candidate:
    """A model fitted to part of the data: means and one noise in turn, then the law of the noise."""
    floor_a2 = torch.as_tensor(some.dataset.converters.adc_lsb_a[some.columns]) ** 2 / 12.0
    spent = some.dataset.rows * some.dataset.writes + len(free)
    if bool((start.noise.value[1:] != 0).any()):
        # A law that was fitted already: its mean, so that every column has one noise to begin with.
        start = replace(start, noise=NoiseTerms.constant(_mean_square(some, start, spent), floor_a2))
    state, factor, _ = climb(some, start, free)
    for _ in range(3):
        # The blocks keep their shape when the noise is found to be another; only their size changes.
        variance = _mean_square(some, state, spent)
        old = state.noise.value[0] + state.noise.floor_a2
        factor = factor.at_noise(variance / old)
        state = replace(state, noise=NoiseTerms.constant(variance, floor_a2))
        if bool(((variance - old).abs() < 0.1 * old).all()):
            break
        state, _ = settle(some, state, free, factor)
    active = choose_terms(some, state, factor, floor_a2, drifting=_DRIFT in free) if law else (0,)
    noise = fit_noise(some, state, factor, floor_a2, active)
    state = replace(state, noise=noise.terms)
    return _Candidate(free, state, factor, noise, heldout_nll(later, state))


def _mean_square(data: Measurements, state: ColumnState, spent: int) -> Tensor:
    """Variance of each column's genuine outputs, corrected for the parameters spent, `[columns]`."""
    total, count = torch.zeros_like(state.shared[0]), torch.zeros_like(state.shared[0])
    for block in data.blocks():
        mean, _, _, variance = moments(block, state)
        kept = pull(block.outputs, mean, variance).genuine * block.outputs.keep
        if block.outputs.rail is not None:
            kept = kept * (block.outputs.rail == 0)
        total += (kept * (block.outputs.current_a - mean) ** 2).sum(dim=0)
        count += kept.sum(dim=0)
    lowest = 1e-3 * torch.as_tensor(data.dataset.converters.adc_lsb_a[data.columns]) ** 2 + 1e-60
    return total.clamp(min=0.0) / (count - spent).clamp(min=1.0) + lowest


def _bent(start: ColumnState, data: Measurements) -> ColumnState:
    """A start with a tenth of compression at the largest output; exactly zero would have no gradient."""
    largest = torch.full_like(start.shared[0], 1e-15)
    for block in data.blocks():
        largest = torch.maximum(largest, block.outputs.current_a.abs().amax(dim=0))
    shared = start.shared.clone()
    shared[_COMPRESSION] = 0.5 / largest
    return replace(start, shared=shared)


def _to_all(
    train: Measurements,
    chosen: _Candidate,
    verdicts: tuple[RungVerdict, ...],
    tried: dict[int, FloatArray],
) -> ColumnsClimbed:
    """The chosen model on all earlier MVMs: means, noise, wrong MVMs, and once more with the weights so found."""
    state, free, floor_a2 = chosen.state, chosen.free, chosen.noise.terms.floor_a2
    everything, none = train, np.zeros(len(train.dataset), dtype=np.bool_)
    # Before the fit has come to rest, MVMs that it has not reached yet would look wrong.
    state, factor, resting = _at_rest(everything, state, free)
    flagged, outliers = wrong_rows(everything, state, none)
    if flagged.any():
        train = everything.without(flagged)
        state = replace(state, noise=fit_noise(train, state, factor, floor_a2, chosen.noise.active).terms)
        suspected, _ = wrong_rows(train, state, flagged)
        train = everything.without(suspected)
        state, factor, resting = _at_rest(train, state, free)
        # What looked wrong beside others that were may be right without them.
        flagged, outliers = wrong_rows(everything, state, none)
        if (flagged != suspected).any():
            train = everything.without(flagged)
            state, factor, resting = _at_rest(train, state, free)
    noise = fit_noise(train, state, factor, floor_a2, chosen.noise.active)
    state = replace(state, noise=noise.terms)
    factor = in_own_units(factor, state, free)
    return ColumnsClimbed(state, factor, free, noise, verdicts, flagged, outliers, resting, tried)


def _at_rest(train: Measurements, state: ColumnState, free: tuple[int, ...]) -> tuple[ColumnState, Factor, bool]:
    """Fits all MVMs until steps change nothing; also the blocks of the last steps, and whether it came to rest."""
    part = train.thinned(max(_ENOUGH_FOR_BLOCKS * train.dataset.rows, _BLOCKS_AT_LEAST))
    tries = 0
    while True:
        factor = factorise(accumulate(part, state, free, blocks=True), state, free)
        if part is not train:
            factor = factor.scaled(float(part.counts().sum()) / float(train.counts().sum()))
        state, resting = settle(train, state, free, factor)
        tries += 1
        if resting or tries == _FRESH_BLOCKS:
            return state, factor, resting


def _error_of(candidate: _Candidate, index: int) -> FloatArray:
    factor = in_own_units(candidate.factor, candidate.state, candidate.free)
    return np.asarray(factor.shared_error()[candidate.free.index(index)].numpy())


def _mean(nll: FloatArray) -> float:
    return float(nll.mean())
