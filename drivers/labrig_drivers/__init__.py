"""Async drivers for crossbar boards and source-meters, and the simulated bench that stands in for them.

Needs numpy, pyvisa and pyserial only; imports no other labrig package. What `__all__` lists is promised, and each
name loads its module when it is first used: see docs/reference/public-api.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig_drivers.arc_two import ArcTwoBoard
    from labrig_drivers.axis import Axis, AxisReading
    from labrig_drivers.axis_motion import AxisMotion, AxisSettings
    from labrig_drivers.bench_crossbar import BenchCrossbar
    from labrig_drivers.capabilities import (
        CellSweep,
        FloatingLines,
        TemperatureSensor,
        TransposedMvm,
        require_capability,
    )
    from labrig_drivers.crossbar import (
        BoardInfo,
        CrossbarBoard,
        MvmResult,
        ProgramReport,
        check_mvm_request,
        check_program_request,
    )
    from labrig_drivers.dialect_source_meter import DialectSourceMeter
    from labrig_drivers.errors import (
        AxisTimeoutError,
        CapabilityError,
        ConfigError,
        IdentityError,
        InstrumentError,
        LabrigError,
        LinkDesyncedError,
        LinkError,
        LinkLostError,
        LinkTimeoutError,
        PlanAbortedError,
        ProtocolError,
        SafetyError,
        StateError,
        StorageError,
    )
    from labrig_drivers.instrument import (
        ExpectedIdentity,
        HostLossProtection,
        Identity,
        Instrument,
        ProtectsItself,
        ReportsSettings,
    )
    from labrig_drivers.interlock import InterlockInput
    from labrig_drivers.keithley2400 import Keithley2400
    from labrig_drivers.keithley2450 import Keithley2450
    from labrig_drivers.keithley2600 import Keithley2600
    from labrig_drivers.keysight_b2900 import KeysightB2900
    from labrig_drivers.links.base import Framing, Link, LinkState
    from labrig_drivers.links.framing import BlockFraming, LineFraming
    from labrig_drivers.links.memory import MemoryLink
    from labrig_drivers.links.serial import SerialLink
    from labrig_drivers.links.tcp import TcpLink
    from labrig_drivers.links.url import link_from_url
    from labrig_drivers.links.visa import VisaLink
    from labrig_drivers.mock.axis import MockAxis
    from labrig_drivers.mock.board import MockBoard
    from labrig_drivers.mock.chip import ChipSettings
    from labrig_drivers.scpi import ScpiChannel, format_float, parse_float
    from labrig_drivers.scpi_axis import ScpiAxis
    from labrig_drivers.scpi_switch import ScpiSwitchMatrix
    from labrig_drivers.source_meter import Reading, SourceMeter
    from labrig_drivers.source_meter_dialect import Abilities, Channel, Dialect, RawReading
    from labrig_drivers.source_output import Ramp
    from labrig_drivers.switch_matrix import SwitchMatrix, SwitchMatrixInfo
    from labrig_drivers.wire_board import WireBoard

__all__ = [
    "Abilities",
    "ArcTwoBoard",
    "Axis",
    "AxisMotion",
    "AxisReading",
    "AxisSettings",
    "AxisTimeoutError",
    "BenchCrossbar",
    "BlockFraming",
    "BoardInfo",
    "CapabilityError",
    "CellSweep",
    "Channel",
    "ChipSettings",
    "ConfigError",
    "CrossbarBoard",
    "Dialect",
    "DialectSourceMeter",
    "ExpectedIdentity",
    "FloatingLines",
    "Framing",
    "HostLossProtection",
    "Identity",
    "IdentityError",
    "Instrument",
    "InstrumentError",
    "InterlockInput",
    "Keithley2400",
    "Keithley2450",
    "Keithley2600",
    "KeysightB2900",
    "LabrigError",
    "LineFraming",
    "Link",
    "LinkDesyncedError",
    "LinkError",
    "LinkLostError",
    "LinkState",
    "LinkTimeoutError",
    "MemoryLink",
    "MockAxis",
    "MockBoard",
    "MvmResult",
    "PlanAbortedError",
    "ProgramReport",
    "ProtectsItself",
    "ProtocolError",
    "Ramp",
    "RawReading",
    "Reading",
    "ReportsSettings",
    "SafetyError",
    "ScpiAxis",
    "ScpiChannel",
    "ScpiSwitchMatrix",
    "SerialLink",
    "SourceMeter",
    "StateError",
    "StorageError",
    "SwitchMatrix",
    "SwitchMatrixInfo",
    "TcpLink",
    "TemperatureSensor",
    "TransposedMvm",
    "VisaLink",
    "WireBoard",
    "check_mvm_request",
    "check_program_request",
    "format_float",
    "link_from_url",
    "parse_float",
    "require_capability",
]

# Where each name lives: `module:name there`. The test of the public API holds this equal to the imports above.
_HOMES = {
    "Abilities": "labrig_drivers.source_meter_dialect:Abilities",
    "ArcTwoBoard": "labrig_drivers.arc_two:ArcTwoBoard",
    "Axis": "labrig_drivers.axis:Axis",
    "AxisMotion": "labrig_drivers.axis_motion:AxisMotion",
    "AxisReading": "labrig_drivers.axis:AxisReading",
    "AxisSettings": "labrig_drivers.axis_motion:AxisSettings",
    "AxisTimeoutError": "labrig_drivers.errors:AxisTimeoutError",
    "BenchCrossbar": "labrig_drivers.bench_crossbar:BenchCrossbar",
    "BlockFraming": "labrig_drivers.links.framing:BlockFraming",
    "BoardInfo": "labrig_drivers.crossbar:BoardInfo",
    "CapabilityError": "labrig_drivers.errors:CapabilityError",
    "CellSweep": "labrig_drivers.capabilities:CellSweep",
    "Channel": "labrig_drivers.source_meter_dialect:Channel",
    "ChipSettings": "labrig_drivers.mock.chip:ChipSettings",
    "ConfigError": "labrig_drivers.errors:ConfigError",
    "CrossbarBoard": "labrig_drivers.crossbar:CrossbarBoard",
    "Dialect": "labrig_drivers.source_meter_dialect:Dialect",
    "DialectSourceMeter": "labrig_drivers.dialect_source_meter:DialectSourceMeter",
    "ExpectedIdentity": "labrig_drivers.instrument:ExpectedIdentity",
    "FloatingLines": "labrig_drivers.capabilities:FloatingLines",
    "Framing": "labrig_drivers.links.base:Framing",
    "HostLossProtection": "labrig_drivers.instrument:HostLossProtection",
    "Identity": "labrig_drivers.instrument:Identity",
    "IdentityError": "labrig_drivers.errors:IdentityError",
    "Instrument": "labrig_drivers.instrument:Instrument",
    "InstrumentError": "labrig_drivers.errors:InstrumentError",
    "InterlockInput": "labrig_drivers.interlock:InterlockInput",
    "Keithley2400": "labrig_drivers.keithley2400:Keithley2400",
    "Keithley2450": "labrig_drivers.keithley2450:Keithley2450",
    "Keithley2600": "labrig_drivers.keithley2600:Keithley2600",
    "KeysightB2900": "labrig_drivers.keysight_b2900:KeysightB2900",
    "LabrigError": "labrig_drivers.errors:LabrigError",
    "LineFraming": "labrig_drivers.links.framing:LineFraming",
    "Link": "labrig_drivers.links.base:Link",
    "LinkDesyncedError": "labrig_drivers.errors:LinkDesyncedError",
    "LinkError": "labrig_drivers.errors:LinkError",
    "LinkLostError": "labrig_drivers.errors:LinkLostError",
    "LinkState": "labrig_drivers.links.base:LinkState",
    "LinkTimeoutError": "labrig_drivers.errors:LinkTimeoutError",
    "MemoryLink": "labrig_drivers.links.memory:MemoryLink",
    "MockAxis": "labrig_drivers.mock.axis:MockAxis",
    "MockBoard": "labrig_drivers.mock.board:MockBoard",
    "MvmResult": "labrig_drivers.crossbar:MvmResult",
    "PlanAbortedError": "labrig_drivers.errors:PlanAbortedError",
    "ProgramReport": "labrig_drivers.crossbar:ProgramReport",
    "ProtectsItself": "labrig_drivers.instrument:ProtectsItself",
    "ProtocolError": "labrig_drivers.errors:ProtocolError",
    "Ramp": "labrig_drivers.source_output:Ramp",
    "RawReading": "labrig_drivers.source_meter_dialect:RawReading",
    "Reading": "labrig_drivers.source_meter:Reading",
    "ReportsSettings": "labrig_drivers.instrument:ReportsSettings",
    "SafetyError": "labrig_drivers.errors:SafetyError",
    "ScpiAxis": "labrig_drivers.scpi_axis:ScpiAxis",
    "ScpiChannel": "labrig_drivers.scpi:ScpiChannel",
    "ScpiSwitchMatrix": "labrig_drivers.scpi_switch:ScpiSwitchMatrix",
    "SerialLink": "labrig_drivers.links.serial:SerialLink",
    "SourceMeter": "labrig_drivers.source_meter:SourceMeter",
    "StateError": "labrig_drivers.errors:StateError",
    "StorageError": "labrig_drivers.errors:StorageError",
    "SwitchMatrix": "labrig_drivers.switch_matrix:SwitchMatrix",
    "SwitchMatrixInfo": "labrig_drivers.switch_matrix:SwitchMatrixInfo",
    "TcpLink": "labrig_drivers.links.tcp:TcpLink",
    "TemperatureSensor": "labrig_drivers.capabilities:TemperatureSensor",
    "TransposedMvm": "labrig_drivers.capabilities:TransposedMvm",
    "VisaLink": "labrig_drivers.links.visa:VisaLink",
    "WireBoard": "labrig_drivers.wire_board:WireBoard",
    "check_mvm_request": "labrig_drivers.crossbar:check_mvm_request",
    "check_program_request": "labrig_drivers.crossbar:check_program_request",
    "format_float": "labrig_drivers.scpi:format_float",
    "link_from_url": "labrig_drivers.links.url:link_from_url",
    "parse_float": "labrig_drivers.scpi:parse_float",
    "require_capability": "labrig_drivers.capabilities:require_capability",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _HOMES[name].partition(":")
    return getattr(import_module(module), there)


def __dir__() -> list[str]:
    return __all__
