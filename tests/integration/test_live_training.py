"""A training on a rig is paused from elsewhere: outputs off, then on with the same request; and stopped by its page."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from labrig.config import RigConfig, load_rig, shipped_rig
from labrig.events import Event, EventBus, Message, RunFinished, RunPaused, RunResumed, RunStarted, StepDone
from labrig.plans.base import StreamCapacity
from labrig.recording import Recording
from labrig.run_control import RunControl
from labrig.simulated import RunningBench, simulated_bench
from labrig_drivers.crossbar import FloatArray
from labrig_drivers.mock.event_log import read_events

pytest.importorskip("torch")
from labrig.testing.known_chip import KnownChip
from labrig.training.config import load_training
from labrig.training.live_rig import LiveRig, LiveRun
from labrig.training.run import train_run
from labrig.training.run_folder import load_metrics
from labrig_surrogates.io import save_chip

WITHOUT_RIG = """
[run]
folder = "{folder}"

[chip]
calibration = "chip.safetensors"

[training]
method = "surrogate"
hidden = 6
digital_steps = 12
surrogate_steps = 12
batch = 16
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[RunningBench]:
    with simulated_bench(tmp_path) as running:
        yield running


class Steered:
    """A run of some passes that is paused before one of them."""

    def __init__(self, config: RigConfig, path: Path) -> None:
        self.control = RunControl()
        self.bus = EventBus()
        self.events: list[Event] = []
        self.paused = threading.Event()
        self.bus.subscribe(self._hear)
        self._run = LiveRun(
            config,
            "SIM-0001",
            path,
            {"name": "training", "seed": 0},
            lambda _: {0: StreamCapacity(rows=200, writes=5, blocks=20)},
            self.control,
        )

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RunPaused):
            self.paused.set()

    def open(self) -> LiveRig:
        return LiveRig(self._run, self.bus)

    def passes(self, board: LiveRig, count: int) -> list[FloatArray]:
        rng = np.random.default_rng(4)
        size = (board.info.rows, board.info.columns)
        board.program(0, rng.uniform(board.info.conductance_min_s, board.info.conductance_max_s, size))
        voltage_v = rng.uniform(-0.2, 0.2, (8, board.info.rows))
        return [board.mvm(0, voltage_v).current_a for _ in range(count)]


def outputs(bench: RunningBench) -> list[bool]:
    """How the supply's output changed, by the simulator's log; off at first."""
    states = [bool(event["output_on"]) for event in read_events(bench.log) if event["what"] == "output"]
    return [state for state, _ in itertools.groupby([False, *states])][1:]


def test_a_pause_switches_the_supply_off_by_the_simulators_log_and_on_again(
    bench: RunningBench, tmp_path: Path
) -> None:
    run = Steered(load_rig(bench.rig_file), tmp_path / "training.h5")
    seen: list[list[bool]] = []

    def go_on() -> None:
        assert run.paused.wait(20)
        seen.append(outputs(bench))
        time.sleep(0.5)
        run.control.resume()

    with run.open() as board:
        run.passes(board, 1)
        run.control.pause("by Anna")
        waiting = threading.Thread(target=go_on)
        waiting.start()
        run.passes(board, 2)
        waiting.join()
        joules = board.joules()
        seen.append(outputs(bench))
    assert seen == [[True, False], [True, False, True]]
    assert outputs(bench)[-1] is False
    assert joules is not None
    (resumed,) = [event for event in run.events if isinstance(event, RunResumed)]
    (started,) = [event for event in run.events if isinstance(event, RunStarted)]
    with Recording.open(tmp_path / "training.h5") as recording:
        assert started.run_id == recording.header.run_id != ""
        trace = recording.supply()
    # What the supply did not give while it was off is not counted.
    largest_w = float(np.max(trace.voltage_v * trace.current_a))
    assert joules <= largest_w * (float(np.ptp(trace.time_s)) - resumed.waited_s)
    (reason,) = [event.reason for event in run.events if isinstance(event, RunPaused)]
    assert reason == "paused: by Anna; the array supply is off, and the run waits"
    assert sum(isinstance(event, RunFinished) for event in run.events) == 1
    with Recording.open(tmp_path / "training.h5") as recording:
        recording.verify()
        assert recording.committed(0) == 24


def test_a_paused_training_measures_what_one_that_was_not_paused_does(tmp_path: Path) -> None:
    config = load_rig(shipped_rig("mock"))
    results = []
    for name in ("straight", "paused"):
        run = Steered(config, tmp_path / f"{name}.h5")
        timer = threading.Timer(0.3, run.control.resume)
        with run.open() as board:
            if name == "paused":
                run.control.pause()
                timer.start()
            results.append(run.passes(board, 3))
        assert run.paused.is_set() is (name == "paused")
        timer.cancel()
        if timer.ident is not None:
            timer.join()
    np.testing.assert_array_equal(results[0], results[1])


def test_a_paused_training_that_is_interrupted_leaves_the_supply_off(bench: RunningBench, tmp_path: Path) -> None:
    run = Steered(load_rig(bench.rig_file), tmp_path / "training.h5")
    failed: list[BaseException] = []

    def measure(board: LiveRig) -> None:
        try:
            run.passes(board, 1)
        except BaseException as error:
            failed.append(error)

    board = run.open().__enter__()
    run.passes(board, 1)
    run.control.pause()
    waiting = threading.Thread(target=measure, args=(board,))
    waiting.start()
    assert run.paused.wait(20)
    # As Ctrl-C and STOP do: the rig is closed while a request waits.
    board.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    waiting.join(20)
    assert not waiting.is_alive()
    assert len(failed) == 1
    assert outputs(bench) == [True, False]
    assert not any(isinstance(event, Message) for event in run.events)


@pytest.mark.parametrize("phase", ["digital", "surrogate"])
def test_a_training_without_a_rig_waits_between_two_steps_and_goes_on_as_if_it_had_not(
    tmp_path: Path, phase: str
) -> None:
    save_chip(tmp_path / "chip.safetensors", KnownChip(rows=64, columns=16).calibration())
    control, bus, paused = RunControl(), EventBus(), threading.Event()
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and (event.phase, event.step) == (phase, 7):
            control.pause("by Anna")
        if isinstance(event, RunPaused):
            paused.set()

    bus.subscribe(hear)
    seen: list[int] = []

    def go_on() -> None:
        assert paused.wait(20)
        for _ in range(2):
            seen.append(sum(isinstance(event, StepDone) for event in events))
            time.sleep(0.3)
        seen.append(len([line for line in load_metrics(tmp_path / "paused") if line["phase"] == phase]))
        control.resume()

    files = {}
    for folder in ("paused", "straight"):
        files[folder] = tmp_path / f"{folder}.toml"
        files[folder].write_text(WITHOUT_RIG.format(folder=folder))
    waiting = threading.Thread(target=go_on)
    waiting.start()
    train_run(load_training(files["paused"]), bus, control=control)
    waiting.join()
    train_run(load_training(files["straight"]), EventBus())
    before = 7 if phase == "digital" else 12 + 7
    assert seen == [before, before, 7]
    assert [event.reason for event in events if isinstance(event, RunPaused)] == ["paused: by Anna; the run waits"]
    assert sum(isinstance(event, RunResumed) for event in events) == 1
    paused_weights, straight = ((tmp_path / name / "network.safetensors").read_bytes() for name in files)
    assert paused_weights == straight
