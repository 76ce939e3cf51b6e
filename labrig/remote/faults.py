"""The error tree of labrig_drivers on its way between two machines: by name, never by code."""

from __future__ import annotations

from typing import Final

from labrig.remote.messages import Fault
from labrig.telemetry.documents import clean_text
from labrig_drivers.errors import (
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

# Those that a text is enough for; the others carry more and are made below.
_PLAIN: Final[dict[str, type[LabrigError]]] = {
    kind.__name__: kind
    for kind in (
        CapabilityError,
        ConfigError,
        LinkDesyncedError,
        LinkError,
        LinkLostError,
        LinkTimeoutError,
        PlanAbortedError,
        ProtocolError,
        StateError,
        StorageError,
    )
}


class BusyError(StateError):
    """The rig has as many requests as it takes; nothing was done, and the same may be asked again."""


class LeaseEndedError(StateError):
    """The lease that a request was made under has ended, and the rig has made its instruments safe."""


_OWN: Final[dict[str, type[LabrigError]]] = {kind.__name__: kind for kind in (BusyError, LeaseEndedError)}


def fault_of(error: Exception) -> Fault:
    """An error as it travels; one that labrig did not raise on purpose becomes a `LabrigError` that says so."""
    text = clean_text(str(error))
    match error:
        case SafetyError():
            return Fault("SafetyError", text, {"reasons": [clean_text(reason) for reason in error.reasons]})
        case InstrumentError():
            details: dict[str, int | str | list[str]] = {"code": error.code, "text": clean_text(error.text)}
            return Fault("InstrumentError", text, details | {"command": clean_text(error.command)})
        case IdentityError():
            return Fault("IdentityError", text, {"expected": clean_text(error.expected), "got": clean_text(error.got)})
        case BusyError() | LeaseEndedError():
            return Fault(type(error).__name__, text)
        case LabrigError():
            name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _PLAIN), "LabrigError")
            return Fault(name, text)
        case _:
            return Fault("LabrigError", f"the rig's side failed, which is a bug there: {type(error).__name__}: {text}")


def error_of(fault: Fault) -> LabrigError:
    """The error again, with the message that it had."""
    details = fault.details
    reasons, code, text, command = (details.get(key) for key in ("reasons", "code", "text", "command"))
    expected, got = details.get("expected"), details.get("got")
    error: LabrigError
    if fault.kind == "SafetyError" and isinstance(reasons, list):
        error = SafetyError(reasons)
    elif fault.kind == "InstrumentError" and isinstance(code, int) and isinstance(text, str):
        error = InstrumentError(code, text, str(command))
    elif fault.kind == "IdentityError" and isinstance(expected, str) and isinstance(got, str):
        error = IdentityError(expected, got)
    else:
        error = (_OWN | _PLAIN).get(fault.kind, LabrigError)(fault.text)
    error.args = (fault.text,)
    return error
