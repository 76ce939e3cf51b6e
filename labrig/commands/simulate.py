"""`labrig simulate`: the simulated bench in this terminal, for use from another one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from labrig_drivers.mock.bench import BenchAddresses


def simulate(
    board_port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port of the board; 0 takes a free one.")
    ] = 15731,
    meter_port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port of the source-meter; 0 takes a free one.")
    ] = 15025,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the chip: another seed is another chip.")] = 1,
    log: Annotated[Path | None, typer.Option(help="JSON-lines file for every event on the bench.")] = None,
) -> None:
    """Run a simulated bench until Ctrl-C: a crossbar board and the source-meter that feeds it.

    Example: `labrig simulate` here, then in another terminal
    `labrig check rig_configs/simulated_bench.toml`.
    """
    from labrig_drivers.mock.bench import BenchSettings, serve_bench
    from labrig_drivers.mock.chip import ChipSettings

    settings = BenchSettings(chip=ChipSettings(seed=seed), board_port=board_port, meter_port=meter_port, log=log)
    asyncio.run(serve_bench(settings, lambda addresses: _print_addresses(addresses, settings.chip.seed)))
    typer.echo("stopped")


def _print_addresses(addresses: BenchAddresses, seed: int) -> None:
    typer.echo(f"simulated bench with chip SIM-{seed:04d} (model LR-SIM1)")
    typer.echo(f"  board         {addresses.board}")
    typer.echo(f"  the same      {addresses.board_serial}")
    typer.echo(f"  source-meter  {addresses.meter}")
    standard = addresses.board.endswith(":15731") and addresses.meter.endswith("::15025::SOCKET") and seed == 1
    if standard:
        typer.echo("in another terminal: labrig check rig_configs/simulated_bench.toml")
    else:
        typer.echo("in another terminal: copy rig_configs/simulated_bench.toml, put these addresses and the")
        typer.echo("serial number of the chip into it, and run `labrig check` on the copy")
    typer.echo("Ctrl-C stops the bench")
