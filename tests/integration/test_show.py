"""`labrig show`: the facts and figures are those of the recording, on the terminal and on a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import labrig

from labrig.acquisition import run_sweep
from labrig.config import load_rig, shipped_rig
from labrig.events import EventBus
from labrig.plans import plan_by_name
from labrig.recording import Recording, read_mvms
from labrig.recording.compaction import compact
from labrig.recording.contents import Contents
from labrig.reports import pictures
from labrig.reports.overview import overview
from labrig_calibration.stimulus import StimulusKind

Record = Callable[..., Path]
TWO_ARRAYS = {0: [[8, 3], [5]], 1: [[4]]}


def test_facts_are_those_of_the_recording(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", blocks=TWO_ARRAYS, supply=4)
    with Recording.open(run) as recording, Contents.open(run) as contents:
        facts = overview(recording, contents)
    assert [(one.array, one.mvms, one.writes) for one in facts.arrays] == [(0, 16, 2), (1, 4, 1)]
    with h5py.File(run) as file:
        group = file["entry/array_0"]
        kinds = {kind.name.lower().replace("_", " "): int((group["kind"][:] == kind).sum()) for kind in StimulusKind}
        assert facts.arrays[0].kinds == {name: count for name, count in kinds.items() if count}
        assert facts.arrays[0].saturated == pytest.approx(group["saturated"][:].mean())
        assert facts.arrays[0].clock_s == (group["time_s"][0], group["time_s"][-1])
    assert facts.arrays[0].backwards == 0
    sizes = {one.name: (one.rows, one.stored_bytes) for one in facts.streams}
    assert sizes["array_0"] == (16, 16 * (5 * 4 + 3 * 2 + 3 + 4 + 1 + 8))
    assert sizes["supply"][0] == 4
    assert facts.file_bytes == run.stat().st_size
    rows = dict(facts.rows())
    assert rows["array supply"].startswith("4 readings, ")
    assert rows["chip"] == "SIM-7"
    assert rows["run"] == "without an identity"


def test_a_clock_that_went_back_is_told(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    with h5py.File(run, "r+") as file:
        file["entry/array_0/time_s"][9] = 0.5
    with Recording.open(run) as recording, Contents.open(run) as contents:
        (facts,) = overview(recording, contents).arrays
    assert facts.backwards == 1
    assert facts.clock_text.endswith("; went back 1 times")


def test_pictures_are_what_numpy_makes_of_the_data_set(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", blocks={0: [[40, 30], [25]], 1: []}, supply=4)
    with Recording.open(run) as recording, Contents.open(run) as contents:
        shown = pictures.pictures(recording, contents)
        (one,), supply = shown.arrays, shown.supply
        trace = recording.supply()
    data = read_mvms(run)
    ideal_a = np.einsum("nr,nrc->nc", data.voltage_v, data.target_conductance_s[data.pattern])
    assert np.allclose(one.ideal_a, ideal_a.ravel())
    assert np.array_equal(one.measured_a, data.current_a.ravel())
    assert np.array_equal(one.saturated, data.saturated.ravel())
    assert np.array_equal(one.target_s, data.target_conductance_s[-1])
    error_a = np.where(data.saturated, np.nan, data.current_a - ideal_a)
    wanted = np.stack([np.nanmean(error_a[data.pattern == write], axis=0) for write in range(2)])
    assert np.allclose(one.error_a, wanted)
    assert np.array_equal(one.clock_s, data.time_s)
    assert one.done.tolist() == list(range(1, 96))
    assert np.isnan(one.repeated).all()
    assert supply is not None
    assert np.allclose(supply.power_w, trace.voltage_v * trace.current_a)


def test_drift_is_seen_in_repeated_vectors_only(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", blocks={0: [[64]]}, rows=5, columns=3)
    with h5py.File(run, "r+") as file:
        group = file["entry/array_0"]
        first = group["voltage_v"][0]
        age_s = np.linspace(0.1, 6.4, 64)
        group["time_s"][:] = file["entry/array_0/writes/programmed_at_s"][0] + age_s
        # Every other vector is the first one again, and its outputs shrink by a thousandth each time.
        codes = np.array([400, -300, 200])
        for row in range(0, 64, 2):
            group["voltage_v"][row] = first
            group["current_code"][row] = np.round(codes * (1.0 - 0.005 * row))
    with Recording.open(run) as recording, Contents.open(run) as contents:
        (one,) = pictures.array_pictures(recording, contents)
    seen = np.isfinite(one.repeated)
    assert np.allclose(one.repeated[seen], 1.0 - 0.05 * (one.age_s[seen] - 0.1), atol=0.01)


async def test_curves_are_drawn(tmp_path: Path) -> None:
    config, run = load_rig(shipped_rig("mock")), tmp_path / "iv.h5"
    await run_sweep(config, plan_by_name("iv", program=True, cells=3, seed=1), run, EventBus())
    with Recording.open(run) as recording, Contents.open(run) as contents:
        shown = pictures.pictures(recording, contents)
        (curves,) = [one for one in contents.streams() if one.name == "curves"]
        names = ("curve", "row", "column", "current_a")
        curve, row, column, current_a = (curves.read(name, 0, curves.rows) for name in names)
    assert shown.arrays == ()
    assert len(shown.curves) == len(np.unique(curve))
    first = shown.curves[0]
    assert first.name == f"array 0, row {row[0]}, column {column[0]}"
    assert np.array_equal(first.current_a, current_a[curve == curve[0]])
    drawn = labrig(tmp_path, "show", "iv.h5", "--plot", "terminal")
    assert drawn.returncode == 0, drawn.stderr
    assert "I-V curves" in drawn.stdout
    with h5py.File(run) as file:
        assert file.attrs["run_id"].decode() in drawn.stdout
    assert labrig(tmp_path, "show", "iv.h5", "--plot", "iv.html").returncode == 0
    assert first.name in (tmp_path / "iv.html").read_text()


def test_table_and_figures_on_the_terminal(tmp_path: Path, record: Record) -> None:
    record(tmp_path / "run.h5", blocks={0: [[40, 30], [25]], 1: [[4]]}, supply=4)
    plain = labrig(tmp_path, "show", "run.h5")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "95 MVMs, 2 writes" in plain.stdout
    assert "all committed rows are right" in plain.stdout
    assert "⠀" not in plain.stdout
    drawn = labrig(tmp_path, "show", "run.h5", "--plot", "terminal")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    for title in ("array 0", "transfer", "pace", "target", "mean error", "array 1", "array supply"):
        assert title in drawn.stdout.split("MVMs by kind")[1]
    assert max(map(len, drawn.stdout.splitlines())) <= 80
    assert re.search("[⠁-⣿]", drawn.stdout)


def test_page_for_a_browser(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5", blocks=TWO_ARRAYS, supply=4)
    done = compact(run, tmp_path / "small.h5")
    made = labrig(tmp_path, "show", "small.h5", "--plot", "page.html")
    assert (made.returncode, made.stderr) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert (tmp_path / "plotly.min.js").stat().st_size > 1e6
    assert "20 MVMs of 3 writes on chip SIM-7, finished." in page
    assert done.sha256 in page
    for title in (
        "Transfer",
        "Target of the latest write",
        "Mean error of each column, by write",
        "Pace",
        "Array supply",
    ):
        assert title in page
    assert "http" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_recordings_without_rows_are_shown(tmp_path: Path, record: Record) -> None:
    record(tmp_path / "run.h5", blocks={0: []}, finish=False)
    drawn = labrig(tmp_path, "show", "run.h5", "--plot", "terminal")
    assert drawn.returncode == 0, drawn.stderr
    assert "interrupted" in drawn.stdout
    assert "there is nothing to draw" in drawn.stdout
    assert labrig(tmp_path, "show", "run.h5", "--plot", "page.html").returncode == 0


def test_wrong_requests_are_one_message(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path / "run.h5")
    assert "labrig show run.h5 --plot terminal" in labrig(tmp_path, "show", "--help").stdout
    wrong = labrig(tmp_path, "show", "run.h5", "--plot", "page.pdf")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("labrig: error: --plot page.pdf: expected the word terminal, or a file that ends")
    absent = labrig(tmp_path, "show", "absent.h5")
    assert absent.stderr == "labrig: error: absent.h5: there is no such file\n"
    with h5py.File(run, "r+") as file:
        file["entry/array_0/current_code"][3, 1] ^= 4
    damaged = labrig(tmp_path, "show", "run.h5")
    assert damaged.returncode == 2
    assert "MVMs 0 to 7 of array 0" in damaged.stderr
    assert damaged.stderr.endswith("`labrig recover run.h5` tells what can be rescued\n")
