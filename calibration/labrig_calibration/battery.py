"""`judge`: every test of residuals at once, with one false-alarm rate for all of them together.

Each check looks at every column and at all columns together. A chip of 128 columns looked at in fourteen ways gives
1,800 p-values, and at 1 % each a flawless model would be faulted 18 times. So the checks share the false-alarm rate
equally, half of a check's share goes to all columns together and half to the columns, and those share it again
(Bonferroni, weighted): the chance that a model without fault is faulted at all is at most what is stated. Columns may
depend on each other for that, except in the joint halves of shape, tails and outliers; there dependence is itself a
fault that the model lacks, and `between columns` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from labrig_calibration import goodness, missing_terms, specification, whiteness
from labrig_calibration.nulls import Nulls
from labrig_calibration.residuals import chronological, refuse
from labrig_calibration.specification import Tested
from labrig_surrogates.faults import numbered

FloatArray = NDArray[np.float64]

FALSE_ALARM_RATE = 0.01

MEANING = {
    "bias": "outputs are off by {:.3g} predicted standard deviations on average: an offset",
    "gain": "a gain explains {:.2%} of what is left: a gain, or drift since the fit",
    "curve": "powers of the output explain {:.2%} of what is left: the transfer curve is another one",
    "drift": "age and time explain {:.2%} of what is left: the chip drifts otherwise than the model",
    "covariates": "inputs explain {:.2%} of what is left: wires, crosstalk or temperature act on the mean",
    "spread": "the true standard deviation is {:.3g} times the predicted one",
    "noise law": "the spread follows something that the noise law lacks (its logarithm swings by {:.3g})",
    "between columns": "columns err together (correlation {:.3g}): a supply or a reference is shared",
    "memory": "successive outputs are correlated by {:.3g}: noise is not white, or something moves",
    "slow noise": "{:.2%} of the power sits at wrong frequencies: 1/f or telegraph noise",
    "hum": "one frequency holds {:.2%} of the power: mains, a fan or a switching supply",
    "outliers": "the worst output is {:.3g} predicted standard deviations away: glitches, cables, bad rows",
    "shape": "the distribution is off by {:.3g} somewhere: the noise is not normal",
    "tails": "the tails are not those of a normal distribution (Anderson-Darling {:.3g})",
}
"""The checks, and what each says with its effect; a fault of one often shows in those below it, too."""
_TOGETHER = {
    "outliers": "outputs of the worst MVM are {:.3g} predicted standard deviations away: glitches, cables, bad rows"
}


@dataclass(frozen=True)
class FitSize:
    """The fit that made the predictions; its own errors widen the residuals of data that it never saw.

    Attributes:
        mvms: MVMs that it was fitted to.
        parameters: Parameters of each column, those of each write included, which its predicted spread leaves out.
    """

    mvms: int
    parameters: float = 0.0


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: Its name, a key of `MEANING`.
        p_value: Of each column, `[columns]`; NaN where it could not be tested.
        effect: Size of what was found in each column, `[columns]`.
        together_p_value: Of all columns together; NaN where it could not be tested.
        together_effect: Its size.
        adjusted: Chance that any check of this battery gives so small a p-value where there is nothing, at most 1.
    """

    name: str
    p_value: FloatArray
    effect: FloatArray
    together_p_value: float
    together_effect: float
    adjusted: float

    @property
    def worst_column(self) -> int:
        """The column with the smallest p-value, -1 where none was tested."""
        return int(np.nanargmin(self.p_value)) if np.isfinite(self.p_value).any() else -1

    def sentence(self) -> str:
        """What was found, where it is strongest."""
        worst = self.worst_column
        in_columns = float(self.p_value[worst]) * np.isfinite(self.p_value).sum() if worst >= 0 else np.inf
        if np.isfinite(self.together_p_value) and self.together_p_value < in_columns:
            meaning = _TOGETHER.get(self.name, MEANING[self.name])
            return f"{self.name}: {meaning.format(self.together_effect)}, all columns together"
        return f"{self.name}: {MEANING[self.name].format(self.effect[worst])}, worst in column {worst}"


@dataclass(frozen=True)
class Judgement:
    """What a battery of checks found.

    Attributes:
        checks: Every check that could be made, by name.
        false_alarm_rate: Chance that a model without fault is faulted.
        mvms: Number of MVMs judged.
        skipped: Checks that could not be made, with the reason.
    """

    checks: Mapping[str, Check]
    false_alarm_rate: float
    mvms: int
    skipped: Mapping[str, str]

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that found something; what is likely a cause comes before what follows from it."""
        found = [check for check in self.checks.values() if check.adjusted < self.false_alarm_rate]
        return tuple(sorted(found, key=lambda check: list(MEANING).index(check.name)))

    @property
    def clean(self) -> bool:
        """True where nothing was found."""
        return not self.findings

    def sentences(self) -> list[str]:
        """What was found in words, likely causes first, and what could not be looked at."""
        found = [check.sentence() for check in self.findings]
        rate = f"{100 * self.false_alarm_rate:.3g} %"
        head = (
            [] if found else [f"nothing found by {len(self.checks)} checks (false-alarm rate {rate} for all together)"]
        )
        return [*head, *found, *(f"{name}: not looked at, {reason}" for name, reason in self.skipped.items())]


def judge(
    z: FloatArray,
    mean_a: FloatArray,
    sigma_a: FloatArray,
    *,
    rng: np.random.Generator,
    time_s: FloatArray | None = None,
    age_s: FloatArray | None = None,
    covariates: FloatArray | None = None,
    fitted: FitSize | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    nulls: Nulls | None = None,
) -> Judgement:
    """Looks for whatever a model left out.

    Args:
        z: Standardised residuals (`residuals`), `[N, columns]`; NaN where nothing was measured.
        mean_a: Predicted outputs in A, `[N, columns]`.
        sigma_a: Their standard deviation in A, `[N, columns]`.
        rng: Source of the null distributions.
        time_s: When each MVM was measured in s, `[N]`; without it rows are taken as in order and drift as age alone.
        age_s: Time since the write in s, `[N]`.
        covariates: What else mean and spread may depend on (drive, temperature ...), `[N, k]`.
        fitted: The fit behind the predictions, when `z` are of data that it never saw.
        false_alarm_rate: Chance that a model without fault is faulted, all checks together.
        nulls: Null distributions from an earlier call with as many MVMs, which take most of the time.

    Raises:
        JudgementError: Shapes do not fit, or there are fewer than 30 MVMs.
    """
    _refuse(z, mean_a, sigma_a, time_s, age_s, covariates)
    if time_s is not None:
        order = chronological(time_s)
        z, mean_a, sigma_a, time_s = z[order], mean_a[order], sigma_a[order], time_s[order]
        age_s = None if age_s is None else age_s[order]
        covariates = None if covariates is None else covariates[order]
    n, columns = z.shape
    if nulls is None:
        nulls = Nulls.simulate(n, rng=rng)
    inflation = 1.0 + (n / fitted.mvms if fitted is not None else 0.0)
    z = z / np.sqrt(1.0 + (fitted.parameters / fitted.mvms if fitted is not None else 0.0))
    together = _together(z)

    tested: dict[str, tuple[Tested, Tested]] = {
        "bias": (specification.bias(z, inflation=inflation), _bias_together(z, together, inflation)),
        "spread": (specification.spread(z), _spread_together(z)),
    }
    skipped: dict[str, str] = {}
    terms_of_mean = missing_terms.mean_terms(mean_a, sigma_a, time_s, age_s, covariates)
    base = missing_terms.base(mean_a, sigma_a)
    for name, terms in terms_of_mean.items():
        if terms.shape[2] == 0:
            skipped[name] = "nothing of the kind was given or it never changed"
            continue
        first = base[:, :, :1] if name == "gain" else base
        tested[name] = (
            specification.added_terms(z, first, terms, inflation=inflation),
            specification.added_terms(
                together, missing_terms.averaged(first), missing_terms.averaged(terms), inflation=inflation
            ),
        )
    variance_terms = missing_terms.variance_terms(mean_a, sigma_a, age_s, covariates)
    tested["noise law"] = (
        specification.heteroscedasticity(z, variance_terms),
        _heteroscedasticity_together(z, variance_terms),
    )
    tested["memory"] = (_memory(z, nulls), _memory(together, nulls))
    tested["slow noise"] = (_periodogram(z, nulls), _periodogram(together, nulls))
    tested["hum"] = whiteness.strongest_line(z), whiteness.strongest_line(together)
    tested["shape"], tested["tails"] = _normality(z, nulls)
    tested["outliers"] = specification.outliers(z), specification.bad_rows(z)
    if columns > 1:
        nothing = np.full(columns, np.nan)
        tested["between columns"] = Tested(nothing, nothing, nothing), specification.between_columns(z)
    else:
        skipped["between columns"] = "there is one column"
    checks = {name: _check(name, *pair, checks=len(tested)) for name, pair in tested.items()}
    return Judgement(checks, false_alarm_rate, n, skipped)


def _check(name: str, each: Tested, together: Tested, checks: int) -> Check:
    p_each, p_together = each.p_value, float(together.p_value[0])
    halves = []
    if np.isfinite(p_each).any():
        halves.append(float(np.nanmin(p_each)) * int(np.isfinite(p_each).sum()))
    # One column is its own whole: asked once.
    if np.isfinite(p_together) and not (p_each.size == 1 and halves):
        halves.append(p_together)
    adjusted = min([1.0, *(checks * len(halves) * p for p in halves)])
    return Check(name, p_each, each.effect, p_together, float(together.effect[0]), adjusted)


def _together(z: FloatArray) -> FloatArray:
    """The mean over columns of each MVM, of unit spread, `[N, 1]`: what all columns have in common adds up in it."""
    count = np.isfinite(z).sum(axis=1)
    mean = np.where(count > 0, np.nansum(z, axis=1) / np.sqrt(np.maximum(count, 1)), np.nan)[:, None]
    return np.asarray(mean / np.sqrt(np.nanmean(mean**2)))


def _bias_together(z: FloatArray, together: FloatArray, inflation: float) -> Tested:
    tested = specification.bias(together, inflation=inflation)
    return Tested(tested.statistic, tested.p_value, np.array([np.nanmean(z)], dtype=np.float64))


def _spread_together(z: FloatArray) -> Tested:
    """All squares together; columns that err together and heavy tails count as fewer squares (Satterthwaite)."""
    n, count = z.shape[0], int(np.isfinite(z).sum())
    squares = np.nansum(z**2, axis=1)
    mean = float(squares.sum()) / count
    freedom = min(float(count), 2.0 * (count * mean) ** 2 / n / max(float(squares.var(ddof=1)), 1e-300))
    p = 2.0 * min(float(special.chdtr(freedom, mean * freedom)), float(special.chdtrc(freedom, mean * freedom)))
    return Tested(np.array([mean * freedom]), np.array([min(p, 1.0)]), np.array([np.sqrt(mean)]))


def _heteroscedasticity_together(z: FloatArray, terms: FloatArray) -> Tested:
    """Mean score of the absolute residuals of each MVM against the mean terms; one column has been asked already."""
    scores = specification.normal_scores(np.abs(z))
    mean = np.where(np.isfinite(scores).any(axis=1), np.nansum(scores, axis=1), np.nan)[:, None]
    regressors = missing_terms.averaged(terms)
    tested = specification.added_terms(specification.normal_scores(mean), np.ones((z.shape[0], 1, 1)), regressors)
    return Tested(
        tested.statistic, tested.p_value, np.asarray(np.sqrt(tested.effect * (np.pi**2 / 8.0) / z.shape[1]), np.float64)
    )


def _memory(z: FloatArray, nulls: Nulls) -> Tested:
    tested = whiteness.ljung_box(z, nulls.lags)
    return Tested(tested.statistic, nulls.memory.p_value(tested.statistic), tested.effect)


def _periodogram(z: FloatArray, nulls: Nulls) -> Tested:
    tested = whiteness.cumulative_periodogram(z)
    return Tested(tested.statistic, nulls.periodogram.p_value(tested.statistic), tested.effect)


def _normality(z: FloatArray, nulls: Nulls) -> tuple[tuple[Tested, Tested], tuple[Tested, Tested]]:
    """Kolmogorov-Smirnov and Anderson-Darling of each column, and of all residuals, each column studentised."""
    count = np.isfinite(z).sum(axis=0)
    pooled = goodness.exactly_studentised(z).reshape(-1, 1)
    size = np.isfinite(pooled).sum(axis=0)
    pairs = []
    for statistic, sized, null in (
        (goodness.kolmogorov_smirnov, goodness.sized_distance, nulls.distance),
        (goodness.anderson_darling, goodness.sized_square, nulls.square),
    ):
        each, whole = statistic(z), statistic(pooled)
        p_each = null.p_value(sized(each, count, "location and scale"))
        p_whole = null.p_value(sized(whole, size, "location and scale"))
        pairs.append((Tested(each, p_each, each), Tested(whole, p_whole, whole)))
    return pairs[0], pairs[1]


def _refuse(
    z: FloatArray,
    mean_a: FloatArray,
    sigma_a: FloatArray,
    time_s: FloatArray | None,
    age_s: FloatArray | None,
    covariates: FloatArray | None,
) -> None:
    faults = []
    if z.ndim != 2 or not z.shape == mean_a.shape == sigma_a.shape:
        shapes = f"{list(z.shape)}, {list(mean_a.shape)} and {list(sigma_a.shape)}"
        faults.append(f"residuals, means and spreads must be of one shape [N, columns], not {shapes}")
    n = z.shape[0]
    for name, values in (("time_s", time_s), ("age_s", age_s), ("covariates", covariates)):
        if values is not None and values.shape[0] != n:
            faults.append(f"{name} has {values.shape[0]} entries for {n} MVMs")
    if n < 30:
        faults.append(f"{n} MVMs are too few to judge by, 30 are needed")
    elif z.ndim == 2 and (empty := np.flatnonzero(np.isfinite(z).sum(axis=0) < 30)).size:
        told, them = numbered(empty.tolist(), "column", "has", "have"), "it" if empty.size == 1 else "them"
        faults.append(f"{told} fewer than 30 outputs; leave {them} out")
    refuse("residuals cannot be judged", faults)
