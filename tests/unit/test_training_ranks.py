"""Surrogate steps shared between processes: the same weights as one process on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from labrig.config import shipped_rig
from labrig.events import EventBus, RunStarted
from labrig.testing.known_chip import KnownChip
from labrig.training.assembly import assemble
from labrig.training.batches import Batch
from labrig.training.chip_model import ChipModel
from labrig.training.config import parse_training
from labrig.training.datasets import ImageSet
from labrig.training.deployment import analog_copy, observed_inputs, set_quantile_ranges
from labrig.training.models import digital_network
from labrig.training.optimisation import Optimisation
from labrig.training.plan import Plan
from labrig.training.ranks import Ranks, torchrun_ranks
from labrig.training.run import train_run
from labrig_drivers.errors import ConfigError
from labrig_surrogates.io import save_chip
from labrig_surrogates.parameters import ChipParameters
from labrig_surrogates.schedules import Constant


def trained(ranks: Ranks, level: float, draws: int = 1) -> dict[str, Tensor]:
    """Weights after some steps on the surrogate, batches of seven images among them."""
    generator = torch.Generator().manual_seed(4)
    y = torch.arange(14) % 3
    data = ImageSet("random", torch.rand((14, 4), generator=generator), y, torch.zeros((1, 4)), y[:1], 3)
    chip = ChipModel.of(KnownChip(noise=0.05, gain_sigma=0.2).calibration())
    network: nn.Module = analog_copy(digital_network(4, 8, 3, generator), chip.geometry)
    set_quantile_ranges(network, observed_inputs(network, data.train_x), 1.0, 1.0)
    plan = Plan(method="surrogate", steps=6, optimisation=Optimisation(7, 1e-2), noise=Constant(level), draws=draws)
    assemble(network, chip, data, plan, 5, ranks=ranks).run(lambda _: None)
    return {name: one.detach().clone() for name, one in network.named_parameters()}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({level: trained(Ranks(rank, 2), level) for level in (0.0, 1.0)}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.nightly
def test_two_processes_get_the_weights_of_one(tmp_path: Path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = trained(Ranks(), 0.0)
    for name, one in alone.items():
        # Without noise nothing but the order of additions is different.
        torch.testing.assert_close(first[0.0][name], one, rtol=1e-4, atol=1e-6)
        assert torch.equal(first[0.0][name], second[0.0][name])
        # With noise of their own they still hold the same weights.
        assert torch.equal(first[1.0][name], second[1.0][name])
    noisy = trained(Ranks(), 1.0)
    assert not all(torch.equal(first[1.0][name], one) for name, one in noisy.items())


def test_the_parts_of_a_batch_are_the_batch_and_their_gradients_its_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch(torch.arange(14.0).reshape(7, 2), torch.arange(7), torch.arange(7))
    parts = [Ranks(rank, 3).part(batch) for rank in range(3)]
    assert torch.equal(torch.cat([one.x for one in parts]), batch.x)
    assert Ranks().part(batch) is batch
    with pytest.raises(ConfigError, match="7 images cannot be shared between 8"):
        Ranks(0, 8).part(batch)
    # Another process with the same gradients: sums are twice as large.
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: flat.mul_(2.0))
    weight, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    weight.grad = torch.tensor([1.0, 3.0])
    assert Ranks(0, 2).add_up([weight, unused], 0.25) == 0.5
    assert torch.equal(weight.grad, torch.tensor([2.0, 6.0]))
    assert unused.grad is not None
    assert not unused.grad.any()
    assert Ranks().add_up([weight], 0.25) == 0.25
    assert torch.equal(weight.grad, torch.tensor([2.0, 6.0]))


def test_a_process_is_alone_unless_torchrun_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as other launchers leave it behind
    with torchrun_ranks() as ranks:
        assert ranks == Ranks(0, 1)


TRAINING = """
[run]
folder = "run"
[chip]
rig = "rig.toml"
calibration = "chip.safetensors"
[training]
method = "{method}"
hidden = 4
digital_steps = 5
surrogate_steps = {surrogate_steps}
steps = 4
surrogate_steps_per_cycle = 1
batch = 16
"""


@pytest.mark.parametrize(("method", "surrogate_steps"), [("digital", 9), ("in-loop", 0)])
def test_only_steps_on_the_surrogate_are_shared(tmp_path: Path, method: str, surrogate_steps: int) -> None:
    text = TRAINING.format(method=method, surrogate_steps=surrogate_steps)
    with pytest.raises(ConfigError, match="has no steps on the surrogate, which alone are shared"):
        train_run(parse_training(text, tmp_path / "train.toml"), EventBus(), Ranks(0, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_steps_before_the_rig_are_shared_and_the_rig_is_the_first_processs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    shared: list[int] = []
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: shared.append(flat.numel()))
    (tmp_path / "rig.toml").write_text(
        shipped_rig("mock").read_text().replace("seed = 1\n", "seed = 1\ncolumns = 20\n")
    )
    like = KnownChip(rows=64, columns=20, conductance_max_s=50e-6, voltage_max_v=0.3, noise=0.02).calibration()
    for array in like.arrays.values():
        object.__setattr__(array.converters, "conductance_min_s", 4e-6)
    save_chip(tmp_path / "chip.safetensors", ChipParameters("SIM-0001", like.arrays, {}))
    opened: list[str] = []
    bus = EventBus()
    bus.subscribe(lambda event: opened.append(type(event).__name__) if isinstance(event, RunStarted) else None)
    text = TRAINING.format(method="in-loop", surrogate_steps=9)
    result = train_run(parse_training(text, tmp_path / "train.toml"), bus, Ranks(rank, 2))
    assert len(shared) == 9
    assert (result.ledger.passes, opened) == ((2, ["RunStarted"]) if rank == 0 else (0, []))
    assert (tmp_path / "run").exists() == (rank == 0)
