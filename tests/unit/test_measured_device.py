"""Devices from measurements: a table of relaxation and trains of pulses, against data that made neither."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.device_effect import DeviceEffect
from labrig_surrogates.device_presets import Device
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear
from labrig_surrogates.measured_device import Relaxation, RelaxationTable, read_relaxation, relaxation_table
from labrig_surrogates.model_tools import set_age

US = 1e-6


def invented(cells: int, seed: int) -> Relaxation:
    """Cells of three levels whose spread grows with the level and with the logarithm of the age."""
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 3, cells)
    programmed = (10.0 + 20.0 * level) * US
    place = rng.standard_normal(cells)
    ages = np.array([0.0, 1.0, 100.0])
    shift = np.stack([0 * place, (0.2 + 0.1 * level) * place - 0.1, 3 * (0.2 + 0.1 * level) * place - 0.5]) * US
    return Relaxation(
        cell=np.tile(np.arange(cells), 3),
        level=np.tile(level, 3),
        programmed_s=np.tile(programmed, 3),
        state_s=np.tile(programmed, 3) + shift.reshape(-1),
        age_s=np.repeat(ages, cells),
    )


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_known_law_comes_back_at_levels_ages_and_in_between() -> None:
    table = relaxation_table(invented(30_000, 1))
    normal = draws(100_000)
    for level, age_s, mean_us, sigma_us in (
        (0.0, 1.0, -0.1, 0.2),
        (2.0, 100.0, -0.5, 1.2),
        (0.5, 1.0, -0.1, 0.25),
        (1.0, 10.0, -0.3, 0.6),
        (5.0, 1.0, -0.1, 0.4),
    ):
        target_s = torch.full((100_000,), (10.0 + 20.0 * level) * US, dtype=torch.float64)
        moved_us = (table.state_s(target_s, age_s, lambda _: normal) - target_s) / US
        assert float(moved_us.mean()) == pytest.approx(mean_us, abs=0.02)
        # Quantiles at 64 probabilities leave a little of the tails out.
        assert float(moved_us.std()) == pytest.approx(sigma_us, rel=0.03)
    assert torch.equal(table.state_s(target_s, 0.0, lambda _: normal), target_s)
    with pytest.raises(SurrogateError, match="measured up to 100 s"):
        table.state_s(target_s, 101.0, lambda _: normal)


def test_faults_of_a_table_are_all_named() -> None:
    with pytest.raises(
        SurrogateError, match=r"shifts of \(1, 2, 5\) for 2 ages, 2 levels; levels must ascend.*; ages must"
    ):
        RelaxationTable(torch.tensor([2.0, 1.0]), (2.0, 1.0), torch.zeros(1, 2, 5))
    few = invented(40, 0)
    with pytest.raises(SurrogateError, match=r"at least 20 cells each are needed.*level 0 has .* cells at 1 s"):
        relaxation_table(few)


def test_a_file_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "relax.tsv.gz"
    with gzip.open(path, "wt") as file:
        file.write("7\t0.011\t1e4\t1e-4\t1.1e-4\t3\t0.01\n8\t0\t1e4\t1e-4\t1e-4\t3\t0\n")
    data = read_relaxation(path)
    assert data.cell.tolist() == [7, 8]
    assert data.state_s.tolist() == [1e-4, 1e-4]
    assert data.programmed_s.tolist() == [1.1e-4, 1e-4]
    assert data.age_s.tolist() == [0.01, 0.0]
    (tmp_path / "two.tsv").write_text("1\t2\n")
    with pytest.raises(SurrogateError, match="has 2 columns"):
        read_relaxation(tmp_path / "two.tsv")
    (tmp_path / "text.tsv").write_text("no numbers\n")
    with pytest.raises(SurrogateError, match="is no table of numbers"):
        read_relaxation(tmp_path / "text.tsv")
    with pytest.raises(SurrogateError, match="is no table of numbers"):
        read_relaxation(tmp_path / "absent.tsv")


def test_the_table_of_real_cells_predicts_other_cells_better_than_a_gaussian(data_dir: Path) -> None:
    path = data_dir / "measured" / "rram_relaxation" / "techC_relaxdata.min.tsv.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = read_relaxation(path)
    # Its 32 levels; a few cells beyond were meant for none.
    data = data.rows(data.level < 32)
    first = data.cell % 2 == 0
    table = relaxation_table(data.rows(first), quantiles=64)
    held_out = data.rows(~first)
    distances, gaussian = [], []
    for age_s in table.ages_s:
        for level in np.unique(held_out.level):
            mine = (held_out.level == level) & (held_out.age_s == age_s)
            fitted = first & (data.level == level) & (data.age_s == age_s)
            target_s = torch.from_numpy(held_out.programmed_s[mine])
            normal = draws(len(target_s), 5)
            predicted = table.state_s(target_s, age_s, lambda _, normal=normal: normal) - target_s  # type: ignore[misc]
            real = held_out.state_s[mine] - held_out.programmed_s[mine]
            known = data.state_s[fitted] - data.programmed_s[fitted]
            simple = np.random.default_rng(5).normal(known.mean(), known.std(), len(real))
            distances.append(stats.ks_2samp(predicted.numpy(), real).statistic)
            gaussian.append(stats.ks_2samp(simple, real).statistic)
    print(f"held-out cells, mean KS distance: table {np.mean(distances):.4f}, Gaussian {np.mean(gaussian):.4f}")
    assert np.mean(distances) < 0.75 * np.mean(gaussian)
    # Two samples of the same law of 250 cells each are 0.08 apart on average.
    assert np.mean(distances) < 0.1


def test_a_layer_on_measured_devices_ages() -> None:
    table = relaxation_table(invented(3000, 2))
    device = Device("invented", "this test", 10.0 * US, 50.0 * US, table)
    analog = AnalogLinear(
        30, 20, config=AnalogConfig(weight_effects=(DeviceEffect(device),)), generator=torch.Generator().manual_seed(0)
    )
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    fresh = analog(x)
    torch.testing.assert_close(fresh, torch.nn.functional.linear(x, analog.weight, analog.bias))
    set_age(analog, 100.0)
    later = analog(x)
    assert not torch.allclose(fresh, later)
    later.square().sum().backward()
    assert analog.weight.grad is not None
    assert bool(torch.isfinite(analog.weight.grad).all())
