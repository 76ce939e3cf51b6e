"""How far a chip's activations are from those of the network that was meant: Jensen-Shannon divergence, layer by layer.

Measured against the chip itself: two runs of one chip on the same images differ by its read noise alone, and that is
the floor that no training can go below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from labrig.studies.vision.arrays import calibrate_inputs, on_chip
from labrig.studies.vision.chips import chip_seed
from labrig.studies.vision.images import Images, ImageTask
from labrig.studies.vision.methods import Method
from labrig.studies.vision.noise import Noise
from labrig_calibration.activation_divergence import compare_activations
from labrig_surrogates.layers import analog_modules
from labrig_surrogates.model_tools import noise_off, program, seed_noise

_COLUMNS: Final = 16
_PERMUTATIONS: Final = 50


def layer_divergences(
    network: nn.Module,
    method: Method,
    noise: Noise,
    task: ImageTask,
    images: Images,
    seed: int,
    *,
    kept: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, float]]:
    """Divergences in bits of each layer's outputs: of a chip from the network meant, and of the chip from itself.

    Each image gives one value for each of up to 16 columns of a layer, at a position drawn for it; in bins of equal
    mass, with what equal distributions give at these sizes taken off.

    Args:
        network: Digital, with the weights that its method found.
        method: How many bits it has.
        noise: Of the chip; without output noise both runs of the chip are the same.
        task: What converters are set with.
        images: At least a few hundred.
        seed: Of chip and positions.
        kept: See `score_chips`.
    """
    chip = on_chip(network, method, noise, seed)
    calibrate_inputs(chip, [task.range_inputs()], kept=kept)
    chip.eval()
    seed_noise(chip, chip_seed(seed, 0))
    program(chip)
    x = task.inputs(images.pixels)
    first, second = (_outputs(chip, x, seed) for _ in range(2))
    ideal = on_chip(network, method, Noise(0.0), seed)
    calibrate_inputs(ideal, [task.range_inputs()], kept=kept)
    with noise_off(ideal):
        meant = _outputs(ideal.eval(), x, seed)
    found: dict[str, tuple[float, float]] = {}
    for layer, measured in first.items():
        rng = np.random.default_rng([seed, len(found)])
        one = compare_activations(
            measured,
            meant[layer],
            rng=rng,
            repeated=second[layer],
            block=1,
            permutations=_PERMUTATIONS,
            bootstraps=_PERMUTATIONS,
        )
        found[layer] = (one.layer_raw - one.layer_floor, one.itself)
    return found


@torch.no_grad()
def _outputs(network: nn.Module, x: Tensor, seed: int) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Some outputs of every layer, `[images, columns]`; the same positions for each network."""
    kept: dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]] = {}
    handles = []
    for number, (name, module) in enumerate(analog_modules(network)):

        def keep(_module: nn.Module, _inputs: object, outputs: Tensor, name: str = name, number: int = number) -> None:
            columns = outputs.flatten(2) if outputs.dim() > 2 else outputs[:, :, None]
            columns = columns[:, :: max(1, columns.shape[1] // _COLUMNS)][:, :_COLUMNS]
            generator = torch.Generator().manual_seed(seed * 1000 + number)
            place = torch.randint(0, columns.shape[2], (len(columns), 1, 1), generator=generator).to(columns.device)
            chosen = columns.gather(2, place.expand(-1, columns.shape[1], 1))[:, :, 0]
            kept[name] = chosen.double().cpu().numpy()

        assert isinstance(module, nn.Module)
        handles.append(module.register_forward_hook(keep))
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return kept
