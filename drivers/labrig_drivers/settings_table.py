"""Reads a table of settings, key by key, and refuses it with every fault in one error."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from labrig_drivers.errors import ConfigError

_NOTHING: Mapping[str, object] = {}


class SettingsTable:
    """One table of a rig file. A fault is noted and a harmless value returned; `finish()` raises them all.

    Args:
        values: The table.
        where: What stands before its keys in messages, such as `board.settings`.
        faults: Where faults are noted; a parent's list, so that nested tables report together with it.
    """

    def __init__(self, values: Mapping[str, object], where: str, faults: list[str] | None = None) -> None:
        self._values = values
        self._where = where
        self._known: set[str] = set()
        self._is_part = faults is not None
        self.faults: list[str] = [] if faults is None else faults

    @property
    def where(self) -> str:
        """What stands before its keys in messages."""
        return self._where

    def whole(self, key: str, default: int | None = None, *, low: int) -> int:
        """A whole number of at least `low`; missing is a fault where there is no default."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self._fault(key, value, f"a whole number of at least {low}")
            return low
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number of either sign; missing is a fault where there is no default."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._fault(key, value, "a number")
            return 0.0
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above zero; missing is a fault where there is no default."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
            self._fault(key, value, "a positive number")
            return 1.0
        return float(value)

    def not_negative(self, key: str, default: float) -> float:
        """A finite number, zero or above."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
            self._fault(key, value, "a number that is not negative")
            return 1.0
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            self._fault(key, value, "true or false")
            return default
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty; missing is a fault where there is no default."""
        value = self._take(key, default)
        if not isinstance(value, str) or not value:
            self._fault(key, value, "a text")
            return ""
        return value

    def choice(self, key: str, default: str, names: Collection[str]) -> str:
        """One of some names."""
        value = self._take(key, default)
        if not isinstance(value, str) or value not in names:
            self._fault(key, value, f"one of {', '.join(sorted(names))}")
            return default
        return value

    def wholes(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of whole numbers of at least 1; missing is a fault where there is no default."""
        value = self._take(key, default)
        if not isinstance(value, list | tuple) or any(
            isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in value
        ):
            self._fault(key, value, "a list of whole numbers of at least 1")
            return ()
        return tuple(value)

    def table(self, key: str, default: Mapping[str, object] | None = _NOTHING) -> SettingsTable:
        """A table inside this one; `default=None` makes a missing one a fault."""
        value = self._take(key, default)
        if not isinstance(value, Mapping):
            self._fault(key, value, "a table")
            value = {}
        return SettingsTable(value, f"{self._where}.{key}", self.faults)

    def tables(self, key: str) -> list[SettingsTable]:
        """A list of at least one table."""
        value = self._take(key, None)
        if not isinstance(value, list | tuple) or not value or any(not isinstance(one, Mapping) for one in value):
            self._fault(key, value, "a list of tables")
            return []
        return [SettingsTable(one, f"{self._where}.{key}[{index}]", self.faults) for index, one in enumerate(value)]

    def has(self, key: str) -> bool:
        """Whether the key is there; it may be."""
        self._known.add(key)
        return key in self._values

    def raw(self) -> dict[str, object]:
        """Everything in it, unchecked: somebody else judges the keys."""
        self._known |= set(self._values)
        return dict(self._values)

    def finish(self) -> None:
        """Notes every key that nobody asked for; a table of its own raises what was noted.

        Raises:
            ConfigError: There are faults.
        """
        for key in self._values:
            if key not in self._known:
                self.faults.append(f"{self._where}.{key}: unknown key; known are {', '.join(sorted(self._known))}")
        if self.faults and not self._is_part:
            raise ConfigError("\n".join(self.faults))

    def _take(self, key: str, default: object) -> object:
        self._known.add(key)
        return self._values.get(key, default)

    def _fault(self, key: str, value: object, wanted: str) -> None:
        reason = f"is missing; {wanted} is needed" if key not in self._values else f"{as_toml(value)} is not {wanted}"
        self.faults.append(f"{self._where}.{key}: {reason}")


def as_toml(value: object) -> str:
    """A value of a rig file as its author wrote it, for messages; a table is only called so."""
    match value:
        case bool():
            return str(value).lower()
        case Mapping():
            return "a table"
        case list() | tuple():
            return f"[{', '.join(as_toml(one) for one in value)}]"
        case str():
            return repr(value)
        case _:
            return str(value)
