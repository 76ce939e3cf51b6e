"""`chip.safetensors`: the fitted parameters of a chip, arrays with a JSON header. Never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.parameters import (
    ArrayParameters,
    ChipParameters,
    ConverterRange,
    Estimate,
    ResidualNetwork,
)

SCHEMA = "labrig-chip"
SCHEMA_VERSION = 2
"""1: without errors of cells, wires, crosstalk, mismatch, residual network. Both are read."""

# What safetensors, today and before 0.6, says of a file whose header is one, and whose end is not where that says.
_CUT_SHORT = ("incomplete metadata", "invalid header length", "MetadataIncompleteBuffer", "InvalidHeaderLength")
_PLAIN_ARRAYS = ("cell_slope", "cell_intercept_s", "stuck", "write_conductance_s")
_OPTIONAL_ARRAYS = ("write_conductance_error_s", "cell_slope_error", "write_log_age", "wire_uncertainty")
_RESIDUAL = ("hidden", "bias", "out", "scale_a")


def save_chip(path: Path | str, chip: ChipParameters) -> None:
    """Writes a chip's parameters; the file appears under its name only when it is complete.

    Args:
        path: The `.safetensors` file; what has this name is replaced.
        chip: The parameters.

    Raises:
        SurrogateError: The folder cannot be written.
    """
    path = Path(path)
    tensors: dict[str, np.ndarray] = {}
    arrays_header: dict[str, dict[str, object]] = {}
    for index, array in chip.arrays.items():
        prefix = f"array_{index}."
        units = {}
        for name, estimate in array.estimates().items():
            tensors[f"{prefix}{name}.value"] = np.asarray(estimate.value, order="C")
            tensors[f"{prefix}{name}.error"] = np.asarray(estimate.error, order="C")
            units[name] = estimate.unit
        for name in _PLAIN_ARRAYS:
            tensors[prefix + name] = np.asarray(getattr(array, name), order="C")
        for name in _OPTIONAL_ARRAYS:
            if (plain := getattr(array, name)) is not None:
                tensors[prefix + name] = np.asarray(plain, order="C")
        if array.residual is not None:
            for name in _RESIDUAL:
                tensors[f"{prefix}residual.{name}"] = np.asarray(getattr(array.residual, name), order="C")
        converters = asdict(array.converters)
        tensors[f"{prefix}adc_lsb_a"] = np.asarray(converters.pop("adc_lsb_a"), order="C")
        arrays_header[str(index)] = {
            "units": units,
            "drift_reference_s": array.drift_reference_s,
            "exact_wires": array.exact_wires,
            "converters": converters,
        }
    header = {
        "schema": SCHEMA,
        "schema_version": str(SCHEMA_VERSION),
        "chip_id": chip.chip_id,
        "arrays": json.dumps(arrays_header),
        "provenance": json.dumps(chip.provenance),
    }
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            file.write(save(tensors, metadata=header))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that is on the disk may refer to it
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise SurrogateError(f"{path}: cannot be written ({error}); choose a folder that you may write to") from error


def is_chip_file(path: Path) -> bool:
    """Whether a file says of itself that it holds a chip's parameters, of whatever version."""
    try:
        with safe_open(path, framework="numpy") as file:
            return bool((file.metadata() or {}).get("schema") == SCHEMA)
    except (OSError, SafetensorError):
        return False


def load_chip(path: Path | str) -> ChipParameters:
    """Reads a chip's parameters.

    Args:
        path: The `.safetensors` file.

    Raises:
        SurrogateError: No such file, not a chip file, a newer schema, or parts are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise SurrogateError(f"{path}: no such file; make it with `labrig calibrate RECORDING -o {path.name}`")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            _demand_readable(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        arrays = {
            int(key): _load_array(int(key), entry, tensors) for key, entry in json.loads(header["arrays"]).items()
        }
        return ChipParameters(header["chip_id"], arrays, json.loads(header["provenance"]))
    except SurrogateError:
        raise
    except SafetensorError as error:
        if not any(words in str(error) for words in _CUT_SHORT):
            raise SurrogateError(f"{path}: not a safetensors file; `labrig calibrate` makes one") from error
        raise SurrogateError(
            f"{path}: damaged or incomplete chip file (its length is not what its header says); calibrate again"
        ) from error
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise SurrogateError(f"{path}: damaged or incomplete chip file ({what}); calibrate again") from error


def _demand_readable(path: Path, header: Mapping[str, str]) -> None:
    if header.get("schema") != SCHEMA:
        found = (
            f"schema {header['schema']!r} instead of {SCHEMA!r}" if "schema" in header else "no schema in its header"
        )
        raise SurrogateError(f"{path}: not a labrig chip file ({found}); `labrig calibrate` makes one")
    if int(header["schema_version"]) > SCHEMA_VERSION:
        raise SurrogateError(
            f"{path}: schema version {header['schema_version']} is newer than this labrig reads "
            f"({SCHEMA_VERSION}); update labrig"
        )


def _load_array(index: int, entry: dict[str, object], tensors: dict[str, np.ndarray]) -> ArrayParameters:
    prefix = f"array_{index}."
    units = entry["units"]
    converters = entry["converters"]
    if not isinstance(units, dict) or not isinstance(converters, dict):
        raise KeyError(f"header of array {index}")

    def estimate(name: str) -> Estimate:
        return Estimate(tensors[f"{prefix}{name}.value"], tensors[f"{prefix}{name}.error"], str(units[name]))

    def optional(name: str) -> Estimate | None:
        return estimate(name) if name in units else None

    return ArrayParameters(
        array=index,
        gain=estimate("gain"),
        offset=estimate("offset"),
        compression=estimate("compression"),
        drift=estimate("drift"),
        amplifier_noise=estimate("amplifier_noise"),
        shot_noise=estimate("shot_noise"),
        conductance_noise=estimate("conductance_noise"),
        programming=estimate("programming"),
        cell_slope=tensors[f"{prefix}cell_slope"],
        cell_intercept_s=tensors[f"{prefix}cell_intercept_s"],
        stuck=tensors[f"{prefix}stuck"],
        write_conductance_s=tensors[f"{prefix}write_conductance_s"],
        drift_reference_s=float(str(entry["drift_reference_s"])),
        converters=ConverterRange(adc_lsb_a=tensors[f"{prefix}adc_lsb_a"], **converters),
        residual=_load_residual(prefix, tensors),
        write_conductance_error_s=tensors.get(f"{prefix}write_conductance_error_s"),
        cell_slope_error=tensors.get(f"{prefix}cell_slope_error"),
        mismatch=optional("mismatch"),
        skew=optional("skew"),
        line_noise=optional("line_noise"),
        output_shot_noise=optional("output_shot_noise"),
        output_relative_noise=optional("output_relative_noise"),
        wire_ohm=optional("wire_ohm"),
        exact_wires=bool(entry.get("exact_wires", False)),
        crosstalk=optional("crosstalk"),
        drift_spread=optional("drift_spread"),
        write_log_age=tensors.get(f"{prefix}write_log_age"),
        wire_uncertainty=tensors.get(f"{prefix}wire_uncertainty"),
    )


def _load_residual(prefix: str, tensors: dict[str, np.ndarray]) -> ResidualNetwork | None:
    if f"{prefix}residual.out" not in tensors:
        return None
    return ResidualNetwork(**{name: tensors[f"{prefix}residual.{name}"] for name in _RESIDUAL})
