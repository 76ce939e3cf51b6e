"""Noise of real devices: what the diagnostics say of repeated reads and of traces that nobody here made."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig_calibration.allan import allan_deviation
from labrig_calibration.battery import judge
from labrig_calibration.spectrum import noise_colour
from labrig_calibration.whiteness import autocorrelation, ljung_box

FloatArray = NDArray[np.float64]


@pytest.fixture
def reads_us(data_dir: Path) -> FloatArray:
    """1,000 reads of each of seven levels of a memristor in µS, `[1000, 7]` (Hong, Nat. Commun. 2025, Fig. 3d)."""
    path = data_dir / "measured" / "readc_memristor" / "repeated_reads_uS.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    cycle, target, value = np.loadtxt(path, delimiter=",", skiprows=1, unpack=True)
    ordered = value[np.lexsort((cycle, target))].reshape(7, 1000).T
    assert np.abs(ordered.mean(axis=0) - np.unique(target)).max() < 6.0
    return np.asarray(ordered)


@pytest.fixture
def traces_us(data_dir: Path) -> FloatArray:
    """Five RRAM cells of technology A at 400 values a second for 250 s, in µS, `[100000, 5]` (A. Levy)."""
    path = data_dir / "measured" / "rram_relaxation" / "techA_tsdata.min.tsv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as lines:
        return 1e6 * np.loadtxt(lines, delimiter="\t")[:, 2:].T


def test_repeated_reads_are_not_the_white_normal_noise_that_a_fit_assumes(reads_us: FloatArray) -> None:
    z = (reads_us - reads_us.mean(axis=0)) / reads_us.std(axis=0)
    mean, sigma = np.broadcast_to(reads_us.mean(axis=0), z.shape), np.broadcast_to(reads_us.std(axis=0), z.shape)
    judgement = judge(z, mean, sigma, rng=np.random.default_rng(0), time_s=np.arange(1000.0))
    found = {check.name for check in judgement.findings}
    assert {"memory", "slow noise", "shape", "tails"} <= found
    # The level at 150 µS jumps (correlation 0.89 from read to read); that at 400 µS is white.
    assert judgement.checks["memory"].worst_column == 1
    assert autocorrelation(z, 1)[0, 1] == pytest.approx(0.893, abs=0.001)
    assert ljung_box(z, 20).p_value[6] > 0.05
    # Shuffled in time the same numbers have no memory, but are no more normal.
    shuffled = np.random.default_rng(1).permuted(z, axis=0)
    control = judge(shuffled, mean, sigma, rng=np.random.default_rng(0), time_s=np.arange(1000.0))
    names = {check.name for check in control.findings}
    assert "shape" in names
    assert not names & {"memory", "slow noise", "drift"}


def test_averaging_repeated_reads_pays_where_noise_is_white_only(reads_us: FloatArray) -> None:
    slopes = allan_deviation(reads_us, 1.0).slopes()[:4].mean(axis=0)
    # -1/2 is white; the level that jumps gains nothing from the first averages.
    assert np.abs(slopes[[2, 4, 6]] + 0.5).max() < 0.15
    assert slopes[1] > 0.0
    colours = noise_colour(reads_us, 1.0)
    assert colours[6].flicker == 0.0
    assert colours[1].slope == pytest.approx(1.56, abs=0.1)


def test_traces_of_rram_are_flicker_noise(traces_us: FloatArray) -> None:
    colours = noise_colour(traces_us, 400.0)
    slopes = np.array([one.slope for one in colours])
    assert ((slopes > 1.0) & (slopes < 1.6)).all()
    assert max(one.slope_interval[1] - one.slope_interval[0] for one in colours) < 0.06
    # Four of five reach their white floor inside the band, one does not.
    corners_hz = np.array([one.corner_hz for one in colours])
    assert np.isinf(corners_hz).sum() == 1
    assert ((corners_hz[np.isfinite(corners_hz)] > 15.0) & (corners_hz[np.isfinite(corners_hz)] < 200.0)).all()
    # A flat Allan deviation, as 1/f noise has it: a hundred times longer an average is not ten times better.
    deviation = allan_deviation(traces_us, 400.0).deviation
    assert (deviation[9] > 0.3 * deviation[2]).all()
