"""`chip.safetensors`: what goes in comes out, and damaged files are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.io import load_chip, save_chip
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate, ResidualNetwork


def random_array(index: int, rows: int, columns: int, writes: int, seed: int) -> ArrayParameters:
    rng = np.random.default_rng(seed)

    def estimate(unit: str, *shape: int) -> Estimate:
        return Estimate(rng.normal(size=shape), rng.uniform(size=shape), unit)

    return ArrayParameters(
        array=index,
        gain=estimate("1", columns),
        offset=estimate("A", columns),
        compression=estimate("1/A", columns),
        drift=estimate("1", columns),
        amplifier_noise=estimate("A^2", columns),
        shot_noise=estimate("A", columns),
        conductance_noise=estimate("1", columns),
        programming=estimate("1", 3),
        cell_slope=rng.normal(size=(rows, columns)),
        cell_intercept_s=rng.normal(size=(rows, columns)),
        stuck=rng.random((rows, columns)) < 0.5,
        write_conductance_s=rng.normal(size=(writes, rows, columns)),
        drift_reference_s=float(rng.uniform(0.1, 10)),
        converters=ConverterRange(0.3, 0.002, rng.uniform(size=columns), -512, 511, 1e-6, 1e-4),
    )


@given(
    arrays=st.lists(st.integers(0, 20), min_size=1, max_size=3, unique=True),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    chip_id=st.text(min_size=1, max_size=12),
)
@settings(max_examples=30, deadline=None)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, arrays: list[int], shape: tuple[int, int, int], chip_id: str
) -> None:
    path = tmp_path_factory.mktemp("chip") / "chip.safetensors"
    chip = ChipParameters(chip_id, {index: random_array(index, *shape, seed=index) for index in arrays}, {"n": 3})
    save_chip(path, chip)
    loaded = load_chip(path)
    assert loaded.chip_id == chip_id
    assert loaded.provenance == {"n": 3}
    assert sorted(loaded.arrays) == sorted(arrays)
    for index, array in chip.arrays.items():
        other = loaded.arrays[index]
        for name, estimate in array.estimates().items():
            np.testing.assert_array_equal(other.estimates()[name].value, estimate.value)
            np.testing.assert_array_equal(other.estimates()[name].error, estimate.error)
            assert other.estimates()[name].unit == estimate.unit
        np.testing.assert_array_equal(other.stuck, array.stuck)
        np.testing.assert_array_equal(other.write_conductance_s, array.write_conductance_s)
        np.testing.assert_array_equal(other.converters.adc_lsb_a, array.converters.adc_lsb_a)
        assert other.converters.code_max == 511
        assert other.drift_reference_s == array.drift_reference_s
    assert [file.name for file in path.parent.iterdir()] == ["chip.safetensors"]


def test_missing_foreign_and_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    with pytest.raises(SurrogateError, match="no such file; make it with `labrig calibrate"):
        load_chip(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(SurrogateError, match=r"not a labrig chip file \(no schema in its header\); `labrig calibrate`"):
        load_chip(path)
    save_chip(path, ChipParameters("A", {0: random_array(0, 3, 3, 2, 0)}, {}))
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SurrogateError, match="its length is not what its header says"):
            load_chip(path)
    for content in (b"", whole[:5], b"no chip", b"\x89HDF\r\n\x1a\n" + bytes(200), bytes(100)):
        path.write_bytes(content)
        with pytest.raises(SurrogateError, match="not a safetensors file; `labrig calibrate` makes one"):
            load_chip(path)
    with pytest.raises(SurrogateError, match="cannot be written"):
        save_chip(tmp_path / "absent" / "chip.safetensors", ChipParameters("A", {}, {}))


def test_optional_parts_come_back_and_files_of_schema_1_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = random_array(0, 4, 3, 2, 0)
    whole = replace(
        plain,
        wire_ohm=Estimate(np.array([1.5, 2.0]), np.array([0.1, 0.2]), "ohm"),
        exact_wires=True,
        crosstalk=Estimate(np.asarray(0.01), np.asarray(0.002), "1"),
        mismatch=Estimate(np.asarray(0.1), np.asarray(0.01), "1"),
        skew=Estimate(rng.normal(size=3), rng.uniform(size=3), "1"),
        write_conductance_error_s=rng.uniform(size=(2, 4, 3)),
        cell_slope_error=rng.uniform(size=(4, 3)),
        write_log_age=rng.uniform(size=2),
        wire_uncertainty=rng.uniform(size=3),
        residual=ResidualNetwork(rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=5), rng.uniform(size=3)),
    )
    path = tmp_path / "chip.safetensors"
    save_chip(path, ChipParameters("A", {0: whole}, {}))
    loaded = load_chip(path).arrays[0]
    assert loaded.exact_wires
    assert loaded.crosstalk is not None
    assert float(loaded.crosstalk.value) == 0.01
    assert loaded.residual is not None
    np.testing.assert_array_equal(loaded.residual.hidden, whole.residual.hidden if whole.residual else None)
    np.testing.assert_array_equal(loaded.write_conductance_error_s, whole.write_conductance_error_s)
    assert loaded.wire_uncertainty is not None
    np.testing.assert_array_equal(loaded.wire_uncertainty, whole.wire_uncertainty)
    np.testing.assert_array_equal(loaded.stated()["gain"].error, whole.stated()["gain"].error)
    assert list(loaded.estimates()) == list(whole.estimates())
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
        kept = (
            "write_conductance_error_s",
            "cell_slope_error",
            "write_log_age",
            "residual",
            "wire",
            "cross",
            "mis",
            "skew",
        )
        tensors = {name: file.get_tensor(name) for name in file.keys() if not any(part in name for part in kept)}  # noqa: SIM118
    arrays = json.loads(header["arrays"])
    arrays["0"]["units"] = {name: unit for name, unit in arrays["0"]["units"].items() if name in plain.estimates()}
    del arrays["0"]["exact_wires"]
    save_file(tensors, path, metadata={**header, "schema_version": "1", "arrays": json.dumps(arrays)})
    first = load_chip(path).arrays[0]
    np.testing.assert_array_equal(first.gain.value, plain.gain.value)
    assert first.wire_ohm is None
    assert first.cell_slope_error is None
    assert not first.exact_wires
    save_file(tensors, path, metadata={**header, "schema_version": "3"})
    with pytest.raises(SurrogateError, match="schema version 3 is newer"):
        load_chip(path)
