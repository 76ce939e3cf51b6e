"""`ArraySurrogate`: one fitted array as an ordinary module, differentiable in conductances and voltages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.parameters import ArrayParameters
from labrig_surrogates.quantization import quantize
from labrig_surrogates.transfer import compress, compress_slope


class ArraySurrogate(nn.Module):
    """The forward model of one array; equations in `ArrayParameters`.

    All randomness comes in as normal draws made by the caller, so that nothing random hides inside and the module
    can be compiled.

    Args:
        parameters: What calibration found.
    """

    gain: Tensor
    offset_a: Tensor
    compression_per_a: Tensor
    drift_exponent: Tensor
    amplifier_noise_a2: Tensor
    shot_noise_a: Tensor
    conductance_noise: Tensor
    programming: Tensor
    cell_slope: Tensor
    cell_intercept_s: Tensor
    stuck: Tensor
    adc_lsb_a: Tensor

    def __init__(self, parameters: ArrayParameters) -> None:
        super().__init__()
        buffers = {
            "gain": parameters.gain.value,
            "offset_a": parameters.offset.value,
            "compression_per_a": parameters.compression.value,
            "drift_exponent": parameters.drift.value,
            "amplifier_noise_a2": parameters.amplifier_noise.value,
            "shot_noise_a": parameters.shot_noise.value,
            "conductance_noise": parameters.conductance_noise.value,
            "programming": parameters.programming.value,
            "cell_slope": parameters.cell_slope,
            "cell_intercept_s": parameters.cell_intercept_s,
            "adc_lsb_a": parameters.converters.adc_lsb_a,
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.register_buffer("stuck", torch.as_tensor(parameters.stuck))
        self.converters = parameters.converters
        self.drift_reference_s = parameters.drift_reference_s

    @property
    def rows(self) -> int:
        """Word lines of the array."""
        return self.cell_slope.shape[0]

    @property
    def columns(self) -> int:
        """Bit lines of the array."""
        return self.cell_slope.shape[1]

    def expected_conductance(self, target_s: Tensor) -> Tensor:
        """Conductances in S that a new write of `target_s[rows, columns]` leaves on average."""
        return self.cell_slope * target_s + self.cell_intercept_s

    def programming_sigma(self, target_s: Tensor) -> Tensor:
        """Standard deviation in S of the programming error at `target_s`; zero for stuck cells."""
        highest_s = self.converters.conductance_max_s
        relative = target_s / highest_s
        p0, p1, p2 = self.programming.unbind()
        sigma_s = highest_s * torch.clamp(p0 + p1 * relative + p2 * relative**2, min=0.0)
        return torch.where(self.stuck, torch.zeros_like(sigma_s), sigma_s)

    def new_write(self, target_s: Tensor, programming_draw: Tensor | None = None) -> Tensor:
        """Conductances in S of a new write.

        Args:
            target_s: Commanded conductances in S, `[rows, columns]`.
            programming_draw: Standard normal draws, `[rows, columns]`; None for the mean of all writes.
        """
        conductance_s = self.expected_conductance(target_s)
        if programming_draw is None:
            return conductance_s
        # The width is measured, not learned: its gradient would only teach the weights to flee from noise.
        return conductance_s + self.programming_sigma(target_s).detach() * programming_draw

    def forward(
        self,
        conductance_s: Tensor,
        voltage_v: Tensor,
        *,
        age_s: Tensor | float = 0.0,
        read_draw: Tensor | None = None,
        convert: bool = True,
    ) -> Tensor:
        """Column currents as the chip would report them.

        Args:
            conductance_s: Conductances of the write in S, `[rows, columns]` (see `new_write`).
            voltage_v: Commanded voltages in V, `[batch, rows]`.
            age_s: Time since the write in s, a number or `[batch]`.
            read_draw: Standard normal draws, `[batch, columns]`; None leaves the read noise out.
            convert: Whether the ADC quantises and clips; without it the answer is the smooth mean.

        Returns:
            Currents in A, `[batch, columns]`.

        Raises:
            SurrogateError: Shapes that do not fit the array.
        """
        if conductance_s.shape != (self.rows, self.columns) or voltage_v.shape[-1] != self.rows:
            raise SurrogateError(
                f"array of {self.rows} x {self.columns} got conductances {tuple(conductance_s.shape)} "
                f"and voltages {tuple(voltage_v.shape)}"
            )
        current_a, sigma_a = self.moments(conductance_s, voltage_v, age_s=age_s)
        if read_draw is not None:
            current_a = current_a + sigma_a.detach() * read_draw
        if not convert:
            return current_a
        low_a, high_a = self.converters.code_min * self.adc_lsb_a, self.converters.code_max * self.adc_lsb_a
        return quantize(current_a, self.adc_lsb_a, low_a, high_a)

    def moments(
        self, conductance_s: Tensor, voltage_v: Tensor, *, age_s: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the currents before the ADC, in A, each `[batch, columns]`."""
        limit_v = self.converters.voltage_max_v
        line_v = quantize(voltage_v, self.converters.dac_step_v, -limit_v, limit_v)
        age = torch.as_tensor(age_s, dtype=line_v.dtype, device=line_v.device).reshape(-1, 1)
        decay = (1.0 + age / self.drift_reference_s) ** -self.drift_exponent
        weighted_s = self.gain * conductance_s
        u = decay * (line_v @ weighted_s)
        mean_a = self.offset_a + compress(u, self.compression_per_a)
        return mean_a, self._read_sigma(line_v, weighted_s, decay, u)

    def _read_sigma(self, line_v: Tensor, weighted_s: Tensor, decay: Tensor, u: Tensor) -> Tensor:
        # The two-product form is exact for independent cells: one product for |v g|, one for (v g)^2.
        shot = self.shot_noise_a * decay * (line_v.abs() @ weighted_s.abs())
        cells = self.conductance_noise * decay**2 * (line_v**2 @ weighted_s**2)
        variance = self.amplifier_noise_a2 + compress_slope(u, self.compression_per_a) ** 2 * (shot + cells)
        return torch.sqrt(torch.clamp(variance, min=0.0))
