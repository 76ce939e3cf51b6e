"""Data sets in memory-mapped files: the same fit as in memory, and no array of them held as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_chips import draw_settings, measure

from labrig_calibration import measurements, squares
from labrig_calibration.dataset import MvmDataset
from labrig_calibration.fit import fit
from labrig_calibration.ladder import Ladder
from labrig_calibration.mapped import mapped, picked_columns, picked_rows, pieces

LADDER = Ladder(("global", "cells", "columns", "curve"), select=False)


def in_files(dataset: MvmDataset) -> MvmDataset:
    """The same data set, what is large in mapped files."""
    voltage_v = mapped(dataset.voltage_v.shape, np.float64)
    current_a = mapped(dataset.current_a.shape, np.float64)
    saturated = mapped(dataset.saturated.shape, np.bool_)
    voltage_v[:], current_a[:], saturated[:] = dataset.voltage_v, dataset.current_a, dataset.saturated
    for array in (voltage_v, current_a, saturated):
        # As files are that somebody else may read as well.
        array.flags.writeable = False
    return replace(dataset, voltage_v=voltage_v, current_a=current_a, saturated=saturated)


def test_what_is_picked_is_equal_and_stays_where_it_was() -> None:
    values = np.arange(12.0).reshape(4, 3)
    file = mapped(values.shape, values.dtype)
    file[:] = values
    rows, columns = np.array([True, False, True, True]), np.array([True, False, True])
    for pick, chosen in ((picked_rows, rows), (picked_columns, columns)):
        assert isinstance(pick(file, chosen), np.memmap)
        assert not isinstance(pick(values, chosen), np.memmap)
        assert np.array_equal(pick(file, chosen), pick(values, chosen))
        assert pick(file, np.zeros_like(chosen)).size == 0
    assert [(one.start, one.stop) for one in pieces(40_000)] == [(0, 16384), (16384, 32768), (32768, 40_000)]
    with pytest.raises(ValueError, match=r"an array of shape \[0, 3\] has nothing"):
        mapped((0, 3), np.float64)


def test_a_fit_of_mapped_files_is_the_fit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    dataset = measure(draw_settings(rng, (8,)), rng).dataset
    current_a = dataset.current_a.copy()
    current_a[:, 2] = 0.0
    dataset = replace(dataset, current_a=current_a)
    # Small pieces, so that there are many.
    monkeypatch.setattr("labrig_calibration.mapped.PIECE_ROWS", 700)
    monkeypatch.setattr(measurements, "BLOCK", 300)
    in_memory = fit(dataset, ladder=LADDER, rng=np.random.default_rng(0))
    files = fit(in_files(dataset), ladder=LADDER, rng=np.random.default_rng(0))
    assert files.dataset.sha256() == in_memory.dataset.sha256()
    for name, one in in_memory.parameters.items():
        assert np.array_equal(files.parameters[name].value, one.value, equal_nan=True), name
    assert files.diagnostics.error_over_noise == in_memory.diagnostics.error_over_noise
    assert (
        [text for text in files.notes if "dead" in text] == [text for text in in_memory.notes if "dead" in text] != []
    )


def test_a_large_recording_is_judged_in_part_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    dataset = measure(draw_settings(rng, (8,)), rng).dataset
    usual = fit(dataset, ladder=LADDER, rng=np.random.default_rng(0))
    assert not [text for text in usual.notes if "judged on" in text]
    monkeypatch.setattr("labrig_calibration.fit._MOST_JUDGED", 8 * 4 * 30)
    monkeypatch.setattr(squares, "_ENOUGH_MVMS", 4 * 400)
    monkeypatch.setattr(squares, "_MOST_OUTPUTS", 1600 * 3)
    part = fit(dataset, ladder=LADDER, rng=np.random.default_rng(0))
    (note,) = [text for text in part.notes if "judged on" in text]
    assert note.startswith("judged on 120 of ")
    # Part of the MVMs tell the noise: the same law, less surely.
    amplifier, known = part.parameters["amplifier_noise"], usual.parameters["amplifier_noise"]
    assert (np.median(amplifier.error) > np.median(known.error)).all()
    assert (np.abs(amplifier.value - known.value) < 5.0 * amplifier.error).all()
