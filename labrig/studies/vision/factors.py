"""One factor at a time: methods that differ from one another in a single setting, compared seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from labrig.studies.intervals import of_difference
from labrig.studies.result import Curve, Finding, Interval, Plot, Table
from labrig.studies.vision.grid import Scores
from labrig.studies.vision.methods import Method
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.summary import cell_text


@dataclass(frozen=True)
class Factor:
    """One change of a method.

    Attributes:
        name: What is changed, as a table says it.
        method: The method with the change.
    """

    name: str
    method: Method

    @classmethod
    def of(cls, base: Method, name: str, **changes: object) -> Factor:
        """A factor from what changes in a method, whose name it carries."""
        return cls(name, replace(base, name=f"{base.name}; {name}", **changes))  # type: ignore[arg-type]


def differences(
    base: Method, factors: Sequence[Factor], noises: Sequence[Noise], scores: Scores
) -> Mapping[tuple[str, Noise], Interval]:
    """By how many points each change raises the accuracy with re-estimated batch norm, seed by seed."""
    found = {}
    for noise in noises:
        before = scores.re_estimated.get((base.name, noise))
        for factor in factors:
            after = scores.re_estimated.get((factor.method.name, noise))
            if before is None or after is None or len(before.values) != len(after.values):
                continue
            found[factor.name, noise] = of_difference(after.of_seeds, before.of_seeds, "points", "seeds")
    return found


def findings(
    factors: Sequence[Factor], noises: Sequence[Noise], found: Mapping[tuple[str, Noise], Interval]
) -> list[Finding]:
    """Whether each change matters at each noise: its interval lies on one side of zero."""
    made = []
    for factor in factors:
        for noise in noises:
            figure = found.get((factor.name, noise))
            if figure is None:
                continue
            apart = figure.low > 0.0 or figure.high < 0.0
            made.append(
                Finding(f"{factor.name} changes the accuracy at {noise}", figure, "holds" if apart else "undecided")
            )
    return made


def table(
    base: Method,
    factors: Sequence[Factor],
    noises: Sequence[Noise],
    scores: Scores,
    found: Mapping[tuple[str, Noise], Interval],
) -> Table:
    """Accuracies of the base, and what each change adds to them."""
    rows: list[tuple[str | float, ...]] = []
    first: list[str | float] = [f"{base.name}: accuracy in %"]
    first += [cell_text(scores.re_estimated.get((base.name, noise))) for noise in noises]
    rows.append(tuple(first))
    for factor in factors:
        row: list[str | float] = [factor.name]
        for noise in noises:
            one = found.get((factor.name, noise))
            row.append("not run" if one is None else f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]")
        rows.append(tuple(row))
    columns = ("change", *(str(noise) for noise in noises))
    return Table("What each change adds, in points, with its 95 % interval over seeds", columns, tuple(rows))


def plot(factors: Sequence[Factor], noises: Sequence[Noise], found: Mapping[tuple[str, Noise], Interval]) -> Plot:
    """The differences over the noise on the weights, with and without noise on the outputs."""
    curves = []
    for factor in factors:
        for both in (False, True):
            points = sorted(
                (noise.weights, found[factor.name, noise].value)
                for noise in noises
                if (factor.name, noise) in found and (noise.quiet or (noise.outputs > 0.0) is both)
            )
            if any(level > 0.0 for level, _ in points):
                name = f"{factor.name}, outputs too" if both else factor.name
                curves.append(Curve(name, tuple(100.0 * n for n, _ in points), tuple(value for _, value in points)))
    return Plot("What each change adds", "N (%)", "points", tuple(curves))
