"""A recording behind the contract of a board: the same answers bit for bit, and nothing that was not recorded."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from labrig.acquisition import run_sweep
from labrig.boards.replay import ReplayBoard
from labrig.config import parse_rig
from labrig.events import EventBus
from labrig.plans import StreamCapacity
from labrig.plans.mvm import MvmCalibrationPlan
from labrig.portal import LoopPortal
from labrig.portal_board import PortalBoard
from labrig.recording import Recording, RecordingHeader, RecordingWriter, read_mvms
from labrig.recording.rows import read_rows
from labrig.rig import Rig
from labrig.testing.driver_contract import check_crossbar_board
from labrig_calibration.dataset import MvmDataset
from labrig_drivers.crossbar import CrossbarBoard, MvmResult, ProgramReport
from labrig_drivers.errors import CapabilityError, ConfigError, IdentityError, StateError, StorageError
from labrig_drivers.instrument import ExpectedIdentity
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.chip import ChipSettings

SETTINGS = ChipSettings(seed=5, arrays=2, rows=7, columns=5)
PLAN = MvmCalibrationPlan(writes=2, batch=16, seed=3)
RIG = """
[rig]
name = "bench"
[board]
driver = "replay-board"
settings = {{ recording = "{recording}" }}
[safety]
max_voltage_v = 3.0
max_current_a = 0.1
max_power_w = 0.1
max_ramp_v_per_s = 5.0
max_read_voltage_v = 0.3
"""


def rig_of(board: CrossbarBoard, recording: Path) -> Rig:
    text = RIG.format(recording=recording)
    return Rig(parse_rig(text, Path("rig.toml"), drivers=("replay-board",)), board, {})


async def sweep(board: CrossbarBoard, output: Path) -> Path:
    await run_sweep(rig_of(board, output), PLAN, output, EventBus())
    return output


@pytest.fixture
async def recorded(tmp_path: Path) -> Path:
    """Two writes of two arrays."""
    return await sweep(MockBoard(SETTINGS), tmp_path / "run.h5")


def same(first: MvmDataset, second: MvmDataset) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(MvmDataset)]
    return all(
        np.array_equal(one, other) if isinstance(one, np.ndarray) else repr(one) == repr(other) for one, other in pairs
    )


async def test_the_same_plan_gives_the_same_data_bit_for_bit(recorded: Path, tmp_path: Path) -> None:
    board = ReplayBoard.from_settings({"recording": str(recorded)}, ExpectedIdentity("LR-SIM1", "SIM-0005"), "replay")
    again = await sweep(board, tmp_path / "again.h5")
    for array in range(SETTINGS.arrays):
        assert same(read_mvms(recorded, array), read_mvms(again, array))
        with Recording.open(recorded) as one, Recording.open(again) as other:
            rows, replayed = read_rows(one, array), read_rows(other, array)
            assert one.point_hashes(array) == other.point_hashes(array)
            assert other.header.identities == one.header.identities
        for field in fields(rows):
            assert np.array_equal(getattr(rows, field.name), getattr(replayed, field.name)), field.name


async def test_every_vector_was_answered_from_the_write_it_belongs_to(recorded: Path) -> None:
    data = read_mvms(recorded, 1)
    async with ReplayBoard(recorded) as board:
        for write in range(PLAN.writes):
            report = await board.program(1, data.target_conductance_s[write])
            assert report.write_index == write
            mine = data.pattern == write
            # In the opposite order: an answer belongs to its vector, not to its place.
            result = await board.mvm(1, data.voltage_v[mine][::-1])
            assert result.write_index == write
            repeated = np.unique(data.voltage_v[mine], axis=0, return_counts=True)[1].max() > 1
            if not repeated:
                assert np.array_equal(result.current_a, data.current_a[mine][::-1])
            assert np.array_equal(np.sort(result.time_s), data.time_s[mine])


async def test_recordings_of_one_vector_are_given_out_in_turn(tmp_path: Path) -> None:
    path, target_s, line_v = tmp_path / "run.h5", np.full((7, 5), 2e-5), np.full((4, 7), 0.1)
    async with MockBoard(SETTINGS) as mock, await writer_for(mock, path) as writer:
        logged = Logged(mock, writer)
        await logged.program(0, target_s)
        truth = await logged.mvm(0, line_v)
    assert len({code.tobytes() for code in truth.code}) > 1
    for repeat in (False, True):
        async with ReplayBoard(path, repeat=repeat) as board:
            await board.program(0, target_s)
            first, rest = await board.mvm(0, line_v[:1]), await board.mvm(0, line_v[:3])
            assert np.array_equal(np.concatenate([first.code, rest.code]), truth.code)
            if repeat:
                assert np.array_equal((await board.mvm(0, line_v[:2])).code, truth.code[:2])
            else:
                with pytest.raises(CapabilityError, match="recorded 4 times on array 0, write 0, and all of them"):
                    await board.mvm(0, line_v[:1])


async def test_a_refused_batch_gives_nothing_out(recorded: Path) -> None:
    data = read_mvms(recorded)
    mine = data.voltage_v[data.pattern == 0][:3]
    strange = mine.copy()
    strange[2] = 0.0123 * np.arange(7)
    async with ReplayBoard(recorded) as board:
        await board.program(0, data.target_conductance_s[0])
        with pytest.raises(CapabilityError, match=r"vector 2 of the batch was not recorded on array 0, write 0"):
            await board.mvm(0, strange)
        assert np.array_equal((await board.mvm(0, mine)).current_a, data.current_a[:3])


async def test_a_half_dac_step_is_the_same_vector_and_a_whole_one_is_not(recorded: Path) -> None:
    data = read_mvms(recorded)
    async with ReplayBoard(recorded) as board:
        step_v = board.info.dac_step_v
        inner = next(row for row in data.voltage_v if np.abs(row).max() < 0.3 - 2 * step_v)
        on_level = np.round(inner / step_v) * step_v
        await board.program(0, data.target_conductance_s[0])
        await board.mvm(0, on_level[None] + 0.4 * step_v)
        with pytest.raises(CapabilityError, match=r"nearest of \d+ MVMs there is row \d+, which differs on"):
            await board.mvm(0, on_level[None] + np.where(np.arange(7) == 3, 1.0, 0.0) * step_v)


async def test_what_was_not_recorded_is_refused_with_what_there_is(recorded: Path) -> None:
    data = read_mvms(recorded)
    async with ReplayBoard(recorded) as board:
        assert board.info.capabilities == frozenset()
        assert board.info.chip_id == "SIM-0005"
        with pytest.raises(StateError, match="array 0 was never programmed"):
            await board.mvm(0, data.voltage_v[:1])
        with pytest.raises(CapabilityError, match=r"the nearest of 2 recorded writes is 1, rms"):
            await board.program(0, data.target_conductance_s[1] + 1e-8)
        await board.program(0, data.target_conductance_s[1])
        only_first = next(
            row
            for row in data.voltage_v[data.pattern == 0]
            if not (data.voltage_v[data.pattern == 1] == row).all(axis=1).any()
        )
        with pytest.raises(CapabilityError, match="it was recorded on write 0"):
            await board.mvm(0, only_first[None])
        with pytest.raises(CapabilityError, match=r"recorded 1 time on array 0 \(write 1\), and no more are left"):
            await board.program(0, data.target_conductance_s[1])
        with pytest.raises(CapabilityError, match="does not declare 'read-conductance'"):
            await board.read_conductance(0)


async def test_an_array_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    await run_sweep(rig_of(MockBoard(SETTINGS), path), replace(PLAN, arrays=(1,)), path, EventBus())
    async with ReplayBoard(path) as board:
        with pytest.raises(CapabilityError, match="array 0 was not recorded; recorded are: 1"):
            await board.program(0, read_mvms(path, 1).target_conductance_s[0])


async def test_opening_again_begins_at_the_beginning(recorded: Path) -> None:
    board, data = ReplayBoard(recorded), read_mvms(recorded)
    for _ in range(2):
        async with board:
            await board.program(0, data.target_conductance_s[0])
            assert np.array_equal((await board.mvm(0, data.voltage_v[:2])).current_a, data.current_a[:2])
    with pytest.raises(StateError, match="not open"):
        await board.mvm(0, data.voltage_v[:1])


async def test_the_wrong_chip_and_a_damaged_file_are_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="SIM-0006"):
        await ReplayBoard(recorded, expected=ExpectedIdentity(serial="SIM-0006")).open()
    with pytest.raises(StorageError, match="there is no such file"):
        await ReplayBoard(tmp_path / "none.h5").open()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "board.settings.recording: is missing"),
        ({"recording": 3}, "3 is not the name of a file"),
        ({"recording": "a.h5", "repeat": "yes", "speed": 2}, r"speed: unknown key(.|\n)*repeat: 'yes' is neither"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReplayBoard.from_settings(settings, ExpectedIdentity(), "board")


async def test_a_recorded_contract_check_passes_again_on_its_recording(tmp_path: Path) -> None:
    """The strongest replay there is: every request of the contract's checks, answered from the file."""
    path = tmp_path / "run.h5"
    mock = MockBoard(SETTINGS)
    async with mock:
        writer = await writer_for(mock, path)
    logged = Logged(mock, writer)
    fresh = iter([MockBoard(SETTINGS), logged, MockBoard(SETTINGS)])
    await check_crossbar_board(lambda: next(fresh))
    await writer.close()
    await check_crossbar_board(lambda: ReplayBoard(path))


def test_the_physical_backend_of_a_training_runs_on_it(recorded: Path) -> None:
    torch = pytest.importorskip("torch")
    from labrig.training.ledger import Ledger
    from labrig.training.physical import PhysicalBackend

    class Straight:
        """Stands in for the surrogate, whose gradient is not asked for here."""

        def mean_currents(self, tile: object, target_s: object, voltage_v: object) -> object:
            raise AssertionError("no gradient was wanted")

    data = read_mvms(recorded)
    mine = data.pattern == 0
    with LoopPortal() as portal:
        board = ReplayBoard(recorded)
        portal.call(board.open())
        ledger = Ledger()
        backend = PhysicalBackend(PortalBoard(portal, board), Straight(), {"layer": 0}, ledger)  # type: ignore[arg-type]  # no gradient
        target_s, line_v = torch.from_numpy(data.target_conductance_s[0]), torch.from_numpy(data.voltage_v[mine])
        currents = backend.currents("layer", target_s, line_v)
        portal.call(board.close())
    assert np.array_equal(currents.numpy(), data.current_a[mine])
    assert (ledger.writes, ledger.mvms) == (1, int(mine.sum()))


async def writer_for(board: MockBoard, path: Path) -> RecordingWriter:
    header = RecordingHeader.for_rig(rig_of(board, path), {"name": "by hand"})
    capacity = {array: StreamCapacity(rows=4000, writes=9, blocks=40) for array in range(SETTINGS.arrays)}
    return await RecordingWriter.create(path, header, board.info, capacity)


class Logged(MockBoard):
    """A mock whose every answer is recorded."""

    def __init__(self, board: MockBoard, writer: RecordingWriter) -> None:
        super().__init__(board.settings)
        self._open = True
        self._writer = writer
        self._blocks = 0

    async def program(self, array: int, conductance_s: np.ndarray) -> ProgramReport:
        report = await super().program(array, conductance_s)
        await self._writer.append_write(array, conductance_s, report)
        return report

    async def mvm(self, array: int, voltage_v: np.ndarray) -> MvmResult:
        result = await super().mvm(array, voltage_v)
        self._blocks += 1
        await self._writer.append_mvms(array, 3, voltage_v, result, f"{self._blocks:032x}")
        return result


def test_the_rig_file_of_the_guide_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "replay.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    rig = parse_rig(text, Path("rig.toml"), drivers=("replay-board",))
    assert ReplayBoard.from_settings(rig.board.settings, ExpectedIdentity(), "board").path == Path("run.h5")
