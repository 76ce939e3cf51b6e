"""Results take the place of an earlier one of their kind, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from labrig.cli import app
from labrig.commands.outputs import CHIP, DEVICE_FITS, PAGE, PLAN, SCHEMA, demand_outputs, output_faults
from labrig.plans.plan_file import PlanFile
from labrig.testing.known_chip import KnownChip
from labrig_drivers.errors import StorageError
from labrig_surrogates.io import save_chip

PAGES = sorted(Path("labrig").rglob("*.html.jinja"))
KINDS = (CHIP, PAGE, PLAN, DEVICE_FITS, SCHEMA)


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """One of each kind, in the order of `KINDS`."""
    save_chip(tmp_path / "chip.safetensors", KnownChip().calibration())
    (tmp_path / "page.html").write_text(PAGES[0].read_text())
    (tmp_path / "plan.toml").write_text(PlanFile("mvm", {"writes": 2}).text(("Designed.",)))
    (tmp_path / "fits.json").write_text('{"kind": "iv", "file": "iv.csv", "fits": []}')
    CliRunner().invoke(app, ["config", "schema", "-o", str(tmp_path / "schema.json")], catch_exceptions=False)
    return [tmp_path / name for name in ("chip.safetensors", "page.html", "plan.toml", "fits.json", "schema.json")]


def test_each_kind_knows_its_own_and_no_other(results: list[Path], tmp_path: Path) -> None:
    known = [[kind.holds(path) for path in results] for kind in KINDS]
    assert known == [[row == column for column in range(len(results))] for row in range(len(KINDS))]
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(64), b"<!doctype html><p>mine", b"[rig]\nname = 'mine'\n", b"{}"):
        (tmp_path / "other").write_bytes(content)
        assert not any(kind.holds(tmp_path / "other") for kind in KINDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_says_whose_it_is(page: Path) -> None:
    assert PAGE.holds(page)


def test_every_fault_of_every_result_is_told(results: list[Path], tmp_path: Path) -> None:
    chip, page, *_ = results
    demand_outputs((chip, CHIP), (page, PAGE), (None, PLAN), (tmp_path / "new.toml", PLAN))
    faults = output_faults(
        [(page, CHIP), (tmp_path / "none" / "page.html", PAGE), (tmp_path / "x", PAGE), (tmp_path / "x", PLAN)]
    )
    assert faults == [
        f"{page}: is there already, is no fitted chip, and is not overwritten; choose another name",
        f"{tmp_path / 'none' / 'page.html'}: there is no folder {tmp_path / 'none'}",
        f"{tmp_path / 'x'}: is to hold a page of labrig and a plan file; choose another name for one of them",
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "mine", "-o", "mine"],
        ["calibrate", "mine", "-o", "new.safetensors", "--report", "mine"],
        ["report", "mine", "--chip", "mine", "-o", "mine"],
        ["fit-devices", "relaxation", "mine", "-o", "mine"],
        ["config", "schema", "-o", "mine"],
        ["show", "mine", "--plot", "mine.html"],
    ],
    ids=" ".join,
)
def test_no_command_writes_over_what_it_did_not_make(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mine.html"):
        Path(name).write_text("a night's work")
    outcome = CliRunner().invoke(app, command)
    assert isinstance(outcome.exception, StorageError)
    assert "is not overwritten" in str(outcome.exception)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("mine", "mine.html"), "a night's work"
    )
