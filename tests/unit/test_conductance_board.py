"""Measured conductances: files that are read or refused, and a board whose products are those of the cells."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from typer.testing import CliRunner

from labrig.boards.conductances import ConductanceBoard, ConductanceSettings
from labrig.cli import app
from labrig.conductance_files import (
    MeasuredArray,
    joined,
    read_conductances,
    read_fusion,
    read_matrix,
    write_conductances,
)
from labrig_drivers.errors import CapabilityError, ConfigError, IdentityError, SafetyError, StateError, StorageError
from labrig_drivers.instrument import ExpectedIdentity

RNG = np.random.default_rng(0)
TARGET_S = RNG.uniform(0.0, 20e-6, (6, 4))
WRITES_S = np.abs(TARGET_S + RNG.normal(0.0, 1e-6, (2, 6, 4)))


def table(path: Path, values_s: np.ndarray, unit_s: float = 1e-6) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((values_s / unit_s).tolist())
    return path


def fusion(path: Path, layers: dict[str, np.ndarray]) -> Path:
    """As aihwkit's export writes it: layers `[outputs, inputs]` in uS."""
    sizes = [one.shape for one in layers.values()]
    lines = [
        [str(index + 1) for index in range(len(sizes))],
        ["AnalogLinear"] * len(sizes),
        [str(height * width) for height, width in sizes],
        [str(height) for height, _ in sizes],
        [str(width) for _, width in sizes],
        [*layers],
        *[[f"{value}" for value in one.flatten()] for one in layers.values()],
    ]
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    return path


@pytest.fixture
def chip(tmp_path: Path) -> Path:
    write_conductances(tmp_path / "chip.safetensors", [MeasuredArray("array", TARGET_S, WRITES_S)], "a paper")
    return tmp_path / "chip.safetensors"


async def test_products_are_those_of_the_measured_cells(chip: Path) -> None:
    async with ConductanceBoard(ConductanceSettings(chip, adc_bits=16, dac_bits=12)) as board:
        assert "measured conductances" in str(board.identity)
        with pytest.raises(StateError, match="was not programmed yet"):
            await board.mvm(0, np.zeros((1, 6)))
        for write in range(2):
            report = await board.program(0, TARGET_S)
            assert report.write_index == write
            assert report.rms_error_s == pytest.approx(np.sqrt(np.mean((WRITES_S[write] - TARGET_S) ** 2)))
            assert np.array_equal(await board.read_conductance(0), WRITES_S[write])
            voltage_v = RNG.uniform(-0.1, 0.1, (50, 6))
            result = await board.mvm(0, voltage_v)
            # A step of either converter, summed over six cells.
            step_a = board.info.adc_lsb_a.max() + 0.5 * board.info.dac_step_v * WRITES_S[write].sum(axis=0).max()
            assert np.abs(result.current_a - voltage_v @ WRITES_S[write]).max() < step_a
            assert not result.saturated.any()
            assert (np.diff(result.time_s) > 0.0).all()
        with pytest.raises(CapabilityError, match="after 2 writes only; repeat = true"):
            await board.program(0, TARGET_S)


async def test_other_targets_are_refused_and_measurements_may_begin_again(chip: Path) -> None:
    async with ConductanceBoard(ConductanceSettings(chip, repeat=True)) as board:
        with pytest.raises(CapabilityError, match="measured for another target, which differs by up to 1e-06 S"):
            await board.program(0, np.where(TARGET_S > 2e-6, TARGET_S - 1e-6, TARGET_S))
        with pytest.raises(SafetyError):
            await board.program(0, TARGET_S * 10.0)
        for write in (0, 1, 0):
            await board.program(0, TARGET_S)
            assert np.array_equal(await board.read_conductance(0), WRITES_S[write])


async def test_a_board_knows_its_file(chip: Path) -> None:
    with pytest.raises(IdentityError):
        await ConductanceBoard(ConductanceSettings(chip), expected=ExpectedIdentity(serial="other")).open()
    board = ConductanceBoard(ConductanceSettings(chip))
    with pytest.raises(StateError, match="is not open"):
        _ = board.info
    with pytest.raises(ConfigError) as caught:
        ConductanceBoard.from_settings({"dac_bits": 40, "colour": 1, "repeat": 1}, ExpectedIdentity(), "b")
    assert all(
        word in str(caught.value) for word in ("colour: unknown", "file: is missing", "dac_bits: 40", "repeat: 1")
    )


async def test_smaller_arrays_are_filled_with_cells_that_conduct_nothing(tmp_path: Path) -> None:
    small = MeasuredArray("small", TARGET_S[:2, :3], WRITES_S[:, :2, :3])
    write_conductances(tmp_path / "two.safetensors", [MeasuredArray("large", TARGET_S, WRITES_S), small], "s")
    async with ConductanceBoard(ConductanceSettings(tmp_path / "two.safetensors")) as board:
        assert (board.info.arrays, board.info.rows, board.info.columns) == (2, 6, 4)
        target_s = np.zeros((6, 4))
        target_s[:2, :3] = small.target_s
        await board.program(1, target_s)
        cells_s = await board.read_conductance(1)
        assert np.array_equal(cells_s[:2, :3], small.measured_s[0])
        assert not cells_s[2:].any()


def test_aihwkits_export_is_read(tmp_path: Path) -> None:
    layers = {"fc1": RNG.uniform(0, 40, (3, 5)), "fc2": RNG.uniform(0, 40, (2, 3))}
    found = read_fusion(fusion(tmp_path / "fusion.csv", layers))
    assert [*found] == ["fc1", "fc2"]
    assert found["fc1"] == pytest.approx(layers["fc1"].T * 1e-6)  # inputs are word lines
    text = (tmp_path / "fusion.csv").read_text().splitlines()
    (tmp_path / "cut.csv").write_text("\n".join([*text[:-1], text[-1].rpartition(",")[0]]))
    with pytest.raises(StorageError, match="layer fc2: 5 conductances are not 2 x 3"):
        read_fusion(tmp_path / "cut.csv")


def test_tables_that_cannot_be_conductances_are_refused_with_every_fault(tmp_path: Path) -> None:
    assert read_matrix(table(tmp_path / "a.csv", TARGET_S), "uS") == pytest.approx(TARGET_S)
    (tmp_path / "b.csv").write_text("1,2\n3,x\n4\n")
    with pytest.raises(StorageError, match="line 2: 'x' is no number; lines of 1 to 2 numbers"):
        read_matrix(tmp_path / "b.csv", "uS")
    (tmp_path / "c.csv").write_text("-1,nan\n5e6,1\n")
    with pytest.raises(StorageError, match=r"1 are not finite; 1 are negative.*the largest is 5 S"):
        read_matrix(tmp_path / "c.csv", "uS")
    with pytest.raises(ConfigError, match="unit 'kS'"):
        read_matrix(tmp_path / "a.csv", "kS")
    with pytest.raises(ConfigError, match=r"measurement 2 has no a; measurement 2 has b"):
        joined([{"a": TARGET_S}, {"b": TARGET_S}], None)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_whatever_a_file_holds_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    said = []
    for read in (lambda: read_matrix(path, "uS"), lambda: read_fusion(path), lambda: read_conductances(path)):
        try:
            read()
        except StorageError as error:
            said.append(str(error))
    assert all(one.startswith(str(path)) for one in said)


def test_a_file_of_a_later_format_is_called_that_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "later.safetensors"
    told = {"format": 99, "names": ["one"], "source": "imported"}
    path.write_bytes(save({"0/other": np.zeros(2)}, {"labrig-conductances": json.dumps(told)}))
    with pytest.raises(StorageError, match="has format 99; this version reads"):
        read_conductances(path)


def test_the_command_makes_a_board_of_files_and_overwrites_nothing(tmp_path: Path) -> None:
    target = table(tmp_path / "target.csv", TARGET_S)
    files = [str(table(tmp_path / f"write{number}.csv", one)) for number, one in enumerate(WRITES_S)]
    output = tmp_path / "chip.safetensors"
    command = ["import", "conductances", *files, "--target", str(target), "--unit", "uS", "-o", str(output)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    off_us = 1e6 * float(np.sqrt(np.mean((np.asarray(WRITES_S) - TARGET_S) ** 2)))  # with what all cells are off alike
    assert f"array 0: array, 6 x 4, 2 writes, {off_us:.3g} uS off (rms)" in first.output
    (array,), source, _ = read_conductances(output)
    assert source == "imported"
    assert array.measured_s == pytest.approx(WRITES_S)
    before = output.read_bytes()
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, StorageError)
    assert output.read_bytes() == before
