"""What happened on a simulated bench, one JSON object a line, so that a test can judge safety afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from labrig_drivers.errors import StorageError

BoardEventKind = Literal["connect", "disconnect", "program", "grounded", "fault"]


@dataclass(frozen=True)
class BoardEvent:
    """Something that a log should know of a served board.

    Attributes:
        time_s: The server's clock in s.
        instrument: Name of the board.
        what: `connect` and `disconnect` of a host, `program` of an array, `grounded` lines, `fault` answered.
        host: Where the host comes from.
        array: Which array was programmed; None for the rest.
        write_index: Which programming of it; None for the rest.
        text: Details for a person.
    """

    time_s: float
    instrument: str
    what: BoardEventKind
    host: str
    array: int | None = None
    write_index: int | None = None
    text: str = ""


class EventLog:
    """Appends events to a file, flushed line by line, so that a killed bench still leaves what it did.

    Args:
        path: The file; one that exists goes on growing.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write the bench's log {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def write(self, event: Mapping[str, object]) -> None:
        """Writes one event of plain values; those that are None are left out."""
        line = {key: value for key, value in event.items() if value is not None}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file; harmless when closed."""
        self._file.close()


def read_events(path: Path) -> list[dict[str, object]]:
    """Reads a log back, one dict for each event; a last line that was cut short is left out.

    Raises:
        StorageError: The file cannot be read, or a line before the last is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the bench's log {path}: {error}") from error
