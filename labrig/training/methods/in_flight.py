"""Two methods that compute while the chip writes and measures: the pass is of a snapshot of the weights.

`in-loop-overlapped`: the surrogate steps up to the next pass are taken while the chip is busy with this one. When the
pass has arrived, the weights have moved on from the snapshot W_s, so that its gradient alone would be stale. The step
takes the surrogate's gradient at the weights W that it changes, and from the snapshot only what the chip says against
the surrogate there:

    g = g_surrogate(W) + g_chip(W_s) - g_surrogate(W_s)        all three on the images of the pass

Where the surrogate is right, that is the gradient at W to the last digit of the arithmetic; where the weights did not
move, it is that of physics-aware training. What is left is how much the correction changes between W_s and W.

`in-loop-stale`: physics-aware steps that are one behind, with the gradient of the snapshot as it is. The ledger counts
both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench
from labrig.training.methods.base import Method, StepOutcome, noisy_step
from labrig.training.pipelining import accumulate
from labrig.training.snapshot import snapshot
from labrig_surrogates.backend import SurrogateBackend
from labrig_surrogates.layers import set_backend

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class _Pass:
    """A pass through the chip, under way or arrived.

    Attributes:
        network: The snapshot.
        batch: The images.
    """

    network: nn.Module
    batch: Batch


@dataclass(frozen=True)
class _Found:
    """What a pass gave."""

    gradients: Gradients
    loss: float
    accuracy: float


class _Flight:
    """The pass that the chip is busy with, on a thread of its own."""

    def __init__(self) -> None:
        self._bench: TrainingBench | None = None
        self._pass: _Pass | None = None
        self._waiting: Future[_Found] | None = None
        self._found: _Found | None = None

    @property
    def busy(self) -> bool:
        """Whether a pass was begun and not used yet."""
        return self._pass is not None

    def begin(self, bench: TrainingBench) -> None:
        """Notes whose network the snapshots are of."""
        self._bench = bench

    def launch(self, bench: TrainingBench, batch: Batch) -> None:
        """Has the chip programmed with the weights of now and asked for a batch."""
        self._pass = _Pass(snapshot(bench.stepper.network), batch)
        self._found = None
        bench.computed(len(batch))
        bench.ledger.passes += 1  # here and not on the thread: a budget must not depend on which is quicker
        self._start(bench, self._pass)

    def first(self, bench: TrainingBench, batch: Batch) -> StepOutcome:
        """A pass that is waited for, so that there is something to tell; it changes no weight yet."""
        self.launch(bench, batch)
        try:
            found = self.seen(bench)
        except BaseException:
            self.drop()
            raise
        return StepOutcome(found.loss, accuracy=found.accuracy)

    def settle(self, bench: TrainingBench) -> None:
        """Waits for the pass that is under way, and hands on what it measured.

        Raises:
            LabrigError: It failed; it will be made again, of the same snapshot, when it is waited for the next time.
        """
        if self._pass is None or self._found is not None:
            return
        if self._waiting is None:
            self._start(bench, self._pass)
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        self._found = waiting.result()
        bench.chip.deliver()

    def seen(self, bench: TrainingBench) -> _Found:
        """What the pass gave, which stays for `take`; waits for it."""
        self.settle(bench)
        assert self._found is not None
        return self._found

    def take(self, bench: TrainingBench) -> tuple[_Pass, _Found]:
        """The pass and what it gave, to be used now; waits for it."""
        found, taken = self.seen(bench), self._pass
        assert taken is not None
        self._pass, self._found = None, None
        return taken, found

    def drop(self) -> None:
        """Forgets the pass, so that it was never begun."""
        self._pass, self._waiting, self._found = None, None, None

    def give_back(self, taken: tuple[_Pass, _Found]) -> None:
        """Undoes `take`, where the step that took it fails."""
        self._pass, self._found = taken

    def state(self) -> dict[str, Tensor]:
        """Snapshot, images and gradients of the pass that was not used yet; waits for it."""
        if self._pass is None:
            return {}
        assert self._bench is not None
        found, batch = self.seen(self._bench), self._pass.batch
        state = {f"gradient/{name}": one for name, one in found.gradients.items()}
        state |= {f"snapshot/{name}": one.clone() for name, one in self._pass.network.state_dict().items()}
        state |= {"x": batch.x, "y": batch.y, "indices": batch.indices}
        state |= {} if batch.teacher is None else {"teacher": batch.teacher}
        return state | {"loss": torch.tensor(found.loss), "accuracy": torch.tensor(found.accuracy)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on with the pass of a checkpoint."""
        self.drop()
        if not state:
            return
        assert self._bench is not None
        network = snapshot(self._bench.stepper.network)
        network.load_state_dict(_part(state, "snapshot"))
        self._pass = _Pass(network, Batch(state["x"], state["y"], state["indices"], state.get("teacher")))
        self._found = _Found(_part(state, "gradient"), float(state["loss"]), float(state["accuracy"]))

    def _start(self, bench: TrainingBench, one: _Pass) -> None:
        # The bench's own surrogate becomes another chip of the population for a moment in every surrogate step.
        bench.chip.gradient = _model(bench)
        bench.chip.hold_back()
        bench.backends.of_copy(one.network).use("physical")
        ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="labrig-pass")
        self._waiting = ahead.submit(_asked, bench, one)
        ahead.shutdown(wait=False)  # the thread ends with its pass


def overlapped() -> Method:
    """Surrogate steps while the chip is busy with a snapshot; see the module."""
    flight = _Flight()

    def land(bench: TrainingBench) -> StepOutcome:
        """The step of the pass that was under way."""
        taken = flight.take(bench)
        one, found = taken
        try:
            # Both with the calibration of now: one that was renewed since knows a part of the correction already.
            before = _gradients_of(bench, one.network, one.batch)
            now = _gradients_of(bench, bench.stepper.network, one.batch) if _moved(bench, one.network) else None
        except BaseException:
            flight.give_back(taken)
            raise
        for name, parameter in bench.stepper.parameters.items():
            parameter.grad = found.gradients.get(name)
            if now is not None and name in now:
                chip = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = now[name] + (chip - before[name])
        bench.stepper.apply()
        bench.ledger.corrected_steps += int(now is not None)
        return StepOutcome(found.loss, _cosine(found.gradients, before), found.accuracy)

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        del probe  # the model's gradient is there anyway
        if flight.busy:
            outcome = land(bench)
            flight.launch(bench, batch)
            return outcome
        return flight.first(bench, batch)

    def surrogate_step(bench: TrainingBench, batch: Batch) -> StepOutcome:
        outcome = noisy_step(bench, batch)
        bench.ledger.overlapped_steps += int(flight.busy)
        return outcome

    def finish(bench: TrainingBench) -> None:
        if flight.busy:
            land(bench)

    return Method(
        "in-loop-overlapped",
        physical_step,
        surrogate_step,
        begin=flight.begin,
        finish=finish,
        settle=flight.settle,
        learned=flight,
    )


def stale_by_one() -> Method:
    """Each step uses the pass of the weights before the last step; see the module."""
    flight = _Flight()

    def physical_step(bench: TrainingBench, batch: Batch, *, probe: bool) -> StepOutcome:
        del probe  # the gradient belongs to other weights than the ones at hand
        if not flight.busy:
            return flight.first(bench, batch)
        _, found = flight.take(bench)
        flight.launch(bench, batch)
        for name, parameter in bench.stepper.parameters.items():
            parameter.grad = found.gradients.get(name)
        bench.stepper.apply()
        bench.ledger.stale_steps += 1
        return StepOutcome(found.loss, accuracy=found.accuracy)

    def finish(bench: TrainingBench) -> None:
        flight.settle(bench)

    return Method(
        "in-loop-stale", physical_step, begin=flight.begin, finish=finish, settle=flight.settle, learned=flight
    )


def _asked(bench: TrainingBench, one: _Pass) -> _Found:
    """The pass itself, on its thread."""
    result = accumulate(one.network, bench.stepper.loss, one.batch, bench.chunks)
    found = {name: part.grad for name, part in one.network.named_parameters() if part.grad is not None}
    return _Found(found, result.loss, result.accuracy)


def _gradients_of(bench: TrainingBench, network: nn.Module, batch: Batch) -> Gradients:
    """Gradients of the noiseless surrogate; those of the stepper stay."""
    bench.computed(len(batch))
    named = [(name, one) for name, one in network.named_parameters() if one.requires_grad]
    if network is bench.stepper.network:
        with bench.backends.using(bench.mean_surrogate):
            loss = bench.stepper.loss(network(batch.x), batch)
    else:
        set_backend(network, bench.mean_surrogate)
        loss = bench.stepper.loss(network(batch.x), batch)
    found = torch.autograd.grad(loss, [one for _, one in named], allow_unused=True)
    return {name: one for (name, _), one in zip(named, found, strict=True) if one is not None}


def _moved(bench: TrainingBench, earlier: nn.Module) -> bool:
    """Whether the weights are others than those of a snapshot."""
    then = dict(earlier.named_parameters())
    return any(not torch.equal(then[name], one) for name, one in bench.stepper.parameters.items())


def _cosine(one: Gradients, other: Gradients) -> float:
    names = sorted(set(one) & set(other))
    mine, theirs = (torch.cat([source[name].flatten() for name in names]) for source in (one, other))
    return float(torch.nn.functional.cosine_similarity(mine, theirs, dim=0))


def _model(bench: TrainingBench) -> SurrogateBackend:
    return SurrogateBackend(bench.fitted, bench.chip.placement, bench.surrogate.generator)


def _part(state: Mapping[str, Tensor], name: str) -> Gradients:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): one for key, one in state.items() if key.startswith(prefix)}
