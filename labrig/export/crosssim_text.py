"""A fitted chip as parameters of Sandia's CrossSim, as text: nothing of CrossSim is imported.

Names and meanings of CrossSim 3.2 (`simulator/parameters/*_parameters.py`). Conductances there are parts of the highest
one, currents are multiples of `Vmax * Gmax`, resistances are in ohm. Its `QuantizerADC` has 2**bits levels between the
ends of its range and its `SignMagnitudeDAC` 2**bits - 1 around zero, as labrig's converters have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labrig.export.chip_numbers import ChipNumbers

Value = float | int | bool | str | list[float]


@dataclass(frozen=True)
class CrossSimParameter:
    """One line of the table.

    Attributes:
        name: Dotted name below `CrossSimParameters`.
        value: What CrossSim takes.
        unit: Its unit, `1` for a pure number, empty for what is none.
        error: Standard error of a number that was fitted; None for what was not.
        source: Where it comes from.
    """

    name: str
    value: Value
    unit: str
    error: float | None
    source: str


def crosssim_parameters(numbers: ChipNumbers) -> list[CrossSimParameter]:
    """Converts; pairs of columns with an ADC each, subtracted behind them."""
    low_s, high_s = numbers.conductance_min_s, numbers.conductance_max_s
    unit_a = numbers.gain.value * numbers.voltage_max_v * high_s
    model, magnitude = generic_programming_error(numbers)
    read, read_error = np.sqrt(numbers.conductance_noise.value), None
    if numbers.conductance_noise.value > 0.0 and np.isfinite(numbers.conductance_noise.error):
        read_error = float(numbers.conductance_noise.error / (2.0 * read))
    rows = [
        CrossSimParameter("core.style", "BALANCED", "", None, "a pair of devices for each weight"),
        CrossSimParameter("core.rows_max", numbers.rows, "1", None, "word lines of an array"),
        CrossSimParameter(
            "core.balanced.subtract_current_in_xbar", False, "", None, "each column has an ADC of its own"
        ),
        CrossSimParameter("xbar.device.Rmin", 1.0 / high_s, "ohm", None, "highest programmable conductance"),
    ]
    if low_s > 0.0:
        rows.append(CrossSimParameter("xbar.device.Rmax", 1.0 / low_s, "ohm", None, "lowest programmable conductance"))
    rows += [
        CrossSimParameter("xbar.device.infinite_on_off_ratio", low_s <= 0.0, "", None, "lowest conductance"),
        CrossSimParameter("xbar.device.programming_error.enable", True, "", None, ""),
        CrossSimParameter("xbar.device.programming_error.model", model, "", None, "the nearer of two generic laws"),
        CrossSimParameter(
            "xbar.device.programming_error.magnitude", magnitude, "1", None, "programming error and mismatch"
        ),
        CrossSimParameter("xbar.device.read_noise.enable", True, "", None, ""),
        CrossSimParameter(
            "xbar.device.read_noise.model", "NormalProportionalDevice", "", None, "fresh at every MVM, as fitted"
        ),
        CrossSimParameter("xbar.device.read_noise.magnitude", float(read), "1", read_error, "conductance_noise"),
    ]
    if numbers.wire_ohm is not None:
        word, bit = numbers.wire_ohm
        rows += [
            CrossSimParameter("xbar.array.parasitics.enable", True, "", None, ""),
            CrossSimParameter(
                "xbar.array.parasitics.Rp_row", word.value, "ohm", _known(word.error), "word-line segment"
            ),
            CrossSimParameter("xbar.array.parasitics.Rp_col", bit.value, "ohm", _known(bit.error), "bit-line segment"),
        ]
    if numbers.dac_step_v:
        bits = int(np.ceil(np.log2(2.0 * numbers.voltage_max_v / numbers.dac_step_v + 1.0)))
        rows += [
            CrossSimParameter("xbar.dac.mvm.model", "SignMagnitudeDAC", "", None, "2**bits - 1 levels around zero"),
            CrossSimParameter("xbar.dac.mvm.bits", bits, "1", None, "DAC"),
            CrossSimParameter("xbar.dac.mvm.signed", True, "", None, ""),
        ]
    if numbers.adc_lsb_a:
        bits = int(np.log2(numbers.code_max - numbers.code_min + 1))
        ends = [numbers.code_min * numbers.adc_lsb_a / unit_a, numbers.code_max * numbers.adc_lsb_a / unit_a]
        rows += [
            CrossSimParameter("xbar.adc.mvm.model", "QuantizerADC", "", None, "2**bits levels"),
            CrossSimParameter("xbar.adc.mvm.bits", bits, "1", None, "ADC"),
            CrossSimParameter("xbar.adc.mvm.signed", True, "", None, ""),
            CrossSimParameter("xbar.adc.mvm.adc_range_option", "CALIBRATED", "", None, ""),
            CrossSimParameter("xbar.adc.mvm.calibrated_range", ends, "1", None, "ends over gain * Vmax * Gmax"),
        ]
    return rows


def generic_programming_error(numbers: ChipNumbers) -> tuple[str, float]:
    """The generic law of CrossSim that is nearer: constant, or proportional to the conductance; with its magnitude.

    The magnitude gives the same mean variance over targets spread evenly from the lowest to the highest conductance.
    """
    relative = np.linspace(numbers.conductance_min_s / numbers.conductance_max_s, 1.0, 201)
    variance = (numbers.programming_sigma_s(relative * numbers.conductance_max_s) / numbers.conductance_max_s) ** 2
    constant = float(variance.mean())
    proportional = float(variance.mean() / (relative**2).mean())
    misfits = [
        float(((variance - constant) ** 2).mean()),
        float(((variance - proportional * relative**2) ** 2).mean()),
    ]
    if misfits[1] < misfits[0]:
        return "NormalProportionalDevice", float(np.sqrt(proportional))
    return "NormalIndependentDevice", float(np.sqrt(constant))


def nested(rows: list[CrossSimParameter]) -> dict[str, object]:
    """The table in the shape that `CrossSimParameters.from_json` reads."""
    tree: dict[str, object] = {}
    for row in rows:
        *path, last = row.name.split(".")
        branch = tree
        for part in path:
            below = branch.setdefault(part, {})
            if not isinstance(below, dict):
                raise TypeError(f"{row.name} lies below a value")
            branch = below
        branch[last] = row.value
    return tree


def _known(error: float) -> float | None:
    return error if np.isfinite(error) else None
