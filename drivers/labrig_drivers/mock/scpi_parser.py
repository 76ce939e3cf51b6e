"""The listening side of SCPI: headers in long and short form, compound lines, an error queue."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from labrig_drivers.errors import InstrumentError

Run = Generator[float, None, str | bytes | None]
"""A command that takes time: yields the seconds to wait, returns its answer or None."""

Handler = Callable[[str], "str | bytes | Run | None"]

_KEYWORD = re.compile(r"([A-Z]+)([a-z]*)")
_QUEUE_LENGTH = 10
# Bits of the standard event status register (IEEE 488.2 section 11.5.1).
_ESR_DEVICE_ERROR = 1 << 3
_ESR_EXECUTION_ERROR = 1 << 4
_ESR_COMMAND_ERROR = 1 << 5
_ESR_POWER_ON = 1 << 7


class ErrorQueue:
    """First in, first out; when full, the newest entry becomes -350 and the rest is lost."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, str]] = deque()
        self.event_status = _ESR_POWER_ON

    def add(self, code: int, text: str) -> None:
        """Notes an error and its class in the event status register."""
        if -200 < code <= -100:
            self.event_status |= _ESR_COMMAND_ERROR
        elif -300 < code <= -200:
            self.event_status |= _ESR_EXECUTION_ERROR
        else:
            self.event_status |= _ESR_DEVICE_ERROR
        if len(self._entries) < _QUEUE_LENGTH:
            self._entries.append((code, text))
        else:
            self._entries[-1] = (-350, "Queue overflow")

    def next(self) -> str:
        """The oldest entry as `:SYST:ERR?` answers it."""
        code, text = self._entries.popleft() if self._entries else (0, "No error")
        return f'{code:+d},"{text}"' if code else f'{code},"{text}"'

    def read_event_status(self) -> str:
        """The event status register, which is clear after it."""
        value, self.event_status = self.event_status, 0
        return str(value)

    def clear(self) -> None:
        """Forgets everything (`*CLS`)."""
        self._entries.clear()
        self.event_status = 0


@dataclass(frozen=True)
class Command:
    """One header that the instrument knows.

    Attributes:
        pattern: The header as manuals print it, such as `SOURce[:VOLTage][:LEVel]`, with `?` for a query.
        handler: Called with the text after the header.
    """

    pattern: str
    handler: Handler


class ScpiParser:
    """Finds the command of each message unit and runs it.

    Args:
        commands: What the instrument knows.
        errors: Where faults are noted.
    """

    def __init__(self, commands: list[Command], errors: ErrorQueue) -> None:
        self._commands = [(_header_pattern(command.pattern), command.handler) for command in commands]
        self._errors = errors

    def run(self, line: str) -> Run:
        """Runs one line; yields the seconds to wait and returns the joined answers, or None when there is none.

        Never raises for a bad line: the fault goes into the error queue, and the rest of the line is dropped.
        """
        answers: list[str | bytes] = []
        for header, parameter in _units(line):
            handler = self._find(header)
            if handler is None:
                self._errors.add(-113, "Undefined header")
                break
            try:
                outcome = handler(parameter)
                answer = outcome if outcome is None or isinstance(outcome, str | bytes) else (yield from outcome)
            except InstrumentError as error:
                self._errors.add(error.code, error.text)
                break
            if answer is not None:
                answers.append(answer)
        return _joined(answers)

    def _find(self, header: str) -> Handler | None:
        return next((handler for pattern, handler in self._commands if pattern.fullmatch(header)), None)


def _joined(answers: list[str | bytes]) -> str | bytes | None:
    """One message out of the answers to the units of a line; a block makes the whole message bytes."""
    texts = [answer for answer in answers if isinstance(answer, str)]
    if len(texts) == len(answers):
        return ";".join(texts) if texts else None
    return b";".join(one.encode("ascii") if isinstance(one, str) else one for one in answers) + b"\n"


def number(parameter: str, low: float, high: float) -> float:
    """Reads a numeric parameter within a range.

    Raises:
        InstrumentError: -109 missing, -104 not a number, -222 out of range.
    """
    if not parameter:
        raise InstrumentError(-109, "Missing parameter", parameter)
    try:
        value = float(parameter)
    except ValueError:
        raise InstrumentError(-104, "Data type error", parameter) from None
    if not low <= value <= high:
        raise InstrumentError(-222, "Parameter data out of range", parameter)
    return value


def boolean(parameter: str) -> bool:
    """Reads ON, OFF, 1 or 0.

    Raises:
        InstrumentError: -109 missing, -104 anything else.
    """
    if not parameter:
        raise InstrumentError(-109, "Missing parameter", parameter)
    if parameter.upper() not in {"ON", "OFF", "1", "0"}:
        raise InstrumentError(-104, "Data type error", parameter)
    return parameter.upper() in {"ON", "1"}


def choice(parameter: str, *names: str) -> str:
    """Reads one of `names`, given as in manuals (`VOLTage`), in long or short form; returns the short form.

    Raises:
        InstrumentError: -109 missing, -224 none of them.
    """
    if not parameter:
        raise InstrumentError(-109, "Missing parameter", parameter)
    for name in names:
        if re.fullmatch(_keyword_pattern(name), parameter, re.IGNORECASE):
            return name.rstrip("abcdefghijklmnopqrstuvwxyz")
    raise InstrumentError(-224, "Illegal parameter value", parameter)


def _units(line: str) -> Iterator[tuple[str, str]]:
    """Header and parameter of each message unit; a header without a leading colon goes on in the last subsystem."""
    path = ""
    for unit in line.split(";"):
        header, _, parameter = unit.strip().partition(" ")
        if not header:
            continue
        if not header.startswith(("*", ":")):
            header = f"{path}:{header}"
        if header.startswith(":"):
            path = header.rpartition(":")[0]
        yield header, parameter.strip()


def _header_pattern(pattern: str) -> re.Pattern[str]:
    query = r"\?" if pattern.endswith("?") else ""
    body = pattern.removesuffix("?")
    if body.startswith("*"):
        return re.compile(re.escape(body) + query, re.IGNORECASE)
    expression = ""
    for node in re.findall(r"\[:?\w+\]|:?\w+", body):
        keyword = f":{_keyword_pattern(node.strip('[]:'))}1?"
        expression += f"(?:{keyword})?" if node.startswith("[") else keyword
    return re.compile(expression + query, re.IGNORECASE)


def _keyword_pattern(keyword: str) -> str:
    match = _KEYWORD.fullmatch(keyword)
    if match is None:
        raise ValueError(f"{keyword!r} is not a keyword as manuals print it")
    short, rest = match.groups()
    return f"{short}(?:{rest})?" if rest else short
