"""The commands that each channel of a simulated Keysight B2900 has for itself (B2910-90030, section 4)."""

from __future__ import annotations

from collections.abc import Callable

from labrig_drivers.errors import InstrumentError
from labrig_drivers.mock.keysight_b2900_channel import LONGEST_LIST, MAX_LEVEL, SourceChannel
from labrig_drivers.mock.scpi_parser import Command, boolean, choice, number

_LONGEST_DELAY_S = 1e5
_MOST_TRIGGERS = 100_000
_FUNCTIONS = ("VOLTage", "CURRent", "RESistance")


def channel_commands(prefix: str, channel: SourceChannel) -> list[Command]:
    """What one channel understands.

    Args:
        prefix: Stands before the first keyword of each command; it tells the channels apart.
        channel: The channel.
    """
    commands = [*_output(f"{prefix}OUTPut", channel), *_triggers(prefix, channel)]
    # Only of channel 1 may the first keyword be left out.
    commands += _source(f"{prefix}SOURce" if prefix else "[SOURce]", channel)
    commands += _sense(f"{prefix}SENSe", channel)
    return commands


def _output(head: str, channel: SourceChannel) -> list[Command]:
    return [
        Command(f"{head}[:STATe]", lambda text: channel.switch(boolean(text))),
        Command(f"{head}[:STATe]?", lambda _: _flag(channel.settings.output_on)),
        *_switch(f"{head}:ON:AUTO", channel, "on_auto"),
        *_switch(f"{head}:OFF:AUTO", channel, "off_auto"),
        *_switch(f"{head}:PROTection[:STATe]", channel, "protection"),
    ]


def _triggers(prefix: str, channel: SourceChannel) -> list[Command]:
    commands = [Command(f"{prefix}IDLE[:ALL]?", lambda _: _flag(channel.is_idle))]
    for layer, is_trigger in (("ARM", False), ("TRIGger", True)):
        head = f"{prefix}{layer}"
        commands += [
            # Other sources of triggers, and counts in the arm layer, have no use here.
            Command(f"{head}[:ALL]:SOURce[:SIGNal]", lambda text: _done(choice(text, "AINT"))),
            Command(f"{head}[:ALL]:COUNt", _counter(channel) if is_trigger else _only_one),
        ]
        for device, names in (("[:ALL]", ("ACQ", "TRAN")), (":ACQuire", ("ACQ",)), (":TRANsient", ("TRAN",))):
            commands.append(Command(f"{head}{device}:DELay", _delay(channel, names) if is_trigger else _no_delay))
    commands.append(Command(f"{prefix}TRIGger[:ALL]:COUNt?", lambda _: str(channel.settings.count)))
    return commands


def _counter(channel: SourceChannel) -> Callable[[str], None]:
    return lambda text: setattr(channel.settings, "count", int(number(text, 1, _MOST_TRIGGERS)))


def _only_one(text: str) -> None:
    number(text, 1, 1)


def _no_delay(text: str) -> None:
    number(text, 0.0, 0.0)


def _delay(channel: SourceChannel, names: tuple[str, ...]) -> Callable[[str], None]:
    return lambda text: channel.settings.delay_s.update(dict.fromkeys(names, number(text, 0.0, _LONGEST_DELAY_S)))


def _source(head: str, channel: SourceChannel) -> list[Command]:
    commands = [
        Command(f"{head}:FUNCtion:MODE", lambda text: channel.set_source(choice(text, "VOLTage", "CURRent"))),
        Command(f"{head}:FUNCtion:MODE?", lambda _: channel.settings.source),
        Command(f"{head}:FUNCtion[:SHAPe]", _word(channel, "shape", "DC", "PULSe")),
        Command(f"{head}:FUNCtion[:SHAPe]?", lambda _: channel.settings.shape),
        *_switch(f"{head}:FUNCtion:TRIGgered:CONTinuous", channel, "continuous"),
        Command(f"{head}:SWEep:RANGing", _word(channel, "ranging", "BEST", "FIXed", "AUTO")),
        Command(f"{head}:SWEep:RANGing?", lambda _: channel.settings.ranging),
        Command(f"{head}:SWEep:DIRection", _word(channel, "direction", "UP", "DOWN")),
        Command(f"{head}:SWEep:DIRection?", lambda _: channel.settings.direction),
    ]
    for keyword in ("VOLTage", "CURRent"):
        commands += _source_quantity(head, keyword, channel)
    return commands


def _source_quantity(head: str, keyword: str, channel: SourceChannel) -> list[Command]:
    name, largest = keyword[:4], MAX_LEVEL[keyword[:4]]

    def set_range(text: str) -> None:
        channel.settings.source_range[name] = abs(number(text, -largest, largest))
        channel.settings.source_autorange[name] = False

    def set_level(text: str) -> None:
        maximum = channel.largest_level(name)
        channel.set_level(name, number(text, -maximum, maximum))

    return [
        Command(f"{head}:{keyword}:MODE", lambda text: channel.set_mode(name, choice(text, "FIXed", "LIST", "SWEep"))),
        Command(f"{head}:{keyword}:MODE?", lambda _: channel.settings.mode[name]),
        Command(f"{head}:{keyword}:RANGe", set_range),
        Command(f"{head}:{keyword}:RANGe?", lambda _: repr(channel.settings.source_range[name])),
        *_automatic(f"{head}:{keyword}:RANGe:AUTO", lambda: channel.settings.source_autorange, name),
        Command(f"{head}:{keyword}[:LEVel][:IMMediate][:AMPLitude]", set_level),
        Command(f"{head}:{keyword}[:LEVel][:IMMediate][:AMPLitude]?", lambda _: repr(channel.settings.level[name])),
        *_sweep_quantity(head, keyword, channel),
    ]


def _sweep_quantity(head: str, keyword: str, channel: SourceChannel) -> list[Command]:
    name, largest = keyword[:4], MAX_LEVEL[keyword[:4]]

    def set_list(text: str, before: list[float]) -> None:
        levels = before + [number(field.strip(), -largest, largest) for field in text.split(",")]
        if len(levels) > LONGEST_LIST:
            raise InstrumentError(-223, "Too much data", text[:20])
        channel.settings.list[name] = levels

    def set_points(text: str) -> None:
        channel.settings.points = int(number(text, 1, LONGEST_LIST))

    return [
        Command(f"{head}:LIST:{keyword}", lambda text: set_list(text, [])),
        Command(f"{head}:LIST:{keyword}:APPend", lambda text: set_list(text, channel.settings.list[name])),
        Command(f"{head}:LIST:{keyword}:POINts?", lambda _: str(len(channel.settings.list[name]))),
        Command(
            f"{head}:{keyword}:STARt",
            lambda text: channel.settings.start.update({name: number(text, -largest, largest)}),
        ),
        Command(
            f"{head}:{keyword}:STOP", lambda text: channel.settings.stop.update({name: number(text, -largest, largest)})
        ),
        Command(f"{head}:{keyword}:POINts", set_points),
    ]


def _sense(head: str, channel: SourceChannel) -> list[Command]:
    commands = [
        Command(f"{head}:FUNCtion[:ON]", lambda text: channel.settings.functions.update(_functions(text))),
        Command(f"{head}:FUNCtion[:ON]?", lambda _: _listed(channel.settings.functions)),
        Command(f"{head}:FUNCtion:OFF", lambda text: channel.settings.functions.difference_update(_functions(text))),
        Command(f"{head}:FUNCtion:OFF:ALL", lambda _: channel.settings.functions.clear()),
        *_switch(f"{head}:REMote", channel, "remote_sense"),
        Command(f"{head}:DATA:CLEar", lambda _: channel.samples.clear()),
    ]
    for keyword in ("VOLTage", "CURRent"):
        commands += _sense_quantity(f"{head}:{keyword}[:DC]", keyword[:4], channel)
    return commands


def _sense_quantity(head: str, name: str, channel: SourceChannel) -> list[Command]:
    largest = MAX_LEVEL[name]

    def set_limit(text: str) -> None:
        limit = abs(number(text, -largest, largest))
        if limit == 0.0:
            raise InstrumentError(-222, "Data out of range", text)
        channel.settings.limit[name] = limit
        channel.output_changed()

    def set_range(text: str) -> None:
        channel.settings.sense_range[name] = abs(number(text, -largest, largest))
        channel.settings.sense_autorange[name] = False

    return [
        Command(f"{head}:NPLCycles", lambda text: channel.set_nplc(number(text, 0.0, 1e6))),
        Command(f"{head}:NPLCycles?", lambda _: repr(channel.settings.nplc)),
        *_switch(f"{head}:NPLCycles:AUTO", channel, "nplc_auto"),
        Command(f"{head}:PROTection[:LEVel][:BOTH]", set_limit),
        Command(f"{head}:PROTection[:LEVel][:BOTH]?", lambda _: repr(channel.settings.limit[name])),
        Command(
            f"{head}:PROTection:TRIPped?",
            lambda _: _flag(name != channel.settings.source and channel.in_compliance()),
        ),
        Command(f"{head}:RANGe[:UPPer]", set_range),
        Command(f"{head}:RANGe[:UPPer]?", lambda _: repr(channel.settings.sense_range[name])),
        *_automatic(f"{head}:RANGe:AUTO", lambda: channel.settings.sense_autorange, name),
    ]


def _switch(pattern: str, channel: SourceChannel, name: str) -> list[Command]:
    """A setting that is on or off, looked up each time: `*RST` puts other settings in the place of these."""
    return [
        Command(pattern, lambda text: setattr(channel.settings, name, boolean(text))),
        Command(f"{pattern}?", lambda _: _flag(bool(getattr(channel.settings, name)))),
    ]


def _automatic(pattern: str, table: Callable[[], dict[str, bool]], name: str) -> list[Command]:
    return [
        Command(pattern, lambda text: table().update({name: boolean(text)})),
        Command(f"{pattern}?", lambda _: _flag(table()[name])),
    ]


def _word(channel: SourceChannel, name: str, *keywords: str) -> Callable[[str], None]:
    return lambda text: setattr(channel.settings, name, choice(text, *keywords))


def _functions(text: str) -> set[str]:
    return {choice(field.strip(" \"'").split(":")[0], *_FUNCTIONS) for field in text.split(",")}


def _listed(functions: set[str]) -> str:
    return ",".join(f'"{name}"' for name in ("VOLT", "CURR", "RES") if name in functions)


def _done(_: object) -> None:
    """The only value there is needs no state."""


def _flag(value: bool) -> str:
    return "1" if value else "0"
