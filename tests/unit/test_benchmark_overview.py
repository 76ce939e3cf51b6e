"""The table of all benchmarks: what it says of numbers, of what is absent, and of a benchmark that failed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import overview
from benchmarks.overview import SCRIPTS, Report, page, read_report, table

NUMBERS = {
    "title": "Lines",
    "unit": "call",
    "quick": True,
    "threads": 1,
    "machine": {
        "processor": "Some CPU",
        "cores": 2,
        "pinned_to": [0, 1],
        "system": "Linux 6",
        "python": "3.11",
        "commit": "abc",
        "versions": {"labrig": "0.1.0", "qcodes": "not installed"},
    },
    "repeated_rounds": 0,
    "disturbed_rounds": 1,
    "cases": [
        {"name": "bare", "reference": None, "calls": 1, "seconds": [1.0, 2.0], "ratio": None},
        {
            "name": "ours",
            "reference": "bare",
            "calls": 1,
            "seconds": [2.0, 4.0],
            "ratio": {"median": 0.5, "lower": 0.4, "upper": 0.6},
        },
    ],
}


def test_a_row_for_each_comparison_and_what_was_absent(tmp_path: Path) -> None:
    (tmp_path / "links.json").write_text(json.dumps(NUMBERS))
    report = read_report("links", tmp_path / "links.json")
    assert report is not None
    lines = table([report, Report("live", fault="ended with 1: no chromium")]).splitlines()
    assert lines[1].split() == ["links", "ours", "0.5", "[0.4", "-", "0.6]", "bare"]
    assert "FAILED: ended with 1: no chromium" in lines[2]
    assert "absent, and so not compared with: qcodes" in lines
    assert any("quick: a check, not a result (2 rounds, 1 disturbed)" in line for line in lines)
    assert "| ours | 0.5 | 0.4 to 0.6 | bare |" in page([report])
    assert read_report("wires", tmp_path / "wires.json") is None


def test_numbers_that_are_there_make_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "links.json").write_text(json.dumps(NUMBERS))
    assert command.main(["--from", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    assert "0.5" in capsys.readouterr().out
    assert (tmp_path / "out" / "benchmarks.md").read_text().startswith("# Benchmarks")


def test_one_that_fails_is_named_and_the_command_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SCRIPTS", ("no_such_benchmark",))
    assert command.main(["-o", str(tmp_path)]) == 1
    assert "no_such_benchmark  FAILED: ended with 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    with pytest.raises(SystemExit):
        command.main(["--from", str(tmp_path / "elsewhere")])
    assert "no numbers of no_such_benchmark in it" in capsys.readouterr().err


def test_every_benchmark_with_ratios_is_in_the_table() -> None:
    folder = Path(overview.__file__).parent
    there = {
        one.stem for one in folder.glob("*.py") if re.search(r"^    main\(\s*Script\(", one.read_text(), re.MULTILINE)
    }
    assert there == set(SCRIPTS)
