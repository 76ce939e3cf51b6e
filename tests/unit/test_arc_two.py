"""The driver of the ArC TWO against a fake of `pyarc2`: contract, order of calls, and calls that never return."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from labrig.config import parse_rig
from labrig.testing import fake_arc_two
from labrig.testing.driver_contract import check_crossbar_board
from labrig.testing.fake_arc_two import FakeArcTwoFile
from labrig_drivers import arc_two_worker
from labrig_drivers.arc_two import ArcTwoBoard
from labrig_drivers.arc_two_settings import BIT_CHANNELS, WORD_CHANNELS, ArcTwoSettings, PulseRecipe
from labrig_drivers.errors import (
    ConfigError,
    IdentityError,
    InstrumentError,
    LinkDesyncedError,
    LinkLostError,
    LinkTimeoutError,
    ProtocolError,
    StateError,
)
from labrig_drivers.instrument import ExpectedIdentity

FACTORY = "labrig.testing.fake_arc_two:Instrument"
RECIPE = PulseRecipe(
    set_v=0.65,
    reset_v=-0.65,
    step_v=0.05,
    max_v=1.5,
    pulse_s=1e-6,
    max_pulses=60,
    tolerance_s=1e-6,
    verify_v=0.2,
)
ROWS, COLUMNS = (16, 63, 17, 62, 18), (15, 32, 14, 33)
SETTINGS = ArcTwoSettings(
    chip_id="W7-D3",
    firmware="",
    recipe=RECIPE,
    conductance_min_s=10e-6,
    conductance_max_s=90e-6,
    serial="A2-0042",
    row_channels=ROWS,
    column_channels=COLUMNS,
    adc_full_scale_a=200e-6,
)
TABLE: dict[str, object] = {
    "chip_id": "W7-D3",
    "firmware": "efm03.bin",
    "conductance_min_s": 10e-6,
    "conductance_max_s": 90e-6,
    "pulses": {"set_v": 0.65, "reset_v": 0.7, "max_v": 1.5, "pulse_s": 1e-6, "tolerance_s": 1e-6},
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ArcTwoBoard]:
    def make_board(fake: FakeArcTwoFile | None = None, **changes: object) -> ArcTwoBoard:
        firmware = (fake or FakeArcTwoFile()).write(tmp_path / "fake.json")
        settings = replace(SETTINGS, firmware=str(firmware), **changes)  # type: ignore[arg-type]
        return ArcTwoBoard(settings, factory=FACTORY)

    return make_board


def fake(tmp_path: Path, **changes: object) -> fake_arc_two.Instrument:
    """The fake in this process."""
    firmware = FakeArcTwoFile(noise=0.0, **changes).write(tmp_path / "fake.json")  # type: ignore[arg-type]
    return fake_arc_two.Instrument(0, str(firmware))


def cells_of(instrument: fake_arc_two.Instrument) -> np.ndarray:
    return instrument.conductance_s[np.ix_(ROWS, COLUMNS)]


async def test_it_keeps_the_contract(make: Callable[..., ArcTwoBoard]) -> None:
    await check_crossbar_board(make)


def test_an_mvm_is_the_product_with_the_cells(tmp_path: Path) -> None:
    instrument = fake(tmp_path)
    voltage_v = np.random.default_rng(0).uniform(-0.2, 0.2, (7, len(ROWS)))
    currents_a, _ = arc_two_worker.measure_mvm(instrument, ROWS, COLUMNS, voltage_v.tolist(), 0.0)
    assert np.allclose(currents_a, voltage_v @ cells_of(instrument), rtol=1e-5, atol=1e-12)
    assert not instrument.voltage_v.any()
    back_v = voltage_v[:, : len(COLUMNS)]
    currents_a, _ = arc_two_worker.measure_mvm(instrument, COLUMNS, ROWS, back_v.tolist(), 1e-3)
    assert np.allclose(currents_a, back_v @ cells_of(instrument).T, rtol=1e-5, atol=1e-12)


def test_one_driven_line_gives_the_currents_of_the_librarys_own_read(tmp_path: Path) -> None:
    """Sign and polarity are those of `read_slice`, whatever they are: both reads must agree about a cell."""
    instrument = fake(tmp_path, sign=-1)
    one_line_v = (0.1 * np.eye(len(ROWS))).tolist()
    currents_a, _ = arc_two_worker.measure_mvm(instrument, ROWS, COLUMNS, one_line_v, 0.0)
    assert np.allclose(currents_a, arc_two_worker.read_cells(instrument, ROWS, COLUMNS, 0.1), rtol=1e-5)


def test_lines_are_freed_before_and_grounded_after_every_operation(tmp_path: Path) -> None:
    instrument = fake(tmp_path)
    arc_two_worker.measure_mvm(instrument, ROWS, COLUMNS, [[0.1] * len(ROWS)], 1e-3)
    assert instrument.calls == [
        "connect_to_gnd",
        "config_channels",
        "delay",
        "execute",
        "read_slice_open",
        "ground_all_fast",
        "execute",
        "wait",
    ]
    arc_two_worker.make_safe(instrument)
    assert instrument.calls[-4:] == ["ground_all_fast", "connect_to_gnd", "execute", "wait"]
    assert len(instrument.grounded) == 64
    arc_two_worker.read_cells(instrument, ROWS, COLUMNS, 0.1)
    arc_two_worker.program_row(instrument, 16, COLUMNS, [5e-5] * 4, asdict(RECIPE), 1)
    assert not instrument.voltage_v.any()


def test_programming_ends_within_the_tolerance_or_at_the_limit_of_pulses(tmp_path: Path) -> None:
    instrument = fake(tmp_path)
    target_s = [20e-6, 80e-6, 50e-6, 35e-6]
    pulses = arc_two_worker.program_row(instrument, 17, COLUMNS, target_s, asdict(RECIPE), 1)
    reached_s = instrument.conductance_s[17, list(COLUMNS)]
    assert np.abs(reached_s - target_s).max() <= RECIPE.tolerance_s
    assert pulses == instrument.calls.count("pulseread_one") > 0
    # Nothing to do: no pulse.
    assert arc_two_worker.program_row(instrument, 17, COLUMNS, reached_s.tolist(), asdict(RECIPE), 1) == 0
    dull = asdict(replace(RECIPE, step_v=0.0, set_v=0.5, reset_v=-0.5, max_pulses=3))
    assert arc_two_worker.program_row(instrument, 18, COLUMNS[:1], [1.0], dull, 1) == 3


def test_pulses_grow_and_start_small_again_after_a_turn() -> None:
    class Scripted:
        """Reads as told, and notes the pulses."""

        def __init__(self, conductances_s: list[float]) -> None:
            self.reads, self.pulses_v = [0.2 * one for one in conductances_s], list[float]()

        def read_one(self, low: int, high: int, vread: float) -> float:
            return self.reads.pop(0)

        def pulseread_one(self, low: int, high: int, vpulse: float, nanos: int, vread: float) -> float:
            self.pulses_v.append(round(vpulse, 9))
            assert nanos == 1000
            return self.reads.pop(0)

        def connect_to_gnd(self, chans: object) -> Scripted:
            return self

        ground_all_fast = execute = wait = lambda self: self

    instrument = Scripted([10e-6, 20e-6, 30e-6, 60e-6, 55e-6, 40e-6, 50e-6])
    recipe = asdict(replace(RECIPE, step_v=0.5, max_v=1.3))
    assert arc_two_worker.program_row(instrument, 16, [0], [50e-6], recipe, 1) == 6  # type: ignore[arg-type]
    assert instrument.pulses_v == [0.65, 1.15, 1.3, -0.65, -1.15, 0.65]


async def test_codes_ranges_and_identity(make: Callable[..., ArcTwoBoard], tmp_path: Path) -> None:
    async with make(FakeArcTwoFile(noise=0.0), adc_full_scale_a=20e-6) as board:
        info = board.info
        assert (info.rows, info.columns, info.arrays) == (5, 4, 1)
        assert board.identity.serial == "A2-0042"
        assert board.identity.firmware.startswith("fake.json sha256 ")
        assert board.host_loss_protection.silence_s is None
        report = await board.program(0, np.full((5, 4), 50e-6))
        assert report.pulses > 0
        assert report.rms_error_s < RECIPE.tolerance_s
        result = await board.mvm(0, np.array([[0.2] * 5, [-0.2] * 5, [0.01] * 5]))
        assert result.saturated.tolist() == [[True] * 4, [True] * 4, [False] * 4]
        assert (result.code[0] == 32767).all()
        assert (result.code[1] == -32768).all()
        # The vector is applied as the declared levels of the DAC.
        applied_v = round(0.01 / info.dac_step_v) * info.dac_step_v
        truth_s = await board.read_conductance(0)
        assert np.allclose(result.current_a[2], applied_v * truth_s.sum(axis=0), rtol=1e-3)
        assert abs(result.time_s[0] - time.time()) < 60.0


async def test_it_must_be_programmed_before_it_measures(make: Callable[..., ArcTwoBoard]) -> None:
    async with make() as board:
        with pytest.raises(StateError, match="never programmed"):
            await board.mvm(0, np.zeros((1, 5)))


async def test_currents_of_the_wrong_sign_are_found_before_the_first_pulse(
    make: Callable[..., ArcTwoBoard], tmp_path: Path
) -> None:
    backwards = FakeArcTwoFile(sign=-1, log=str(tmp_path / "calls.log"))
    async with make(backwards) as board:
        with pytest.raises(ProtocolError, match="no pulse was given"):
            await board.program(0, np.full((5, 4), 50e-6))
    assert "pulseread_one" not in (tmp_path / "calls.log").read_text()
    async with make(backwards, current_sign=-1) as board:
        assert (await board.program(0, np.full((5, 4), 50e-6))).rms_error_s < 2e-6


async def test_a_call_that_never_returns_is_given_up(make: Callable[..., ArcTwoBoard], tmp_path: Path) -> None:
    stuck = FakeArcTwoFile(stuck_call="read_slice_open", calls_before=2, once=str(tmp_path / "stuck"))
    board = make(replace(stuck, log=str(tmp_path / "calls.log")), timeout_s=0.3)
    await board.open()
    await board.program(0, np.full((5, 4), 50e-6))
    with pytest.raises(LinkTimeoutError, match=r"`mvm` did not return within .* SWITCH|switch the instrument off"):
        await board.mvm(0, np.full((3, 5), 0.1))
    for call in (board.mvm(0, np.zeros((1, 5))), board.program(0, np.full((5, 4), 50e-6)), board.read_conductance(0)):
        with pytest.raises(LinkDesyncedError, match="`mvm` did not return"):
            await call
    # The lines were left at 0.1 V by the process that was killed; closing grounds them from a new one.
    await board.close()
    last = json.loads((tmp_path / "calls.log").read_text().splitlines()[-1])
    assert last == {"call": "wait", "live_v": 0.0, "grounded": 64}
    async with board:
        await board.program(0, np.full((5, 4), 50e-6))
        assert (await board.mvm(0, np.full((5, 5), 0.1))).write_index == 1


async def test_a_board_that_stays_stuck_is_told_to_the_person(make: Callable[..., ArcTwoBoard]) -> None:
    board = make(FakeArcTwoFile(stuck_call="wait"), timeout_s=0.1)
    await board.open()
    with pytest.raises(LinkTimeoutError):
        await board.read_conductance(0)
    with pytest.raises(LinkLostError, match="SWITCH THE INSTRUMENT OFF now"):
        await board.close()
    await board.close()


async def test_an_error_of_the_library_ends_the_session(make: Callable[..., ArcTwoBoard], tmp_path: Path) -> None:
    log = tmp_path / "calls.log"
    board = make(FakeArcTwoFile(broken_call="read_slice_open", log=str(log)))
    async with board:
        await board.program(0, np.full((5, 4), 50e-6))
        with pytest.raises(InstrumentError, match="FakeArcTwoError: read_slice_open failed"):
            await board.mvm(0, np.full((1, 5), 0.1))
        with pytest.raises(LinkDesyncedError, match="`mvm` failed"):
            await board.mvm(0, np.full((1, 5), 0.1))
    assert json.loads(log.read_text().splitlines()[-1])["grounded"] == 64


async def test_a_cancelled_request_ends_before_the_next_one_begins(make: Callable[..., ArcTwoBoard]) -> None:
    async with make() as board:
        await board.program(0, np.full((5, 4), 50e-6))
        task = asyncio.create_task(board.mvm(0, np.full((5000, 5), 0.1)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await board.mvm(0, np.zeros((3, 5)))).code.shape == (3, 4)


async def test_the_worker_grounds_the_lines_when_its_parent_is_gone(tmp_path: Path) -> None:
    """What a killed parent leaves behind is a closed pipe."""
    log = tmp_path / "calls.log"
    firmware = FakeArcTwoFile(log=str(log)).write(tmp_path / "fake.json")
    opening = {"verb": "open", "factory": FACTORY, "port": 0, "firmware": str(firmware)}
    answers = io.BytesIO()
    assert arc_two_worker.serve(io.BytesIO(json.dumps(opening).encode() + b"\n"), answers) == 0
    assert json.loads(answers.getvalue()) == {"ok": {}}
    assert json.loads(log.read_text().splitlines()[-1]) == {"call": "wait", "live_v": 0.0, "grounded": 64}


async def test_a_worker_that_dies_is_a_lost_link(make: Callable[..., ArcTwoBoard]) -> None:
    board = make()
    await board.open()
    worker = board._process
    assert worker is not None
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(LinkLostError, match="ended during `read`"):
        await board.read_conductance(0)
    await board.close()


async def test_another_instrument_is_refused_before_anything_starts(make: Callable[..., ArcTwoBoard]) -> None:
    board = make()
    board._expected = ExpectedIdentity(serial="A2-0001")
    with pytest.raises(IdentityError, match="A2-0042"):
        await board.open()
    assert board._process is None


async def test_a_library_that_cannot_open_leaves_nothing_behind(make: Callable[..., ArcTwoBoard]) -> None:
    board = make()
    board._factory = "labrig.testing.fake_arc_two:Nothing"
    with pytest.raises(InstrumentError, match="AttributeError"):
        await board.open()
    with pytest.raises(StateError):
        _ = board.info


async def test_a_missing_firmware_is_named(make: Callable[..., ArcTwoBoard], tmp_path: Path) -> None:
    board = make()
    board.settings = replace(board.settings, firmware=str(tmp_path / "none.bin"))
    with pytest.raises(ConfigError, match=r"firmware: .*none.bin cannot be read"):
        await board.open()


def test_settings_of_a_rig_file() -> None:
    settings = ArcTwoSettings.from_table(TABLE | {"rows": 8, "line_order": "plcc32", "current_sign": "negative"})
    assert settings.row_channels == (16, 63, 17, 62, 18, 61, 19, 60)
    assert settings.column_channels[:4] == (15, 32, 14, 33)
    assert sorted(settings.column_channels) == sorted(BIT_CHANNELS)
    assert (settings.recipe.set_v, settings.recipe.reset_v, settings.current_sign) == (0.65, -0.7, -1)
    swapped = ArcTwoSettings.from_table(TABLE | {"word_lines": "bits"})
    assert (swapped.row_channels, swapped.column_channels) == (BIT_CHANNELS, WORD_CHANNELS)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"chip_id": "", "speed": 3}, ["chip_id: '' is not a text", "speed: unknown key"]),
        ({"rows": 33}, ["rows: 33 is more than the 32"]),
        (
            {"conductance_min_s": 1e-3, "voltage_max_v": 11.0},
            ["0.001 S must be below conductance_max_s", "11 V exceeds the channels' 10 V"],
        ),
        ({"voltage_max_v": 0.1}, ["pulses.verify_v: 0.2 V exceeds the read voltage voltage_max_v = 0.1 V"]),
        ({"pulses": {"set_v": 2.0}}, ["pulses.max_v: is missing", "pulses.reset_v: is missing"]),
    ],
)
def test_wrong_settings_are_all_named(changes: dict[str, object], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ArcTwoSettings.from_table(TABLE | changes)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.skipif(find_spec("pyarc2") is not None, reason="pyarc2 is installed")
def test_without_the_library_the_message_is_the_line_to_run() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'labrig\[arc2\]'"):
        ArcTwoBoard.from_settings(TABLE, ExpectedIdentity(), "board")


CALLS = [name for name in vars(arc_two_worker.ArcTwoInstrument) if not name.startswith("_")]


@pytest.mark.parametrize("name", ["__init__", *CALLS])
def test_the_fake_has_the_signatures_of_the_real_library(name: str) -> None:
    """Names, order and defaults of parameters: a call that fits the fake fits the real one."""
    pyarc2 = pytest.importorskip("pyarc2")
    real = inspect.signature(getattr(pyarc2.Instrument, name)).parameters
    mine = inspect.signature(getattr(fake_arc_two.Instrument, name)).parameters
    assert list(mine) == list(real)
    assert [one.default for one in mine.values()] == [one.default for one in real.values()]
    used = inspect.signature(getattr(arc_two_worker.ArcTwoInstrument, name)).parameters
    assert name == "__init__" or list(used) == list(real)


def test_the_rig_file_of_the_guide_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "arc-two.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    rig = parse_rig(text, Path("rig.toml"), drivers=("arc-two",))
    assert ArcTwoSettings.from_table(rig.board.settings).recipe.reset_v == -0.9
