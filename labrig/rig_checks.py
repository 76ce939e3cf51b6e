"""What can be wrong between a rig file and its instruments: found when they are made, or when they have been opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from labrig.config import RigConfig
from labrig.rig_faults import BOARD_TEMPERATURE
from labrig.safety import axis_envelope
from labrig_drivers.axis import Axis
from labrig_drivers.capabilities import TEMPERATURE
from labrig_drivers.crossbar import BoardInfo
from labrig_drivers.errors import ConfigError
from labrig_drivers.interlock import InterlockInput


def find_interlocks(config: RigConfig, instruments: Mapping[str, object]) -> dict[str, InterlockInput]:
    """What reads each interlock of a rig file, by the interlock's name.

    Raises:
        ConfigError: The driver of one cannot.
    """
    found: dict[str, InterlockInput] = {}
    faults: list[tuple[str, str]] = []
    for name, interlock in config.interlocks.items():
        instrument = instruments[interlock.instrument]
        if isinstance(instrument, InterlockInput):
            found[name] = instrument
        else:
            reason = f"the driver of {interlock.instrument!r} reads no interlock"
            faults.append((f"interlocks.{name}.instrument", reason))
    _raise(config, faults)
    return found


def check_axes(config: RigConfig, axes: Mapping[str, Axis]) -> None:
    """Holds the limits of a rig file against what its axes can do.

    Raises:
        ConfigError: A limit is looser than the driver's own, or forbids the axis's safe value; every fault.
    """
    _raise(config, [fault for name, axis in axes.items() for fault in _axis_faults(config, name, axis)])


def check_board(config: RigConfig, info: BoardInfo) -> None:
    """Holds a rig file against the board that was found.

    Raises:
        ConfigError: It limits an array that the board does not have, or reads a temperature that it does not measure.
    """
    faults = [
        (f"board.arrays.{number}", f"the board has arrays 0 to {info.arrays - 1} only, so this would limit nothing")
        for number in config.board.arrays
        if int(number) >= info.arrays
    ]
    if TEMPERATURE not in info.capabilities:
        faults += [
            (f"conditions.{name}.reads", "the board does not declare that it measures the temperature of its chip")
            for name, condition in config.conditions.items()
            if condition.reads == BOARD_TEMPERATURE
        ]
    _raise(config, faults)


def _axis_faults(config: RigConfig, name: str, axis: Axis) -> Iterator[tuple[str, str]]:
    limits, unit = axis_envelope(config, name), axis.unit
    can = f"what the driver allows is {axis.low:g} to {axis.high:g} {unit}"
    if limits.low is not None and not axis.low <= limits.low < axis.high:
        yield f"axes.{name}.low", f"{limits.low:g} {unit} limits nothing, or everything; {can}"
    if limits.high is not None and not axis.low < limits.high <= axis.high:
        yield f"axes.{name}.high", f"{limits.high:g} {unit} limits nothing, or everything; {can}"
    if axis.safe_value is not None:
        for reason in limits.reasons(axis.safe_value, unit):
            yield f"axes.{name}.settings.safe_value", reason


def _raise(config: RigConfig, faults: list[tuple[str, str]]) -> None:
    if faults:
        raise ConfigError("\n".join(f"{config.locate(key)}: {key}: {reason}" for key, reason in faults))
