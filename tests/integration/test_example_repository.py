"""The small repository of the how-to page, written into a folder and tested there as its owner's CI does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from page_examples import ROOT, examples_of

PAGE = ROOT / "docs" / "how-to" / "ci-without-hardware.md"
DRIVER_PAGE = ROOT / "docs" / "how-to" / "your-own-driver.md"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The page's files, with the driver of the other page, installed as `pip install -e .` would."""
    folder = tmp_path / "my-bench"
    files = {one.file: one.text for one in examples_of(PAGE) if one.kind == "file"}
    (driver,) = [one.text for one in examples_of(DRIVER_PAGE) if "class AcmeMeter" in one.text]
    for name, text in {**files, "my_bench/__init__.py": "", "my_bench/acme.py": driver}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    # What makes a folder on the path an installed project, entry points and all.
    info = folder / "my_bench-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    drivers = "".join(f"{name} = {place}\n" for name, place in project["entry-points"]["labrig.drivers"].items())
    (info / "entry_points.txt").write_text(f"[labrig.drivers]\n{drivers}")
    return folder


def run_tests(repository: Path) -> subprocess.CompletedProcess[str]:
    (command,) = re.findall(r"^      - run: (pytest.*)$", workflow(repository), re.MULTILINE)
    return subprocess.run(
        [sys.executable, "-m", *command.split(), "-q", "-p", "no:cacheprovider", f"--rootdir={repository}"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def workflow(repository: Path) -> str:
    return (repository / ".github" / "workflows" / "tests.yml").read_text()


def test_the_tests_of_the_page_pass(repository: Path) -> None:
    done = run_tests(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    written = sum(text.count("def test_") for text in (path.read_text() for path in repository.glob("tests/*.py")))
    assert f"{written} passed" in done.stdout
    assert written >= 8


@pytest.mark.parametrize(
    ("file", "right", "wrong", "finding"),
    [
        (
            "my_bench/acme.py",
            "RawReading(voltage_v, current_a,",
            "RawReading(current_a, voltage_v,",
            "broken promise: measure() finds the level 0.5 V, not 0.0005 V",
        ),
        ("my_bench/acme.py", "class AcmeMeter(", "class AcmeSupply(", "AcmeMeter"),
        ("rig.toml", 'driver = "acme"', 'driver = "acne"', "no driver named 'acne' is installed"),
        ("my_bench/linearity.py", ".std(axis=0)", ".std(axis=1)", "test_noise_is_found_in_a_recording"),
    ],
    ids=["driver", "entry point", "rig file", "evaluation"],
)
def test_what_is_broken_fails_them(repository: Path, file: str, right: str, wrong: str, finding: str) -> None:
    path = repository / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    done = run_tests(repository)
    assert done.returncode != 0
    assert finding in done.stdout + done.stderr


def test_the_tree_on_the_page_is_the_tree(repository: Path) -> None:
    shutil.rmtree(repository / "my_bench-0.1.dist-info")
    there = {path.name for path in repository.rglob("*") if path.is_file()}
    (tree,) = re.findall(r"^```\n(my-bench/\n.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    shown = set(re.findall(r"[\w.]+\.(?:py|toml|yml)", tree))
    assert {Path(name).name for name in shown} == there
