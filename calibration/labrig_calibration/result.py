"""`CalibrationResult`: what a fit gives back: parameters with errors, predictions, draws of chips, its own story."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from labrig_calibration.dataset import MvmDataset
from labrig_calibration.diagnostics import Diagnostics
from labrig_calibration.ladder import RungName, RungVerdict
from labrig_calibration.uncertainty import Posterior, draw_array
from labrig_surrogates.array_surrogate import ArraySurrogate
from labrig_surrogates.io import save_chip
from labrig_surrogates.parameters import ArrayParameters, ChipParameters, Estimate

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class JudgedArray:
    """Parameters of an array beside data that judge them.

    Attributes:
        array_parameters: The parameters.
        diagnostics: How well they predict MVMs that the fit never saw.
        dataset: The data: those that were fitted, with their held-out part.
    """

    array_parameters: ArrayParameters
    diagnostics: Diagnostics
    dataset: MvmDataset


@dataclass(frozen=True)
class CalibrationResult:
    """A fitted array.

    Attributes:
        judged: Parameters, diagnostics and data.
        ladder: What each rung brought, in the order of climbing.
        posterior: How the errors of the parameters hang together.
        flagged: MVMs that were left out because no column followed (cables, glitches), bool, `[N]`.
        outliers: Single outputs that count as wrong, in all other MVMs.
        notes: What the data could not tell, in words.
    """

    judged: JudgedArray
    ladder: tuple[RungVerdict, ...]
    posterior: Posterior
    flagged: NDArray[np.bool_]
    outliers: int
    notes: tuple[str, ...]

    @property
    def array_parameters(self) -> ArrayParameters:
        """The parameters in the form that surrogates take."""
        return self.judged.array_parameters

    @property
    def diagnostics(self) -> Diagnostics:
        """How well held-out MVMs are predicted."""
        return self.judged.diagnostics

    @property
    def dataset(self) -> MvmDataset:
        """The data that were fitted and tested."""
        return self.judged.dataset

    @property
    def rung(self) -> RungName:
        """The highest rung that was kept."""
        kept: list[RungName] = [verdict.rung for verdict in self.ladder if verdict.kept]
        return kept[-1]

    @property
    def parameters(self) -> Mapping[str, Estimate]:
        """Every estimate by name, those of the cells included.

        Errors of gains and conductances hold what wires that the data do not show may have taken from both; in
        `array_parameters`, whose errors are those of the model without such wires, that is `wire_uncertainty`.
        """
        array = self.array_parameters
        found = array.stated()
        if array.cell_slope_error is not None:
            found["cell_slope"] = Estimate(array.cell_slope, array.cell_slope_error, "1")
        if array.write_conductance_error_s is not None:
            error_s = array.write_conductance_error_s
            if array.drift_spread is not None and array.write_log_age is not None:
                # At age zero, to which all conductances refer, a cell's own drift since then is unknown.
                back = np.sqrt(array.drift_spread.value) * array.write_log_age[:, None, None]
                error_s = np.hypot(error_s, array.write_conductance_s * back)
            found["write_conductance"] = array.widened(Estimate(array.write_conductance_s, error_s, "S"))
        return found

    @property
    def surrogate(self) -> ArraySurrogate:
        """The forward model with these parameters, in float32."""
        return ArraySurrogate(self.array_parameters)

    def predict(
        self,
        voltage_v: FloatArray,
        pattern: int | NDArray[np.int64] | None = None,
        *,
        target_conductance_s: FloatArray | None = None,
        age_s: float | FloatArray = 0.0,
    ) -> tuple[FloatArray, FloatArray]:
        """Predicts outputs of a recorded write, or of one that never was.

        Args:
            voltage_v: Commanded inputs in V, `[N, rows]`.
            pattern: Which recorded write is read, one number or `[N]`.
            target_conductance_s: Target in S of a new write, `[rows, columns]`, instead of `pattern`; the spread
                then holds the programming error.
            age_s: Time in s since the write, one number or `[N]`.

        Returns:
            `(mean_a, std_a)` in A, each `[N, columns]`: the spread of one reading, the ADC's step included.

        Raises:
            ValueError: Not exactly one of `pattern` and `target_conductance_s`, or shapes that do not fit.
        """
        self._refuse_inputs(voltage_v, pattern, target_conductance_s, age_s)
        count, ages = voltage_v.shape[0], np.broadcast_to(np.asarray(age_s, dtype=np.float64), voltage_v.shape[:1])
        if target_conductance_s is not None:
            return self._predict_new(voltage_v, target_conductance_s, ages)
        array = self.array_parameters
        chosen = np.broadcast_to(np.asarray(pattern, dtype=np.int64), (count,))
        mean_a, std_a = np.empty((count, array.columns)), np.empty((count, array.columns))
        for write in np.unique(chosen):
            rows = chosen == write
            error_s = None if array.write_conductance_error_s is None else array.write_conductance_error_s[write]
            log_age = 0.0 if array.write_log_age is None else float(array.write_log_age[write])
            mean_a[rows], std_a[rows] = _moments(
                array, array.write_conductance_s[write], error_s, voltage_v[rows], ages[rows], log_age
            )
        return mean_a, std_a

    def sample_chip(self, generator: torch.Generator) -> ArrayParameters:
        """A chip that the data allow: every parameter and cell drawn from the posterior, correlations included.

        Training on many of them meets the uncertainty of the calibration. Random numbers come from `generator` alone.
        `wire_uncertainty` is left out: gains and conductances would change by it together, and outputs would not.
        """
        return draw_array(self.array_parameters, self.posterior, generator)

    def chip(self, provenance: Mapping[str, str | float | int] | None = None) -> ChipParameters:
        """This array as a chip of its own, with the story of the fit in its provenance."""
        return ChipParameters(
            self.dataset.chip_id,
            {self.array_parameters.array: self.array_parameters},
            {**self.provenance(), **(provenance or {})},
        )

    def provenance(self) -> dict[str, str | float | int]:
        """What a file says about the fit: data hash, quality, ladder, notes."""
        prefix = f"array_{self.array_parameters.array}_"
        return {
            f"{prefix}data_sha256": self.dataset.sha256(),
            f"{prefix}error_over_noise": self.diagnostics.error_over_noise,
            f"{prefix}coverage_90": self.diagnostics.coverage_90,
            f"{prefix}rung": self.rung,
            f"{prefix}ladder": json.dumps([asdict(verdict) for verdict in self.ladder]),
            f"{prefix}flagged": int(self.flagged.sum()),
            f"{prefix}outliers": self.outliers,
            f"{prefix}notes": "; ".join(self.notes),
        }

    def save(self, path: Path | str) -> None:
        """Writes `chip.safetensors` with this one array; see `labrig_surrogates.io.save_chip`."""
        save_chip(path, self.chip())

    def _refuse_inputs(
        self,
        voltage_v: FloatArray,
        pattern: int | NDArray[np.int64] | None,
        target_s: FloatArray | None,
        age_s: float | FloatArray,
    ) -> None:
        array = self.array_parameters
        faults = []
        if (pattern is None) == (target_s is None):
            faults.append("give either pattern, a recorded write, or target_conductance_s, the target of a new one")
        if voltage_v.ndim != 2 or voltage_v.shape[1] != array.rows:
            faults.append(f"voltage_v has shape {list(voltage_v.shape)}, expected [N, {array.rows}]")
        for name, values in (("pattern", pattern), ("age_s", age_s)):
            shape = np.shape(values) if values is not None else ()
            if shape not in {(), (1,), voltage_v.shape[:1]}:
                faults.append(f"{name} has shape {list(shape)}, expected one number or {list(voltage_v.shape[:1])}")
        if pattern is not None and np.size(pattern):
            first, last, writes = np.min(pattern), np.max(pattern), array.write_conductance_s.shape[0]
            if not 0 <= first <= last < writes:
                faults.append(
                    f"pattern names writes {first} to {last}, and those that were recorded are 0 to {writes - 1}"
                )
        if target_s is not None and target_s.shape != (array.rows, array.columns):
            expected = [array.rows, array.columns]
            faults.append(f"target_conductance_s has shape {list(target_s.shape)}, expected {expected}")
        if faults:
            raise ValueError(f"array {array.array} cannot be predicted: {'; '.join(faults)}")

    def _predict_new(
        self, voltage_v: FloatArray, target_s: FloatArray, age_s: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        array = self.array_parameters
        surrogate = ArraySurrogate(array).double()
        with torch.no_grad():
            target = torch.as_tensor(target_s, dtype=torch.float64)
            mean_s = surrogate.expected_conductance(target).numpy()
            sigma_s = surrogate.programming_sigma(target).numpy()
            transfer_s = surrogate.new_write(target).numpy()
        slope_error = 0.0 if array.cell_slope_error is None else array.cell_slope_error
        spread_s = np.hypot(sigma_s, np.where(array.stuck, 0.0, slope_error * target_s))
        # Behind the wires a cell's error is smaller by what its own current is.
        share = np.divide(transfer_s, mean_s, out=np.ones_like(mean_s), where=mean_s > 0)
        return _moments(array, transfer_s, share * spread_s, voltage_v, age_s)


def _moments(
    array: ArrayParameters,
    conductance_s: FloatArray,
    spread_s: FloatArray | None,
    voltage_v: FloatArray,
    age_s: FloatArray,
    measured_log_age: float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    surrogate = ArraySurrogate(array).double()
    with torch.no_grad():
        cells = torch.as_tensor(conductance_s, dtype=torch.float64)
        inputs = torch.as_tensor(voltage_v, dtype=torch.float64)
        ages = torch.as_tensor(age_s.copy())
        mean, sigma = surrogate.moments(cells, inputs, age_s=ages, measured_log_age=measured_log_age)
        variance = sigma**2 + torch.as_tensor(array.converters.adc_lsb_a) ** 2 / 12.0
        if spread_s is not None:
            finite = torch.nan_to_num(torch.as_tensor(spread_s), posinf=0.0)
            variance = variance + surrogate.spread_of_cells(cells, finite, inputs, age_s=ages)
    return mean.numpy(), torch.sqrt(variance).numpy()
