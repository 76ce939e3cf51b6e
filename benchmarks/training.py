"""What the trainer adds: to a hand-written torch loop, to a call across the bridge, and to a rig that takes time.

- Overhead: the same surrogate steps (same network, batches, backend, Adam, clipping) as a loop written by hand and as
  a session with its policy, account, roll-back and log line; the ratio of the rates should be at least 0.95.
- Overlap: an alternating epoch (a surrogate step, a physical one, and so on) on a chip that takes a given time for
  each batch. Its parts are timed alone in the same rounds: the same epoch on a chip that takes no time, and the chip's
  time alone. The overlap is real where the epoch takes little more than the longer of both. While the chip measures a
  layer, the model's mean for that layer is computed, and the backward pass of other chunks.
- Writes: an epoch of four surrogate steps and a physical one, twice, on a chip that takes a time for each programming
  and none to measure. `in-loop-overlapped` takes the surrogate steps meanwhile; `in-loop` waits.
- Bridge: a coroutine called from ordinary code, in the loop that owns the instruments; beside it asyncio's own way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.harness import Case, sync
from benchmarks.report import Script, Suite, main
from labrig.portal import LoopPortal
from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.assembly import DATA_STREAM, NOISE_STREAM, assemble, generator_of
from labrig.training.batches import Sampler
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.deployment import analog_copy
from labrig.training.models import digital_network
from labrig.training.optimisation import Optimisation
from labrig.training.physical import FloatArray
from labrig.training.plan import Plan, PolicyPlan
from labrig.training.session import Session
from labrig.training.task_loss import TaskLoss
from labrig_drivers.crossbar import MvmResult, ProgramReport
from labrig_surrogates.layers import set_backend
from labrig_surrogates.model_tools import clip_weights

RIG_S = 1e-3
WRITE_S = 5e-3
_ENDLESS = 10**9
_EPOCH = 10


@dataclass(frozen=True)
class _Answer:
    """Of a rig that is busy until a time of the performance counter; waiting for it takes no processor."""

    found: MvmResult
    ready_s: float

    def result(self) -> MvmResult:
        left_s = self.ready_s - time.perf_counter()
        if left_s > 0.0:
            time.sleep(left_s)
        return self.found

    def abandon(self) -> None:
        self.result()


@dataclass
class _SlowBoard:
    """A board that takes a time for each batch of the network, shared out over its two tiles and the chunks."""

    inner: KnownBoard
    call_s: float
    write_s: float = 0.0

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        report = self.inner.program(array, conductance_s)
        if self.write_s:
            time.sleep(self.write_s)
        return report

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        return self.begin_mvm(array, voltage_v).result()

    def begin_mvm(self, array: int, voltage_v: FloatArray) -> _Answer:
        # The simulation is this computer's work and comes first; the rig's time is counted from there.
        found = self.inner.mvm(array, voltage_v)
        return _Answer(found, time.perf_counter() + self.call_s)


@dataclass
class _BlockingBoard:
    """The same board for a caller that waits."""

    slow: _SlowBoard

    def program(self, array: int, conductance_s: FloatArray) -> ProgramReport:
        return self.slow.program(array, conductance_s)

    def mvm(self, array: int, voltage_v: FloatArray) -> MvmResult:
        return self.slow.mvm(array, voltage_v)


def task(images: int) -> ImageSet:
    """Random images; what is learned does not matter here."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand((images, 64), generator=generator), torch.arange(images) % 10
    return ImageSet("random", x, y, x[:10], y[:10], 10)


def network_on(chip: ChipModel, hidden: int) -> nn.Module:
    """A two-layer network on the chip's arrays."""
    return analog_copy(digital_network(64, hidden, 10, torch.Generator().manual_seed(0)), chip.geometry)


def hand_written(chip: ChipModel, data: ImageSet, hidden: int, batch: int) -> Callable[[], object]:
    """A surrogate step as one would write it in a script."""
    network = network_on(chip, hidden)
    backend = chip.backend(network, generator_of(0, NOISE_STREAM))
    set_backend(network, backend)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    sampler, loss_of = Sampler(data, batch, generator_of(0, DATA_STREAM)), TaskLoss()

    def step() -> None:
        one = sampler.next()
        backend.new_write()
        optimiser.zero_grad()
        loss = loss_of(network(one.x), one)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        clip_weights(network)

    return step


def session_on(
    chip: ChipModel,
    data: ImageSet,
    hidden: int,
    plan: Plan,
    rig_s: float,
    *,
    ahead: bool = True,
    write_s: float = 0.0,
) -> Session:
    """A session on a chip that takes so long for each batch and programming; `ahead` computes meanwhile."""
    slow = _SlowBoard(KnownBoard(KnownChip(rows=64, columns=64)), rig_s / (2 * plan.chunks), write_s)
    board = slow if ahead else _BlockingBoard(slow)
    return assemble(network_on(chip, hidden), chip, data, plan, 0, board=board)


def steps_of(session: Session, steps: int) -> Callable[[], object]:
    """Takes so many steps."""

    def run() -> None:
        for _ in range(steps):
            session.advance(lambda _: None)

    return run


@contextmanager
def bare_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def prepare(quick: bool) -> AsyncIterator[Suite]:
    """Sets the cases up."""
    hidden, batch = (16, 32) if quick else (32, 128)
    chip, data = ChipModel.of(KnownChip(rows=64, columns=64, noise=0.02).calibration()), task(4 * batch)
    plan = Plan(steps=_ENDLESS, policy=PolicyPlan(surrogate_steps=1), optimisation=Optimisation(batch, 1e-4))
    plain = session_on(chip, data, hidden, replace(plan, method="surrogate"), 0.0)
    cases = [
        Case("surrogate step: loop by hand", sync(hand_written(chip, data, hidden, batch))),
        Case("surrogate step: session", sync(steps_of(plain, 1)), reference="surrogate step: loop by hand"),
    ]
    epoch = f"epoch of {_EPOCH} alternating steps"
    for chunks in (1, 2, 4):
        chunked = replace(plan, chunks=chunks)
        name = f"{epoch}, {chunks} chunks: compute alone"
        idle = session_on(chip, data, hidden, chunked, 0.0)
        busy = session_on(chip, data, hidden, chunked, RIG_S)
        cases.append(Case(name, sync(steps_of(idle, _EPOCH)), _EPOCH))
        with_rig = f"{epoch}, {chunks} chunks: with {1e3 * RIG_S:g} ms a batch"
        cases.append(Case(with_rig, sync(steps_of(busy, _EPOCH)), _EPOCH, reference=name))
    waiting = session_on(chip, data, hidden, plan, RIG_S, ahead=False)
    blocking = f"{epoch}, 1 chunks: with {1e3 * RIG_S:g} ms a batch, waited for"
    cases.append(Case(blocking, sync(steps_of(waiting, _EPOCH)), _EPOCH, reference=f"{epoch}, 1 chunks: compute alone"))

    fourfold = replace(plan, policy=PolicyPlan(surrogate_steps=4), probe_every=0)
    with_writes = f"epoch of {_EPOCH} steps, two of them passes, {1e3 * WRITE_S:g} ms a write"
    in_loop = session_on(chip, data, hidden, fourfold, 0.0, write_s=WRITE_S)
    overlapped = session_on(chip, data, hidden, replace(fourfold, method="in-loop-overlapped"), 0.0, write_s=WRITE_S)
    without = session_on(chip, data, hidden, fourfold, 0.0)
    alone = "epoch of the same steps: compute alone"
    cases += [
        Case(alone, sync(steps_of(without, _EPOCH)), _EPOCH),
        Case(f"{with_writes}: in-loop", sync(steps_of(in_loop, _EPOCH)), _EPOCH, reference=alone),
        Case(f"{with_writes}: in-loop-overlapped", sync(steps_of(overlapped, _EPOCH)), _EPOCH, reference=alone),
    ]

    def rig_alone() -> None:
        for _ in range(_EPOCH // 2):
            time.sleep(RIG_S)

    cases.append(Case(f"{epoch}: rig alone", sync(rig_alone), _EPOCH))
    async with AsyncExitStack() as stack:
        portal = stack.enter_context(LoopPortal())

        async def nothing() -> None:
            return None

        bare = stack.enter_context(bare_loop())
        asyncios_own = "bridge there and back: asyncio.run_coroutine_threadsafe"
        cases += [
            Case(asyncios_own, sync(lambda: asyncio.run_coroutine_threadsafe(nothing(), bare).result())),
            Case("bridge there and back: LoopPortal.call", sync(lambda: portal.call(nothing())), 1.0, asyncios_own),
        ]
        yield Suite("The trainer beside a loop by hand, and beside a rig that takes time", "step", cases)


if __name__ == "__main__":
    main(Script("benchmarks.training", prepare, ("torch",), threads=1))
