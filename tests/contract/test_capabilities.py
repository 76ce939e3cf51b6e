"""Capabilities: what a board declares works, what it does not declare is refused, and the checks find liars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.testing.capability_contract import check_capabilities
from labrig.testing.driver_contract import check_crossbar_board
from labrig_drivers.capabilities import (
    CAPABILITIES,
    FLOATING_LINES,
    READ_CONDUCTANCE,
    STREAMING,
    TEMPERATURE,
    TRANSPOSED_MVM,
    FloatingLines,
    TemperatureSensor,
    TransposedMvm,
    require_capability,
)
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.errors import CapabilityError, ConfigError
from labrig_drivers.mock.board import MOCK_CAPABILITIES, MockBoard
from labrig_drivers.mock.chip import ChipSettings

SETTINGS = ChipSettings(seed=3, arrays=1, rows=12, columns=9)
IDEAL = replace(
    SETTINGS,
    programming_scale=0.0,
    mismatch_sigma=0.0,
    stuck_fraction=0.0,
    amplifier_noise_a=0.0,
    shot_noise_a=0.0,
    conductance_noise=0.0,
    drift_exponent=0.0,
    drift_exponent_sigma=0.0,
    gain_sigma=0.0,
    offset_sigma_a=0.0,
    compression_a=1e3,
    adc_bits=16,
)


def full() -> MockBoard:
    return MockBoard(SETTINGS, capabilities=MOCK_CAPABILITIES)


@pytest.mark.parametrize(
    "capabilities", [MOCK_CAPABILITIES, frozenset(), frozenset({TEMPERATURE}), frozenset({TRANSPOSED_MVM})]
)
async def test_every_choice_of_capabilities_keeps_the_contract(capabilities: frozenset[str]) -> None:
    board = MockBoard(SETTINGS, capabilities=capabilities)
    boards: Iterator[MockBoard] = iter([MockBoard(SETTINGS), board, MockBoard(SETTINGS)])
    await check_crossbar_board(lambda: next(boards))


async def test_a_transposed_mvm_is_the_product_with_the_transpose() -> None:
    async with MockBoard(replace(IDEAL, wire_ohm=0.0), capabilities=MOCK_CAPABILITIES) as board:
        info, rng = board.info, np.random.default_rng(0)
        target_s = rng.uniform(info.conductance_min_s, info.conductance_max_s, (12, 9))
        await board.program(0, target_s)
        levels = rng.integers(-127, 128, (8, 9)).astype(np.float64)
        result = await board.mvm_transposed(0, levels * info.dac_step_v)
        assert np.allclose(
            result.current_a, levels * info.dac_step_v @ target_s.T, atol=0.51 * info.adc_lsb_a[0], rtol=0.0
        )


async def test_the_wires_are_the_same_in_both_directions() -> None:
    """Reciprocity: what line i gives at line j, line j gives at line i, with wires that matter."""
    async with MockBoard(replace(IDEAL, wire_ohm=200.0), capabilities=MOCK_CAPABILITIES) as board:
        await board.program(0, np.random.default_rng(0).uniform(4e-6, 50e-6, (12, 9)))
        forwards = (await board.mvm(0, 0.3 * np.eye(12))).current_a
        backwards = (await board.mvm_transposed(0, 0.3 * np.eye(9))).current_a
        assert np.allclose(forwards, backwards.T, atol=1.01 * board.info.adc_lsb_a[0], rtol=0.0)
        assert forwards[0, 0] < 0.95 * 0.3 * (await board.read_conductance(0))[0, 0]


async def test_a_transposed_mvm_leaves_the_noise_of_a_fresh_write_alone() -> None:
    """Old runs keep their numbers: the declared capabilities change no draw of an ordinary run."""
    codes = []
    for board in (MockBoard(SETTINGS), full()):
        async with board:
            await board.program(0, np.full((12, 9), 2e-5))
            codes.append((await board.mvm(0, np.full((4, 12), 0.1))).code)
    assert np.array_equal(codes[0], codes[1])


def test_what_is_missing_is_named_beside_what_is_there() -> None:
    info = BoardInfo("C-7", 1, 2, 2, 0.0, 1e-6, -0.1, 0.1, 8, 8, (1e-6, 1e-6), 0.0, 0.0, frozenset({STREAMING, "x"}))
    require_capability(info, "x")
    with pytest.raises(CapabilityError) as caught:
        require_capability(info, TEMPERATURE)
    assert "chip C-7: does not declare 'temperature'" in str(caught.value)
    assert "declared capabilities: streaming, x" in str(caught.value)
    with pytest.raises(CapabilityError, match="declared capabilities: none"):
        require_capability(replace(info, capabilities=frozenset()), "anything")


def test_every_name_has_a_meaning() -> None:
    names = {READ_CONDUCTANCE, TRANSPOSED_MVM, FLOATING_LINES, TEMPERATURE, STREAMING}
    assert set(CAPABILITIES) == names
    assert all(CAPABILITIES.values())


async def test_the_mock_keeps_the_protocols_and_offers_no_others() -> None:
    async with full() as board:
        assert isinstance(board, TransposedMvm)
        assert isinstance(board, TemperatureSensor)
        assert not isinstance(board, FloatingLines)
        assert await board.temperature_k() == SETTINGS.temperature_k
    with pytest.raises(ConfigError, match="a mock offers no floating-lines"):
        MockBoard(SETTINGS, capabilities=frozenset({FLOATING_LINES}))


class _Spoiled(MockBoard):
    """A mock that breaks one promise."""

    def __init__(self, declared: frozenset[str]) -> None:
        super().__init__(SETTINGS, capabilities=MOCK_CAPABILITIES)
        self._declared = declared

    @property
    def info(self) -> BoardInfo:
        return replace(super().info, capabilities=self._declared)


class _Swapped(_Spoiled):
    async def mvm_transposed(self, array: int, voltage_v: NDArray[np.float64]) -> MvmResult:
        result = await super().mvm_transposed(array, voltage_v)
        return replace(result, code=result.code[:, ::-1], current_a=result.current_a[:, ::-1])


class _Celsius(_Spoiled):
    async def temperature_k(self) -> float:
        return -12.0


class _Willing(_Spoiled):
    async def temperature_k(self) -> float:
        return 300.0


class _Floating(_Spoiled):
    async def mvm_floating(self, array: int, voltage_v: NDArray[np.float64], driven: NDArray[np.bool_]) -> MvmResult:
        return await self.mvm(array, voltage_v * 0.0)


@pytest.mark.parametrize(
    ("make", "declared", "promise"),
    [
        (_Spoiled, MOCK_CAPABILITIES | {FLOATING_LINES}, r"declares 'floating-lines' has mvm_floating\(\)"),
        (_Swapped, MOCK_CAPABILITIES, r"mvm_transposed\(\) answers for the word lines"),
        (_Celsius, MOCK_CAPABILITIES, r"temperature_k\(\) is a temperature in K, not -12"),
        (_Willing, frozenset({TRANSPOSED_MVM}), r"temperature_k\(\) of a board that does not declare 'temperature'"),
        (_Floating, frozenset({FLOATING_LINES}), r"mvm_floating\(\) drives the lines"),
        (_Floating, frozenset(), r"mvm_floating\(\) of a board that does not declare"),
    ],
)
async def test_the_checks_find_a_board_that_declares_wrongly(
    make: Callable[[frozenset[str]], _Spoiled], declared: frozenset[str], promise: str
) -> None:
    async with make(declared) as board:
        with pytest.raises(AssertionError, match=f"broken promise: .*{promise}"):
            await check_capabilities(board)
