"""The error tree of links, instruments and storage: small, flat, one module.

Each message says what happened, where, and what to do about it. Everything that labrig's drivers and recordings
raise on purpose derives from `LabrigError`; the command line turns every one of them into one message and exit
code 2.
"""

from __future__ import annotations


class LabrigError(Exception):
    """Base of every error that labrig raises on purpose."""


class LinkError(LabrigError):
    """A link to an instrument failed."""


class LinkTimeoutError(LinkError):
    """No complete answer came before the deadline; the link is desynchronised until it was recovered."""


class LinkLostError(LinkError):
    """The peer closed the connection, refused it, or cannot be reached."""


class LinkDesyncedError(LinkError):
    """An earlier exchange did not complete, so the next answer could belong to it; no value is returned."""


class ProtocolError(LabrigError):
    """The peer answered something that its protocol does not allow (bad frame, checksum, number, shape)."""


class InstrumentError(LabrigError):
    """The instrument itself reported an error.

    Attributes:
        code: The instrument's own error number; 0 where it gave none.
        text: The instrument's own error text.
        command: The command that was sent before the error was read.
    """

    def __init__(self, code: int, text: str, command: str, instrument: str = "") -> None:
        self.code = code
        self.text = text
        self.command = command
        where = f"{instrument}: " if instrument else ""
        what = f"error {code} ({text})" if code else text
        super().__init__(f"{where}{what} after {command!r}")


class IdentityError(LabrigError):
    """The instrument at an address is not the one that the rig file names.

    Attributes:
        expected: What the rig file asks for.
        got: What the instrument says of itself.
    """

    def __init__(self, expected: str, got: str, address: str = "") -> None:
        self.expected = expected
        self.got = got
        where = f"{address}: " if address else ""
        super().__init__(
            f"{where}expected {expected}, but the instrument there says {got}; "
            "check the address and the expected identity in the rig file"
        )


class SafetyError(LabrigError):
    """A request lies outside the rig's envelope; nothing was sent.

    Attributes:
        reasons: Every limit that the request violates, one text each.
    """

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("refused, nothing was sent: " + "; ".join(reasons))


class StateError(LabrigError):
    """A call came in a state that does not allow it (not open, output off, supply off)."""


class AxisTimeoutError(LabrigError):
    """An axis did not reach its target in time, or did not stay there.

    Attributes:
        target: Where it should have come, in its unit.
        value: Where it stands, in its unit.
    """

    def __init__(self, text: str, target: float, value: float) -> None:
        self.target = target
        self.value = value
        super().__init__(text)


class CapabilityError(LabrigError):
    """A board was asked for something that its `BoardInfo` does not declare."""


class StorageError(LabrigError):
    """A file could not be created, written, read or believed."""


class ConfigError(LabrigError):
    """A configuration file is wrong; the message lists every fault as `file:line: key: reason`."""


class PlanAbortedError(LabrigError):
    """A run was stopped by a person or by a safety condition before its plan had ended."""
