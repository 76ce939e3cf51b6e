"""The methods without a state of their own: physics-aware training, and those that never ask the chip to train."""

from __future__ import annotations

from labrig.training.batches import Batch
from labrig.training.bench import TrainingBench
from labrig.training.column_fit import calibrate_columns
from labrig.training.methods.base import Method, StepOutcome, physics_aware_step


def physics_aware() -> Method:
    """Forward on the chip, vector-Jacobian product of the noiseless surrogate at the measured inputs (Wright 2022)."""
    return Method("in-loop", physics_aware_step)


def surrogate_only() -> Method:
    """Every step on the noisy surrogate; the chip is not asked."""
    return Method("surrogate", None)


def digital_only() -> Method:
    """Every step in float, on ideal arrays."""
    return Method("digital", None, _digital_step)


def offline_then_calibrated(images: int) -> Method:
    """Every step on the noisy surrogate; at the end scale and bias of every column are fitted on the chip.

    Args:
        images: Training images, without their classes, that the columns are fitted to.
    """

    def finish(bench: TrainingBench) -> None:
        network, x = bench.stepper.network, bench.data.train_x[:images]
        bench.computed(len(x), 1)
        bench.ledger.passes += calibrate_columns(network, bench.chip, x, bench.mean_surrogate)

    return Method("offline-calibrated", None, finish=finish)


def _digital_step(bench: TrainingBench, batch: Batch) -> StepOutcome:
    bench.backends.use("digital")
    bench.computed(len(batch))
    return StepOutcome(bench.stepper.step(batch))
