"""Trainings of the image studies: they go on where they stopped, and each method does what its settings say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from labrig.images.labelled import ImageSplits, LabelledImages
from labrig.studies.vision.activations import layer_divergences
from labrig.studies.vision.arrays import calibrate_inputs, input_ranges, on_arrays, on_chip, set_noise
from labrig.studies.vision.chips import accuracy, score_chips
from labrig.studies.vision.images import ImageTask
from labrig.studies.vision.methods import METHODS, precision_named
from labrig.studies.vision.noise import Noise
from labrig.studies.vision.store import NetworkStore
from labrig.studies.vision.terms import PhysicsTerms, set_residuals, with_residuals, without_residuals
from labrig.studies.vision.training import DigitalJob, MethodJob, train_digital, train_method
from labrig_drivers.errors import ConfigError, StorageError
from labrig_surrogates.layers import analog_modules, weight_matrices
from labrig_surrogates.stochastic_residual import StochasticResidual

DEVICE = torch.device("cpu")
JOB = DigitalJob("airbench-tiny", "patches", seed=1, epochs=3, batch=20)


@pytest.fixture(scope="module")
def task() -> ImageTask:
    """Four classes that differ by the corner in which there is something bright."""
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 4).astype(np.int64)
    pixels = rng.integers(0, 60, (200, 32, 32, 3)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        top, left = 16 * (label // 2), 16 * (label % 2)
        image[top : top + 16, left : left + 16, label % 3] += 150
    images = LabelledImages(pixels, labels)
    return ImageTask.of(ImageSplits("patches", images, images, ("a", "b", "c", "d")), DEVICE)


@pytest.fixture(scope="module")
def digital(task: ImageTask, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return train_digital(JOB, task, tmp_path_factory.mktemp("nets") / "d.epoch", lambda *_: None).network


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class _StoppedError(Exception):
    pass


def stop_at(step: int) -> object:
    def on_step(now: int, _steps: int, _loss: float) -> None:
        if now == step:
            raise _StoppedError

    return on_step


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    task: ImageTask, digital: nn.Module, tmp_path: Path
) -> None:
    method = replace(METHODS["ours"], statistics=0.1, average=0.5)
    job = MethodJob(JOB, method, 0.2, epochs=3)
    whole = train_method(job, digital, task, tmp_path / "whole", lambda *_: None)
    with pytest.raises(_StoppedError):
        train_method(job, digital, task, tmp_path / "broken", stop_at(20))  # type: ignore[arg-type]
    steps: list[int] = []
    resumed = train_method(job, digital, task, tmp_path / "broken", lambda step, *_: steps.append(step))
    assert steps == [*range(19, 28)]  # two epochs of nine steps were kept
    assert equal(whole.network, resumed.network)
    other = train_method(replace(job, level=0.1), digital, task, tmp_path / "x", lambda *_: None)
    assert not equal(whole.network, other.network)


def test_names_say_what_a_training_depends_on() -> None:
    job = MethodJob(JOB, METHODS["ours"], 0.2, 3)
    others = [
        replace(job, ranges="layer by layer"),
        replace(job, level=0.1),
        replace(job, epochs=4),
        replace(job, start=replace(JOB, seed=2)),
        replace(job, method=replace(job.method, clip_sigmas=2.5)),
    ]
    assert len({one.name for one in (job, *others)}) == 6
    assert job.name.startswith("airbench-tiny-patches-ours-20-1-")
    # Networks that were trained before there was a choice keep their names.
    assert MethodJob(DigitalJob("airbench-half", "cifar10", 0, 8), METHODS["QAT"], 0.2, 5).name.endswith("80255e8d42")


def test_four_bit_networks_are_stored_in_half_a_byte_a_weight(
    task: ImageTask, digital: nn.Module, tmp_path: Path
) -> None:
    job, store = MethodJob(JOB, METHODS["QAT"], 0.2, 1), NetworkStore(tmp_path)
    trained = train_method(job, digital, task, store.checkpoint(job), lambda *_: None)
    assert not trained.input_max
    assert store.load(job, task.classes, DEVICE) is None
    store.save(job, trained)
    assert not store.checkpoint(job).exists()
    weights = sum(one.weight.numel() for one in trained.network.modules() if isinstance(one, nn.Conv2d | nn.Linear))
    assert store.path(job).stat().st_size < 0.5 * weights + 12_000
    loaded = store.load(job, task.classes, DEVICE)
    assert loaded is not None
    chips = [weight_matrices(on_chip(one.network, job.method, Noise(0.0), 0)) for one in (trained, loaded)]
    for before, after in zip(*chips, strict=True):
        (first,), (second,) = (one.core.realise(one.weight) for one in (before, after))
        assert torch.equal(first.codes, second.codes)  # what is stored is what would be programmed
        assert float(second.unit) == pytest.approx(float(first.unit))
    store.path(job).write_bytes(store.path(job).read_bytes()[:2000])
    with pytest.raises(StorageError, match="damaged"):
        store.load(job, task.classes, DEVICE)


def test_a_network_is_judged_with_the_ranges_that_it_was_trained_with(
    task: ImageTask, digital: nn.Module, tmp_path: Path
) -> None:
    job, store = MethodJob(JOB, METHODS["ours"], 0.2, 2, ranges="layer by layer"), NetworkStore(tmp_path)
    trained = train_method(job, digital, task, store.checkpoint(job), lambda *_: None)
    store.save(job, trained)
    loaded = store.load(job, task.classes, DEVICE)
    assert loaded is not None
    assert loaded.input_max == trained.input_max
    chips = [on_chip(loaded.network, job.method, Noise(0.0), 0) for _ in range(3)]
    calibrate_inputs(chips[0], [task.range_inputs()], kept=loaded.input_max)
    calibrate_inputs(chips[1], [task.range_inputs()])
    calibrate_inputs(chips[2], [task.range_inputs()], rule="layer by layer")
    kept, meant, behind = (input_ranges(chip) for chip in chips)
    assert kept == trained.input_max
    assert len({tuple(one.values()) for one in (kept, meant, behind)}) == 3
    scores = [
        score_chips(loaded.network, job.method, Noise(0.0), task, [task.test], seed=0, kept=one)
        for one in (kept, dict.fromkeys(kept, 100.0))
    ]
    # With sixteen levels for far too large a range nothing is left.
    assert scores[0].as_trained[0] > scores[1].as_trained[0] + 20.0


def test_chips_differ_by_their_errors_only_and_are_the_same_for_all(task: ImageTask, digital: nn.Module) -> None:
    method, parts = METHODS["QAT"], [task.test] * 3
    quiet = score_chips(digital, method, Noise(0.0), task, parts, seed=0)
    assert len(set(quiet.as_trained)) == 1
    loud, again, others = (
        score_chips(digital, method, Noise(0.5, 0.5), task, parts, seed=seed, re_estimate=False) for seed in (0, 0, 1)
    )
    assert loud == again
    assert loud != others
    assert len(set(loud.as_trained)) > 1
    assert loud.as_trained == loud.re_estimated


def test_activations_are_compared_with_those_meant_and_with_the_chip_itself(
    task: ImageTask, digital: nn.Module
) -> None:
    method = METHODS["QAT"]
    images = task.train
    found = {
        noise: layer_divergences(digital, method, noise, task, images, seed=0)
        for noise in (Noise(0.0), Noise(0.3), Noise(0.3, 0.3))
    }
    quiet, frozen, loud = found.values()
    assert set(quiet) == set(loud) == {name for name, _ in analog_modules(on_chip(digital, method, Noise(0.0), 0))}
    assert all(chip <= 0.0 for chip, _ in quiet.values())  # nothing but the floor is left, and taken off
    for layer in loud:
        assert frozen[layer][0] > 0.005 > frozen[layer][1]  # an error that stays is not seen between two runs
        assert abs(loud[layer][1]) < 0.02 < loud[layer][0]  # noise moves single values, not what they are drawn from


def test_programming_errors_stay_for_a_chip_and_have_the_width_that_is_asked_for(digital: nn.Module) -> None:
    method = replace(METHODS["QAT"], activation_bits=None)
    chip = on_chip(digital, method, Noise(0.1), 3).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(chip(x), chip(x))
    matrix = max(weight_matrices(chip), key=lambda one: one.weight.numel())
    (array,) = matrix.core.realise(matrix.weight)
    noisy = array.codes * array.unit
    largest = matrix.weight.detach().abs().max()
    levels = torch.round(matrix.weight.detach() / (largest / 7)) * (largest / 7)
    assert float((noisy - levels).std() / largest) == pytest.approx(0.1, rel=0.02)


def test_weights_stay_clipped_and_noise_follows_the_schedule(
    task: ImageTask, digital: nn.Module, tmp_path: Path
) -> None:
    job = MethodJob(JOB, METHODS["ours"], 0.2, 2)
    trained = train_method(job, digital, task, tmp_path / "x", lambda *_: None)
    for one in trained.network.modules():
        if isinstance(one, nn.Conv2d):
            # Clipped at two standard deviations; clipping makes these a little smaller.
            weight = one.weight.detach()
            assert float(weight.abs().max() / weight.std(correction=0)) < 2.6
    network = on_arrays(digital, job.method, 0)
    set_noise(network, 0.3, 0.1)
    config = next(iter(weight_matrices(network))).core.config
    assert config.weight_noise is not None
    assert config.output_noise is not None
    assert (config.weight_noise.level, config.output_noise.level) == (0.3, 0.1)


def test_residual_layers_are_as_noisy_as_the_chip_or_noisier_and_go_without_a_trace(
    task: ImageTask, digital: nn.Module
) -> None:
    method = replace(METHODS["ours"], residual=True)
    network = on_arrays(digital, method, 0)
    x = task.inputs(task.train.pixels)
    calibrate_inputs(network, [x])
    names = [*network.state_dict()]
    network = with_residuals(network, torch.Generator().manual_seed(0))
    set_residuals(network, 0.2)
    layer = next(one for one in network.modules() if isinstance(one, StochasticResidual)).train()
    clean = layer.mean(x)
    noise = (layer(x) - clean).detach()
    assert float(noise.std() / clean.std()) == pytest.approx(1.25 * 0.2, rel=0.2)
    assert layer.stream is not None
    assert [*without_residuals(network).state_dict()] == names


def test_physics_terms_hold_spreads_up_and_see_the_chip(task: ImageTask, digital: nn.Module) -> None:
    method = replace(METHODS["ours"], spread=True, kl=1.0, statistics=1.0)
    network = on_arrays(digital, method, 0)
    x = task.inputs(task.train.pixels[:80])
    calibrate_inputs(network, [x])
    network.train()
    terms = PhysicsTerms(network, method, 0.2, 180)
    terms.measure(x, 0)
    set_noise(network, 0.2, 0.2)
    with terms.watching():
        network(x)
    value = terms.value(0.2)
    assert value is not None
    assert torch.isfinite(value)
    value.backward()  # type: ignore[no-untyped-call]
    spreads = [matrix.core.log_spread for matrix in weight_matrices(network)]
    assert all(one is not None and one.grad is not None and float(one.grad.abs()) > 0.0 for one in spreads)
    plain = PhysicsTerms(network, METHODS["ours"], 0.2, 180)
    assert plain.value(0.2) is None


def test_the_task_is_learned_and_unknown_precisions_are_refused(task: ImageTask, digital: nn.Module) -> None:
    assert accuracy(digital, task, task.test) > 90.0
    with pytest.raises(ConfigError, match=r"--precision 5: expected one of 4, 8, float"):
        precision_named("5")
