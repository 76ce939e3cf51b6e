"""`labrig import`: what others measured, as files that labrig works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from labrig_drivers.crossbar import FloatArray

import_app = typer.Typer(no_args_is_help=True)


@import_app.callback()
def import_() -> None:
    """What others measured, as files that labrig works with.

    Example: labrig import conductances write1.csv write2.csv --unit uS -o chip.safetensors
    """


@import_app.command()
def conductances(
    measured: Annotated[
        list[Path], typer.Argument(metavar="MEASURED...", help="One file for each write.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The new file, .safetensors.", show_default=False)
    ],
    target: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What was to be programmed, of the same form.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--format", metavar="NAME", help="`csv`: one array; `aihwkit`: its Fusion export.")
    ] = "csv",
    unit: Annotated[str, typer.Option(help="Unit of a csv: S, mS, uS or nS. aihwkit writes uS.")] = "S",
    source: Annotated[str, typer.Option(help="Where the numbers are from; reports say it.")] = "imported",
) -> None:
    """Take measured conductances of a chip onto a board, `conductance-board` in a rig file.

    Products on that board are computed from the measured cells; nothing else of the chip is in them.

    Example: labrig import conductances write1.csv write2.csv --target target.csv --unit uS -o chip.safetensors
    """
    from labrig.conductance_files import joined, read_fusion, read_matrix, write_conductances
    from labrig_drivers.errors import ConfigError
    from labrig_drivers.wording import counted

    if kind not in {"csv", "aihwkit"}:
        raise ConfigError(f"--format {kind}: is neither csv nor aihwkit")

    def read(path: Path) -> Mapping[str, FloatArray]:
        return read_fusion(path) if kind == "aihwkit" else {"array": read_matrix(path, unit)}

    arrays = joined([read(path) for path in measured], None if target is None else read(target))
    write_conductances(output, arrays, source)
    for index, one in enumerate(arrays):
        rows, columns = one.target_s.shape
        off_us = 1e6 * float(((one.measured_s - one.target_s) ** 2).mean()) ** 0.5
        error = "" if target is None else f", {off_us:.3g} uS off (rms)"
        print(f"array {index}: {one.name}, {rows} x {columns}, {counted(len(one.measured_s), 'write')}{error}")
    print(f'{output}: name it in a rig file, [board] driver = "conductance-board", [board.settings] file = "{output}"')
