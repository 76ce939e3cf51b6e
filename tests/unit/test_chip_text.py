"""A fitted chip as text for aihwkit and CrossSim: it parses, its units are theirs, and it says what is missing."""

import ast
import csv
import importlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.export.chip_numbers import chip_numbers
from labrig.export.chip_text import chip_text, export_chip, left_out
from labrig.export.crosssim_text import generic_programming_error
from labrig_drivers.errors import StorageError
from labrig_surrogates.io import save_chip
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate

COLUMNS, ROWS = 20, 16
LSB_A = 160e-6 / 512


def number(value: float, error: float, unit: str, *shape: int) -> Estimate:
    return Estimate(np.full(shape, value), np.full(shape, error), unit)


def array(index: int = 0) -> ArrayParameters:
    rng = np.random.default_rng(index)
    return ArrayParameters(
        array=index,
        gain=number(0.9, 0.01, "1", COLUMNS),
        offset=number(1e-6, 1e-8, "A", COLUMNS),
        compression=number(7e3, 10.0, "1/A", COLUMNS),
        drift=number(0.03, 0.001, "1", COLUMNS),
        amplifier_noise=number(4e-14, 1e-15, "A^2", COLUMNS),
        shot_noise=number(1e-9, 1e-10, "A", COLUMNS),
        conductance_noise=number(2.25e-4, 1e-5, "1", COLUMNS),
        programming=Estimate(np.array([0.01, 0.05, -0.03]), np.array([0.001, 0.004, 0.004]), "1"),
        cell_slope=rng.normal(1.0, 0.1, (ROWS, COLUMNS)),
        cell_intercept_s=np.zeros((ROWS, COLUMNS)),
        stuck=np.zeros((ROWS, COLUMNS), dtype=np.bool_),
        write_conductance_s=rng.uniform(4e-6, 5e-5, (2, ROWS, COLUMNS)),
        drift_reference_s=1.0,
        converters=ConverterRange(0.3, 0.6 / 254, np.full(COLUMNS, LSB_A), -512, 511, 4e-6, 5e-5),
        mismatch=Estimate(np.array(0.1), np.array(0.002), "1"),
        wire_ohm=Estimate(np.array([1.2, 1.5]), np.array([0.1, 0.2]), "ohm"),
        drift_spread=number(1e-4, 1e-5, "1", COLUMNS),
    )


CHIP = ChipParameters("SIM-7", {0: array(0), 1: array(1)}, {"recordings": "a.h5", "array_0_data_sha256": "ab12"})


def constants(text: str) -> dict[str, object]:
    """The literals of a Python text, without running it."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def aihwkit() -> dict[str, dict[str, object]]:
    document = json.loads(chip_text(CHIP, "aihwkit", ".json"))
    assert isinstance(document, dict)
    return document


def programming_sigma_s(target_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """labrig's law, written here once more: programming error and mismatch, independent of each other."""
    r = target_s / 5e-5
    return np.asarray(np.hypot(5e-5 * (0.01 + 0.05 * r - 0.03 * r**2), 0.1 * target_s))


def test_aihwkit_programming_error_and_drift_come_back_in_siemens() -> None:
    document = aihwkit()
    model = document["noise_model"]["arguments"]
    assert isinstance(model, dict)
    assert document["converter"]["arguments"] == {"g_max": pytest.approx(50.0), "g_min": pytest.approx(4.0)}
    target_s = np.linspace(4e-6, 5e-5, 30)
    # As aihwkit evaluates it: conductances in uS, coefficients over g / g_max.
    sigma_us = sum(c * (1e6 * target_s / 50.0) ** power for power, c in enumerate(model["prog_coeff"]))
    np.testing.assert_allclose(1e-6 * sigma_us, programming_sigma_s(target_s), atol=1.1e-8)
    assert model["t_0"] == 1.0
    assert model["drift_nu_mean"] == pytest.approx(0.03)
    assert model["drift_nu_std"] == pytest.approx(0.01)
    assert model["read_noise_scale"] == 0.0


def test_without_a_fixed_spread_the_polynomial_is_the_fitted_one() -> None:
    plain = replace(array(), mismatch=Estimate(np.array(0.0), np.array(0.0), "1"))
    document = json.loads(chip_text(ChipParameters("A", {0: plain}, {}), "aihwkit", ".json"))
    np.testing.assert_allclose(document["noise_model"]["arguments"]["prog_coeff"], [0.5, 2.5, -1.5])
    assert document["programming_misfit"] == 0.0


def test_a_law_below_zero_is_no_noise_in_aihwkit() -> None:
    none = Estimate(np.array([-0.0085, -0.0029, -0.0022]), np.zeros(3), "1")
    ideal = replace(array(), mismatch=Estimate(np.array(0.0), np.array(0.0), "1"), programming=none)
    document = json.loads(chip_text(ChipParameters("A", {0: ideal}, {}), "aihwkit", ".json"))
    np.testing.assert_allclose(document["noise_model"]["arguments"]["prog_coeff"], 0.0, atol=1e-9)


def test_aihwkit_noise_of_an_output_is_that_of_two_columns() -> None:
    """Monte Carlo of labrig's own law for a pair of columns, against aihwkit's equation with the exported numbers."""
    forward = aihwkit()["forward"]
    unit_a = 0.9 * 0.3 * 46e-6
    rng = np.random.default_rng(0)
    x, w = rng.uniform(-1, 1, (400, 64)), rng.uniform(-1, 1, (64, 50))
    plus_s, minus_s = 4e-6 + 46e-6 * np.maximum(w, 0), 4e-6 + 46e-6 * np.maximum(-w, 0)
    cells_a2 = 2.25e-4 * ((0.3 * x) ** 2 @ (0.9 * plus_s) ** 2 + (0.3 * x) ** 2 @ (0.9 * minus_s) ** 2)
    ours_a2 = cells_a2 + 2.0 * 4e-14
    theirs = float(str(forward["w_noise"])) ** 2 * (x**2 @ np.abs(w)) + float(str(forward["out_noise"])) ** 2
    assert (theirs * unit_a**2).mean() == pytest.approx(ours_a2.mean(), rel=0.02)
    # Only the mean agrees for each weight; outputs of many weights are close.
    np.testing.assert_allclose(theirs * unit_a**2, ours_a2, rtol=0.35)


def test_aihwkit_converters_have_the_same_steps_and_ends() -> None:
    forward = {name: value for name, value in aihwkit()["forward"].items() if not isinstance(value, str)}
    unit_a = 0.9 * 0.3 * 46e-6
    step = 2.0 * float(str(forward["out_bound"])) * float(str(forward["out_res"]))
    assert step * unit_a == pytest.approx(LSB_A)
    assert float(str(forward["out_bound"])) * unit_a == pytest.approx(511 * LSB_A)
    assert forward["out_res"] == pytest.approx(1.0 / (2**10 - 2))
    assert forward["inp_res"] == pytest.approx(1.0 / (2**8 - 2))
    # Conductance of a wire segment over the highest of a device.
    assert forward["ir_drop_g_ratio"] == pytest.approx(1.0 / 1.5 / 5e-5)


def test_python_and_json_for_aihwkit_say_the_same() -> None:
    found, document = constants(chip_text(CHIP, "aihwkit", ".py")), aihwkit()
    assert found["NOISE_MODEL"] == document["noise_model"]["arguments"]
    assert found["FORWARD"] == document["forward"]
    assert found["CONVERTER"] == document["converter"]["arguments"]
    assert found["LEFT_OUT"] == document["left_out"]
    assert {"offset", "compression", "shot_noise", "stuck", "mismatch"} <= set(document["left_out"])
    assert document["about"]["array_0_data_sha256"] == "ab12"


def test_aihwkit_itself_takes_the_text() -> None:
    pytest.importorskip("aihwkit")
    torch = importlib.import_module("torch")
    namespace: dict[str, object] = {}
    exec(chip_text(CHIP, "aihwkit", ".py"), namespace)
    config = namespace["rpu_config"]()  # type: ignore[operator]
    torch.manual_seed(0)
    for target_us in (10.0, 30.0, 50.0):
        written = config.noise_model.apply_programming_noise_to_conductance(torch.full((200_000,), target_us))
        expected_us = 1e6 * float(programming_sigma_s(np.array(1e-6 * target_us)))
        assert float(written.std()) == pytest.approx(expected_us, rel=0.01)


def test_crosssim_parameters_have_its_units() -> None:
    tree = json.loads(chip_text(CHIP, "crosssim", ".json"))
    device, periphery = tree["xbar"]["device"], tree["xbar"]
    assert 1.0 / device["Rmin"] == pytest.approx(5e-5)
    assert 1.0 / device["Rmax"] == pytest.approx(4e-6)
    assert device["read_noise"] == {
        "enable": True,
        "model": "NormalProportionalDevice",
        "magnitude": pytest.approx(0.015),
    }
    assert periphery["array"]["parasitics"] == {"enable": True, "Rp_row": 1.2, "Rp_col": 1.5}
    low, high = periphery["adc"]["mvm"]["calibrated_range"]
    unit_a = 0.9 * 0.3 * 5e-5
    # CrossSim's quantizer has 2**bits levels from end to end.
    assert (high - low) / (2 ** periphery["adc"]["mvm"]["bits"] - 1) * unit_a == pytest.approx(LSB_A)
    assert low * unit_a == pytest.approx(-512 * LSB_A)
    assert periphery["dac"]["mvm"] == {"model": "SignMagnitudeDAC", "bits": 8, "signed": True}


def test_crosssim_takes_the_nearer_of_two_generic_laws_with_the_same_mean_variance() -> None:
    numbers = chip_numbers(CHIP)
    model, magnitude = generic_programming_error(numbers)
    assert model == "NormalProportionalDevice"  # ten percent of the conductance are the larger part
    target_s = np.linspace(4e-6, 5e-5, 2001)
    mean_s2 = (programming_sigma_s(target_s) ** 2).mean()
    assert (magnitude**2 * target_s**2).mean() == pytest.approx(mean_s2, rel=0.01)
    flat = replace(numbers, mismatch=replace(numbers.mismatch, value=0.0), programming=np.array([0.04, 0.0, 0.0]))
    model, magnitude = generic_programming_error(flat)
    assert model == "NormalIndependentDevice"
    assert magnitude == pytest.approx(0.04)


def test_all_forms_for_crosssim_say_the_same() -> None:
    tree = json.loads(chip_text(CHIP, "crosssim", ".json"))
    python = constants(chip_text(CHIP, "crosssim", ".py"))["PARAMETERS"]
    rows = list(csv.DictReader(io.StringIO(chip_text(CHIP, "crosssim", ".csv"))))
    table = {row["parameter"]: row for row in rows if not row["parameter"].startswith("not in CrossSim")}
    assert isinstance(python, dict)
    assert list(python) == list(table)
    for name, value in python.items():
        branch = tree
        for part in name.split("."):
            branch = branch[part]
        assert branch == value
    assert float(table["xbar.device.read_noise.magnitude"]["standard error"]) > 0.0
    assert table["xbar.array.parasitics.Rp_col"]["unit"] == "ohm"
    missing = {row["parameter"] for row in rows} - set(table)
    assert missing == {f"not in CrossSim: {name}" for name in left_out(chip_numbers(CHIP), "crosssim")}
    assert "not in CrossSim: drift" in missing


def test_wrong_orders_are_refused_with_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    save_chip(path, CHIP)
    there = tmp_path / "there.txt"
    there.write_text("mine")
    with pytest.raises(StorageError, match=r"ends in \.py or \.json; .*there\.txt: exists already"):
        export_chip(path, there, kind="aihwkit")
    with pytest.raises(StorageError, match="--to spice: not known for a chip; there are aihwkit, crosssim"):
        export_chip(path, tmp_path / "a.py", kind="spice")
    with pytest.raises(StorageError, match="chip SIM-7 has no array 5, only 0, 1"):
        export_chip(path, tmp_path / "a.py", kind="aihwkit", array=5)
    assert there.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["chip.safetensors", "there.txt"]
    export_chip(path, tmp_path / "one.json", kind="aihwkit", array=1)
    assert json.loads((tmp_path / "one.json").read_text())["about"]["arrays"] == "1"
