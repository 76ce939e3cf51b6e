"""Every method on a chip of two small arrays whose truth is known: gradients in closed form, and what each spends."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from known_training import (
    DATA,
    MISMATCHED,
    cosine,
    gradients,
    network_on,
    run,
    session_on,
    stepped_gradients,
    whole_batch,
)
from torch import Tensor, nn

from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.arithmetic import flops_of_an_image
from labrig.training.assembly import assemble
from labrig.training.bench import analog_weights
from labrig.training.chip_model import ChipModel
from labrig.training.deployment import analog_copy
from labrig.training.methods.model_free import spsa_gradient
from labrig.training.models import accuracy
from labrig.training.optimisation import Optimisation, Stepper
from labrig.training.physical import FloatArray
from labrig.training.plan import MethodName, Plan, PolicyPlan
from labrig.training.session import Line, Session
from labrig.training.task_loss import TaskLoss
from labrig_drivers.crossbar import MvmResult, ProgramReport
from labrig_drivers.errors import ConfigError
from labrig_surrogates.backend import SurrogateBackend
from labrig_surrogates.layers import analog_layers, set_backend


def without_time(line: Line) -> Line:
    ledger = line.get("ledger")
    return line if not isinstance(ledger, dict) else {**line, "ledger": {**ledger, "seconds": 0.0}}


@pytest.mark.parametrize("chunks", [1, 3])
def test_physics_aware_training_is_backpropagation_on_an_ideal_chip(chunks: int) -> None:
    chip = KnownChip()
    digital, _ = network_on(chip)
    session = session_on(chip, plan=Plan(chunks=chunks))
    result = session.bench.physical_gradient(whole_batch())
    loss = session.bench.stepper.loss(digital(DATA.train_x), whole_batch())
    loss.backward()  # type: ignore[no-untyped-call]
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.accuracy == pytest.approx(accuracy(digital, DATA.train_x, DATA.train_y))
    found = gradients(session)
    for name, one in digital.named_parameters():
        assert one.grad is not None
        torch.testing.assert_close(found[name], one.grad, rtol=2e-4, atol=2e-6)
    ledger = session.bench.ledger
    assert (ledger.passes, ledger.writes, ledger.mvms) == (1, 2, 2 * len(DATA.train_y))


def test_elsewhere_it_is_the_surrogates_gradient_at_the_measured_point() -> None:
    """In closed form: errors at the measured outputs, back through ideal arrays at the measured inputs."""
    session = session_on(MISMATCHED, calibrated=False)
    session.bench.stepper.loss = TaskLoss(label_smoothing=0.0)
    hidden, output = analog_layers(session.bench.stepper.network)
    seen = {}
    for layer in (hidden, output):
        layer.register_forward_hook(lambda module, inputs, outputs: seen.update({module: (inputs[0], outputs)}))
    session.bench.physical_gradient(whole_batch())
    x, measured_hidden = (one.detach().double() for one in seen[hidden])
    activations, outputs = (one.detach().double() for one in seen[output])
    assert not torch.allclose(measured_hidden, x @ hidden.weight.double().T, atol=0.02)
    classes = torch.eye(3, dtype=torch.float64)[DATA.train_y]
    errors = (torch.softmax(outputs, dim=1) - classes) / len(classes)
    back = (errors @ output.weight.double()) * (measured_hidden > 0.0)
    for layer, expected in ((output, errors.T @ activations), (hidden, back.T @ x)):
        assert layer.weight.grad is not None
        torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=1e-3, atol=1e-6)


@dataclass
class EventfulBoard:
    """A known board that measures while its caller computes, and notes when it is asked and waited for."""

    inner: KnownBoard
    events: list[str] = field(default_factory=list)

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        return self.inner.program(array, conductance_s)

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        return self.inner.mvm(array, voltage_v)

    def begin_mvm(self, array: int, voltage_v: FloatArray) -> "EventfulAnswer":
        self.events.append("begun")
        return EventfulAnswer(self.inner.mvm(array, voltage_v), self.events)


@dataclass
class EventfulAnswer:
    found: MvmResult
    events: list[str]

    def result(self) -> MvmResult:
        self.events.append("waited for")
        return self.found

    def abandon(self) -> None:
        self.events.append("abandoned")


def test_the_mean_is_computed_while_the_chip_measures_and_no_bit_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = replace(MISMATCHED, noise=0.05)
    ahead = EventfulBoard(KnownBoard(chip))
    sessions = [session_on(chip, calibrated=False, board=board) for board in (None, ahead)]
    mean = SurrogateBackend.mean_currents

    def noted(self: SurrogateBackend, tile: str, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        ahead.events.append("modelled")
        return mean(self, tile, target_s, voltage_v)

    monkeypatch.setattr(SurrogateBackend, "mean_currents", noted)
    lines = [[without_time(line) for line in run(session)] for session in sessions]
    assert lines[0] == lines[1]
    for one, other in zip(*(session.bench.stepper.parameters.values() for session in sessions), strict=True):
        assert torch.equal(one, other)
    started = ahead.events.index("begun")
    assert ahead.events[started : started + 6] == ["begun", "modelled", "waited for"] * 2


def test_what_the_chip_still_measures_is_abandoned_where_the_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    board = EventfulBoard(KnownBoard(MISMATCHED))
    session = session_on(MISMATCHED, board=board)

    def broken(self: SurrogateBackend, tile: str, target_s: Tensor, voltage_v: Tensor) -> Tensor:
        raise ValueError("no model")

    monkeypatch.setattr(SurrogateBackend, "mean_currents", broken)
    with pytest.raises(ValueError, match="no model"):
        session.bench.physical_gradient(whole_batch())
    assert board.events == ["begun", "abandoned"]
    assert session.bench.ledger.mvms == 0


def test_chunks_are_asked_for_in_order_and_their_gradients_add_up() -> None:
    whole, parts = (session_on(MISMATCHED, plan=Plan(chunks=chunks)) for chunks in (1, 4))
    whole.bench.physical_gradient(whole_batch())
    parts.bench.physical_gradient(whole_batch())
    assert parts.bench.ledger.writes == 2
    assert parts.bench.ledger.mvms == whole.bench.ledger.mvms
    for name, one in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], one, rtol=1e-3, atol=1e-6)


def test_the_bias_of_simultaneous_perturbation_falls_with_the_square_and_vanishes_for_a_quadratic() -> None:
    start = torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64)
    matrix = torch.tensor([[2.0, 0.3, 0, 0], [0.3, 1.0, 0.2, 0], [0, 0.2, 3.0, 0.5], [0, 0, 0.5, 1.5]]).double()
    every = [torch.tensor([1.0 if number >> bit & 1 else -1.0 for bit in range(4)]).double() for number in range(16)]

    def bias(cubic: float, size: float) -> float:
        w = start.clone()

        def function() -> float:
            return float(0.5 * w @ matrix @ w + cubic * (w**3).sum() + cubic * w.prod())

        estimates = [spsa_gradient(function, [w], [signs], [size])[0][0] for signs in every]
        assert torch.equal(w, start)
        others = torch.stack([start[[j for j in range(4) if j != i]].prod() for i in range(4)])
        exact = matrix @ start + cubic * (3.0 * start**2 + others)
        return float((torch.stack(estimates).mean(0) - exact).norm())

    assert bias(0.0, 0.3) < 1e-12
    biases = [bias(1.0, size) for size in (0.4, 0.2, 0.1)]
    assert biases[2] > 1e-3
    for large, small in pairwise(biases):
        assert large / small == pytest.approx(4.0, rel=1e-6)


def test_a_failed_perturbation_leaves_the_weights() -> None:
    w = torch.tensor([1.0, 2.0])

    def fail() -> float:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        spsa_gradient(fail, [w], [torch.tensor([1.0, -1.0])], [0.1])
    assert torch.equal(w, torch.tensor([1.0, 2.0]))


def test_the_residual_learns_what_the_data_sheet_leaves_out() -> None:
    """The gradient of the true chip is that of its perfect calibration: dual adaptive training comes close to it."""
    plan = Plan(steps=80, policy=PolicyPlan(surrogate_steps=0), optimisation=Optimisation(96, 1e-3), probe_every=1)
    adaptive = session_on(MISMATCHED, "dat", calibrated=False, plan=plan)
    lines = run(adaptive)
    gaps = [max(line["gaps"].values()) for line in lines]  # type: ignore[attr-defined]
    assert gaps[-1] < 0.35 * gaps[0]
    truth = session_on(MISMATCHED, calibrated=True)
    truth.bench.stepper.network.load_state_dict(adaptive.bench.stepper.network.state_dict())
    exact = truth.bench.gradient_through(truth.bench.surrogate, whole_batch())
    learned = adaptive.bench.gradient_through(adaptive.bench.chip.gradient, whole_batch())
    sheet = adaptive.bench.gradient_through(adaptive.bench.surrogate, whole_batch())
    assert cosine(learned, exact) > cosine(sheet, exact)
    assert cosine(learned, exact) > 0.97


def test_output_errors_are_backpropagation_on_an_ideal_chip() -> None:
    chip = KnownChip()
    digital, _ = network_on(chip)
    session = session_on(chip, "asyt")
    session.method.begin(session.bench)
    taken = stepped_gradients(session)
    assert session.method.physical_step is not None
    outcome = session.method.physical_step(session.bench, whole_batch(), probe=True)
    session.bench.stepper.loss(digital(DATA.train_x), whole_batch()).backward()  # type: ignore[no-untyped-call]
    for name, one in digital.named_parameters():
        assert one.grad is not None
        torch.testing.assert_close(taken[0][name], one.grad, rtol=1e-3, atol=2e-6)
    assert outcome.cosine == pytest.approx(1.0, abs=1e-2)
    # Outputs only: one pass, and nothing goes back through the chip.
    assert session.bench.ledger.passes == 1


def test_asyt_has_a_digital_copy_which_both_errors_go_back_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """In closed form: half of the digital copy's own gradient, half of what the measured error gives in its place."""
    plan = Plan(
        policy=PolicyPlan(surrogate_steps=0), optimisation=Optimisation(96, 3e-2, TaskLoss(label_smoothing=0.0))
    )
    session = session_on(MISMATCHED, "asyt", calibrated=False, plan=plan)
    session.method.begin(session.bench)
    taken: list[dict[str, Tensor]] = []
    networks: list[nn.Module] = []
    apply = Stepper.apply

    def spy(self: Stepper) -> None:
        networks.append(copy.deepcopy(self.network.state_dict()))  # type: ignore[arg-type]
        taken.append({name: one.grad.double() for name, one in self.parameters.items() if one.grad is not None})
        apply(self)

    for _ in range(4):
        session.advance(lambda _: None)
    outputs: list[Tensor] = []
    analog_layers(session.bench.stepper.network)[1].register_forward_hook(lambda *seen: outputs.append(seen[2]))
    monkeypatch.setattr(Stepper, "apply", spy)
    assert session.method.physical_step is not None
    session.method.physical_step(session.bench, whole_batch(), probe=False)
    classes = torch.eye(3, dtype=torch.float64)[DATA.train_y]

    def closed_form(weights: Mapping[str, Tensor], shares: tuple[float, float]) -> dict[str, Tensor]:
        """Gradients of an ideal two-layer network from shares of its own error and of the measured one."""
        found = {name: one.double() for name, one in weights.items()}
        x = DATA.train_x.double()
        hidden = torch.relu(found["hidden.scale"] * (x @ found["hidden.weight"].T) + found["hidden.bias"])
        own = found["output.scale"] * (hidden @ found["output.weight"].T) + found["output.bias"]
        errors = [(torch.softmax(one.double(), dim=1) - classes) / len(classes) for one in (own, outputs[0])]
        error = shares[0] * errors[0] + shares[1] * errors[1]
        back = ((error * found["output.scale"]) @ found["output.weight"]) * (hidden > 0.0)
        return {
            "output.weight": (error * found["output.scale"]).T @ hidden,
            "hidden.weight": (back * found["hidden.scale"]).T @ x,
        }

    physical, digital = (dict(one) for one in networks)  # type: ignore[call-overload]
    assert not torch.allclose(physical["hidden.weight"], digital["hidden.weight"], atol=1e-3)
    for gradients_found, shares in ((taken[0], (0.5, 0.5)), (taken[1], (1.0, 0.0))):
        for name, expected in closed_form(digital, shares).items():
            torch.testing.assert_close(gradients_found[name], expected, rtol=2e-3, atol=2e-6)
    # One copy of the parameters would have given another step.
    alone = closed_form(physical, (0.5, 0.5))
    assert not torch.allclose(taken[0]["hidden.weight"], alone["hidden.weight"], rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(("method", "writes"), [("progressive", 1), ("head", 1)])
def test_layer_by_layer_programs_each_layer_once(method: MethodName, writes: int) -> None:
    plan = Plan(steps=40, optimisation=Optimisation(32, 1e-2))
    session = session_on(MISMATCHED, method, plan=plan)
    before = {name: one.clone() for name, one in analog_weights(session.bench).items()}
    middle: dict[str, Tensor] = {}

    def look() -> None:
        if session.step == 20:
            middle.update({name: one.clone() for name, one in analog_weights(session.bench).items()})

    session.run(lambda _: None, look)
    after = analog_weights(session.bench)
    ledger = session.bench.ledger
    assert (ledger.writes, ledger.passes, ledger.mvms) == (writes, 1, len(DATA.train_y))
    assert torch.equal(after["hidden"], middle["hidden"])
    assert torch.equal(after["hidden"], before["hidden"]) == (method == "head")
    assert not torch.equal(after["output"], middle["output"])
    with pytest.raises(ConfigError, match=r"needs an nn\.Sequential"):
        assemble(
            nn.ModuleDict({"a": network_on(MISMATCHED)[1]}),
            ChipModel.of(MISMATCHED.calibration()),
            DATA,
            replace(plan, method=method),
            0,
        )


def on_chip(session: Session, chip: KnownChip) -> float:
    """Test accuracy on a chip, whatever the session thought of it."""
    network = session.bench.stepper.network
    judge = assemble(network, ChipModel.of(chip.calibration()), DATA, Plan(), 0, board=KnownBoard(chip))
    set_backend(network, judge.bench.chip)
    return accuracy(network, DATA.test_x, DATA.test_y)


@pytest.mark.parametrize(
    "method", ["surrogate", "offline-calibrated", "in-loop", "in-loop-overlapped", "dat", "asyt", "spsa"]
)
def test_every_method_learns_the_task_on_the_chip(method: MethodName) -> None:
    steps, between = (150, 0) if method == "spsa" else (60, 1)
    plan = Plan(steps=steps, policy=PolicyPlan(surrogate_steps=between), optimisation=Optimisation(48, 3e-2))
    session = session_on(MISMATCHED, method, plan=plan)
    untrained = on_chip(session, MISMATCHED)
    session.bench.chip.new_write()
    lines = run(session)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert on_chip(session, MISMATCHED) > max(0.85, untrained)


def test_negative_controls_wrong_surrogate_and_shuffled_labels() -> None:
    chip = KnownChip(seed=5, gain_sigma=0.6, offset_sigma=0.6, cell_sigma=0.6)
    plan = Plan(steps=120, optimisation=Optimisation(48, 3e-2))
    scores = {}
    for name, other in (("own", chip), ("wrong", replace(chip, seed=6))):
        session = session_on(other, "surrogate", plan=plan)
        run(session)
        scores[name] = on_chip(session, chip)
    assert scores["own"] > scores["wrong"] + 0.1
    shuffled = DATA.shuffled_labels(torch.Generator().manual_seed(0))
    session = session_on(chip, "in-loop", plan=replace(plan, policy=PolicyPlan(surrogate_steps=1)), data=shuffled)
    run(session)
    assert on_chip(session, chip) < 0.65


def test_columns_are_calibrated_on_the_chip_without_classes() -> None:
    """A perfect fit exists where every column has an offset and all have one wrong gain."""
    chip = KnownChip(offset_sigma=0.5, drift_gain=-0.3)
    digital, _ = network_on(chip)
    session = session_on(chip, "offline-calibrated", calibrated=False, plan=Plan(steps=1, calibration_images=96))
    session.bench.stepper.network.load_state_dict(network_on(chip)[1].state_dict())
    network = session.bench.stepper.network
    set_backend(network, session.bench.chip)
    with torch.no_grad():
        before = (network(DATA.test_x) - digital(DATA.test_x)).abs().max()
        session.method.finish(session.bench)
        after = (network(DATA.test_x) - digital(DATA.test_x)).abs().max()
    assert before > 0.05
    assert after < 1e-4
    assert session.bench.ledger.passes == 2


def test_the_reference_of_the_known_chip_is_written_twice() -> None:
    """The board in numpy and the surrogate in torch agree on every effect that both have."""
    board, model = KnownBoard(MISMATCHED), ChipModel.of(MISMATCHED.calibration())
    rng = np.random.default_rng(0)
    target_s = MISMATCHED.conductance_max_s * rng.random((8, 16))
    voltage_v = MISMATCHED.voltage_max_v * rng.uniform(-1.0, 1.0, (5, 8))
    board.program(1, target_s)
    measured = torch.as_tensor(board.mvm(1, voltage_v).current_a)
    surrogate = model.surrogates[1].double()
    modelled = surrogate(surrogate.new_write(torch.as_tensor(target_s)), torch.as_tensor(voltage_v), convert=False)
    torch.testing.assert_close(modelled, measured, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "products"),
    [("surrogate", 3), ("in-loop", 3), ("asyt", 5), ("dat", 7), ("spsa", 0), ("in-loop-stale", 3)],
)
def test_the_account_has_what_the_computer_multiplied(method: MethodName, products: int) -> None:
    """Two operations for each weight and image, by hand: 4 x 8 and 8 x 3 weights, four steps of 24 images."""
    steps = PolicyPlan(surrogate_steps=0)
    session = session_on(MISMATCHED, method, plan=Plan(steps=4, policy=steps, optimisation=Optimisation(24, 1e-3)))
    run(session)
    assert session.bench.ledger.digital_flops == products * 2 * (4 * 8 + 8 * 3) * 24 * 4


def test_a_convolution_is_counted_at_every_place() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    analog = analog_copy(network, ChipModel.of(KnownChip(rows=16).calibration()).geometry)
    assert flops_of_an_image(analog, torch.zeros((1, 1, 6, 6))) == 2 * (2 * 9 * 16 + 32 * 3)
