"""Layers, activations and the loss under DistributedDataParallel: in one process, and nightly in two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from labrig_surrogates.activation_statistics import record_statistics
from labrig_surrogates.activations import AsymmetricActivation, StretchedExponential
from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.convert import to_analog
from labrig_surrogates.effect_settings import Adc, Dac, OutputNoise, WeightNoise, WeightQuantization, WeightSpread
from labrig_surrogates.losses import PhysicsInformedLoss
from labrig_surrogates.model_tools import seed_noise
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


def _train_on(rank: int, folder: str) -> None:
    """One of two processes: the same model and data of its own, noise of its own; leaves what came out in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    config = AnalogConfig(
        dac=Dac(input_max=3.0, range="learned"),
        weight_quantization=WeightQuantization(4),
        weight_noise=WeightNoise(0.1),
        spread=WeightSpread(beside_weight_noise=True),
        output_noise=OutputNoise(0.02, "ofs"),
        adc=Adc(),
    )
    model = to_analog(plain, config)
    seed_noise(model, rank)
    same = torch.randn((4, 2, 5, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = model(same)
    parallel = DistributedDataParallel(model)
    optimiser = torch.optim.SGD(parallel.parameters(), lr=0.1)
    own = torch.randn((4, 2, 5, 5), generator=torch.Generator().manual_seed(2 + rank))
    for _ in range(3):
        optimiser.zero_grad()
        parallel(own).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        last = model(same)
    torch.save({"first": first, "last": last, "state": model.state_dict()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.nightly
def test_two_processes_train_one_model_with_noise_of_their_own(tmp_path: Path) -> None:
    spawn(_train_on, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one["state"][name], other["state"][name]) for name in one["state"])
    assert not torch.equal(one["first"], other["first"])
    assert not torch.equal(one["last"], other["last"])
