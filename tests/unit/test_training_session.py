"""Sessions on a chip whose truth is known: alternation, writing, drift, checkpoints, and steps that fail."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.assembly import assemble
from labrig.training.canaries import CanarySettings
from labrig.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    restore_held,
    restore_session,
    save_checkpoint,
)
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.deployment import analog_copy
from labrig.training.ledger import Ledger
from labrig.training.models import digital_network
from labrig.training.optimisation import Optimisation
from labrig.training.physical import Held, Observation
from labrig.training.plan import MethodName, Plan, PolicyPlan
from labrig.training.policy import Adaptive, Budget, FixedRatio, Progress, Scheduled
from labrig.training.recorded_board import BoardPosition
from labrig.training.refit import RefitSettings, refit
from labrig.training.session import Line, Session
from labrig.training.writing import Wear, WriteRule
from labrig_drivers.errors import LabrigError, LinkLostError, StorageError
from labrig_surrogates.layers import weight_matrices
from labrig_surrogates.schedules import Linear

CHIP = KnownChip(gain_sigma=0.1, offset_sigma=0.05, cell_sigma=0.1, noise=0.01)
RECALIBRATE = Plan(
    steps=40,
    policy=PolicyPlan(surrogate_steps=0),
    optimisation=Optimisation(64, 2e-3),
    recalibrate=True,
    canaries=CanarySettings(every=2, first_s=0.0),
)


def task() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((160, 6), generator=generator)
    y = (x[:, :3].argmax(dim=1)).to(torch.int64)
    return ImageSet("largest", x[:128], y[:128], x[128:], y[128:], 3)


DATA = task()


def session_on(chip: KnownChip, plan: Plan, *, board: KnownBoard | None = None) -> Session:
    digital = digital_network(6, 8, 3, torch.Generator().manual_seed(0))
    model = ChipModel.of(chip.calibration())
    network = analog_copy(digital, model.geometry)
    for matrix in weight_matrices(network):
        matrix.core.set_ranges(weight_max=2.0, input_max=3.0)
    return assemble(network, model, DATA, plan, 7, board=board or KnownBoard(chip))


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in session.bench.stepper.parameters.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def progress(step: int, *, change: float = 0.0, ledger: Ledger | None = None) -> Progress:
    return Progress(step, 100, change, ledger or Ledger())


def test_a_fixed_ratio_and_a_schedule_alternate_as_they_say() -> None:
    fixed = FixedRatio(2)
    kinds = [fixed.choose(progress(step)) for step in range(9)]
    assert kinds == ["surrogate", "surrogate", "physical"] * 3
    assert fixed.most_passes(9) == 3
    scheduled = Scheduled()
    chosen = [scheduled.choose(progress(step)) for step in range(100)]
    passes = [step for step, kind in enumerate(chosen) if kind == "physical"]
    assert min(passes) >= 50
    assert len([step for step in passes if step >= 90]) == 5
    assert len(passes) <= scheduled.most_passes(100)
    other = Scheduled()
    other.load_state(scheduled.state())
    assert other.state() == scheduled.state()
    assert Scheduled(phases=((1.0, math.inf),)).most_passes(100) == 0


def test_the_adaptive_policy_follows_the_gradient_the_weights_and_the_budget() -> None:
    policy = Adaptive(ratio=2.0, most=8.0)
    kinds = [policy.choose(progress(step)) for step in range(6)]
    assert kinds == ["surrogate", "surrogate", "physical"] * 2
    assert not policy.saw(0.97)
    assert policy.ratio == 4.0
    assert not policy.saw(0.99)
    assert not policy.saw(0.99)
    assert policy.ratio == 8.0
    assert not policy.saw(0.9)
    assert policy.ratio == 8.0
    assert policy.saw(0.7)
    assert policy.ratio == 4.0
    assert policy.choose(progress(7, change=0.06)) == "physical"
    assert policy.choose(progress(8, change=0.01)) == "surrogate"
    for budget, spent in (
        (Budget(passes=3), Ledger(passes=3)),
        (Budget(writes=3), Ledger(writes=4)),
        (Budget(seconds=1.0), Ledger(seconds=1.5)),
        (Budget(joules=1.0), Ledger(joules=1.0)),
    ):
        bounded = Adaptive(budget=budget)
        assert bounded.choose(progress(0, change=1.0, ledger=spent)) == "surrogate"
        assert bounded.choose(progress(0, change=1.0)) == "physical"
    assert Adaptive(budget=Budget(passes=3)).most_passes(100) == 3


def test_the_adaptive_policy_keeps_passes_for_the_end_and_leaves_none_over() -> None:
    policy = Adaptive(ratio=3.0, budget=Budget(passes=10), finale=0.6, renew_from=3)
    ledger, kinds, asked = Ledger(), [], []
    for step in range(60):
        kind = policy.choose(Progress(step, 60, 0.0, ledger))
        kinds.append(kind)
        if kind == "physical":
            ledger.passes += 1
            asked.append(policy.saw(0.9))
    early = [step for step, kind in enumerate(kinds) if kind == "physical" and step < 54]
    assert early == [3, 7, 11, 15]
    assert kinds[54:] == ["physical"] * 6
    assert ledger.passes == 10
    assert asked == [False, False, *[True] * 8]
    # A checkpoint has how many passes were seen.
    other = Adaptive(renew_from=3)
    other.load_state(policy.state())
    assert other.saw(0.9)


def test_adaptive_training_spends_fewer_passes_where_the_surrogate_is_right() -> None:
    plan = Plan(steps=80, policy=PolicyPlan("adaptive", 2), optimisation=Optimisation(64, 2e-3))
    session = session_on(CHIP, plan)
    lines: list[Line] = []
    session.run(lines.append)
    physical = [line for line in lines if line["kind"] == "physical"]
    assert len(physical) == session.bench.ledger.passes < 20
    assert np.mean([float(str(line["cosine"])) for line in physical]) > 0.95
    wrong = session_on(CHIP, plan, board=KnownBoard(replace(CHIP, seed=9, gain_sigma=0.9, cell_sigma=0.9)))
    wrong.run(lambda _: None)
    assert wrong.bench.ledger.passes > session.bench.ledger.passes


def test_small_updates_wait_in_float_and_only_changed_cells_are_written() -> None:
    rule, held = WriteRule(step_s=1e-6, conductance_min_s=0.0), np.array([[2e-6, 3e-6]])
    assert np.array_equal(rule.commanded(np.array([[2.9e-6, 2.1e-6]]), held), held)
    np.testing.assert_allclose(rule.commanded(np.array([[3.1e-6, 2.2e-6]]), held), [[3e-6, 3e-6]])
    np.testing.assert_allclose(rule.commanded(np.array([[3.4e-6]]), None), [[3e-6]])
    wear = Wear()
    assert wear.count(0, None, held) == 2
    assert wear.count(0, held, np.array([[3e-6, 3e-6]])) == 1
    assert wear.writes[0].tolist() == [[2, 1]]
    assert wear.most == 2
    plan = Plan(steps=20, policy=PolicyPlan(surrogate_steps=0), optimisation=Optimisation(64, 1e-3))
    every, stepped = (session_on(CHIP, replace(plan, conductance_step_s=step_s)) for step_s in (0.0, 2e-6))
    for session in (every, stepped):
        session.run(lambda _: None)
    assert every.bench.ledger.writes == 40
    assert stepped.bench.ledger.cell_writes < 0.2 * every.bench.ledger.cell_writes
    # The weights themselves moved on, most of it below a step.
    assert stepped.bench.ledger.passes == 20
    assert stepped.bench.chip.wear.most <= 6


def observations(chip: KnownChip, count: int) -> list[Observation]:
    """Batches of a chip as a training measures them, the latest last."""
    board, rng = KnownBoard(chip), np.random.default_rng(3)
    seen = []
    for _ in range(count):
        target_s = chip.conductance_max_s * rng.random((chip.rows, chip.columns))
        report = board.program(0, target_s)
        voltage_v = chip.voltage_max_v * rng.uniform(-1.0, 1.0, (40, chip.rows))
        seen.append(Observation("a/0", 0, Held(target_s, report.time_s), voltage_v, board.mvm(0, voltage_v)))
    return seen


def test_a_refit_from_recorded_passes_finds_what_changed() -> None:
    changed = replace(CHIP, drift_gain=-0.1)
    old = CHIP.calibration().arrays[0]
    found = refit(old, observations(changed, 20), RefitSettings())
    assert found is not None
    assert found.better
    assert found.after == pytest.approx(1.0, abs=0.25)
    assert found.before > 10.0
    # Gain and cells share the change; their product is what the chip does.
    product = found.parameters.gain.value * found.parameters.cell_slope
    np.testing.assert_allclose(product, 0.9 * old.gain.value * old.cell_slope, rtol=0.02)
    np.testing.assert_allclose(found.parameters.offset.value, old.offset.value, atol=0.01 * CHIP.unit_a)
    # Of a chip that did not change there is nothing to find, and too few batches tell nothing.
    unchanged = refit(old, observations(CHIP, 20), RefitSettings())
    assert unchanged is not None
    np.testing.assert_allclose(unchanged.parameters.gain.value, old.gain.value, rtol=0.01)
    assert refit(old, observations(CHIP, 2), RefitSettings()) is None


def test_canaries_find_a_drift_and_training_goes_on_without_a_jump() -> None:
    drifting = replace(CHIP, drift_gain=-0.08, drift_after=12)
    session = session_on(CHIP, RECALIBRATE, board=KnownBoard(drifting))
    lines: list[Line] = []
    before: dict[int, dict[str, torch.Tensor]] = {}
    use = session.use_chip

    def spy(chip: ChipModel) -> None:
        kept = weights(session)
        use(chip)
        before[session.step] = kept
        assert same(kept, weights(session))

    session.use_chip = spy  # type: ignore[method-assign]
    session.run(lines.append)
    alarms = [int(str(line["step"])) for line in lines if "recalibration" in line]
    assert alarms
    assert 12 < alarms[0] <= 24
    assert 1 <= session.version <= 4
    assert session.bench.ledger.recalibrations == session.version
    assert {int(str(line["version"])) for line in lines} >= set(range(session.version))
    looks = {int(str(line["step"])): line["canaries"] for line in lines if "canaries" in line}
    shifts = {step: max(abs(look["gain"]) for look in found) for step, found in looks.items()}  # type: ignore[attr-defined]
    assert shifts[alarms[0]] > 10.0
    assert max(shift for step, shift in shifts.items() if step > alarms[0] + 4) < 4.0
    assert session.bench.ledger.canary_mvms == 2 * 2 * 16 * 20
    losses = [float(str(line["loss"])) for line in lines]
    assert abs(losses[alarms[0]] - losses[alarms[0] - 1]) < 0.1
    quiet = session_on(CHIP, RECALIBRATE)
    quiet.run(lines.append)
    assert quiet.version == 0


def test_the_drift_clock_looks_at_doubling_times() -> None:
    plan = replace(RECALIBRATE, canaries=CanarySettings(every=0, first_s=8.0))
    session = session_on(CHIP, plan)
    lines: list[Line] = []
    session.run(lines.append)
    times = [float(str(line["time_s"])) for line in lines if "canaries" in line]
    waits = [time - float(str(lines[0]["time_s"])) for time in times]
    assert len(waits) >= 4
    for number, wait in enumerate(waits):
        assert 8.0 * 2**number <= wait < 8.0 * 2**number + 12.0


def test_the_ingredients_of_surrogate_steps_are_at_work() -> None:
    plan = Plan(
        method="surrogate",
        steps=20,
        optimisation=Optimisation(64, 5e-3, clip_sigmas=1.5),
        noise=Linear(0.0, 2.0, 10),
        draws=3,
        population=4,
        conductance_step_s=2e-6,
        stochastic_rounding=True,
        average_decay=0.9,
    )
    session = session_on(CHIP, plan)
    surrogate = session.bench.surrogate
    levels, programmings = [], 0
    new_write = surrogate.new_write

    def spy() -> None:
        nonlocal programmings
        programmings += 1
        new_write()

    surrogate.new_write = spy  # type: ignore[method-assign]

    def after() -> None:
        levels.append(surrogate.noise_level)
        for matrix in weight_matrices(session.bench.stepper.network):
            assert float(matrix.weight.detach().abs().max()) <= 1.7 * float(matrix.weight.detach().std())
            last.update(weights(session))

    last: dict[str, torch.Tensor] = {}
    session.run(lambda _: None, after)
    assert levels[:3] == pytest.approx([0.0, 0.2, 0.4])
    assert levels[-1] == 2.0
    assert programmings == 60
    assert len(session.bench.noisy.population) == 4
    first, second = (one[0].gain for one in session.bench.noisy.population[:2])
    assert not torch.equal(first, second)
    # Afterwards the fitted chip is in place again, and the weights are the average.
    assert surrogate.surrogate_of("hidden/0") is session.bench.fitted[0]
    assert not same(last, weights(session))


@pytest.mark.parametrize(
    "method",
    ["in-loop", "dat", "asyt", "in-loop-overlapped", "in-loop-stale", "spsa", "progressive", "offline-calibrated"],
)
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path: Path, method: MethodName) -> None:
    plan = replace(RECALIBRATE, method=method, steps=14, policy=PolicyPlan(surrogate_steps=1), average_decay=0.5)
    whole = session_on(CHIP, plan)
    whole.run(lambda _: None)
    board = KnownBoard(CHIP)
    first = session_on(CHIP, plan, board=board)
    first.method.begin(first.bench)
    for _ in range(9):
        first.advance(lambda _: None)
    first.method.settle(first.bench)
    save_checkpoint(tmp_path, first, BoardPosition({}, {}, 0.0, ()), ["training.h5"])
    found = latest_checkpoint(tmp_path)
    assert found is not None
    tensors, numbers = load_checkpoint(found)
    # The chip goes on as it is, and another process with another session asks it.
    second = session_on(CHIP, plan, board=board)
    restore_session(second, tensors, numbers)
    restore_held(second, tensors, numbers)
    lines: list[Line] = []
    second.run(lines.append)
    assert [line["step"] for line in lines] == [10, 11, 12, 13, 14]
    assert same(weights(whole), weights(second))
    expected, got = (replace(one.bench.ledger, seconds=0.0) for one in (whole, second))
    assert expected == got


def test_checkpoints_are_whole_or_not_there(tmp_path: Path) -> None:
    session = session_on(CHIP, RECALIBRATE)
    for _ in range(4):
        session.advance(lambda _: None)
        save_checkpoint(tmp_path, session, None, [])
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-00000003.safetensors",
        "step-00000004.safetensors",
    ]
    (tmp_path / "step-00000005.safetensors.part").write_bytes(b"half a checkpoint")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-00000004.safetensors"
    found.write_bytes(found.read_bytes()[:200])
    with pytest.raises(StorageError, match="no checkpoint that can be read"):
        load_checkpoint(found)
    other = session_on(CHIP, replace(RECALIBRATE, method="dat"))
    earlier = tmp_path / "step-00000003.safetensors"
    with pytest.raises(StorageError, match=r"step-00000003\.safetensors: does not belong to this training"):
        restore_session(other, *load_checkpoint(earlier), earlier)


@pytest.mark.parametrize("method", ["in-loop", "dat", "spsa", "asyt", "in-loop-overlapped", "in-loop-stale"])
def test_a_step_that_fails_is_taken_once_and_from_fresh_writes(method: MethodName) -> None:
    chip = replace(CHIP, noise=0.0)
    plan = Plan(method=method, steps=10, policy=PolicyPlan(surrogate_steps=1), optimisation=Optimisation(32, 5e-3))
    whole = session_on(chip, plan)
    whole.run(lambda _: None)
    failures = {3, 11, 12, 17}

    def lost(request: int) -> LabrigError | None:
        return LinkLostError("gone") if request in failures else None

    session = session_on(chip, plan, board=KnownBoard(chip, lost))
    session.method.begin(session.bench)
    lines: list[Line] = []
    interruptions = 0
    while session.step < plan.steps:
        kept = weights(session)
        try:
            session.advance(lines.append)
        except LinkLostError:
            interruptions += 1
            assert same(kept, weights(session))
            session.bench.chip.new_write()
    session.method.finish(session.bench)
    assert interruptions == 4
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert same(weights(whole), weights(session))
