"""One crossbar array simulated by IBM's aihwkit: its inference tile with the PCM noise and drift model.

aihwkit is imported when a tile is made, never before. Written against aihwkit 1.2.0.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class AihwkitSettings:
    """What an aihwkit chip is made of.

    Attributes:
        seed: Decides every draw of programming errors, drift and slow noise.
        arrays: Number of crossbar arrays, one tile each.
        rows: Word lines of each array.
        columns: Bit lines of each array.
        conductance_min_s: Lowest programmable conductance in S.
        conductance_max_s: Highest programmable conductance in S; the tile's weight 1.
        voltage_max_v: Read voltages reach from minus to plus this, in V; the tile's input 1.
        dac_bits: Input converter, inside the tile (`inp_res`).
        adc_bits: Output converter, signed codes, behind the tile.
        adc_full_scale_a: Current in A at the upper end of the ADC.
        out_noise: Standard deviation of the noise at each output, in units of `voltage_max_v * conductance_max_s`;
            aihwkit's own default is 0.06.
        prog_noise_scale: Multiple of the PCM programming error.
        read_noise_scale: Multiple of the accumulated 1/f noise, drawn anew for each request.
        drift_scale: Multiple of the drift exponents.
        mvm_latency_s: Time in s of one MVM on the chip.
        program_latency_s: Time in s of one programming of an array.
    """

    seed: int = 1
    arrays: int = 1
    rows: int = 64
    columns: int = 64
    conductance_min_s: float = 1e-6
    conductance_max_s: float = 25e-6
    voltage_max_v: float = 0.2
    dac_bits: int = 8
    adc_bits: int = 10
    adc_full_scale_a: float = 120e-6
    out_noise: float = 0.06
    prog_noise_scale: float = 1.0
    read_noise_scale: float = 1.0
    drift_scale: float = 1.0
    mvm_latency_s: float = 10e-6
    program_latency_s: float = 1.0


class Tile(Protocol):
    """An array in a simulator's own units: weights 0 to 1, inputs -1 to 1."""

    def program(self, weight: FloatArray, seed: int) -> None:
        """Programs `weight[rows, columns]`, with whatever errors the devices have."""
        ...

    def age(self, seconds: float, seed: int) -> None:
        """Sets the weights to what they are `seconds` after the programming, with noise drawn anew."""
        ...

    def weights(self) -> FloatArray:
        """The weights as they are now, `[rows, columns]`."""
        ...

    def forward(self, inputs: FloatArray, seed: int) -> FloatArray:
        """Products `[batch, columns]` of `inputs[batch, rows]` with the weights, noisy, before any ADC."""
        ...


def demand_aihwkit() -> None:
    """Refuses to go on without aihwkit.

    Raises:
        ConfigError: It is not installed; the message is the line to run.
    """
    absent = [name for name in ("aihwkit", "torch") if find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"board.driver: this board needs {' and '.join(absent)}, not installed here; run: "
            "pip install 'labrig[aihwkit]' (aihwkit 1.2 has wheels for Python 3.12 only; see docs/how-to/aihwkit.md)"
        )


class AihwkitTile:
    """An aihwkit `InferenceTile` whose every weight is one device, scaled to the highest conductance.

    Input resolution and output noise are the tile's own; noise management, bound management, output bound and drift
    compensation are off, since a board has them outside, or not at all.
    """

    def __init__(self, settings: AihwkitSettings) -> None:
        demand_aihwkit()
        torch = importlib.import_module("torch")
        configs = importlib.import_module("aihwkit.simulator.configs")
        enums = importlib.import_module("aihwkit.simulator.parameters.enums")
        inference = importlib.import_module("aihwkit.inference")
        tiles = importlib.import_module("aihwkit.simulator.tiles")
        config = configs.InferenceRPUConfig()
        config.drift_compensation = None
        config.mapping.digital_bias = False
        config.mapping.weight_scaling_omega = 0.0
        config.noise_model = inference.PCMLikeNoiseModel(
            g_converter=SingleDeviceConverter(1e6 * settings.conductance_max_s),
            prog_noise_scale=settings.prog_noise_scale,
            read_noise_scale=settings.read_noise_scale,
            drift_scale=settings.drift_scale,
        )
        forward = config.forward
        forward.noise_management = enums.NoiseManagementType.NONE
        forward.bound_management = enums.BoundManagementType.NONE
        forward.inp_bound = 1.0
        # aihwkit counts its steps over the whole range, as `BoardInfo.dac_step_v` does.
        forward.inp_res = 1.0 / (2**settings.dac_bits - 2)
        forward.out_noise = settings.out_noise
        forward.out_res = -1.0
        forward.out_bound = 0.0
        forward.w_noise = 0.0
        self._torch: Any = torch
        self._tile: Any = tiles.InferenceTile(settings.columns, settings.rows, config)
        self._tile.eval()

    def program(self, weight: FloatArray, seed: int) -> None:
        """Programs the tile; see `Tile`."""
        with self._drawing(seed):
            self._tile.set_weights(self._tensor(weight.T))
            self._tile.program_weights(from_reference=False)

    def age(self, seconds: float, seed: int) -> None:
        """Drifts the tile; see `Tile`."""
        with self._drawing(seed):
            self._tile.drift_weights(seconds)

    def weights(self) -> FloatArray:
        """The weights as they are now; see `Tile`."""
        return np.asarray(self._tile.get_weights()[0].numpy().T, dtype=np.float64)

    def forward(self, inputs: FloatArray, seed: int) -> FloatArray:
        """The tile's analog product; see `Tile`."""
        with self._drawing(seed), self._torch.no_grad():
            return np.asarray(self._tile.forward(self._tensor(inputs)).numpy(), dtype=np.float64)

    def _tensor(self, values: FloatArray) -> Any:
        return self._torch.as_tensor(np.ascontiguousarray(values), dtype=self._torch.float32)

    @contextmanager
    def _drawing(self, seed: int) -> Iterator[None]:
        # aihwkit draws from torch's global generator; whatever else draws from it must not notice.
        with self._torch.random.fork_rng(devices=[]):
            self._torch.manual_seed(seed)
            yield


class SingleDeviceConverter:
    """Weights 0 to 1 as the conductance of one device each, for aihwkit's noise models.

    aihwkit's own converters make pairs of devices, and scale by the largest weight that happens to be there.

    Attributes:
        g_max: Conductance in uS, aihwkit's unit, of the weight 1.
        g_min: Conductance in uS of the weight 0.
    """

    def __init__(self, g_max: float) -> None:
        self.g_max = g_max
        self.g_min = 0.0

    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, float]]:
        """Conductances in uS of weights."""
        return [weights * self.g_max], {"g_max": self.g_max}

    def convert_back_to_weights(self, conductances: list[Tensor], params: dict[str, float]) -> Tensor:
        """Weights of conductances in uS."""
        return conductances[0] / params["g_max"]
