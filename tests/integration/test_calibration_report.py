"""The calibration report and `labrig calibrate --against`: what they say, and that a page needs nothing but itself."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from labrig import shipped_rig
from labrig.calibrating import datasets_of
from labrig.calibration_history import calibrations_beside, carried, history_of, record_of, with_history
from labrig.cli import main
from labrig.reports.calibration import write_report
from labrig.reports.verdict import Counts, Level, judge_fit
from labrig.testing.known_chip import KnownChip
from labrig_calibration.changes import compare_chips
from labrig_calibration.diagnostics import Diagnostics
from labrig_calibration.divergence import Divergence
from labrig_calibration.fit import fit
from labrig_surrogates.io import load_chip, save_chip
from labrig_surrogates.parameters import ChipParameters, Estimate

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `labrig ...` in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["labrig", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def run_quietly(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["labrig", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    assert not caught.value.code


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recordings of one small chip, the calibration of the first, and its report."""
    folder = tmp_path_factory.mktemp("bench")
    small = "seed = 1\narrays = 1\nrows = 12\ncolumns = 8\n"
    (folder / "mock.toml").write_text(shipped_rig("mock").read_text().replace("seed = 1\n", small))
    for seed, name in ((1, "monday.h5"), (2, "tuesday.h5")):
        run_quietly("sweep", folder / "mock.toml", "--plan", "mvm", "--writes", 2, "--seed", seed, "-o", folder / name)
    chip, page = folder / "monday.safetensors", folder / "monday.html"
    run_quietly("calibrate", folder / "monday.h5", "-o", chip, "--report", page)
    return folder


@dataclass
class Page(HTMLParser):
    """What a page refers to, and the text of its first heading."""

    def __post_init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.downloads: dict[str, str] = {}
        self.policy = ""
        self.heading = ""
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in_heading = self._in_heading or tag == "h1"
        for name in ("src", "href"):
            if address := found.get(name):
                self.addresses.append(address)
        if file := found.get("download"):
            self.downloads[file] = found.get("href") or ""
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found.get("content") or ""

    def handle_endtag(self, tag: str) -> None:
        self._in_heading = self._in_heading and tag != "h1"

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.heading += data


def parsed(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def test_a_report_is_one_file_that_asks_for_nothing(bench: Path) -> None:
    page = parsed(bench / "monday.html")
    assert {address.partition(":")[0] for address in page.addresses if not address.startswith("#")} == {"data"}
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy
    assert not (bench / "plotly.min.js").exists()
    assert re.fullmatch(r"Chip SIM-0001: (good|usable|do not use)", page.heading)
    text = (bench / "monday.html").read_text()
    for part in ("Worst columns", "How far the model climbed", "What could not be told", "Conditions", "Parameters"):
        assert part in text
    assert str(load_chip(bench / "monday.safetensors").provenance["array_0_data_sha256"]) in text


def test_every_plot_has_its_numbers_beside_it(bench: Path) -> None:
    page = parsed(bench / "monday.html")
    plots = (bench / "monday.html").read_text().count("<figure>")
    assert plots >= 11
    assert len(page.downloads) == plots + 1  # and one table of all columns
    tables = {}
    for name, address in page.downloads.items():
        assert name.endswith(".csv")
        kind, _, encoded = address.partition(",")
        assert kind == "data:text/csv;charset=utf-8;base64"
        tables[name] = base64.b64decode(encoded).decode().splitlines()
    (name,) = [one for one in tables if "conductance-over-target" in one]
    slope = np.genfromtxt(tables[name][1:], delimiter=",")[:, 1:]
    array = load_chip(bench / "monday.safetensors").arrays[0]
    np.testing.assert_allclose(slope, np.where(array.stuck, np.nan, array.cell_slope), rtol=1e-5)
    (name,) = [one for one in tables if one.endswith("columns.csv")]
    columns = np.genfromtxt(tables[name], delimiter=",", names=True, deletechars="")
    np.testing.assert_allclose(columns["offset_[A]"], array.offset.value, rtol=1e-5)
    np.testing.assert_allclose(columns["offset_error_[A]"], array.offset.error, rtol=1e-5)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_every_plot_without_complaint(bench: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000", "--dump-dom"]
    page = f"file://{bench / 'monday.html'}"
    done = subprocess.run([*command, page], capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.count('class="main-svg"') >= (bench / "monday.html").read_text().count("<figure>")
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


def test_calibrate_says_what_changed_and_carries_the_past_on(cli: Cli, bench: Path, tmp_path: Path) -> None:
    output = shutil.copy(bench / "monday.safetensors", tmp_path / "chip.safetensors")
    page = tmp_path / "report.html"
    code, out, _ = cli(
        *("calibrate", bench / "tuesday.h5", "-o", output, "--report", page),
        *("--against", output),
    )
    assert code == 0
    assert "chip SIM-0001 since 20" in out
    assert "Nothing changed that can be told from noise (false-alarm rate 1 % in all)." in out
    assert "response" in out
    # The file that was written over lives on in the new one, and in the report.
    chip = load_chip(Path(output))
    (record,) = carried(chip)
    assert record == record_of(load_chip(bench / "monday.safetensors"))
    assert record.source == "monday.h5"
    text = page.read_text()
    assert "What changed since" in text
    assert "History of this chip" in text
    code, out, _ = cli("show", output)
    assert code == 0
    assert "earlier calibrations" in out
    assert "column offset" in out
    assert "±" in out
    assert str(chip.provenance["array_0_data_sha256"]) in out


def test_a_budget_says_what_to_measure_next(bench: Path, cli: Cli, tmp_path: Path) -> None:
    plan = tmp_path / "next.toml"
    given = ("calibrate", bench / "monday.h5", "-o", tmp_path / "chip.safetensors", "--budget", 1000)
    code, out, _ = cli(*given, "--plan", plan, "--json")
    assert code == 0
    ahead = json.loads(out)["next"]
    assert 0 < ahead["mvms"] <= 1000
    assert set(ahead["goals"]) <= set(ahead["least_certain"])
    known = ahead["parameters"]
    assert {"gain", "offset", "noise", "programming"} < set(known)
    relative = [known[name]["relative"] for name in ahead["least_certain"]]
    assert relative == sorted(relative, reverse=True)
    for name, one in known.items():
        assert one["error_together"] <= min(one["error"], one["error_of_next_alone"]), name
    # What the fit says of its own error is what the table starts from.
    chip = load_chip(tmp_path / "chip.safetensors").arrays[0]
    assert known["offset"]["error"] == pytest.approx(np.sqrt((chip.offset.error**2).mean()))
    assert f"writes = {ahead['plan']['writes']}" in plan.read_text()
    assert "--seed 2" in plan.read_text()


def test_a_plan_of_no_budget_is_refused_before_anything_is_fitted(bench: Path, cli: Cli, tmp_path: Path) -> None:
    chip = tmp_path / "chip.safetensors"
    code, _, error = cli("calibrate", bench / "monday.h5", "-o", chip, "--plan", tmp_path / "next.toml")
    assert code != 0
    assert "--budget" in error
    assert not chip.exists()


@pytest.mark.nightly
def test_what_is_measured_next_makes_it_as_sure_as_said(bench: Path, cli: Cli, tmp_path: Path) -> None:
    chip, plan, more = tmp_path / "chip.safetensors", tmp_path / "next.toml", tmp_path / "more.h5"
    code, out, _ = cli("calibrate", bench / "monday.h5", "-o", chip, "--budget", 8000, "--plan", plan, "--json")
    assert code == 0
    ahead = json.loads(out)["next"]
    run_quietly("sweep", bench / "mock.toml", "--plan", plan, "--seed", ahead["seed"], "-o", more)
    run_quietly("calibrate", bench / "monday.h5", more, "-o", chip)
    after = load_chip(chip).arrays[0]
    for name, estimate in (("gain", after.gain), ("offset", after.offset), ("compression", after.compression)):
        error = float(np.sqrt((estimate.error**2).mean()))
        assert error < 0.8 * ahead["parameters"][name]["error"], name
        assert 0.6 < error / ahead["parameters"][name]["error_together"] < 1.6, name


def test_json_is_one_document_with_verdict_parameters_and_changes(cli: Cli, bench: Path, tmp_path: Path) -> None:
    old = load_chip(bench / "monday.safetensors")
    offset = old.arrays[0].offset
    moved = replace(old.arrays[0], offset=Estimate(offset.value - 40.0 * offset.error, offset.error, "A"))
    save_chip(tmp_path / "old.safetensors", replace(old, arrays={0: moved}))
    code, out, _ = cli(
        *("calibrate", bench / "tuesday.h5", "-o", tmp_path / "new.safetensors"),
        *("--against", tmp_path / "old.safetensors", "--json"),
    )
    assert code == 0
    document = json.loads(out)
    assert document["chip_id"] == "SIM-0001"
    assert document["verdict"] in {"good", "usable", "do not use"}
    (array,) = document["arrays"]
    assert len(array["parameters"]["gain"]["value"]) == 8
    assert array["parameters"]["offset"]["unit"] == "A"
    changes = document["changes"]
    assert changes["changed"] is True
    assert changes["arrays"][0]["families"]["offset"]["changed"] is True
    assert changes["error_of_the_earlier_over_this"]["0"] > 0.9


def test_another_chips_calibration_is_refused_before_anything_is_fitted(cli: Cli, bench: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_chip(other, replace(load_chip(bench / "monday.safetensors"), chip_id="SIM-0099"))
    output = tmp_path / "chip.safetensors"
    code, _, err = cli("calibrate", bench / "tuesday.h5", "-o", output, "--against", other)
    assert code == 2
    assert "is a calibration of chip SIM-0099" in err
    assert "fit of array" not in err
    assert not output.exists()
    smaller = tmp_path / "smaller.safetensors"
    save_chip(
        smaller, replace(KnownChip(columns=3).calibration(), chip_id=load_chip(bench / "monday.safetensors").chip_id)
    )
    code, _, err = cli("calibrate", bench / "tuesday.h5", "-o", output, "--against", smaller)
    assert code == 2
    assert re.search(r"smaller.safetensors cannot be compared with .*tuesday.h5, which has arrays .*: array 0 was", err)
    assert not output.exists()
    code, _, err = cli("calibrate", bench / "tuesday.h5", "-o", output, "--against", tmp_path / "none.safetensors")
    assert code == 2
    assert "no such file" in err
    (tmp_path / "none.safetensors").write_text("no chip")
    code, _, err = cli("calibrate", bench / "tuesday.h5", "-o", output, "--against", tmp_path / "none.safetensors")
    assert code == 2
    assert "none.safetensors: not a safetensors file; `labrig calibrate` makes one" in err


def test_a_chip_is_exported_by_the_command(cli: Cli, bench: Path, tmp_path: Path) -> None:
    chip = bench / "monday.safetensors"
    code, out, _ = cli("export", chip, "--to", "aihwkit", "-o", tmp_path / "noise_model.py")
    assert (code, out.strip()) == (0, str(tmp_path / "noise_model.py"))
    compile((tmp_path / "noise_model.py").read_text(), "noise_model.py", "exec")
    code, _, err = cli("export", chip, "-o", tmp_path / "noise_model.nc")
    assert code == 2
    assert "give --to aihwkit or --to crosssim" in err
    code, _, err = cli("show", chip, "--plot", "page.html")
    assert code == 2
    assert "labrig report" in err


def test_history_holds_each_calibration_once_and_only_of_this_chip(bench: Path, tmp_path: Path) -> None:
    first = load_chip(bench / "monday.safetensors")

    def at(day: int, chip_id: str = "SIM-0001") -> ChipParameters:
        when = {"calibrated_utc": f"2026-01-{day:02d}T06:00:00+00:00", "recordings": f"{day}.h5"}
        return replace(first, chip_id=chip_id, provenance={**first.provenance, **when})

    second = with_history(at(2), [record_of(at(1))])
    third = with_history(at(3), history_of([second], at(3)))
    assert [one.source for one in carried(third)] == ["1.h5", "2.h5"]
    found = history_of([at(1), second, third, at(9, "SIM-0002")], at(4))
    assert [one.source for one in found] == ["1.h5", "2.h5", "3.h5"]
    assert found[0].arrays[0].families["gain"].unit == "1"
    save_chip(tmp_path / "a.safetensors", third)
    save_chip(tmp_path / "b.safetensors", at(9, "SIM-0002"))
    (tmp_path / "c.safetensors").write_bytes(b"no such thing")
    assert [one.chip_id for one in calibrations_beside(tmp_path / "new.safetensors", "SIM-0001")] == ["SIM-0001"]
    # A record that nobody can read is no reason to lose a calibration.
    assert carried(replace(third, provenance={"history": '[{"when_utc": 3}]'})) == []


def test_a_dead_column_is_told_and_hurts_nothing(bench: Path, tmp_path: Path) -> None:
    (dataset,) = datasets_of([bench / "monday.h5"])
    current_a = np.array(dataset.current_a)
    current_a[:, 3] = 0.0
    fitted = fit(replace(dataset, current_a=current_a), rng=np.random.default_rng(0))
    (shown,) = write_report(tmp_path / "report.html", [fitted], {}, np.random.default_rng(0))
    assert shown.verdict.level is not Level.GOOD
    assert any("1 column is dead" in reason for reason in shown.verdict.reasons)
    assert np.isnan(shown.column_error[3])
    assert "nothing but its offset is known" in (tmp_path / "report.html").read_text()
    change = compare_chips(fitted.chip(), load_chip(bench / "monday.safetensors"))
    response = next(one for one in change.arrays[0].families if one.name == "response")
    assert response.compared == 7


@pytest.mark.parametrize(
    ("error", "coverage", "counts", "level", "reason"),
    [
        (1.02, 0.90, Counts(0.0, 0.0, 0.02), Level.GOOD, None),
        (1.12, 0.90, Counts(0.0, 0.0, 0.02), Level.USABLE, "1.12 times the noise floor"),
        (1.60, 0.90, Counts(0.0, 0.0, 0.02), Level.UNUSABLE, "1.60 times the noise floor"),
        (1.00, 0.86, Counts(0.0, 0.0, 0.02), Level.USABLE, "too narrow"),
        (1.00, 0.70, Counts(0.0, 0.0, 0.02), Level.UNUSABLE, "too narrow"),
        (1.00, 0.90, Counts(0.2, 0.0, 0.02), Level.USABLE, "lower the read voltage"),
        (1.00, 0.90, Counts(0.0, 0.1, 0.02), Level.USABLE, "cables"),
        (1.00, 0.90, Counts(0.0, 0.0, 0.02, dead=2), Level.USABLE, "2 columns are dead"),
    ],
)
def test_a_verdict_gives_its_reason(
    error: float, coverage: float, counts: Counts, level: Level, reason: str | None
) -> None:
    nothing = Divergence(0.0, 0.0, 1.0, 64, (100, 100))
    noise_a = np.full(16, 1e-7)
    diagnostics = Diagnostics(1000, error * noise_a, noise_a, noise_a, coverage, 0.0, 1.0, nothing, nothing)
    verdict = judge_fit(diagnostics, counts, None)
    assert verdict.level is level
    assert (reason is None) == (verdict.reasons == ())
    if reason is not None:
        assert reason in verdict.reasons[0]
