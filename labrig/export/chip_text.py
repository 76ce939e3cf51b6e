"""`export_chip`: a fitted chip as text for other simulators, with its conditions and with what they cannot hold."""

from __future__ import annotations

import csv
import io
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from labrig.export.aihwkit_text import aihwkit_model
from labrig.export.chip_numbers import ChipNumbers, chip_numbers
from labrig.export.crosssim_text import crosssim_parameters, nested
from labrig.recording.whole_files import WholeFiles, refusals
from labrig_drivers.errors import StorageError
from labrig_surrogates.io import load_chip
from labrig_surrogates.parameters import ChipParameters

CHIP_FORMATS = {"aihwkit": (".py", ".json"), "crosssim": (".json", ".csv", ".py")}
"""Simulators, and the kinds of files that each can have."""


def export_chip(source: Path, output: Path, *, kind: str, array: int | None = None) -> Path:
    """Writes a fitted chip for another simulator.

    Args:
        source: The chip's file.
        output: The text; it may not exist. Its suffix says whether it is Python, JSON or CSV.
        kind: A key of `CHIP_FORMATS`.
        array: One array; all of them pooled when None.

    Raises:
        StorageError: Unknown simulator or suffix, the file exists or cannot be written, or there is no such array; all
            faults at once.
        SurrogateError: The chip's file cannot be read.
    """
    faults = []
    if kind not in CHIP_FORMATS:
        faults.append(f"--to {kind}: not known for a chip; there are {', '.join(CHIP_FORMATS)}")
    elif output.suffix not in CHIP_FORMATS[kind]:
        faults.append(f"{output}: the text for {kind} ends in {' or '.join(CHIP_FORMATS[kind])}")
    faults += refusals([output])
    if faults:
        raise StorageError("; ".join(faults))
    chip = load_chip(source)
    text = chip_text(chip, kind, output.suffix, array=array)
    with WholeFiles() as files:
        files.part(output).write_text(text, encoding="utf-8")
    return output


def chip_text(chip: ChipParameters, kind: str, suffix: str, *, array: int | None = None) -> str:
    """The text of a chip for a simulator; `export_chip` says what the arguments are."""
    numbers = chip_numbers(chip, array)
    about = _about(chip, numbers)
    if kind == "aihwkit":
        return _aihwkit_json(numbers, about) if suffix == ".json" else _aihwkit_python(numbers, about)
    if suffix == ".csv":
        return _crosssim_csv(numbers)
    tree = nested(crosssim_parameters(numbers))
    # `CrossSimParameters.from_json` takes nothing else, so conditions are only in the other two.
    return json.dumps(tree, indent=2) + "\n" if suffix == ".json" else _crosssim_python(numbers, about)


def left_out(numbers: ChipNumbers, kind: str) -> dict[str, str]:
    """What the simulator has no place for, and how large it is on this chip."""
    full_a = numbers.code_max * numbers.adc_lsb_a if numbers.adc_lsb_a else numbers.unit_current_a
    bend = numbers.compression_per_a.value * full_a
    lost = 1.0 - np.tanh(bend) / bend if bend > 0 else 0.0
    found = {
        "offset": f"column offsets of {numbers.offset_a:.3g} A rms; a digital bias takes them",
        "compression": f"the column's curve: {100 * lost:.2g} % less than linear at the ADC's full scale",
        "shot_noise": f"variance of {numbers.shot_noise_a.value:.3g} A per current",
        "stuck": f"{100 * numbers.stuck:.3g} % of the cells do not follow their targets",
        "mismatch": f"which cells are high or low ({100 * numbers.mismatch.value:.3g} %): drawn anew with each write",
    }
    if numbers.crosstalk is not None:
        found["crosstalk"] = f"{100 * numbers.crosstalk.value:.3g} % of a column's current on each neighbour"
    if kind == "crosssim":
        noise_a = float(np.sqrt(numbers.amplifier_noise_a2.value + numbers.line_noise_a2.value))
        found["amplifier_noise"] = f"{noise_a:.3g} A rms at each output"
        found["drift"] = f"exponent {numbers.drift.value:.4g}; CrossSim has drift for its measured devices only"
    elif numbers.wire_ohm is not None:
        found["word-line wires"] = f"{numbers.wire_ohm[0].value:.3g} ohm a segment; aihwkit has bit lines only"
    return found


def _about(chip: ChipParameters, numbers: ChipNumbers) -> dict[str, str]:
    provenance = chip.provenance
    about = {
        "chip_id": chip.chip_id,
        "arrays": ", ".join(map(str, numbers.arrays)),
        "pooled": f"medians of {numbers.columns} columns of {numbers.rows} rows",
        "exported_by": f"labrig {version('labrig')}",
    }
    about |= {name: str(provenance[name]) for name in ("recordings", "calibrated_utc") if name in provenance}
    for index in numbers.arrays:
        if (name := f"array_{index}_data_sha256") in provenance:
            about[name] = str(provenance[name])
    return about


def _aihwkit_json(numbers: ChipNumbers, about: dict[str, str]) -> str:
    model = aihwkit_model(numbers)
    document = {
        "for": "aihwkit 1.2",
        "about": about,
        "converter": {"class": "aihwkit.inference.SinglePairConductanceConverter", "arguments": model.converter},
        "noise_model": {"class": "aihwkit.inference.StateIndependentNoiseModel", "arguments": model.noise_model},
        "forward": model.forward,
        "programming_misfit": model.misfit,
        "left_out": left_out(numbers, "aihwkit"),
    }
    return json.dumps(document, indent=2) + "\n"


def _aihwkit_python(numbers: ChipNumbers, about: dict[str, str]) -> str:
    model = aihwkit_model(numbers)
    return f'''"""Chip {numbers.chip_id} as a noise model of aihwkit 1.2.

Conductances are in uS, times in s, inputs and weights between -1 and 1. A weight is a pair of devices on two columns,
each with its own ADC; 1 at an output is {numbers.unit_current_a:.6g} A. Programming error and mismatch of the cells
are drawn together at each write. Read noise is drawn at every MVM (w_noise, matched for weights spread evenly), so the
noise model's own read noise, drawn once for each evaluation, is off. Drift counts from the write.
"""

ABOUT = {_literal(about)}

# What aihwkit has no place for.
LEFT_OUT = {_literal(left_out(numbers, "aihwkit"))}

CONVERTER = {_literal(model.converter)}  # uS

# Programming error in uS; the polynomial misses the fitted law by at most {100 * model.misfit:.2g} % of g_max.
NOISE_MODEL = {_literal(model.noise_model)}

# Fields of rpu_config.forward; noise and bounds in units of the output.
FORWARD = {_literal(model.forward)}


def noise_model():
    """The programming error and drift of this chip."""
    from aihwkit.inference import SinglePairConductanceConverter, StateIndependentNoiseModel

    return StateIndependentNoiseModel(g_converter=SinglePairConductanceConverter(**CONVERTER), **NOISE_MODEL)


def rpu_config():
    """A configuration whose forward pass and noise model are this chip's."""
    from aihwkit.simulator.configs import InferenceRPUConfig
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType

    config = InferenceRPUConfig()
    config.noise_model = noise_model()
    config.drift_compensation = None
    kinds = {{
        "w_noise_type": WeightNoiseType,
        "noise_management": NoiseManagementType,
        "bound_management": BoundManagementType,
    }}
    for name, value in FORWARD.items():
        setattr(config.forward, name, kinds[name][value] if name in kinds else value)
    return config
'''


def _crosssim_csv(numbers: ChipNumbers) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["parameter", "value", "unit", "standard error", "from"])
    for row in crosssim_parameters(numbers):
        value = json.dumps(row.value) if isinstance(row.value, list) else row.value
        writer.writerow([row.name, value, row.unit, "" if row.error is None else row.error, row.source])
    for name, text in left_out(numbers, "crosssim").items():
        writer.writerow([f"not in CrossSim: {name}", "", "", "", text])
    return lines.getvalue()


def _crosssim_python(numbers: ChipNumbers, about: dict[str, str]) -> str:
    lines = []
    for row in crosssim_parameters(numbers):
        error = "" if row.error is None else f" +- {row.error:.2g}"
        note = f"{row.unit if row.unit not in {'', '1'} else ''}{error} {row.source}".strip()
        lines.append(f"    {row.name!r}: {row.value!r}," + (f"  # {note}" if note else ""))
    table = "\n".join(lines)
    return f'''"""Chip {numbers.chip_id} as parameters of CrossSim 3.2.

Resistances are in ohm, conductances parts of the highest one, currents multiples of Vmax * Gmax behind the column gain.
"""

ABOUT = {_literal(about)}

# What CrossSim has no place for.
LEFT_OUT = {_literal(left_out(numbers, "crosssim"))}

PARAMETERS = {{
{table}
}}


def parameters():
    """The parameters of this chip."""
    from simulator import CrossSimParameters

    found = CrossSimParameters()
    for name, value in PARAMETERS.items():
        *path, last = name.split(".")
        part = found
        for step in path:
            part = getattr(part, step)
        setattr(part, last, value)
    return found
'''


def _literal(values: object) -> str:
    """A Python literal, one entry a line."""
    if not isinstance(values, dict):
        return repr(values)
    inside = "\n".join(f"    {key!r}: {value!r}," for key, value in values.items())
    return f"{{\n{inside}\n}}"
