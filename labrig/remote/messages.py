"""Requests and answers: the header of a message, checked, beside its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from labrig.remote.envelope import Arrays, Body, body_bytes
from labrig_drivers.errors import LinkTimeoutError, ProtocolError

PROTOCOL_VERSION: Final = 1
"""Version of the verbs and their meaning; that of the envelope is counted by itself."""

ClientName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Verb = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]{0,31}$")]
Word = Annotated[str, StringConstraints(max_length=200)]
Value = bool | int | float | str | list[str] | list[float] | dict[str, str] | None
Values = Mapping[str, Value]
"""What a message says besides arrays: plain values by name."""


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _RequestHeader(_Header):
    verb: Verb
    client: ClientName
    number: Annotated[int, Field(ge=0, lt=2**53)]
    lease: Annotated[str, StringConstraints(max_length=64)] | None = None
    start_by_s: float | None = None
    instrument: Annotated[str, StringConstraints(max_length=64)] | None = None
    values: Annotated[dict[Word, Value], Field(max_length=32)] = Field(default_factory=dict)


class _FaultHeader(_Header):
    kind: Word
    text: str
    details: dict[Word, int | str | list[str]] = Field(default_factory=dict)


class _AnswerHeader(_Header):
    client: ClientName
    number: int
    values: dict[Word, Value] = Field(default_factory=dict)
    fault: _FaultHeader | None = None


HeaderT = TypeVar("HeaderT", bound=_Header)


@dataclass(frozen=True)
class Request:
    """Something that a rig is asked to do.

    Attributes:
        verb: What.
        client: Who asks; the answer goes to this client's topic.
        number: Counts the requests of one lease; a number that was seen is never carried out again.
        lease: The lease that it is made under; None for what needs none.
        start_by_s: Rig's clock in s after which it is not begun any more; None has no such time.
        instrument: Which instrument it is for; None for the rig.
        values: Plain values by name.
        arrays: Arrays by name.
    """

    verb: str
    client: str
    number: int
    lease: str | None = None
    start_by_s: float | None = None
    instrument: str | None = None
    values: Values = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)

    def check_deadline(self, now_s: float) -> None:
        """Refuses what came too late to be begun.

        Args:
            now_s: The rig's clock in s.

        Raises:
            LinkTimeoutError: It came after its deadline.
        """
        late_s = 0.0 if self.start_by_s is None else now_s - self.start_by_s
        if late_s > 0.0:
            raise LinkTimeoutError(f"{self.verb} came {late_s:.3g} s after its deadline and was not carried out")

    def encoded(self) -> bytes:
        """The message.

        Raises:
            ProtocolError: It is too long, or a value cannot be sent.
        """
        try:
            header = _RequestHeader(
                verb=self.verb,
                client=self.client,
                number=self.number,
                lease=self.lease,
                start_by_s=self.start_by_s,
                instrument=self.instrument,
                values=dict(self.values),
            )
        except ValidationError as error:
            raise ProtocolError(f"{self.verb} cannot be sent: {_reasons(error)}") from None
        return body_bytes(header.model_dump_json(exclude_defaults=True).encode(), self.arrays)


@dataclass(frozen=True)
class Fault:
    """An error as it travels.

    Attributes:
        kind: Its class, out of the error tree of labrig_drivers.
        text: Its message.
        details: What else its class holds.
    """

    kind: str
    text: str
    details: Mapping[str, int | str | list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a rig says to a request.

    Attributes:
        client: Who asked.
        number: The number of the request.
        values: Plain values by name.
        arrays: Arrays by name.
        fault: Why not; None when it was carried out.
    """

    client: str
    number: int
    values: Values = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    fault: Fault | None = None

    def encoded(self) -> bytes:
        """The message.

        Raises:
            ProtocolError: It is too long, or a value cannot be sent.
        """
        fault = self.fault
        try:
            header = _AnswerHeader(
                client=self.client,
                number=self.number,
                values=dict(self.values),
                fault=None
                if fault is None
                else _FaultHeader(kind=fault.kind, text=fault.text, details=dict(fault.details)),
            )
        except ValidationError as error:
            raise ProtocolError(f"an answer cannot be sent: {_reasons(error)}") from None
        return body_bytes(header.model_dump_json(exclude_defaults=True).encode(), self.arrays)


def read_request(body: Body) -> Request:
    """Reads a request.

    Raises:
        ProtocolError: The header is no request; every fault in one error.
    """
    header = _checked(_RequestHeader, body.header, "request")
    return Request(
        verb=header.verb,
        client=header.client,
        number=header.number,
        lease=header.lease,
        start_by_s=header.start_by_s,
        instrument=header.instrument,
        values=header.values,
        arrays=body.arrays,
    )


def read_answer(body: Body) -> Answer:
    """Reads an answer.

    Raises:
        ProtocolError: The header is no answer; every fault in one error.
    """
    header = _checked(_AnswerHeader, body.header, "answer")
    fault = header.fault
    return Answer(
        client=header.client,
        number=header.number,
        values=header.values,
        arrays=body.arrays,
        fault=None if fault is None else Fault(fault.kind, fault.text, fault.details),
    )


def _checked(kind: type[HeaderT], text: bytes, what: str) -> HeaderT:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError(f"this is no {what}: {_reasons(error)}") from None


def _reasons(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, one['loc'])) or 'header'}: {one['msg']}" for one in error.errors(include_url=False)]
    return "; ".join(found[:8])[:800]
