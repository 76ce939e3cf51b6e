"""Training on a board behind TCP whose line drops, whose line freezes, or that is switched off and on meanwhile."""

import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from labrig.events import Event, EventBus, Message, StepDone
from labrig.portal import LoopPortal
from labrig.testing.fault_lane import cut_frames
from labrig.testing.fault_plan import Fault, FaultPlan, PlannedFault
from labrig.testing.fault_proxy import FaultProxy
from labrig.testing.known_chip import KnownChip
from labrig.training.config import load_training
from labrig.training.physical import PhysicalBackend
from labrig.training.replay_run import replay_run
from labrig.training.run import resume_run, train_run
from labrig.training.run_folder import load_metrics, load_origin, load_summary
from labrig_drivers.crossbar import FloatArray, MvmResult
from labrig_drivers.errors import LabrigError, LinkLostError
from labrig_drivers.mock.board import MockBoard
from labrig_drivers.mock.board_server import BoardServer
from labrig_drivers.mock.chip import ChipSettings
from labrig_surrogates.backend import TileName
from labrig_surrogates.io import save_chip

CHIP = ChipSettings(seed=3, rows=8, columns=8)
RIG = """
[rig]
name = "behind a proxy"

[board]
driver = "wire-board"
link = "tcp://127.0.0.1:{port}"

[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.5
"""
TRAINING = """
[run]
folder = "run"
checkpoint_every = 4
reconnects = {reconnects}

[chip]
rig = "rig.toml"
calibration = "chip.safetensors"

[data]
name = "own.py:corners"

[training]
method = "{method}"
model = "own.py:small"
digital_steps = 20
surrogate_steps = 0
steps = 24
surrogate_steps_per_cycle = 1
batch = 16
"""
OWN = """
import torch
from labrig.training.datasets import ImageSet


def corners():
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(96) % 3
    x = (0.2 + 0.6 * torch.eye(3)[y] + 0.1 * torch.randn((96, 3), generator=generator)).clamp(0, 1)
    return ImageSet("corners", x[:64], y[:64], x[64:], y[64:], 3)


def small(shape, classes):
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 4), torch.nn.ReLU(), torch.nn.Linear(4, classes))
"""


def training(*, reconnects: int, method: str = "in-loop") -> str:
    return TRAINING.format(reconnects=reconnects, method=method)


class Bench:
    """A served board behind a proxy, in an event loop of its own."""

    def __init__(self, folder: Path, portal: LoopPortal) -> None:
        self.folder, self._portal = folder, portal
        self.server = BoardServer(MockBoard(CHIP))
        self.call(self.server.start_tcp())
        self.proxy = FaultProxy(self.port, requests=cut_frames, answers=cut_frames)
        self.call(self.proxy.start())
        (folder / "rig.toml").write_text(RIG.format(port=self.proxy.port))
        (folder / "own.py").write_text(OWN)
        like = KnownChip(columns=8, conductance_max_s=50e-6, voltage_max_v=0.3, noise=0.02).calibration()
        for array in like.arrays.values():
            object.__setattr__(array.converters, "conductance_min_s", 4e-6)
        object.__setattr__(like, "chip_id", "SIM-0003")
        save_chip(folder / "chip.safetensors", like)

    @property
    def port(self) -> int:
        return self._port

    def call(self, coroutine: Coroutine[object, object, object]) -> None:
        found = self._portal.call(coroutine)
        if isinstance(found, int):
            self._port = found

    def restart(self) -> None:
        """Switches the board off and on: another chip life, on which nothing is programmed."""
        self.call(self.server.stop())
        self.server = BoardServer(MockBoard(CHIP))
        self.call(self.server.start_tcp(port=self._port))

    def lose(self, fault: Fault) -> None:
        """Has the second answer from now on, that of a measurement, go wrong."""
        self.proxy.plan = FaultPlan.of(PlannedFault(fault, message=1, offset=24, data=b"\x01"))

    def end(self) -> None:
        self.call(self.proxy.stop())
        self.call(self.server.stop())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with LoopPortal() as portal:
        made = Bench(tmp_path, portal)
        yield made
        made.end()


def at_steps(bus: EventBus, steps: set[int], act: Callable[[], None]) -> None:
    """Acts after some of the method's own steps, each once."""

    def listen(event: Event) -> None:
        if (
            isinstance(event, StepDone)
            and event.phase in {"in-loop", "in-loop-overlapped", "asyt"}
            and event.step in steps
        ):
            steps.discard(event.step)
            act()

    bus.subscribe(listen)


def trained_once(folder: Path, method: str = "in-loop") -> None:
    lines = [line for line in load_metrics(folder) if line["phase"] == method]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert [line["kind"] for line in lines] == ["surrogate", "physical"] * 12


@pytest.mark.parametrize(
    ("method", "fault", "restarts"),
    [
        ("in-loop", Fault.RESET, False),
        ("in-loop", Fault.RESET, True),
        ("in-loop-overlapped", Fault.RESET, True),
        ("asyt", Fault.RESET, True),
        pytest.param("in-loop", Fault.CORRUPT, False, marks=pytest.mark.nightly),
        pytest.param("in-loop", Fault.CUT, False, marks=pytest.mark.nightly),
    ],
)
def test_a_rig_that_comes_back_is_gone_on_with_and_no_stale_output_is_used(
    bench: Bench, method: str, fault: Fault, restarts: bool
) -> None:
    (bench.folder / "train.toml").write_text(training(reconnects=3, method=method))
    bus, messages = EventBus(), list[str]()
    bus.subscribe(lambda event: messages.append(event.text) if isinstance(event, Message) else None)
    at_steps(bus, {7}, lambda: bench.lose(fault))

    def lost(event: Event) -> None:
        if restarts and isinstance(event, Message) and "the rig was lost" in event.text:
            bench.restart()

    bus.subscribe(lost)
    train_run(load_training(bench.folder / "train.toml"), bus)
    folder = bench.folder / "run"
    trained_once(folder, method)
    assert any(text.startswith("the rig was lost (") for text in messages), messages
    ledger = load_summary(folder)["ledger"]
    assert isinstance(ledger, dict)
    assert (ledger["reconnects"], ledger["surrogate_steps"]) == (1, 12)
    segments = json.loads((folder / "recordings.json").read_text())["recordings"]
    assert [one["file"] for one in segments] == ["training.h5", "training-2.h5"]
    # A pass that was under way when the line went is made again: its recording begins where the pass did.
    assert segments[1]["step"] in ({5, 7} if method == "in-loop-overlapped" else {7})
    assert segments[1]["fresh"]
    # Every answer that moved a weight is in the recordings, in order: they give the same weights again.
    assert replay_run(folder, EventBus()).different == 0.0


@pytest.mark.parametrize("method", ["in-loop", pytest.param("in-loop-overlapped", marks=pytest.mark.nightly)])
def test_a_rig_lost_while_it_is_looked_at_leaves_a_run_that_can_be_replayed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    text = training(reconnects=3, method=method) + "\n[recalibration]\non = true\ncanaries_every = 2\n"
    (bench.folder / "train.toml").write_text(text)
    measure, looked = PhysicalBackend.measure, 0

    def measured(self: PhysicalBackend, array: int, voltage_v: FloatArray, tile: TileName | None = None) -> MvmResult:
        nonlocal looked
        looked += tile is None
        if tile is None and looked == 4:
            # In the second look, when its first array is read: what was read counts for nothing.
            raise LinkLostError("the line is dead")
        return measure(self, array, voltage_v, tile)

    monkeypatch.setattr(PhysicalBackend, "measure", measured)
    train_run(load_training(bench.folder / "train.toml"), EventBus())
    folder = bench.folder / "run"
    trained_once(folder, method)
    lines = [line for line in load_metrics(folder) if line["phase"] == method]
    looks = [line["step"] for line in lines if "canaries" in line]
    assert looks[:2] == [4, 10]  # the one after step 8 failed, and was made up for after the next pass
    assert replay_run(folder, EventBus()).different == 0.0


def test_a_rig_that_stays_away_ends_the_run_which_can_be_resumed(bench: Bench) -> None:
    (bench.folder / "train.toml").write_text(training(reconnects=0))
    bus = EventBus()
    at_steps(bus, {9}, lambda: bench.lose(Fault.RESET))
    with pytest.raises(LabrigError):
        train_run(load_training(bench.folder / "train.toml"), bus)
    folder = bench.folder / "run"
    assert not (folder / "run.json").exists()
    resume_run(load_origin(folder), EventBus())
    trained_once(folder)
    assert replay_run(folder, EventBus()).different == 0.0


@pytest.mark.nightly
@pytest.mark.timeout(200)
def test_a_frozen_line_times_out_and_what_it_says_later_is_not_believed(bench: Bench) -> None:
    (bench.folder / "train.toml").write_text(training(reconnects=5))
    bus = EventBus()

    def lost(event: Event) -> None:
        if isinstance(event, Message) and "the rig was lost" in event.text:
            bench.proxy.thaw()

    bus.subscribe(lost)
    at_steps(bus, {5, 13}, bench.proxy.freeze)
    train_run(load_training(bench.folder / "train.toml"), bus)
    trained_once(bench.folder / "run")
    assert replay_run(bench.folder / "run", EventBus()).different == 0.0
