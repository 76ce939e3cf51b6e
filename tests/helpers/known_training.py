"""Small trainings on chips of two small arrays whose truth is known."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.assembly import assemble
from labrig.training.batches import Batch
from labrig.training.chip_model import ChipModel
from labrig.training.datasets import ImageSet
from labrig.training.deployment import analog_copy, observed_inputs
from labrig.training.models import digital_network
from labrig.training.physical import BlockingBoard
from labrig.training.plan import MethodName, Plan, PolicyPlan
from labrig.training.session import Line, Session
from labrig_surrogates.layers import weight_matrices

MISMATCHED = KnownChip(gain_sigma=0.25, offset_sigma=0.1, cell_sigma=0.25, compression=0.3)


def blobs(count: int = 96) -> ImageSet:
    """Three classes around three corners of the unit cube in four dimensions."""
    generator = torch.Generator().manual_seed(4)
    corners = torch.tensor([[0.8, 0.2, 0.2, 0.5], [0.2, 0.8, 0.2, 0.5], [0.2, 0.2, 0.8, 0.5]])
    y = torch.arange(2 * count) % 3
    x = (corners[y] + 0.12 * torch.randn((2 * count, 4), generator=generator)).clamp(0.0, 1.0)
    return ImageSet("blobs", x[:count], y[:count], x[count:], y[count:], 3)


DATA = blobs()


def network_on(chip: KnownChip, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A digital network, and the same on the chip's arrays with ranges that clip nothing."""
    digital = digital_network(4, 8, 3, torch.Generator().manual_seed(seed))
    analog = analog_copy(digital, ChipModel.of(chip.calibration()).geometry)
    inputs = observed_inputs(analog, DATA.train_x)
    for matrix in weight_matrices(analog):
        matrix.core.set_ranges(
            weight_max=4.0 * float(matrix.weight.detach().abs().max()),
            input_max=2.0 * float(inputs[matrix.core.name].max()),
        )
    return digital, analog


def session_on(
    chip: KnownChip,
    method: MethodName = "in-loop",
    *,
    calibrated: bool = True,
    plan: Plan | None = None,
    data: ImageSet = DATA,
    board: BlockingBoard | None = None,
    seed: int = 0,
) -> Session:
    """A session on a chip that is calibrated perfectly, or known from its data sheet only."""
    _, analog = network_on(chip, seed)
    model = ChipModel.of(chip.calibration() if calibrated else chip.nominal())
    used = plan or Plan(steps=12, policy=PolicyPlan(surrogate_steps=1))
    used = replace(used, method=method)
    return assemble(analog, model, data, used, 3, board=board or KnownBoard(chip))


def run(session: Session) -> list[Line]:
    lines: list[Line] = []
    session.run(lines.append)
    return lines


def whole_batch() -> Batch:
    return Batch(DATA.train_x, DATA.train_y, torch.arange(len(DATA.train_y)))


def gradients(session: Session) -> dict[str, Tensor]:
    found = {}
    for name, one in session.bench.stepper.parameters.items():
        assert one.grad is not None
        found[name] = one.grad.clone()
    return found


def cosine(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    mine, theirs = (torch.cat([values[name].flatten() for name in sorted(one)]) for values in (one, other))
    return float(torch.nn.functional.cosine_similarity(mine, theirs, dim=0))


def stepped_gradients(session: Session) -> list[dict[str, Tensor]]:
    """Collects the gradients that each step is taken with."""
    taken: list[dict[str, Tensor]] = []
    apply = session.bench.stepper.apply

    def spy() -> None:
        taken.append(gradients(session))
        apply()

    session.bench.stepper.apply = spy  # type: ignore[method-assign]
    return taken
