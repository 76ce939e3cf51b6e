"""`labrig check`: who is on the bench, and what protects it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible
from labrig_drivers.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from labrig.config import AxisConfig, BoardConfig, RigConfig, SourceMeterConfig
    from labrig.rig_survey import FoundAxis, RigSurvey
    from labrig_drivers.instrument import HostLossProtection

_NOTHING = "nothing; the watchdog process covers a killed program, not a dead host"
_STAYS = "nothing, nor when the program is killed: it names no safe value and keeps its set point"


def check(rig: RigArgument) -> None:
    """Open a rig, identify its instruments, say what protects it, and close, without touching an output.

    Example: labrig check rig_configs/mock.toml
    """
    from rich.console import Console

    from labrig.config import load_rig
    from labrig.rig_survey import survey

    config = load_rig(rig)
    with Console(stderr=True).status(f"opening rig {config.rig.name}"):
        found = run_interruptible(survey(config))
    _print(Console(markup=False, highlight=False), config, found)


def _print(console: Console, config: RigConfig, found: RigSurvey) -> None:
    from rich.table import Table

    named: dict[str, BoardConfig | SourceMeterConfig | AxisConfig] = {
        "board": config.board,
        **config.source_meters,
        **config.axes,
    }
    table = Table("instrument", "driver", "address", "identity", title=f"rig {config.rig.name}")
    for name, identity in found.identities.items():
        table.add_row(name, named[name].driver, named[name].link or "in this process", str(identity))
    console.print(table)
    info = found.info
    full_scale_a = max(info.adc_full_scale_a)
    console.print(
        f"chip {info.chip_id}: {counted(info.arrays, 'array')} of {info.rows} x {info.columns}, "
        f"{info.conductance_min_s * 1e6:g} to {info.conductance_max_s * 1e6:g} uS, "
        f"{info.voltage_min_v:g} to {info.voltage_max_v:g} V, "
        f"DAC {info.dac_bits} bits, ADC {info.adc_bits} bits to {full_scale_a * 1e6:g} uA"
    )
    for name, axis in found.axes.items():
        console.print(f"axis {name}: {_axis(axis)}", soft_wrap=True)
    for name, condition in config.conditions.items():
        console.print(f"condition {name} ({condition.reads}): {_state(found, name)}", soft_wrap=True)
    if found.protection:
        _print_protection(console, config, found)
    console.print("all instruments answered; no output was touched")


def _print_protection(console: Console, config: RigConfig, found: RigSurvey) -> None:
    console.print("when the host is lost (power cut, pulled cable), what switches off:")
    for name, protection in found.protection.items():
        stays = name in found.axes and found.axes[name].safe_value is None
        console.print(f"  {name}: {_STAYS if stays else _protection(protection)}", soft_wrap=True)
    for name, interlock in config.interlocks.items():
        state = "OPEN" if name in found.open_interlocks else "closed"
        console.print(f"interlock {name} (read by {interlock.instrument}): {state}")
    if found.watchdog_start_s is None:
        return
    console.print(
        f"watchdog process: available, ready in {found.watchdog_start_s:.2f} s; "
        "it switches off when the program is killed",
        soft_wrap=True,
    )
    console.print("locks: no other labrig on this machine holds an instrument of this rig")


def _axis(axis: FoundAxis) -> str:
    limits = f"{axis.low:g} to {axis.high:g} {axis.unit}"
    end = "keeps its set point at the end"
    if axis.safe_value is not None:
        end = f"goes to {axis.safe_value:g} {axis.unit} at the end, if it was moved"
    return f"{axis.quantity} at {axis.value:.6g} {axis.unit}, may be set to {limits}; {end}"


def _state(found: RigSurvey, name: str) -> str:
    if name not in found.conditions:
        return "looked at while the board is fed"
    return found.conditions[name] or "holds"


def _protection(protection: HostLossProtection | None) -> str:
    if protection is None:
        return _NOTHING
    if protection.silence_s is None:
        return f"{_NOTHING} ({protection.text})"
    return f"itself, after {protection.silence_s:g} s without the host ({protection.text})"
