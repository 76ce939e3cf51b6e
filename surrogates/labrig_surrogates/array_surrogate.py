"""`ArraySurrogate`: one fitted array as an ordinary module, differentiable in conductances and voltages."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labrig_surrogates.crosstalk import apply_crosstalk
from labrig_surrogates.drift_behind_wires import seen_at_age_zero
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.parameters import ArrayParameters, Estimate
from labrig_surrogates.quantization import quantize
from labrig_surrogates.transfer import compress, compress_slope
from labrig_surrogates.wire_first_order import FirstOrderWires
from labrig_surrogates.wires import transfer_matrix

FloatArray = NDArray[np.float64]


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
    skew: Tensor
    line_noise_a2: Tensor
    output_shot_noise_a: Tensor
    output_relative_noise: Tensor
    crosstalk: Tensor
    drift_spread: Tensor
    residual_hidden: Tensor
    residual_bias: Tensor
    residual_out: Tensor
    residual_scale_a: Tensor

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
            "skew": _value(parameters.skew),
            "line_noise_a2": _value(parameters.line_noise),
            "output_shot_noise_a": _value(parameters.output_shot_noise),
            "output_relative_noise": _value(parameters.output_relative_noise),
            "crosstalk": _value(parameters.crosstalk),
            "drift_spread": _value(parameters.drift_spread),
        }
        residual = parameters.residual
        if residual is not None:
            buffers |= {f"residual_{name}": value for name, value in vars(residual).items()}
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.register_buffer("stuck", torch.as_tensor(parameters.stuck))
        self.converters = parameters.converters
        self.drift_reference_s = parameters.drift_reference_s
        # What a chip does not have costs nothing: these decide once, before anything is compiled.
        self._skewed = parameters.skew is not None
        self._coupled = parameters.crosstalk is not None
        self._converted = bool((parameters.converters.adc_lsb_a > 0).all())
        self._corrected = residual is not None
        self._spreading = parameters.drift_spread is not None
        self._noise_after = parameters.output_shot_noise is not None or parameters.output_relative_noise is not None
        self.wires: FirstOrderWires | None = None
        self.network_ohm: tuple[float, float] | None = None
        self._seen_at_age_zero = seen_at_age_zero(parameters)
        lines_ohm = parameters.wire_ohm_when_read
        if lines_ohm is not None:
            size = parameters.cell_slope.shape
            if parameters.exact_wires:
                self.network_ohm = lines_ohm
            else:
                self.wires = FirstOrderWires(*size, word_line_ohm=lines_ohm[0], bit_line_ohm=lines_ohm[1])

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
        """Conductances in S of a new write, as its currents show them: behind the wires, with the crosstalk.

        They refer to age zero as those of recorded writes do: taken back with the drift of the currents, so that they
        are right at the age at which writes were recorded (`labrig_surrogates.drift_behind_wires`).

        Args:
            target_s: Commanded conductances in S, `[rows, columns]`.
            programming_draw: Standard normal draws, `[rows, columns]`; None for the mean of all writes.
        """
        conductance_s = self.expected_conductance(target_s)
        if programming_draw is not None:
            # The width is measured, not learned: its gradient would only teach the weights to flee from noise.
            conductance_s = conductance_s + self.programming_sigma(target_s).detach() * programming_draw
        if self.wires is not None:
            conductance_s = self.wires(conductance_s)
        if self.network_ohm is not None:
            conductance_s = transfer_matrix(conductance_s, *self.network_ohm)
        if self._seen_at_age_zero != 1.0:
            conductance_s = self._seen_at_age_zero * conductance_s
        if self._coupled:
            conductance_s = apply_crosstalk(conductance_s, self.crosstalk.reshape(1), conserving=False)
        return conductance_s

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
                f"an array takes conductances [rows, columns] = [{self.rows}, {self.columns}] and voltages "
                f"[batch, {self.rows}], not {list(conductance_s.shape)} and {list(voltage_v.shape)}"
            )
        current_a, sigma_a = self.moments(conductance_s, voltage_v, age_s=age_s)
        if read_draw is not None:
            current_a = current_a + sigma_a.detach() * read_draw
        if not convert:
            return current_a
        if not self._converted:
            return current_a
        low_a, high_a = self.converters.code_min * self.adc_lsb_a, self.converters.code_max * self.adc_lsb_a
        return quantize(current_a, self.adc_lsb_a, low_a, high_a)

    def moments(
        self, conductance_s: Tensor, voltage_v: Tensor, *, age_s: Tensor | float = 0.0, measured_log_age: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the currents before the ADC, in A, each `[batch, columns]`.

        Args:
            conductance_s: Conductances of the write in S, `[rows, columns]`.
            voltage_v: Commanded voltages in V, `[batch, rows]`.
            age_s: Time since the write in s, a number or `[batch]`.
            measured_log_age: `log(1 + age / drift_reference_s)` at which the conductances were measured: zero for a
                new write, an entry of `ArrayParameters.write_log_age` for a recorded one.
        """
        line_v = self._line_v(voltage_v)
        age = torch.as_tensor(age_s, dtype=line_v.dtype, device=line_v.device).reshape(-1, 1)
        decay = (1.0 + age / self.drift_reference_s) ** -self.drift_exponent
        weighted_s = self.gain * conductance_s
        u = decay * (line_v @ weighted_s)
        skew = self.skew if self._skewed else None
        mean_a = self.offset_a + compress(u, self.compression_per_a, skew)
        if self._corrected:
            mean_a = mean_a + self._residual_a(u, age, line_v)
        slope = compress_slope(u, self.compression_per_a, skew)
        relative = self.conductance_noise
        if self._spreading:
            log_age = torch.log1p(age / self.drift_reference_s)
            relative = relative + self.drift_spread * (log_age - measured_log_age) ** 2
        return mean_a, self._read_sigma(line_v, weighted_s, decay, slope, relative)

    def spread_of_cells(
        self, conductance_s: Tensor, spread_s: Tensor, voltage_v: Tensor, *, age_s: Tensor | float = 0.0
    ) -> Tensor:
        """Variance in A^2 from independent errors `spread_s[rows, columns]` of the conductances, `[batch, columns]`.

        To first order: through the slope of the curve at the mean current.
        """
        line_v = self._line_v(voltage_v)
        age = torch.as_tensor(age_s, dtype=line_v.dtype, device=line_v.device).reshape(-1, 1)
        decay = (1.0 + age / self.drift_reference_s) ** -self.drift_exponent
        u = decay * (line_v @ (self.gain * conductance_s))
        slope = compress_slope(u, self.compression_per_a, self.skew if self._skewed else None)
        return (slope * decay) ** 2 * (line_v**2 @ (self.gain * spread_s) ** 2)

    def _line_v(self, voltage_v: Tensor) -> Tensor:
        limit_v = self.converters.voltage_max_v
        if self.converters.dac_step_v == 0.0:
            return voltage_v
        return quantize(voltage_v, self.converters.dac_step_v, -limit_v, limit_v)

    def _read_sigma(self, line_v: Tensor, weighted_s: Tensor, decay: Tensor, slope: Tensor, relative: Tensor) -> Tensor:
        # The two-product form is exact for independent cells: one product for |v g|, one for (v g)^2.
        shot = decay * (line_v.abs() @ weighted_s.abs())
        cells = decay**2 * (line_v**2 @ weighted_s**2)
        before = self.line_noise_a2 + self.shot_noise_a * shot + relative * cells
        variance = self.amplifier_noise_a2 + slope**2 * before
        if self._noise_after:
            variance = variance + self.output_shot_noise_a * shot + self.output_relative_noise * cells
        return torch.sqrt(torch.clamp(variance, min=0.0))

    def _residual_a(self, u: Tensor, age: Tensor, line_v: Tensor) -> Tensor:
        load = (line_v.abs().mean(dim=-1, keepdim=True) / self.converters.voltage_max_v).expand_as(u)
        log_age = torch.log1p(age / self.drift_reference_s).expand_as(u)
        features = torch.stack([u / self.residual_scale_a, log_age, load], dim=-1)
        hidden = torch.tanh(features @ self.residual_hidden.T + self.residual_bias)
        return self.residual_scale_a * (hidden @ self.residual_out)


def _value(estimate: Estimate | None) -> FloatArray:
    return np.zeros(()) if estimate is None else estimate.value
