"""QCoDeS as a sink of records, where it is installed: one result for each MVM, which is how it takes them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def qcodes_is_there() -> bool:
    """Whether QCoDeS can be imported."""
    return find_spec("qcodes") is not None


def qcodes_sink(folder: Path, voltage_v: NDArray[np.float32], current_a: NDArray[np.float32]) -> Callable[[], None]:
    """Makes a database, and returns what writes these rows into a run of its own, with its default settings.

    Args:
        folder: Where the database goes.
        voltage_v: Inputs in V, `[records, rows]`.
        current_a: Outputs in A, `[records, columns]`.
    """
    # Imported by name: it is a peer, not a dependency, and type checkers do not find it.
    qcodes = import_module("qcodes.dataset")
    qcodes.initialise_or_create_database_at(folder / "qcodes.db")
    experiment = qcodes.load_or_create_experiment("benchmark", "chip")
    index = np.arange(voltage_v.shape[1])

    def write() -> None:
        measurement = qcodes.Measurement(exp=experiment)
        measurement.register_custom_parameter("line", paramtype="array")
        measurement.register_custom_parameter("time_s", paramtype="numeric")
        for name in ("voltage_v", "current_a"):
            measurement.register_custom_parameter(name, setpoints=("line",), paramtype="array")
        with measurement.run() as saver:
            for number, (inputs, outputs) in enumerate(zip(voltage_v, current_a, strict=True)):
                saver.add_result(
                    ("line", index), ("voltage_v", inputs), ("current_a", outputs), ("time_s", 1e-5 * number)
                )

    return write
