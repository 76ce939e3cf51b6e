"""Activations, stochastic residual layers and the loss under DistributedDataParallel, in one process."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from labrig_surrogates.activation_statistics import record_statistics
from labrig_surrogates.activations import AsymmetricActivation, StretchedExponential
from labrig_surrogates.losses import PhysicsInformedLoss
from labrig_surrogates.residual_spreads import HardwareSpread, TiedSpread
from labrig_surrogates.stochastic_residual import StochasticResidual


@pytest.fixture
def one_process() -> Iterator[None]:
    if not distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    store = distributed.HashStore()  # type: ignore[attr-defined]  # its stubs do not export it
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_step_reaches_every_parameter_and_moves_no_buffer(one_process: None) -> None:
    spread = TiedSpread(HardwareSpread(amplifier=0.01, shot=0.01, conductance=0.01))
    residual = StochasticResidual(
        nn.Linear(4, 4), spread, generator=torch.Generator().manual_seed(0), weight="weight", skip=True
    )
    model = nn.Sequential(residual, AsymmetricActivation(4), StretchedExponential(4), nn.Linear(4, 2))
    parallel = DistributedDataParallel(model)
    loss = PhysicsInformedLoss(nn.functional.cross_entropy, kl_weight=1.0, train_size=8)
    x, targets = torch.randn((8, 4), generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    with torch.no_grad(), record_statistics(model, ["3"]) as chip:
        model(x)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with record_statistics(model, ["3"]) as own:
        outputs = parallel(x)
    terms = loss(outputs, targets, model=model, network=own.layers, hardware=chip.recorded(0.0))
    torch.autograd.backward(terms.total)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_buffers())
