"""`labrig fit-devices` as it is typed: on recordings of the simulated chip, on CSV files, and on what is neither."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from labrig.cli import main
from labrig.device_fits import FitChoices, fit_file
from labrig.recorded_devices import recorded_curves, recorded_programming, recorded_relaxation, recorded_traces
from labrig_drivers.errors import LabrigError, StorageError

ROOT = Path(__file__).resolve().parents[2]


def labrig(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs `labrig ...` in this process, which has everything imported."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["labrig", *map(str, words)])
        with redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as caught:
            main()
    return subprocess.CompletedProcess(
        list(map(str, words)), int(caught.value.code or 0), out.getvalue(), error.getvalue()
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of each plan, of a chip of 16 x 12."""
    folder = tmp_path_factory.mktemp("recordings")
    text = (ROOT / "rig_configs" / "mock.toml").read_text()
    (folder / "rig.toml").write_text(text.replace("seed = 1", "seed = 1\nrows = 16\ncolumns = 12\narrays = 1"))
    shutil.copy(ROOT / "rig_configs" / "labrig.schema.json", folder)
    for plan, *options in (
        ("writes", "levels=4", "repeats=2"),
        ("retention", "last_s=512", "writes=3"),
        ("noise", "reads=512"),
    ):
        chosen = [word for option in options for word in ("--set", option)]
        done = labrig(folder, "sweep", "rig.toml", "--plan", plan, *chosen, "-o", f"{plan}.h5")
        assert done.returncode == 0, done.stderr
    return folder


def test_cells_of_a_recording_are_fitted_and_written(recordings: Path) -> None:
    done = labrig(recordings, "fit-devices", "programming", "writes.h5", "-o", "writes.json")
    assert done.returncode == 0, done.stderr
    assert "device to device" in done.stdout
    document = json.loads((recordings / "writes.json").read_text())
    assert document["kind"] == "programming"
    (fit,) = document["fits"]
    numbers = {one["name"]: one for one in fit["quantities"]}
    # The chip: devices that differ by 8 % or so, the same at each write.
    assert numbers["device to device"]["low"] > 0
    cells = recorded_programming(recordings / "writes.h5")
    assert len(cells.target_s) == 8 * 16 * 12
    assert cells.read_sigma_s > 0
    # Most cells lie near their targets: the unit is right.
    assert np.median(np.abs(cells.conductance_s / cells.target_s - 1)) < 0.2


def test_columns_of_a_recording_relax(recordings: Path) -> None:
    data = recorded_relaxation(recordings / "retention.h5")
    assert len(np.unique(data.cell)) == 3 * 12
    ages_s = np.unique(data.age_s)
    later = [float(np.median((data.state_s / data.programmed_s)[data.age_s == age_s])) for age_s in ages_s]
    # The chip's exponent is 0.03 on average, from 1 s on: (1 + t)**-0.03 relative to the first reading.
    expected = ((1 + 1 + ages_s) / (1 + 1)) ** -0.03
    np.testing.assert_allclose(later, expected, rtol=0.012)


def test_traces_of_a_recording(recordings: Path) -> None:
    traces = recorded_traces(recordings / "noise.h5")
    assert traces.unit == "A"
    assert traces.values.shape == (3 * 12, 512)
    done = labrig(recordings, "fit-devices", "noise", "noise.h5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"][0]["conditions"]["traces"] == 36


def test_what_is_no_measurement_of_the_kind_is_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "iv.csv").write_text("voltage_v,current\n1,2\n")
    faults = {
        ("iv", recordings / "writes.h5"): "a recording of the plan 'writes'; the kind iv needs one of 'iv'",
        ("moon", tmp_path / "iv.csv"): "there is no kind 'moon'",
        ("iv", tmp_path / "absent.csv"): "there is no such file",
        ("iv", tmp_path / "iv.csv"): "there is no column current_a",
        ("pulses", recordings / "noise.h5"): "no plan records trains of pulses",
    }
    for (kind, path), part in faults.items():
        with pytest.raises(LabrigError, match=part):
            fit_file(kind, path, FitChoices())
    for words, part in (
        (("iv", "iv.csv"), "there is no column current_a"),
        (("iv", "iv.csv", "-o", "nowhere/out.json"), "there is no folder nowhere"),
    ):
        done = labrig(tmp_path, "fit-devices", *words)
        assert done.returncode == 2, done.stdout
        assert part in done.stderr
        assert "Traceback" not in done.stderr
    for read in (recorded_curves, recorded_programming, recorded_relaxation):
        with pytest.raises(StorageError, match="a recording of the plan 'noise'"):
            read(recordings / "noise.h5")


def test_curves_from_a_file_with_a_window(tmp_path: Path) -> None:
    voltage_v = np.concatenate([np.linspace(0, 1, 60), np.linspace(1, 0, 60)])
    noise = 1 + 0.005 * np.random.default_rng(0).standard_normal(120)
    current_a = 1e-5 * voltage_v * np.exp(1.2 * np.sqrt(voltage_v)) * noise
    lines = "\n".join(f"{v:.6g},{i:.9g}" for v, i in zip(voltage_v, current_a, strict=True))
    (tmp_path / "iv.csv").write_text("voltage_v,current_a\n" + lines + "\n")
    done = labrig(tmp_path, "fit-devices", "iv", "iv.csv", "--branch", "0", "--low", "0.01", "-o", "iv.json")
    assert done.returncode == 0, done.stderr
    fit = json.loads((tmp_path / "iv.json").read_text())["fits"][0]
    assert fit["conditions"]["law"] == "Poole-Frenkel"
    slope = next(one for one in fit["quantities"] if one["name"] == "b")
    assert slope["low"] <= 1.2 <= slope["high"]
    wrong = labrig(tmp_path, "fit-devices", "iv", "iv.csv", "--branch", "7")
    assert wrong.returncode == 2
    assert "has 2 branches" in wrong.stderr


def test_help_has_an_example(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "labrig", "fit-devices", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert "Example: labrig fit-devices relaxation" in " ".join(done.stdout.split())
