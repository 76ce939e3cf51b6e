"""`labrig export`: a recording as netCDF, CSV, Parquet or NumPy files; a fitted chip as text for other simulators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labrig.commands.interruptible import interruptible


def export(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A recording (HDF5), or a fitted chip (.safetensors).", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The new file; its suffix says the format: .nc, .csv, .parquet or .npz; of a chip .py, .json or .csv. "
            "With --format by default FILE with the suffix of that format.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            "--to",
            metavar="NAME",
            help="netcdf, csv, parquet or npz, whatever the suffix; of a chip aihwkit or crosssim.",
        ),
    ] = None,
    array: Annotated[int | None, typer.Option(metavar="N", help="Only this array and its writes.")] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this stream, such as array_0, array_0/writes or supply; repeatable."),
    ] = None,
) -> None:
    """Write the committed rows of a recording in another format, after checking every one of them.

    CSV and Parquet files hold one stream each: OUT itself with one --stream, else OUT with the name of each stream in
    it, such as run.array_0.csv.

    A fitted chip becomes a noise model of aihwkit (.py, .json) or a table of parameters of CrossSim (.json, .csv, .py).

    Example: labrig export run.h5 -o run.nc

    Example: labrig export chip.safetensors --to aihwkit -o noise_model.py
    """
    from labrig.commands.byte_steps import byte_steps
    from labrig.export import export_recording
    from labrig.export.chip_text import export_chip
    from labrig.export.run import default_output
    from labrig_drivers.errors import StorageError

    if file.suffix == ".safetensors":
        if kind is None or output is None or stream:
            raise StorageError(
                f"{file} is a fitted chip: give --to aihwkit or --to crosssim, --output OUT, and no --stream"
            )
        print(export_chip(file, output, kind=kind, array=array))
        return
    with interruptible("nothing of the export is left, the recording is as it was"), byte_steps() as steps:
        paths = export_recording(
            file,
            output or default_output(file, kind),
            kind=kind,
            array=array,
            names=stream or [],
            progress=lambda done, total: steps("exporting", done, total),
        )
    for path in paths:
        print(path)
