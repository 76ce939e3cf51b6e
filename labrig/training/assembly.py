"""A session from its parts: network, chip, board and plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from labrig.training.arithmetic import flops_of_an_image
from labrig.training.averaging import MovingAverage
from labrig.training.backends import Backends
from labrig.training.batches import Sampler
from labrig.training.bench import NoisySteps, TrainingBench
from labrig.training.canaries import Canaries, canary_vectors
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.ledger import Ledger
from labrig.training.methods.base import Method
from labrig.training.methods.dual_adaptive import ResidualBackend, ResidualSettings, dual_adaptive
from labrig.training.methods.in_flight import overlapped, stale_by_one
from labrig.training.methods.model_free import spsa
from labrig.training.methods.output_errors import output_errors
from labrig.training.methods.plain import digital_only, offline_then_calibrated, physics_aware, surrogate_only
from labrig.training.methods.staged import layer_by_layer
from labrig.training.optimisation import Stepper
from labrig.training.physical import BlockingBoard, PhysicalBackend
from labrig.training.plan import Plan
from labrig.training.population import draw_population
from labrig.training.ranks import ALONE, Ranks
from labrig.training.replay_backend import RecordedWrite, ReplayBackend
from labrig.training.session import Recalibration, Session
from labrig.training.writing import WriteRule
from labrig_surrogates.backend import DigitalBackend

# Keeps the streams of one seed apart: initial weights and order of images, noise of the surrogate, chips of a
# population, canaries, and what methods draw.
DATA_STREAM, NOISE_STREAM, CHIP_STREAM, CANARY_STREAM, METHOD_STREAM = 1, 2, 3, 4, 5


def generator_of(seed: int, stream: int, rank: int = 0) -> torch.Generator:
    """The generator of one stream of draws of one seed, in one of several processes."""
    return torch.Generator().manual_seed((rank << 40) + 1000 * seed + stream)


def assemble(
    network: nn.Module,
    chip: ChipModel,
    data: ImageSet,
    plan: Plan,
    seed: int,
    *,
    board: BlockingBoard | None = None,
    teacher: Tensor | None = None,
    recorded: Mapping[int, Sequence[RecordedWrite]] | None = None,
    meter_j: Callable[[], float | None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Session:
    """Puts a session together; the network is trained in place.

    Args:
        network: On analog layers, ranges set.
        chip: The calibrated chip.
        data: The task.
        plan: What is done.
        seed: Of every draw.
        board: The chip itself; None where the method does without.
        teacher: Outputs of a teacher for every training image, `[N, classes]`.
        recorded: Passes of the chip, by array, for layers that `plan.layers` has replayed.
        meter_j: Reads the energy meter in J, None without one.
        ranks: Which of several processes this is, for a training on the surrogate that they share.

    Raises:
        ConfigError: The method cannot train this network, or a layer that the plan names does not exist.
    """
    ledger = Ledger()
    step_s = plan.conductance_step_s
    surrogate = chip.backend(
        network,
        generator_of(seed, NOISE_STREAM, ranks.rank),
        conductance_step_s=step_s,
        stochastic=plan.stochastic_rounding,
    )
    placement = chip.placement(network)
    backends = Backends(network, dict(plan.layers))
    backends.offer("digital", DigitalBackend())
    backends.offer("surrogate", surrogate)
    if recorded is not None:
        backends.offer("replay", ReplayBackend(surrogate, placement, recorded))
    physical = None
    if board is not None:
        rule = WriteRule(step_s, chip.geometry.conductance_min_s)
        physical = PhysicalBackend(board, surrogate, placement, ledger, rule=rule)
        backends.offer("physical", physical)
    population = draw_population(chip.parameters, plan.population, generator_of(seed, CHIP_STREAM))
    # A shared array would be programmed once for every chunk.
    shared = len(set(placement.values())) < len(placement)
    bench = TrainingBench(
        backends=backends,
        stepper=Stepper(network, plan.optimisation, plan.steps),
        surrogate=surrogate,
        fitted=chip.surrogates,
        physical=physical,
        data=data,
        ledger=ledger,
        generator=generator_of(seed, METHOD_STREAM),
        noisy=NoisySteps(plan.noise, plan.draws, population),
        chunks=1 if shared else plan.chunks,
        ranks=ranks,
    )
    method = _method(plan, network, bench, placement)
    bench.flops_of_an_image = flops_of_an_image(network, data.train_x[:1])
    sampler = Sampler(data, plan.optimisation.batch, generator_of(seed, DATA_STREAM), teacher)
    return Session(
        bench,
        method,
        plan.build_policy(),
        sampler,
        plan.steps,
        chip=chip,
        recalibration=_recalibration(plan, chip, seed),
        average=MovingAverage(plan.average_decay),
        meter_j=meter_j,
        probe_every=plan.probe_every,
    )


def _method(plan: Plan, network: nn.Module, bench: TrainingBench, placement: dict[str, int]) -> Method:
    match plan.method:
        case "digital":
            return digital_only()
        case "surrogate":
            return surrogate_only()
        case "offline-calibrated":
            return offline_then_calibrated(plan.calibration_images)
        case "dat":
            return dual_adaptive(ResidualBackend(bench.surrogate, placement, ResidualSettings()))
        case "asyt":
            return output_errors()
        case "in-loop-overlapped":
            return overlapped()
        case "in-loop-stale":
            return stale_by_one()
        case "spsa":
            return spsa(plan.perturbation)
        case "progressive" | "head":
            return layer_by_layer(network, plan.steps, plan.method)
        case "in-loop":
            return physics_aware()


def _recalibration(plan: Plan, chip: ChipModel, seed: int) -> Recalibration | None:
    if not plan.recalibrate:
        return None
    canaries = None
    if plan.canaries is not None:
        geometry = chip.geometry
        vectors = canary_vectors(geometry.rows, geometry.voltage_max_v, generator_of(seed, CANARY_STREAM))
        canaries = Canaries(plan.canaries, vectors)
    return Recalibration(canaries, plan.refit)
