"""`labrig check`: who is on the bench?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible

if TYPE_CHECKING:
    from labrig.config import RigConfig
    from labrig_drivers.crossbar import BoardInfo
    from labrig_drivers.instrument import Identity


def check(rig: RigArgument) -> None:
    """Open a rig, identify its instruments, print them and close, without touching an output.

    Example: labrig check rig_configs/mock.toml
    """
    from labrig.config import load_rig
    from labrig.rig import identify

    config = load_rig(rig)
    identities, info = run_interruptible(identify(config))
    _print(config, identities, info)


def _print(config: RigConfig, identities: dict[str, Identity], info: BoardInfo) -> None:
    from rich.console import Console
    from rich.table import Table

    addresses = {"board": config.board.link or "in this process"}
    addresses |= {name: meter.link for name, meter in config.source_meters.items()}
    drivers = {"board": config.board.driver} | {name: one.driver for name, one in config.source_meters.items()}
    table = Table("instrument", "driver", "address", "identity", title=f"rig {config.rig.name}")
    for name, identity in identities.items():
        table.add_row(name, drivers[name], addresses[name], str(identity))
    console = Console(markup=False, highlight=False)
    console.print(table)
    full_scale_a = max(info.adc_full_scale_a)
    console.print(
        f"chip {info.chip_id}: {info.arrays} arrays of {info.rows} x {info.columns}, "
        f"{info.conductance_min_s * 1e6:g} to {info.conductance_max_s * 1e6:g} uS, "
        f"{info.voltage_min_v:g} to {info.voltage_max_v:g} V, "
        f"DAC {info.dac_bits} bits, ADC {info.adc_bits} bits to {full_scale_a * 1e6:g} uA"
    )
    console.print("all instruments answered; no output was touched")
