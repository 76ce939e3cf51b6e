"""The rules of the house that no other tool checks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "labrig": ROOT / "labrig",
    "labrig_drivers": ROOT / "drivers" / "labrig_drivers",
    "labrig_surrogates": ROOT / "surrogates" / "labrig_surrogates",
    "labrig_calibration": ROOT / "calibration" / "labrig_calibration",
}
LONGEST_MODULE_LINES = 400
LONGEST_TEST_LINES = 600

TRAIN_EXTRA = {"torch", "scipy", "sklearn"}
REPORT_EXTRA = {"jinja2", "plotly"}
EXPORT_EXTRA = {"h5netcdf", "pyarrow"}
LIVE_EXTRA = {"aiohttp"}
NOT_FOR_DRIVERS = (
    TRAIN_EXTRA | REPORT_EXTRA | EXPORT_EXTRA | LIVE_EXTRA | {"h5py", "pydantic", "typer", "rich", "labrig"}
)

# Written in pieces so that this file does not trip over itself.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pytorch", "org/whl"),
        ("anaconda", "org"),
        ("npmjs", "org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w./<{~-])/(?:home|root|tmp|Users|opt|work|srv|mnt|workspace)/\w|\b[A-Z]:\\+Users\b")


def tracked_files() -> list[Path]:
    """Files that are, or are about to be, part of the repository."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing tells the repository's files from others")
    command = [git, "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listing.splitlines() if (path := ROOT / name).is_file()]


def tracked_lines() -> Iterator[tuple[str, str]]:
    """Every line of every tracked text file, with where it stands."""
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def modules_of(package: str) -> list[str]:
    """Import names of every module of a package, without `__main__` files: importing one runs it."""
    folder = PACKAGES[package]
    names = []
    for path in sorted(folder.rglob("*.py")):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in memory after importing `modules` in a fresh interpreter."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-W", "error", "-c", program, *modules]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_drivers_load_nothing_that_a_driver_author_does_not_need() -> None:
    modules = modules_of("labrig_drivers")
    assert "labrig_drivers.crossbar" in modules
    assert not loaded_by(modules) & NOT_FOR_DRIVERS


@pytest.mark.parametrize(
    "modules",
    [
        ["labrig"],
        ["labrig.cli"],
        ["labrig.config", "labrig.rig", "labrig.plans", "labrig.recording", "labrig.acquisition"],
        ["labrig.export", "labrig.recording.compaction", "labrig.reports.overview", "labrig.reports.terminal"],
        ["labrig_calibration", "labrig_calibration.dataset", "labrig_calibration.stimulus"],
        ["labrig.commands.plan_options", "labrig.commands.plan_text", "labrig_calibration.identifiability"],
        ["labrig_surrogates"],
    ],
    ids=lambda modules: modules[0],
)
def test_base_install_needs_no_extra(modules: list[str]) -> None:
    assert not loaded_by(modules) & (TRAIN_EXTRA | REPORT_EXTRA | EXPORT_EXTRA | LIVE_EXTRA)


def test_calibration_design_loads_numpy_only() -> None:
    loaded = loaded_by(["labrig_calibration.dataset", "labrig_calibration.stimulus"])
    assert "numpy" in loaded
    assert not loaded & (NOT_FOR_DRIVERS | {"labrig_drivers"})


@pytest.mark.parametrize("package", PACKAGES)
def test_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    assert (PACKAGES[package] / "__init__.py").is_file()
    assert (PACKAGES[package] / "py.typed").is_file()


@pytest.mark.parametrize(
    ("folders", "longest"),
    [([*PACKAGES.values(), ROOT / "benchmarks"], LONGEST_MODULE_LINES), ([ROOT / "tests"], LONGEST_TEST_LINES)],
    ids=["modules", "tests"],
)
def test_files_are_short(folders: list[Path], longest: int) -> None:
    lengths = {path: len(path.read_text().splitlines()) for folder in folders for path in folder.rglob("*.py")}
    assert lengths
    assert [f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in lengths.items() if lines > longest] == []


def test_test_files_have_different_names() -> None:
    # Tests are imported without packages, and a report that says `test_rig.py` must mean one file.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_no_registry_address_and_no_path_of_one_machine_is_tracked() -> None:
    offending = [
        f"{where}: {line.strip()[:100]}"
        for where, line in tracked_lines()
        if MACHINE_PATH.search(line) or any(host in line for host in REGISTRY_HOSTS)
    ]
    assert not offending


@pytest.mark.parametrize(
    ("line", "offends"),
    [
        ("data = '/" + "home/someone/run.h5'", True),
        ("C:" + r"\Users\someone", True),
        ("cd /" + "tmp/x", True),
        ("serial:///dev/ttyUSB0", False),
        ("docs/home/page", False),
        ("~/bench/rig", False),
    ],
)
def test_machine_path_pattern(line: str, *, offends: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is offends
