"""The verbs of a source-meter on the rig's side: from a request to a call of the guarded meter, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from labrig.remote.board_verbs import Outcome
from labrig.remote.messages import Request, Values
from labrig.remote.results import floats, identity_values, number, number_or_none, reading_arrays
from labrig_drivers.errors import ProtocolError
from labrig_drivers.instrument import ReportsSettings
from labrig_drivers.source_meter import SourceKind, SourceMeter

MeterVerb = Callable[[SourceMeter, Request], Awaitable[Outcome]]


def meter_card(meter: SourceMeter) -> Values:
    """What a client has to know of an open source-meter."""
    return {"identity": identity_values(meter.identity)}


async def _configure(meter: SourceMeter, request: Request) -> Outcome:
    values = request.values
    source: SourceKind = "voltage" if values.get("source") == "voltage" else "current"
    wires: Literal[2, 4] = 2 if values.get("wires") == 2 else 4
    if values.get("source") != source or values.get("wires") != wires:
        raise ProtocolError("source is neither voltage nor current, or wires neither 2 nor 4")
    await meter.configure(source=source, nplc=number(values, "nplc"), wires=wires)
    return Outcome()


async def _set_limit(meter: SourceMeter, request: Request) -> Outcome:
    await meter.set_limit(**_pair(request))
    return Outcome()


async def _set_ranges(meter: SourceMeter, request: Request) -> Outcome:
    await meter.set_ranges(**_pair(request))
    return Outcome()


async def _set_level(meter: SourceMeter, request: Request) -> Outcome:
    await meter.set_level(**_pair(request))
    return Outcome()


async def _output_on(meter: SourceMeter, _: Request) -> Outcome:
    await meter.output_on()
    return Outcome()


async def _output_off(meter: SourceMeter, _: Request) -> Outcome:
    await meter.output_off()
    return Outcome()


async def _output_is_on(meter: SourceMeter, _: Request) -> Outcome:
    return Outcome({"on": await meter.output_is_on()})


async def _measure(meter: SourceMeter, _: Request) -> Outcome:
    return Outcome(arrays=reading_arrays([await meter.measure()]))


async def _sweep(meter: SourceMeter, request: Request) -> Outcome:
    levels = {
        name: floats(request.arrays, name).tolist() for name in ("voltage_v", "current_a") if name in request.arrays
    }
    return Outcome(arrays=reading_arrays(await meter.sweep(**levels)))


async def _errors(meter: SourceMeter, _: Request) -> Outcome:
    found = await meter.errors()
    return Outcome({"codes": [float(code) for code, _text in found], "texts": [text for _code, text in found]})


async def _read_settings(meter: SourceMeter, _: Request) -> Outcome:
    settings = await meter.read_settings() if isinstance(meter, ReportsSettings) else {}
    return Outcome({"settings": settings})


def _pair(request: Request) -> dict[str, float | None]:
    return {name: number_or_none(request.values, name) for name in ("voltage_v", "current_a")}


METER_VERBS: Final[Mapping[str, MeterVerb]] = MappingProxyType(
    {
        "configure": _configure,
        "set-limit": _set_limit,
        "set-ranges": _set_ranges,
        "set-level": _set_level,
        "output-on": _output_on,
        "output-off": _output_off,
        "output-is-on": _output_is_on,
        "measure": _measure,
        "sweep": _sweep,
        "errors": _errors,
        "read-settings": _read_settings,
    }
)
"""Every verb of a source-meter by its name on the wire."""
