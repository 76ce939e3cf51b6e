"""What every instrument is: an async context manager with an identity."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from labrig_drivers.errors import IdentityError, ProtocolError


@dataclass(frozen=True)
class Identity:
    """Who an instrument says it is (IEEE 488.2 `*IDN?`: manufacturer, model, serial, firmware).

    Attributes:
        manufacturer: Maker.
        model: Model, as reported.
        serial: Serial number.
        firmware: Version of the firmware, and whatever follows it.
    """

    manufacturer: str
    model: str
    serial: str
    firmware: str

    @classmethod
    def parse(cls, reply: str) -> Identity:
        """Parses an `*IDN?` reply.

        Raises:
            ProtocolError: The reply has fewer than four comma-separated fields.
        """
        fields = [field.strip() for field in reply.strip().split(",", 3)]
        if len(fields) != 4:
            raise ProtocolError(f"identity reply {reply!r} does not have four comma-separated fields")
        return cls(*fields)

    def __str__(self) -> str:
        return f"{self.manufacturer} {self.model}, serial {self.serial}, firmware {self.firmware}"


@dataclass(frozen=True)
class ExpectedIdentity:
    """What a rig file demands of an instrument; `None` demands nothing.

    `model` must occur in the reported model (reports differ in prefixes such as `MODEL 2400`); `serial` must be equal.

    Attributes:
        model: Text that the reported model must contain.
        serial: Serial number that must be reported.
    """

    model: str | None = None
    serial: str | None = None

    def or_model(self, model: str) -> ExpectedIdentity:
        """The same demands, with `model` where none was named."""
        return self if self.model is not None else ExpectedIdentity(model, self.serial)

    def check(self, identity: Identity, address: str) -> None:
        """Compares with what the instrument at `address` says.

        Args:
            identity: What the instrument said.
            address: Where it is, for the message.

        Raises:
            IdentityError: Model or serial differ.
        """
        model_wrong = self.model is not None and self.model not in identity.model
        serial_wrong = self.serial is not None and self.serial != identity.serial
        if model_wrong or serial_wrong:
            expected = ", ".join(
                f"{name} {value!r}"
                for name, value in (("model", self.model), ("serial", self.serial))
                if value is not None
            )
            raise IdentityError(expected, f"model {identity.model!r}, serial {identity.serial!r}", address)


@dataclass(frozen=True)
class HostLossProtection:
    """What makes an instrument safe by itself when its host is gone (power cut, pulled cable).

    Attributes:
        silence_s: Longest time in s until its outputs are off without the host; None when nothing of the kind exists.
        text: How it works, or what is missing, in one sentence for the person at the bench.
    """

    silence_s: float | None
    text: str


@runtime_checkable
class ProtectsItself(Protocol):
    """An instrument that can say what happens to its outputs when the host is gone; others have no such thing."""

    @property
    def host_loss_protection(self) -> HostLossProtection:
        """What protects the device under test right now; `StateError` before `open()`."""
        ...


@runtime_checkable
class ReportsSettings(Protocol):
    """An instrument that can be asked how it is set, by whomever; others are known by what they were told."""

    async def read_settings(self) -> dict[str, str]:
        """Every setting that decides what a reading means, in the instrument's own words, by its own name for it.

        Only asks; nothing changes.

        Raises:
            LinkError: The instrument does not answer.
            StateError: It is not open.
        """
        ...


class Instrument(Protocol):
    """The life cycle that every instrument keeps.

    `open()` connects and checks the identity; it never changes an output. `close()` makes the instrument safe (ramp
    down, output off, read back) and then disconnects; closing twice is harmless.
    """

    @property
    def identity(self) -> Identity:
        """Who the instrument said it is when it was opened; `StateError` before that."""
        ...

    async def open(self) -> None:
        """Connects and checks the identity, without touching an output."""
        ...

    async def close(self) -> None:
        """Makes the instrument safe and disconnects."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
