"""The aihwkit board: its arithmetic on a stand-in tile everywhere, the real toolkit where it is installed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labrig.boards.aihwkit import AihwkitBoard
from labrig.boards.aihwkit_tile import AihwkitSettings, Tile
from labrig.config import parse_rig
from labrig.plans.mvm import MvmCalibrationPlan
from labrig.testing.driver_contract import check_crossbar_board
from labrig.testing.in_memory import measure_dataset
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.errors import ConfigError, IdentityError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.clock import CommandedClock

FloatArray = NDArray[np.float64]

ABSENT = find_spec("aihwkit") is None or find_spec("torch") is None
needs_aihwkit = pytest.mark.skipif(ABSENT, reason="aihwkit is not installed")
SETTINGS = AihwkitSettings(seed=3, arrays=2, rows=12, columns=9, adc_full_scale_a=30e-6)


class StandIn:
    """A noiseless tile with the DAC of aihwkit's."""

    def __init__(self, settings: AihwkitSettings) -> None:
        self._step = 2.0 / (2**settings.dac_bits - 2)
        self.programmed = np.zeros((settings.rows, settings.columns))
        self.ages_s: list[float] = []
        self.seeds: list[int] = []

    def program(self, weight: FloatArray, seed: int) -> None:
        self.programmed = weight
        self.seeds.append(seed)

    def age(self, seconds: float, seed: int) -> None:
        self.ages_s.append(seconds)
        self.seeds.append(seed)

    def weights(self) -> FloatArray:
        return self.programmed

    def forward(self, inputs: FloatArray, seed: int) -> FloatArray:
        self.seeds.append(seed)
        return np.asarray(np.round(inputs / self._step) * self._step @ self.programmed)


def board_of(
    settings: AihwkitSettings = SETTINGS, make_tile: Callable[[AihwkitSettings], Tile] = StandIn
) -> AihwkitBoard:
    return AihwkitBoard(settings, make_tile=make_tile)


async def test_voltages_and_conductances_come_out_as_currents() -> None:
    async with board_of() as board:
        info, rng = board.info, np.random.default_rng(0)
        target_s = rng.uniform(info.conductance_min_s, info.conductance_max_s, (12, 9))
        levels = rng.integers(-127, 128, (20, 12)).astype(np.float64)
        report = await board.program(0, target_s)
        assert report.rms_error_s == pytest.approx(0.0, abs=1e-18)
        result = await board.mvm(0, levels * info.dac_step_v)
        ideal_a = (levels * info.dac_step_v) @ target_s
        assert np.array_equal(result.code, np.rint(ideal_a / info.adc_lsb_a))
        assert np.allclose(result.current_a, ideal_a, rtol=0.0, atol=0.5 * float(info.adc_lsb_a[0]) * (1 + 1e-9))
        assert not result.saturated.any()
        assert np.allclose(await board.read_conductance(0), target_s, rtol=1e-12)


async def test_the_adc_clips_at_both_ends_and_says_so() -> None:
    async with board_of(replace(SETTINGS, adc_full_scale_a=10e-6)) as board:
        await board.program(0, np.full((12, 9), 25e-6))
        result = await board.mvm(0, np.array([[0.2] * 12, [-0.2] * 12, [0.0] * 12]))
        assert result.code[:, 0].tolist() == [511, -512, 0]
        assert result.saturated[:, 0].tolist() == [True, True, False]


async def test_drift_follows_the_clock_and_every_request_draws_anew() -> None:
    tiles: list[StandIn] = []

    def make(settings: AihwkitSettings) -> Tile:
        tiles.append(StandIn(settings))
        return tiles[-1]

    clock = CommandedClock()
    async with AihwkitBoard(replace(SETTINGS, arrays=1), clock=clock, make_tile=make) as board:
        await board.program(0, np.full((12, 9), 5e-6))
        clock.advance(100.0)
        await board.mvm(0, np.zeros((10, 12)))
        await board.mvm(0, np.zeros((1, 12)))
        (tile,) = tiles
        assert tile.ages_s == pytest.approx([0.0, 100.0, 100.0 + 10 * SETTINGS.mvm_latency_s])
        assert len(set(tile.seeds)) == len(tile.seeds)


async def test_the_adapter_keeps_the_contract() -> None:
    boards = iter([board_of(), board_of(), board_of()])
    await check_crossbar_board(lambda: next(boards))


async def test_another_chip_is_refused() -> None:
    board = AihwkitBoard(SETTINGS, expected=ExpectedIdentity(serial="AIHWKIT-0009"), make_tile=StandIn)
    with pytest.raises(IdentityError, match="AIHWKIT-0003"):
        await board.open()


def test_wrong_settings_are_all_named() -> None:
    wrong = {"colour": 1, "rows": 2.5, "out_noise": "low"}
    with pytest.raises(ConfigError) as caught:
        AihwkitBoard.from_settings(wrong, ExpectedIdentity(), "board")
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [f"board.settings.{key}" for key in wrong]
    assert (len(lines) == 4) == ABSENT


@pytest.mark.skipif(not ABSENT, reason="aihwkit is installed")
def test_without_aihwkit_the_message_is_the_line_to_run() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'labrig\[aihwkit\]'"):
        AihwkitBoard.from_settings({}, ExpectedIdentity(), "board")


@needs_aihwkit
async def test_the_real_tile_keeps_the_contract() -> None:
    boards = iter([AihwkitBoard(SETTINGS) for _ in range(3)])
    await check_crossbar_board(lambda: next(boards))


@needs_aihwkit
async def test_the_real_tile_without_noise_is_the_ideal_product() -> None:
    quiet = replace(SETTINGS, out_noise=0.0, prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0)
    async with AihwkitBoard(quiet) as board:
        info, rng = board.info, np.random.default_rng(0)
        target_s = rng.uniform(info.conductance_min_s, info.conductance_max_s, (12, 9))
        levels = rng.integers(-127, 128, (50, 12)).astype(np.float64)
        assert (await board.program(0, target_s)).rms_error_s < 1e-11
        current_a = (await board.mvm(0, levels * info.dac_step_v)).current_a
        # float32 inside the tile may round a current that lies between two codes the other way.
        apart = np.abs(current_a - (levels * info.dac_step_v) @ target_s) / info.adc_lsb_a
        assert float(apart.max()) < 0.51


@needs_aihwkit
async def test_the_real_tile_has_the_published_programming_error_and_drift() -> None:
    settings = replace(SETTINGS, arrays=1, rows=100, columns=100, out_noise=0.0, read_noise_scale=0.0)
    clock = CommandedClock()
    async with AihwkitBoard(settings, clock=clock) as board:
        half_s = 0.5 * settings.conductance_max_s
        report = await board.program(0, np.full((100, 100), half_s))
        # Nandakumar et al. 2019: 0.26348 + 1.9650 / 2 - 1.1731 / 4 uS at half of 25 uS.
        assert report.rms_error_s == pytest.approx(0.9527e-6, rel=0.03)
        clock.advance(3600.0)
        drifted = (await board.read_conductance(0)).mean() / half_s
        # A mean exponent of 0.049 (the lowest that the model has) from 20 s on.
        assert drifted == pytest.approx((3620.0 / 20.0) ** -0.049, rel=0.02)


@needs_aihwkit
async def test_the_same_seed_gives_the_same_codes_without_output_noise() -> None:
    quiet = replace(SETTINGS, out_noise=0.0)
    codes = []
    for settings in (quiet, quiet, replace(quiet, seed=4)):
        async with AihwkitBoard(settings) as board:
            await board.program(1, np.full((12, 9), 10e-6))
            codes.append((await board.mvm(1, np.full((3, 12), 0.15))).code)
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


@needs_aihwkit
async def test_torchs_own_generator_is_left_alone() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    async with AihwkitBoard(SETTINGS) as board:
        await board.program(0, np.full((12, 9), 10e-6))
        await board.mvm(0, np.zeros((2, 12)))
    assert torch.equal(torch.rand(3), expected)


@needs_aihwkit
def test_a_chip_that_labrig_did_not_write_can_be_calibrated() -> None:
    """The fit, which knows nothing of aihwkit, leaves nothing but noise on held-out currents."""
    pytest.importorskip("scipy")
    from labrig.threads import one_thread
    from labrig_calibration.fit import fit

    # The 1/f noise is off: one draw of it for each request is no noise law that the fit has.
    settings = replace(SETTINGS, arrays=1, rows=32, columns=32, adc_full_scale_a=60e-6, read_noise_scale=0.0)

    async def measure() -> MvmDataset:
        async with AihwkitBoard(settings) as board:
            return (await measure_dataset(board, MvmCalibrationPlan(writes=4)))[0]

    with one_thread():
        diagnostics = fit(asyncio.run(measure()), rng=np.random.default_rng(0)).diagnostics
    assert 0.97 < diagnostics.error_over_noise < 1.05
    assert 0.88 < diagnostics.coverage_90 < 0.92
    # What the targets alone predict is the negative control.
    assert float(np.median(diagnostics.nominal_rms_a / diagnostics.noise_rms_a)) > 1.4


def test_the_rig_file_of_the_guide_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "aihwkit.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    rig = parse_rig(text, Path("rig.toml"), drivers=("aihwkit-board",))
    assert set(rig.board.settings) <= {field.name for field in fields(AihwkitSettings)}
