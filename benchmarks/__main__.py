"""Runs every benchmark, one after another, and prints one table of ratios.

    python -m benchmarks                    small: shows that each works, proves nothing
    python -m benchmarks --full -o folder   as each is meant, some hours on a quiet machine; --rounds 3 is shorter
    python -m benchmarks --from folder      the table again, of numbers that are there

Each runs in a process of its own. `-o FOLDER` keeps the numbers of each as JSON and the table as `benchmarks.md`; with
`--from` the page can be made on another machine than the measurement. One that fails is named, the others go on, and
the command ends with 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.overview import SCRIPTS, Report, page, read_report, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs what was chosen, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(SCRIPTS)}")
    parser.add_argument("--full", action="store_true", help="long rounds; without it each is a check, not a result")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each, with --full")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="keeps numbers and page there")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="measures nothing, reads numbers")
    options = parser.parse_args(arguments)
    if strange := sorted(set(options.names) - set(SCRIPTS)):
        parser.error(f"no benchmark {', '.join(strange)}; there are {', '.join(SCRIPTS)}")
    names = options.names or list(SCRIPTS)
    if options.source is not None:
        found = [read_report(name, options.source / f"{name}.json") for name in names]
        there = [one for one in found if one is not None]
        if not there:
            parser.error(f"--from {options.source}: no numbers of {', '.join(names)} in it (NAME.json)")
        return _tell(there, options.output)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        reports = [_run(name, folder / f"{name}.json", _effort(options.full, options.rounds)) for name in names]
        return _tell(reports, options.output)


def _effort(full: bool, rounds: int | None) -> list[str]:
    if not full:
        return ["--quick"]
    return [] if rounds is None else ["--rounds", str(rounds)]


def _run(name: str, target: Path, effort: Sequence[str]) -> Report:
    print(f"{name} ...", file=sys.stderr, flush=True)
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(target), *effort]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    report = read_report(name, target) if ended.returncode == 0 else None
    if report is None:
        last = (ended.stderr.strip() or ended.stdout.strip() or "it wrote no numbers").splitlines()[-1]
        return Report(name, fault=f"ended with {ended.returncode}: {last}")
    return report


def _tell(reports: Sequence[Report], output: Path | None) -> int:
    print(table(reports))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmarks.md").write_text(page(reports), encoding="utf-8")
        print(f"\n{output / 'benchmarks.md'}")
    return int(any(one.fault is not None for one in reports))


if __name__ == "__main__":
    sys.exit(main())
