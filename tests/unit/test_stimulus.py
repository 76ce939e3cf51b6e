"""The calibration stimulus: complete, inside the converters, balanced in time, the same from the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig_calibration.dataset import Converters
from labrig_calibration.stimulus import (
    MvmDesign,
    StimulusCounts,
    StimulusError,
    StimulusKind,
    design_mvm_calibration,
    hadamard_signs,
)


def converters(columns: int, full_scale_a: float = 1.6e-4) -> Converters:
    return Converters(
        voltage_min_v=-0.3,
        voltage_max_v=0.3,
        dac_bits=8,
        adc_bits=10,
        adc_full_scale_a=np.full(columns, full_scale_a),
        conductance_min_s=4e-6,
        conductance_max_s=5e-5,
    )


def vectors_of(design: MvmDesign, write: int, kind: StimulusKind) -> np.ndarray:
    return np.concatenate([block.voltage_v for block in design.writes[write].blocks if block.kind == kind])


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 80), columns=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_every_design_is_complete_and_inside_the_converters(rows: int, columns: int, seed: int) -> None:
    limits = converters(columns)
    design = design_mvm_calibration(rows, columns, limits, writes=2, seed=seed)
    assert design.mvms == 2 * StimulusCounts().total(rows)
    for write in design.writes:
        target_s = write.target_conductance_s
        assert target_s.shape == (rows, columns)
        assert (target_s >= limits.conductance_min_s * (1 - 1e-6)).all()
        assert (target_s <= limits.conductance_max_s * (1 + 1e-6)).all()
        assert {block.kind for block in write.blocks} == set(StimulusKind)
        for block in write.blocks:
            assert block.voltage_v.shape[1] == rows
            assert 1 <= block.voltage_v.shape[0] <= 128
            assert (np.abs(block.voltage_v) <= 0.3 * (1 + 1e-6)).all()
            assert np.array_equal(block.voltage_v, block.voltage_v.astype(np.float32))
            if block.kind not in {StimulusKind.ZERO, StimulusKind.ONE_HOT}:
                load = np.abs(block.voltage_v @ target_s) / limits.adc_full_scale_a
                assert load.max() <= 1 + 1e-5


@settings(deadline=None)
@given(rows=st.integers(1, 130))
def test_hadamard_has_full_rank_and_is_orthogonal_at_powers_of_two(rows: int) -> None:
    signs = hadamard_signs(rows)
    assert signs.shape == (rows, rows)
    assert set(np.unique(signs)) <= {-1.0, 1.0}
    assert np.linalg.matrix_rank(signs) == rows
    if rows & (rows - 1) == 0:
        assert np.array_equal(signs @ signs.T, rows * np.eye(rows))


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 70))
def test_vectors_of_one_write_determine_every_cell(rows: int) -> None:
    design = design_mvm_calibration(rows, 2, converters(2), writes=1)
    for kind in (StimulusKind.ONE_HOT, StimulusKind.HADAMARD):
        assert np.linalg.matrix_rank(vectors_of(design, 0, kind)) == rows


def test_twenty_thousand_mvms_on_two_arrays() -> None:
    assert 2 * 4 * StimulusCounts().total(64) >= 20_000


def test_every_second_write_is_the_complement_of_the_one_before() -> None:
    design = design_mvm_calibration(16, 8, converters(8), writes=4)
    targets = [write.target_conductance_s for write in design.writes]
    for low, high in ((0, 1), (2, 3)):
        assert np.allclose(targets[low] + targets[high], 5.4e-5, rtol=1e-6)
    assert not np.allclose(targets[0], targets[2])


def test_same_seed_same_design_and_other_seed_or_array_another() -> None:
    def first(seed: int, stream: int) -> np.ndarray:
        return design_mvm_calibration(8, 4, converters(4), seed=seed, stream=stream).writes[0].target_conductance_s

    assert np.array_equal(first(1, 0), first(1, 0))
    assert not np.array_equal(first(1, 0), first(2, 0))
    assert not np.array_equal(first(1, 0), first(1, 1))
    one, two = (design_mvm_calibration(8, 4, converters(4), seed=5) for _ in range(2))
    for left, right in zip(one.writes[1].blocks, two.writes[1].blocks, strict=True):
        assert left.kind == right.kind
        assert np.array_equal(left.voltage_v, right.voltage_v)


def test_no_kind_is_measured_only_early_or_only_late() -> None:
    design = design_mvm_calibration(64, 64, converters(64), writes=4)
    kinds = np.concatenate(
        [
            np.concatenate([np.full(len(block.voltage_v), block.kind) for block in write.blocks])
            for write in design.writes
        ]
    )
    place = np.arange(len(kinds)) % (len(kinds) // 4) / (len(kinds) // 4)
    means = [place[kinds == kind].mean() for kind in StimulusKind]
    assert min(means) > 0.25
    assert max(means) < 0.75


def test_kinds_are_what_they_are_called() -> None:
    design = design_mvm_calibration(64, 16, converters(16), writes=1)
    assert not vectors_of(design, 0, StimulusKind.ZERO).any()
    one_hot = vectors_of(design, 0, StimulusKind.ONE_HOT)
    assert ((one_hot != 0).sum(axis=1) == 1).all()
    assert np.allclose(np.abs(one_hot).sum(axis=1), 0.3)
    assert np.allclose(one_hot.sum(axis=0), 0.0)
    sparse = vectors_of(design, 0, StimulusKind.SPARSE)
    assert 0.2 < (sparse != 0).mean() < 0.3
    assert (vectors_of(design, 0, StimulusKind.ACTIVATION) >= 0).all()
    random = vectors_of(design, 0, StimulusKind.RANDOM)
    assert 0.45 < (random > 0).mean() < 0.55
    repeats = vectors_of(design, 0, StimulusKind.REPEAT)
    unique, counts = np.unique(repeats, axis=0, return_counts=True)
    assert len(unique) == 8
    assert (counts == 32).all()
    ladder = vectors_of(design, 0, StimulusKind.LADDER)
    directions = np.unique(np.round(ladder / np.abs(ladder).max(axis=1, keepdims=True), 5), axis=0)
    assert len(directions) == 16  # 8 patterns, both signs


def test_lower_voltage_limit_is_kept() -> None:
    design = design_mvm_calibration(8, 4, converters(4), max_voltage_v=0.1, writes=1)
    largest = max(np.abs(block.voltage_v).max() for block in design.writes[0].blocks)
    assert largest == pytest.approx(0.1)


def test_impossible_designs_are_refused_with_every_fault() -> None:
    with pytest.raises(StimulusError, match=r"writes is 0.*must reach both signs.*adc_full_scale_a has shape \[3\]"):
        design_mvm_calibration(8, 4, converters(3), writes=0, max_voltage_v=0.0)
