"""Data sets with temperatures: checked, selected and joined like everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from labrig_calibration.dataset import Converters, DatasetError, MvmDataset, join

ROWS, COLUMNS = 3, 2
CONVERTERS = Converters(-0.3, 0.3, 8, 10, np.full(COLUMNS, 1e-4), 4e-6, 5e-5)


def dataset(counts: list[int], temperature: bool = True) -> MvmDataset:
    """So many MVMs of each write; the temperature in K is the number of the MVM."""
    n, writes = sum(counts), len(counts)
    return MvmDataset(
        voltage_v=np.arange(n * ROWS, dtype=np.float64).reshape(n, ROWS),
        current_a=np.zeros((n, COLUMNS)),
        pattern=np.repeat(np.arange(writes), counts),
        target_conductance_s=np.full((writes, ROWS, COLUMNS), 1e-5),
        time_s=np.arange(n, dtype=np.float64),
        programmed_at_s=np.zeros(writes),
        saturated=np.zeros((n, COLUMNS), np.bool_),
        converters=CONVERTERS,
        chip_id="SIM-1",
        temperature_k=np.arange(1.0, n + 1) if temperature else None,
    )


def test_temperatures_stay_with_their_mvms() -> None:
    data = dataset([5, 1, 4])
    keep = data.time_s % 2 == 0
    selected = data.select(keep)
    assert selected.temperature_k is not None
    assert selected.temperature_k.tolist() == (selected.time_s + 1).tolist() == [1, 3, 5, 7, 9]
    dense = data.without_sparse_writes(2)
    assert dense.temperature_k is not None
    assert dense.temperature_k.tolist() == (dense.time_s + 1).tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    both = join([data, dataset([2])])
    assert both.temperature_k is not None
    assert both.temperature_k.tolist() == [*range(1, 11), 1, 2]


def test_data_without_temperatures_have_none() -> None:
    data = dataset([5, 1, 4], temperature=False)
    assert data.select(data.time_s > 2).temperature_k is None
    assert data.without_sparse_writes(2).temperature_k is None
    assert join([data, data]).temperature_k is None
    some = join([data, dataset([2])]).temperature_k
    assert some is not None
    assert np.array_equal(some, [*[np.nan] * 10, 1, 2], equal_nan=True)


def test_a_fit_does_not_depend_on_temperatures() -> None:
    assert dataset([5]).sha256() == dataset([5], temperature=False).sha256()


def test_the_hash_is_of_everything_else_that_a_fit_depends_on() -> None:
    data = dataset([5])
    others = [
        replace(data, programmed_at_s=data.programmed_at_s - 1.0),
        replace(data, saturated=~data.saturated),
        replace(data, converters=replace(CONVERTERS, adc_bits=12)),
        replace(data, current_a=data.current_a + 1e-9),
    ]
    assert len({data.sha256(), *(one.sha256() for one in others)}) == 5


def test_recordings_with_other_converters_are_not_joined() -> None:
    data = dataset([5])
    other = replace(data, converters=replace(CONVERTERS, dac_bits=6, adc_full_scale_a=np.full(COLUMNS, 9e-4)))
    with pytest.raises(DatasetError, match=r"of chip SIM-1 cannot be joined: .* differ in adc_full_scale_a, dac_bits"):
        join([data, other])
    assert len(join([data, data])) == 10


def test_impossible_temperatures_are_refused() -> None:
    data = dataset([4])
    replace(data, temperature_k=np.array([300.0, np.nan, 4.2, 77.0]))
    with pytest.raises(DatasetError, match=r"temperature_k has shape \[3\], expected \[4\]"):
        replace(data, temperature_k=np.full(3, 300.0))
    with pytest.raises(DatasetError, match="temperature_k has 3 values that are no temperature in K"):
        replace(data, temperature_k=np.array([300.0, 0.0, -np.inf, np.inf]))
