"""The simulated chip keeps its promises: every effect is there, and a rerun is equal bit for bit."""

import math
from dataclasses import replace

import numpy as np
import pytest

from labrig_drivers.crossbar import FloatArray
from labrig_drivers.errors import CapabilityError, ConfigError, IdentityError, SafetyError, StateError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings, programming_sigma_s
from labrig_drivers.mock.clock import CommandedClock

SMALL = ChipSettings(seed=3, arrays=2, rows=16, columns=12)
IDEAL = replace(
    SMALL,
    programming_scale=0.0,
    mismatch_sigma=0.0,
    stuck_fraction=0.0,
    wire_ohm=0.0,
    gain_sigma=0.0,
    offset_sigma_a=0.0,
    compression_a=1e3,
    compression_sigma=0.0,
    amplifier_noise_a=0.0,
    shot_noise_a=0.0,
    conductance_noise=0.0,
    drift_exponent=0.0,
    drift_exponent_sigma=0.0,
    dac_bits=16,
    adc_bits=16,
)


def targets(settings: ChipSettings, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    return rng.uniform(settings.conductance_min_s, settings.conductance_max_s, (settings.rows, settings.columns))


def inputs(settings: ChipSettings, batch: int = 8, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (batch, settings.rows))


async def one_run(settings: ChipSettings) -> tuple[FloatArray, FloatArray, FloatArray]:
    async with MockBoard(settings) as board:
        await board.program(0, targets(settings))
        first = await board.mvm(0, inputs(settings))
        second = await board.mvm(0, inputs(settings))
        return first.current_a, second.current_a, first.time_s


async def test_a_rerun_is_equal_bit_for_bit_and_noise_is_fresh_at_each_request() -> None:
    first, again = await one_run(SMALL), await one_run(SMALL)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != first[1]).any()


async def test_another_seed_is_another_chip() -> None:
    assert ((await one_run(SMALL))[0] != (await one_run(replace(SMALL, seed=4)))[0]).mean() > 0.5


async def test_an_ideal_chip_multiplies() -> None:
    async with MockBoard(IDEAL) as board:
        goal_s, voltage_v = targets(IDEAL), inputs(IDEAL)
        await board.program(0, goal_s)
        result = await board.mvm(0, voltage_v)
    np.testing.assert_allclose(result.current_a, voltage_v @ goal_s, atol=2.0 * 160e-6 / 2**15)
    np.testing.assert_array_equal(result.current_a, result.code * board_lsb(IDEAL))


def board_lsb(settings: ChipSettings) -> float:
    return settings.adc_full_scale_a / float(2 ** (settings.adc_bits - 1))


async def test_programming_error_follows_the_published_polynomial() -> None:
    settings = replace(IDEAL, rows=64, columns=64, programming_scale=1.0)
    async with MockBoard(settings) as board:
        for relative in (0.25, 0.5, 1.0):
            goal_s = np.full((64, 64), relative * settings.conductance_max_s)
            reached_s = []
            for _ in range(10):
                await board.program(0, goal_s)
                reached_s.append(await board.read_conductance(0))
            # Spot values of the PCM-like law at g_max 25 uS, as parts of the highest conductance.
            expected = {0.25: 0.6814, 0.5: 0.9527, 1.0: 1.0554}[relative] / 25.0
            spread = np.std(np.stack(reached_s) - goal_s) / settings.conductance_max_s
            assert spread == pytest.approx(expected, rel=0.02)
    law = programming_sigma_s(np.array([0.5]), 1.0, 1.0)
    assert law[0] == pytest.approx(0.9527 / 25.0, rel=1e-3)


async def test_drift_follows_the_commanded_clock() -> None:
    settings = replace(IDEAL, drift_exponent=0.05)
    clock = CommandedClock()
    async with MockBoard(settings, clock=clock) as board:
        await board.program(0, targets(settings))
        fresh_s = await board.read_conductance(0)
        clock.advance(settings.drift_start_s * (math.e**4 - 1.0))
        aged_s = await board.read_conductance(0)
    np.testing.assert_allclose(aged_s / fresh_s, math.exp(-0.2), rtol=1e-9)


async def test_columns_compress_and_converters_clip() -> None:
    settings = replace(IDEAL, compression_a=100e-6, adc_full_scale_a=80e-6)
    async with MockBoard(settings) as board:
        await board.program(0, np.full((16, 12), 50e-6))
        result = await board.mvm(0, np.array([[0.02] * 16, [0.1] * 16, [0.3] * 16]))
    linear_a = np.array([0.02, 0.1, 0.3]) * 16 * 50e-6
    np.testing.assert_allclose(result.current_a[0], 100e-6 * np.tanh(linear_a[0] / 100e-6), atol=1e-8)
    assert not result.saturated[:2].any()
    assert result.saturated[2].all()
    assert (result.code[2] == 2**15 - 1).all()


async def test_a_column_without_compression_is_straight() -> None:
    async with MockBoard(replace(IDEAL, compression_a=math.inf, adc_full_scale_a=300e-6)) as board:
        await board.program(0, np.full((16, 12), 50e-6))
        result = await board.mvm(0, np.array([[0.02] * 16, [0.3] * 16]))
    np.testing.assert_allclose(result.current_a[:, 0], np.array([0.02, 0.3]) * 16 * 50e-6, atol=1e-8)


async def test_read_noise_grows_with_the_signal() -> None:
    settings = replace(IDEAL, conductance_noise=0.02, amplifier_noise_a=0.05e-6, adc_full_scale_a=300e-6)
    async with MockBoard(settings) as board:
        await board.program(0, np.full((16, 12), 30e-6))
        spreads = []
        for level_v in (0.0, 0.1, 0.3):
            result = await board.mvm(0, np.full((4000, 16), level_v))
            spreads.append(result.current_a.std(axis=0).mean())
    expected = [np.hypot(0.05e-6, 0.02 * level * 30e-6 * 4.0) for level in (0.0, 0.1, 0.3)]
    np.testing.assert_allclose(spreads, expected, rtol=0.03)


async def test_stuck_cells_ignore_their_target() -> None:
    settings = replace(SMALL, rows=64, columns=64, stuck_fraction=0.1, conductance_noise=0.0)
    async with MockBoard(settings) as board:
        await board.program(0, np.full((64, 64), settings.conductance_min_s))
        low_s = await board.read_conductance(0)
        await board.program(0, np.full((64, 64), settings.conductance_max_s))
        high_s = await board.read_conductance(0)
        truth = board.hidden_array(0)
    still = np.abs(high_s / low_s - 1.0) < 0.01
    np.testing.assert_array_equal(still, truth.stuck_low | truth.stuck_high)
    assert 0.06 < still.mean() < 0.14


async def test_refusals_come_before_anything_is_driven() -> None:
    async with MockBoard(SMALL) as board:
        with pytest.raises(StateError, match="never programmed"):
            await board.mvm(0, inputs(SMALL))
        with pytest.raises(CapabilityError, match=r"array 7 does not exist.*; shape \[2, 2\]"):
            await board.program(7, np.zeros((2, 2)))
        with pytest.raises(SafetyError, match="192 conductance values outside"):
            await board.program(0, np.full((16, 12), 1.0))
        with pytest.raises(SafetyError, match="not finite"):
            await board.mvm(0, np.full((1, 16), np.nan))
    with pytest.raises(StateError, match="not open"):
        _ = board.info


async def test_supply_is_demanded_and_metered() -> None:
    clock = CommandedClock()
    async with MockBoard(SMALL, clock=clock, minimum_supply_v=1.0) as board:
        with pytest.raises(StateError, match=r"at 0 V and must be at least 1 V"):
            await board.program(0, targets(SMALL))
        board.set_supply_voltage(1.2)
        assert board.supply_current_a(1.2, 0.0, 1.0) == pytest.approx(4e-3)
        begin_s = clock.now_s()
        await board.program(0, targets(SMALL))
        end_s = clock.now_s()
        busy_a = board.supply_current_a(1.2, begin_s, end_s)
        assert busy_a > 10e-3
        # Half the window idle: half the extra charge per second.
        half_a = board.supply_current_a(1.2, begin_s, end_s + (end_s - begin_s))
        assert half_a - 4e-3 == pytest.approx(0.5 * (busy_a - 4e-3))


async def test_identity_and_settings_are_checked() -> None:
    with pytest.raises(IdentityError, match="SIM-0003"):
        await MockBoard(SMALL, expected=ExpectedIdentity(serial="SIM-0099")).open()
    with pytest.raises(ConfigError) as caught:
        MockBoard.from_settings({"seed": 1.5, "rowz": 3, "wire_ohm": "2"}, ExpectedIdentity(), "board")
    message = str(caught.value)
    assert "seed" in message
    assert "rowz" in message
    assert "wire_ohm" in message
    impossible = {
        "rows": -1,
        "seed": -2,
        "adc_bits": 17,
        "voltage_max_v": -1.0,
        "conductance_min_s": 1e-3,
        "stuck_fraction": 2.0,
        "wire_ohm": math.nan,
        "drift_exponent": math.inf,
        "compression_a": math.inf,
    }
    with pytest.raises(ConfigError) as caught:
        MockBoard.from_settings(impossible, ExpectedIdentity(), "board")
    assert str(caught.value).splitlines() == [
        "board.settings.rows: -1 is less than 1",
        "board.settings.seed: -2 is negative",
        "board.settings.adc_bits: 17 is not 2 to 16 bits",
        "board.settings.voltage_max_v: -1 is not a positive number",
        "board.settings.wire_ohm: nan is negative or not finite",
        "board.settings.drift_exponent: inf is negative or not finite",
        "board.settings.stuck_fraction: 2 is more than 1",
        "board.settings.conductance_min_s: 0.001 S is not below conductance_max_s = 5e-05 S",
    ]
    assert ChipSettings(rows=10**6, columns=10**6).faults() == [
        "rows: 2 x 1000000 x 1000000 cells are more than 67108864"
    ]
    assert ChipSettings().faults() == []
    board = MockBoard.from_settings({"seed": 9, "wire_ohm": 2}, ExpectedIdentity(), "board")
    assert board.chip_id == "SIM-0009"
    assert board.settings.wire_ohm == 2.0
