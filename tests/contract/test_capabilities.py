"""Capabilities: what a board declares works, what it does not declare is refused, and the checks find liars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.testing.capability_contract import check_capabilities
from labrig.testing.driver_contract import check_crossbar_board
from labrig_drivers.capabilities import (
    CAPABILITIES,
    CELL_SWEEP,
    FLOATING_LINES,
    READ_CONDUCTANCE,
    STREAMING,
    TEMPERATURE,
    TRANSPOSED_MVM,
    CellSweep,
    FloatingLines,
    TemperatureSensor,
    TransposedMvm,
    require_capability,
)
from labrig_drivers.commanded import COMMANDED
from labrig_drivers.crossbar import BoardInfo, MvmResult
from labrig_drivers.errors import CapabilityError, ConfigError, SafetyError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.board import MOCK_CAPABILITIES, MockBoard
from labrig_drivers.mock.chip import ChipSettings
from labrig_drivers.mock.clock import CommandedClock
from labrig_drivers.source_meter import Reading

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
    "capabilities",
    [
        MOCK_CAPABILITIES,
        frozenset(),
        frozenset({TEMPERATURE}),
        frozenset({TRANSPOSED_MVM}),
        frozenset({CELL_SWEEP, READ_CONDUCTANCE}),
    ],
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
    names = {READ_CONDUCTANCE, TRANSPOSED_MVM, FLOATING_LINES, TEMPERATURE, STREAMING, CELL_SWEEP}
    assert set(CAPABILITIES) == names
    assert all(CAPABILITIES.values())


async def test_the_mock_keeps_the_protocols_and_offers_no_others() -> None:
    async with full() as board:
        assert isinstance(board, TransposedMvm)
        assert isinstance(board, TemperatureSensor)
        assert isinstance(board, CellSweep)
        assert not isinstance(board, FloatingLines)
        assert await board.temperature_k() == SETTINGS.temperature_k
    with pytest.raises(ConfigError, match="a mock offers no floating-lines"):
        MockBoard(SETTINGS, capabilities=frozenset({FLOATING_LINES}))


async def test_a_cell_of_the_mock_is_a_resistor_with_the_chips_noise_and_drift() -> None:
    quiet = replace(IDEAL, wire_ohm=0.0)
    async with MockBoard(quiet, capabilities=MOCK_CAPABILITIES) as board:
        target_s = np.random.default_rng(0).uniform(4e-6, 50e-6, (12, 9))
        await board.program(0, target_s)
        readings = await board.sweep_cell(0, 5, 7, [-0.3, 0.0, 0.123456789, 0.3])
        # No converter has a part in it.
        assert [one.voltage_v for one in readings] == [-0.3, 0.0, 0.123456789, 0.3]
        found_a = [one.current_a for one in readings]
        assert found_a == pytest.approx([level_v * target_s[5, 7] for level_v in (-0.3, 0.0, 0.123456789, 0.3)])
        assert np.diff([one.time_s for one in readings]) == pytest.approx(quiet.cell_reading_s)
        assert board.clock.now_s() == pytest.approx(quiet.program_latency_s + 4 * quiet.cell_reading_s)
    aging = replace(quiet, drift_exponent=0.05, conductance_noise=0.01)
    clock = CommandedClock()
    async with MockBoard(aging, clock=clock, capabilities=MOCK_CAPABILITIES) as board:
        await board.program(0, np.full((12, 9), 2e-5))
        clock.advance(1e4)
        currents_a = np.array([one.current_a for one in await board.sweep_cell(0, 0, 0, [0.2] * 2000)])
    assert currents_a.mean() == pytest.approx(0.2 * 2e-5 * (1 + 1e4) ** -0.05, rel=2e-3)
    assert currents_a.std() / currents_a.mean() == pytest.approx(0.01, rel=0.1)


async def test_a_sweep_of_a_cell_is_equal_in_every_run_and_ends_at_its_limit() -> None:
    curves = []
    for _ in range(2):
        async with full() as board:
            await board.program(0, np.full((12, 9), 4e-5))
            curves.append(await board.sweep_cell(0, 1, 1, [0.1, 0.2, 0.3], 5e-6))
    assert curves[0] == curves[1]
    assert [one.in_compliance for one in curves[0]] == [False, True, True]
    assert [one.current_a for one in curves[0][1:]] == [5e-6, 5e-6]
    # The voltage is what the cell sees, not what was asked for: the same conductance at every level.
    assert curves[0][2].voltage_v == pytest.approx(5e-6 / 4e-5, rel=0.3)


async def test_every_reason_against_a_sweep_is_named() -> None:
    async with full() as board:
        with pytest.raises(SafetyError) as caught:
            await board.sweep_cell(0, 0, 0, [0.1, 9.0, float("nan")], 2.0)
    assert caught.value.reasons == (
        "2 levels outside -0.3 to 0.3 V, or not finite (the first is 9 V)",
        "a limit of 2 A is above the board's own, 0.001 A",
    )


def test_a_rig_file_chooses_what_the_mock_offers() -> None:
    chosen = MockBoard.from_settings({"capabilities": ["cell-sweep"], "seed": 4}, ExpectedIdentity(), "board")
    assert (chosen.capabilities - {COMMANDED}, chosen.chip_id) == (frozenset({CELL_SWEEP}), "SIM-0004")
    usual = MockBoard.from_settings({}, ExpectedIdentity(), "board")
    assert usual.capabilities == MOCK_CAPABILITIES | {COMMANDED}
    for wrong in ("cell-sweep", ["levitation"], [1]):
        with pytest.raises(ConfigError, match=r"board\.settings\.capabilities: .* is not a list out of cell-sweep, "):
            MockBoard.from_settings({"capabilities": wrong}, ExpectedIdentity(), "board")


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


class _Neighbour(_Spoiled):
    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        readings = await super().sweep_cell(array, row, column, voltage_v, limit_a)
        return [readings[0]] * len(readings) if row == 0 else readings


class _WrongSign(_Spoiled):
    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        readings = await super().sweep_cell(array, row, column, voltage_v, limit_a)
        return [replace(one, current_a=-one.current_a) for one in readings]


class _Limitless(_Spoiled):
    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        readings = await super().sweep_cell(array, row, column, voltage_v, limit_a)
        return readings if limit_a is None else await super().sweep_cell(array, row, column, voltage_v)


class _Curious(_Spoiled):
    async def sweep_cell(
        self, array: int, row: int, column: int, voltage_v: Sequence[float], limit_a: float | None = None
    ) -> list[Reading]:
        return []


@pytest.mark.parametrize(
    ("make", "declared", "promise"),
    [
        (_Neighbour, MOCK_CAPABILITIES, r"sweep_cell\(\): voltage_v is across the cell"),
        (_WrongSign, MOCK_CAPABILITIES, r"sweep_cell\(\): current_a flows from the word line to the bit line"),
        (_Limitless, MOCK_CAPABILITIES, r"sweep_cell\(\) says in_compliance"),
        (_Spoiled, MOCK_CAPABILITIES | {FLOATING_LINES}, r"declares 'floating-lines' has mvm_floating\(\)"),
        (_Swapped, MOCK_CAPABILITIES, r"mvm_transposed\(\) answers for the word lines"),
        (_Celsius, MOCK_CAPABILITIES, r"temperature_k\(\) is a temperature in K, not -12"),
        (_Willing, frozenset({TRANSPOSED_MVM}), r"temperature_k\(\) of a board that does not declare 'temperature'"),
        (_Curious, frozenset({TEMPERATURE}), r"sweep_cell\(\) of a board that does not declare 'cell-sweep'"),
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
