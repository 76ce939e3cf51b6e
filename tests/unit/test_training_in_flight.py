"""Passes that are under way while the trainer computes: what is stale, what is fresh, what it costs."""

import copy
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from known_training import MISMATCHED, cosine, run, session_on, stepped_gradients, whole_batch
from torch import Tensor

from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.bench import analog_weights
from labrig.training.canaries import CanarySettings
from labrig.training.optimisation import Optimisation
from labrig.training.physical import FloatArray
from labrig.training.plan import MethodName, Plan, PolicyPlan
from labrig.training.policy import Budget
from labrig_drivers.crossbar import MvmResult, ProgramReport


def test_a_stale_step_is_that_of_the_weights_before_and_the_ledger_shows_it() -> None:
    plan = Plan(steps=4, policy=PolicyPlan(surrogate_steps=0), optimisation=Optimisation(96, 1e-2))
    stale, fresh = session_on(MISMATCHED, "in-loop-stale", plan=plan), session_on(MISMATCHED, plan=plan)
    first = copy.deepcopy(stale.bench.stepper.network.state_dict())
    taken, exact = stepped_gradients(stale), stepped_gradients(fresh)
    run(stale)
    run(fresh)
    assert (stale.bench.ledger.stale_steps, stale.bench.ledger.passes) == (3, 4)
    assert fresh.bench.ledger.stale_steps == 0
    # The first gradient belongs to the first weights; it is used one step later.
    for name, one in taken[0].items():
        torch.testing.assert_close(one, exact[0][name], rtol=1e-4, atol=1e-6)
    assert len(taken) == 3
    # The second pass was measured before the first step was taken: on the first weights as well.
    fresh.bench.stepper.network.load_state_dict(first)
    assert cosine(taken[1], taken[0]) > 0.99


def test_without_steps_between_an_overlapped_training_is_physics_aware_training() -> None:
    plan = Plan(steps=6, policy=PolicyPlan(surrogate_steps=0), optimisation=Optimisation(32, 1e-2))
    chip = replace(MISMATCHED, noise=0.05)
    ahead, plain = (session_on(chip, name, plan=plan) for name in ("in-loop-overlapped", "in-loop"))
    run(ahead)
    run(plain)
    for name, one in plain.bench.stepper.parameters.items():
        assert torch.equal(ahead.bench.stepper.parameters[name], one)
    assert (ahead.bench.ledger.passes, ahead.bench.ledger.corrected_steps, ahead.bench.ledger.overlapped_steps) == (
        6,
        0,
        0,
    )


def test_an_overlapped_step_is_fresh_where_the_surrogate_is_right_and_a_stale_one_is_not() -> None:
    plan = Plan(steps=8, policy=PolicyPlan(surrogate_steps=3), optimisation=Optimisation(96, 3e-2), probe_every=0)
    chip = KnownChip()
    found = {}
    for method in ("in-loop-overlapped", "in-loop-stale"):
        session = session_on(chip, method, plan=plan)
        session.method.begin(session.bench)
        for _ in range(7):
            session.advance(lambda _: None)
        used = copy.deepcopy(session.bench.stepper.network.state_dict())
        taken = stepped_gradients(session)
        session.advance(lambda _: None)
        session.method.settle(session.bench)
        session.bench.stepper.network.load_state_dict(used)
        session.bench.backends.use("surrogate")
        exact = session.bench.gradient_through(session.bench.surrogate, whole_batch())
        mine = {name: taken[0][f"{name}.weight"] for name in exact}
        found[method] = (cosine(mine, exact), session.bench.ledger)
        ledger = session.bench.ledger
        assert (ledger.passes, ledger.surrogate_steps) == (2, 6)
    # The whole training set is one batch: only the order of the images differs.
    assert found["in-loop-overlapped"][0] > 1.0 - 1e-6
    assert found["in-loop-stale"][0] < 1.0 - 1e-4
    assert (found["in-loop-overlapped"][1].overlapped_steps, found["in-loop-overlapped"][1].corrected_steps) == (3, 1)
    assert (found["in-loop-stale"][1].overlapped_steps, found["in-loop-stale"][1].stale_steps) == (0, 1)


def test_what_the_chip_says_against_the_surrogate_is_of_the_snapshot() -> None:
    """Where the data sheet is somewhat wrong, the joined gradient is nearer to the chip's than either part."""
    plan = Plan(steps=8, policy=PolicyPlan(surrogate_steps=3), optimisation=Optimisation(96, 3e-2), probe_every=0)
    apart: dict[str, list[float]] = {"sheet": [], "in-loop-stale": [], "in-loop-overlapped": []}
    for seed in range(4):
        chip = KnownChip(seed=seed + 1, gain_sigma=0.1, offset_sigma=0.02, cell_sigma=0.1, compression=0.05)
        found: dict[str, dict[str, Tensor]] = {}
        for method in ("in-loop-stale", "in-loop-overlapped"):
            session = session_on(chip, method, calibrated=False, plan=plan, seed=seed)
            session.method.begin(session.bench)
            for _ in range(7):
                session.advance(lambda _: None)
            used = copy.deepcopy(session.bench.stepper.network.state_dict())
            taken = stepped_gradients(session)
            session.advance(lambda _: None)
            session.method.settle(session.bench)
            found[method] = {name: taken[0][f"{name}.weight"] for name in ("hidden", "output")}
        session.bench.stepper.network.load_state_dict(used)
        session.bench.physical_gradient(whole_batch())
        exact = {name: one.grad for name, one in analog_weights(session.bench).items() if one.grad is not None}
        found["sheet"] = session.bench.gradient_through(session.bench.surrogate, whole_batch())
        for name, gradient in found.items():
            squares = [
                (float((gradient[one] - exact[one]).square().sum()), float(exact[one].square().sum())) for one in exact
            ]
            apart[name].append((sum(one for one, _ in squares) / sum(one for _, one in squares)) ** 0.5)
    joined, stale, sheet = (float(np.mean(apart[name])) for name in ("in-loop-overlapped", "in-loop-stale", "sheet"))
    assert joined < 0.8 * stale
    assert joined < 0.8 * sheet


@dataclass
class WaitingBoard:
    """A board whose programming ends when the trainer has taken a step meanwhile, or after a while without one."""

    inner: KnownBoard
    stepped: threading.Event
    patience_s: float
    overlapped: list[bool] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        self.stepped.clear()
        self.began.set()
        self.overlapped.append(self.stepped.wait(self.patience_s))
        return self.inner.program(array, conductance_s)

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        return self.inner.mvm(array, voltage_v)


@pytest.mark.parametrize(("method", "patience_s"), [("in-loop-overlapped", 20.0), ("in-loop", 0.05)])
def test_surrogate_steps_go_on_while_the_chip_is_written(method: MethodName, patience_s: float) -> None:
    """The first pass is waited for; during the second one at least the writing of the first array sees a step."""
    plan = Plan(steps=12, policy=PolicyPlan(surrogate_steps=3), optimisation=Optimisation(32, 1e-2), probe_every=0)
    board = WaitingBoard(KnownBoard(MISMATCHED), threading.Event(), 0.05)
    session = session_on(MISMATCHED, method, plan=plan, board=board)
    session.method.begin(session.bench)
    for step in range(10):
        if step == 7:
            board.patience_s = patience_s  # of the second pass
            board.began.clear()
        session.advance(lambda _: board.stepped.set())
        if step == 7:
            # Its thread may begin late, when all steps that it could have seen are taken.
            assert board.began.wait(20.0)
    session.method.finish(session.bench)
    assert board.overlapped[:2] == [False, False]
    assert any(board.overlapped[2:]) == (method == "in-loop-overlapped")


@dataclass
class UnsteadyBoard:
    """A board that sometimes takes a while, so that the trainer is now ahead of a pass and now behind it."""

    inner: KnownBoard
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        time.sleep(0.01 * float(self.rng.random()))
        return self.inner.program(array, conductance_s)

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        time.sleep(0.01 * float(self.rng.random()))
        return self.inner.mvm(array, voltage_v)


@pytest.mark.parametrize("method", ["in-loop-overlapped", "in-loop-stale"])
@pytest.mark.parametrize("chunks", [1, 3])
def test_which_thread_is_quicker_decides_nothing(method: MethodName, chunks: int) -> None:
    """With all that could race: chips of a population, canaries, refits, and a budget that the policy looks at."""
    chip = replace(MISMATCHED, noise=0.02, drift_gain=-0.3, drift_after=6)
    policy = PolicyPlan("adaptive", surrogate_steps=2, budget=Budget(passes=12), trust=0.5, renew_from=4)
    canaries = CanarySettings(every=2, first_s=0.0)
    plan = Plan(steps=30, policy=policy, optimisation=Optimisation(32, 1e-2), population=3, recalibrate=True)
    plan = replace(plan, canaries=canaries, chunks=chunks)
    found = []
    for settled in (False, True):
        board = KnownBoard(chip) if settled else UnsteadyBoard(KnownBoard(chip))
        session = session_on(chip, method, calibrated=False, plan=plan, board=board)
        settle = partial(session.method.settle, session.bench)
        session.run(lambda _: None, settle if settled else lambda: None)
        found.append((session, {name: one.detach() for name, one in session.bench.stepper.parameters.items()}))
    (free, weights), (waited, others) = found
    assert replace(free.bench.ledger, seconds=0.0) == replace(waited.bench.ledger, seconds=0.0)
    assert free.bench.ledger.recalibrations > 0
    assert free.bench.ledger.passes == 12
    for name, one in weights.items():
        assert torch.equal(one, others[name])


@pytest.mark.parametrize("method", ["in-loop-overlapped", "in-loop-stale"])
def test_layers_that_stay_what_they_are_do_so_in_a_snapshot_too(method: MethodName) -> None:
    plan = Plan(steps=4, policy=PolicyPlan(surrogate_steps=1), layers=(("output", "digital"),))
    board = KnownBoard(MISMATCHED)
    session = session_on(MISMATCHED, method, plan=plan, board=board)
    run(session)
    assert sorted(board.programmed) == [0]
    assert session.bench.ledger.passes == 2
