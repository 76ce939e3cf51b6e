"""Recorded passes in the place of the chip, and layers on backends of their own."""

import numpy as np
import pytest
import torch
from torch import nn

from labrig.testing.known_chip import KnownBoard, KnownChip
from labrig.training.backends import Backends
from labrig.training.chip_model import ChipModel
from labrig.training.deployment import analog_copy
from labrig.training.replay_backend import RecordedWrite, ReplayBackend
from labrig_drivers.errors import ConfigError, StorageError
from labrig_surrogates.backend import DigitalBackend
from labrig_surrogates.layers import weight_matrices

CHIP = KnownChip(gain_sigma=0.3, offset_sigma=0.3, cell_sigma=0.3)


def recorded(count: int) -> tuple[list[RecordedWrite], np.random.Generator]:
    board, rng = KnownBoard(CHIP), np.random.default_rng(0)
    writes = []
    for _ in range(count):
        target_s = CHIP.conductance_max_s * rng.random((8, 16))
        voltage_v = CHIP.voltage_max_v * rng.uniform(-1.0, 1.0, (32, 8))
        board.program(0, target_s)
        found = (target_s, voltage_v, board.mvm(0, voltage_v).current_a)
        writes.append(RecordedWrite(*(torch.as_tensor(one, dtype=torch.float32) for one in found)))
    return writes, rng


def test_a_recorded_pass_is_answered_as_recorded_and_a_far_one_as_the_surrogate_would() -> None:
    writes, _ = recorded(3)
    model = ChipModel.of(CHIP.nominal())
    network = analog_copy(nn.Sequential(nn.Linear(6, 8)), model.geometry)
    surrogate = model.backend(network, torch.Generator())
    replay = ReplayBackend(surrogate, {"0/0": 0}, {0: writes})
    one = writes[1]
    target = one.target_s.clone().requires_grad_()
    answer = replay.currents("0/0", target, one.voltage_v)
    torch.testing.assert_close(answer.detach(), one.current_a, rtol=1e-4, atol=1e-9)
    mean = surrogate.mean_currents("0/0", target, one.voltage_v)
    assert (mean - one.current_a).abs().max() > 0.1 * CHIP.unit_a
    # The gradient is the surrogate's.
    seed = torch.randn_like(mean)
    gradients = [torch.autograd.grad((values * seed).sum(), target)[0] for values in (answer, mean)]
    assert torch.equal(*gradients)
    # Near a recorded write the anchor helps; far from all of them it is gone.
    board = KnownBoard(CHIP)
    errors = []
    for step in (0.01, 0.02):
        near = (one.target_s * (1.0 + step)).clamp(max=CHIP.conductance_max_s)
        board.program(0, near.double().numpy())
        truth = torch.as_tensor(board.mvm(0, one.voltage_v.double().numpy()).current_a, dtype=torch.float32)
        anchored = replay.currents("0/0", near, one.voltage_v)
        alone = surrogate.mean_currents("0/0", near, one.voltage_v)
        errors.append(float((anchored - truth).norm() / (alone - truth).norm()))
    assert errors[0] < errors[1] < 0.5
    far = CHIP.conductance_max_s - one.target_s
    residual = replay.currents("0/0", far, one.voltage_v) - surrogate.mean_currents("0/0", far, one.voltage_v)
    assert residual.abs().max() < 0.02 * CHIP.unit_a
    with pytest.raises(StorageError, match=r"no passes of array 1 were recorded"):
        ReplayBackend(surrogate, {"0/0": 1}, {0: writes})


def test_single_layers_stay_on_their_own_backend() -> None:
    model = ChipModel.of(CHIP.calibration())
    network = analog_copy(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), model.geometry)
    surrogate, digital = model.backend(network, torch.Generator()), DigitalBackend()
    backends = Backends(network, {"2": "digital"})
    backends.offer("surrogate", surrogate)
    with pytest.raises(ConfigError, match=r"nothing computes digital here; there are surrogate"):
        backends.use("surrogate")
    backends.offer("digital", digital)
    backends.use("surrogate")
    first, second = (matrix.core for matrix in weight_matrices(network))
    assert [one.path for one in (first, second)] == ["SurrogateBackend", "DigitalBackend"]
    with backends.using(surrogate):
        assert [one.path for one in (first, second)] == ["SurrogateBackend", "SurrogateBackend"]
    assert [one.path for one in (first, second)] == ["SurrogateBackend", "DigitalBackend"]
    with pytest.raises(ConfigError, match=r"no analog layer hiden; there are 0, 2"):
        Backends(network, {"hiden": "digital"})
