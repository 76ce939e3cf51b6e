"""The benchmarks' arithmetic, with a clock that the cases move themselves."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks import machine, report
from benchmarks.harness import Case, Effort, Spread, measure, sync


@dataclass
class Clock:
    """Stands still except while a case works."""

    now_s: float = 0.0
    order: list[str] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def case(self, name: str, seconds: list[float], reference: str | None = None, units: float = 1.0) -> Case:
        """A case whose calls take `seconds` in turn, the last value for ever."""
        left = list(seconds)

        def work() -> None:
            self.now_s += left.pop(0) if len(left) > 1 else left[0]
            self.order.append(name)

        return Case(name, sync(work), units, reference)


@dataclass
class Load:
    """Reports a given load for each round, 0 after the last."""

    rounds: list[float] = field(default_factory=list)
    started: int = 0

    def start(self) -> None:
        self.started += 1

    def other_cores(self) -> float:
        return self.rounds.pop(0) if self.rounds else 0.0


ONE_CALL = Effort(rounds=3, case_s=1.0, most_repeats=2)


async def test_rates_and_ratios() -> None:
    clock = Clock()
    cases = [clock.case("bare", [2.0], units=4.0), clock.case("ours", [5.0], reference="bare", units=5.0)]
    result = await measure(cases, ONE_CALL, Load(), clock)
    bare, ours = result.cases
    assert bare.rate == Spread(2.0, 2.0, 2.0)
    assert bare.ratio is None
    assert ours.seconds == (5.0, 5.0, 5.0)
    assert ours.ratio == Spread(0.5, 0.5, 0.5)


async def test_ratio_is_taken_within_each_round() -> None:
    # The machine becomes twice as slow for both from round to round: the ratio must not notice.
    # The first two values are the warm-up's.
    clock = Clock()
    cases = [
        clock.case("bare", [1.0, 1.0, 1.0, 2.0, 4.0]),
        clock.case("ours", [2.0, 2.0, 2.0, 4.0, 8.0], reference="bare"),
    ]
    result = await measure(cases, ONE_CALL, Load(), clock)
    assert result.cases[1].seconds == (2.0, 4.0, 8.0)
    assert result.cases[1].ratio == Spread(0.5, 0.5, 0.5)


async def test_after_a_while_disturbed_rounds_are_kept() -> None:
    clock = Clock()
    effort = Effort(rounds=3, case_s=1.0, most_repeats=9, repeat_s=2.5)
    result = await measure([clock.case("ours", [1.0])], effort, Load([1.0] * 9), clock)
    assert (result.repeated, result.disturbed) == (2, 3)


def test_chosen_cases_bring_what_they_are_compared_with() -> None:
    clock = Clock()
    cases = [
        clock.case("plain", [1.0]),
        clock.case("other", [1.0], "plain"),
        clock.case("wide ours", [1.0], "plain"),
        clock.case("wide best", [1.0], "wide ours"),
    ]
    assert [case.name for case in report.chosen(cases, "best")] == ["plain", "wide ours", "wide best"]
    assert report.chosen(cases, "") == cases
    with pytest.raises(SystemExit, match=r"--only 'none': no case .* plain, other"):
        report.chosen(cases, "none")


async def test_rounds_are_interleaved_and_rotate() -> None:
    clock = Clock()
    await measure([clock.case(name, [2.0]) for name in "abc"], ONE_CALL, Load(), clock)
    assert "".join(clock.order) == "aabbcc" + "abc" + "bca" + "cab"


async def test_short_cases_are_repeated_to_fill_their_time() -> None:
    clock = Clock()
    result = await measure([clock.case("short", [0.125])], ONE_CALL, Load(), clock)
    assert result.cases[0].calls == 8
    assert result.cases[0].seconds == (0.125, 0.125, 0.125)


async def test_a_case_that_takes_very_long_is_warm_after_one_call() -> None:
    clock = Clock()
    cases = [clock.case("long", [101.0]), clock.case("short", [1.0])]
    result = await measure(cases, ONE_CALL, Load(), clock)
    assert "".join(name[0] for name in clock.order) == "l" + "ss" + "ls" + "sl" + "ls"
    assert [one.calls for one in result.cases] == [1, 1]


async def test_disturbed_round_is_measured_again() -> None:
    clock, load = Clock(), Load([0.0, 0.5, 0.0])
    result = await measure([clock.case("a", [1.0, 1.0, 2.0, 99.0, 2.0])], ONE_CALL, load, clock)
    assert result.cases[0].seconds == (2.0, 2.0, 2.0)
    assert (result.repeated, result.disturbed, load.started) == (1, 0, 4)


async def test_machine_that_stays_busy_is_reported_not_waited_for() -> None:
    clock, load = Clock(), Load([0.5] * 99)
    result = await measure([clock.case("a", [1.0])], ONE_CALL, load, clock)
    assert (result.repeated, result.disturbed) == (2, 3)


async def test_unknown_reference_and_double_names_are_refused() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="nobody"):
        await measure([clock.case("a", [1.0], reference="nobody")], ONE_CALL, Load(), clock)
    with pytest.raises(ValueError, match="name of its own"):
        await measure([clock.case("a", [1.0]), clock.case("a", [1.0])], ONE_CALL, Load(), clock)
    with pytest.raises(ValueError, match="name of its own"):
        await measure([], ONE_CALL, Load(), clock)


def test_spread_is_half_the_interquartile_range_over_the_median() -> None:
    spread = Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert spread == Spread(3.0, 2.0, 4.0)
    assert spread.half_iqr == pytest.approx(1.0 / 3.0)


def test_own_work_is_not_other_load(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten seconds pass; all cores together work 12 s, of which 7 s are ours and 4 s our helper's.
    moments = {"wall": [0.0, 10.0], "machine": [100.0, 112.0], "own": [1.0, 8.0], "helper": [0.0, 4.0]}
    monkeypatch.setattr(machine, "_machine_busy_s", lambda: moments["machine"].pop(0))
    monkeypatch.setattr(machine, "_process_busy_s", lambda pid: moments["helper"].pop(0))
    monkeypatch.setattr("benchmarks.machine.time.process_time", lambda: moments["own"].pop(0))
    load = machine.OtherLoad([1234], clock=lambda: moments["wall"].pop(0))
    load.start()
    assert load.other_cores() == pytest.approx(0.1)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads Linux's process tables")
def test_own_process_is_found_in_the_process_table() -> None:
    total = sum(number * number for number in range(2_000_000))
    assert total > 0
    assert 0.0 < machine._process_busy_s(os.getpid()) <= machine._machine_busy_s()
    assert machine._process_busy_s(2**22 + 1) == 0.0


def test_script_prints_a_table_and_writes_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    @asynccontextmanager
    async def prepare(quick: bool) -> AsyncIterator[report.Suite]:
        cases = [Case("short", sync(lambda: sum(range(1000))), 1000.0)]
        cases.append(Case("long", sync(lambda: sum(range(4000))), 4000.0, "short"))
        yield report.Suite("adding numbers", "sum", cases)
        closed.append(quick)

    output = tmp_path / "numbers.json"
    monkeypatch.setattr("sys.argv", ["bench", "--quick", "--json", str(output)])
    for name in machine.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    report.main(report.Script("benchmarks.none", prepare, ["numpy"]))
    lines = capsys.readouterr().out.splitlines()
    assert "quick" in lines[0]
    assert [line.split()[:2] for line in lines if line][-2:] == [["1", "short"], ["2", "long"]]
    assert lines[-1].endswith("  1")
    numbers = json.loads(output.read_text())
    assert [case["name"] for case in numbers["cases"]] == ["short", "long"]
    assert len(numbers["cases"][1]["seconds"]) == 3
    assert numbers["machine"]["versions"]["numpy"]
    assert closed == [True]
